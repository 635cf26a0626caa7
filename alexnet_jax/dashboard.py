"""What a run writes for TensorBoard, besides the curves of metrics.csv.

docs/tensorboard.md says how to read it. Groups of tags sort by name, and
TensorBoard opens the first two: 'eval' and 'train'. 'units', 'visual' and
'weights' follow.
"""

from collections.abc import Callable, Mapping
import contextlib
import platform
import shlex
import sys
import time

import jax
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax import diagnostics
from alexnet_jax import metrics
from alexnet_jax import observation
from alexnet_jax import pictures
from alexnet_jax import records
from alexnet_jax import run as run_lib
from alexnet_jax import timetable
from alexnet_jax import train_state
from alexnet_jax import words
from alexnet_jax.runtime import processes

# Tags, as regular expressions, by category and title of the chart.
CHARTS = {
  'train and eval': {
    'loss (nats)': ['train/loss', 'eval/loss'],
    'top-1 error': ['train/top1_error', 'eval/top1_error'],
  },
  'health': {
    'update / weights, about 0.001': ['weights/update_ratio/.*'],
    'share of dead units, near 0': ['units/dead_share/.*'],
    'colour index of the towers': ['weights/colour_index/.*'],
  },
}
# Between the first and the last, diagnostics may take this share of the time.
BUDGET = 0.01
THUMBNAIL = 32  # Side in pixels of a picture of the PROJECTOR tab.


class Dashboard:
  """Writes the diagnostics of a run; all processes must call its methods."""

  def __init__(
    self,
    run: run_lib.Run,
    table: timetable.Timetable,
    writer: metrics.MetricsWriter,
  ):
    self._run, self._table, self._events = run, table, writer.events
    self._every = run.config.train.diagnostics_every_evals
    self._weights = diagnostics.Weights(run.config.model.num_towers)
    self._batch, self._observation, self._records = None, None, None
    self._is_due, self._began, self._spent = False, time.monotonic(), 0.0

  @property
  def observe(self) -> diagnostics.Activations | None:
    """The `observe` of the evaluator; None if diagnostics are off."""
    if not self._every:
      return None
    return diagnostics.Activations(self._run.network)

  def start(self, state: train_state.TrainState, step: int, commit: str):
    """Writes what is known at the start and, at step 0, the first pictures.

    Args:
      state: the train state.
      step: number of completed steps.
      commit: from `workdir.current_commit`.
    """
    kernels = pictures.conv1(state.params)  # All processes must call `fetch`.
    if self._events is None:
      return
    config = config_lib.flatten(self._run.config)
    self._events.hyperparameters(config)
    about = describe(self._run, commit)
    texts = {'run/about': about, 'run/config': config}
    self._events.texts({tag: table_of(rows) for tag, rows in texts.items()})
    self._events.charts(CHARTS)
    if step == 0:
      inputs = pictures.first_inputs(self._run, 32)
      self._events.image(0, 'visual/augmented_inputs', inputs)
      self._events.image(0, 'visual/conv1_kernels', kernels)

  def observer(self, step: int) -> observation.Observation | None:
    """The observer of the evaluation after this step; None if none is due.

    One is due after every `diagnostics_every_evals`-th evaluation, if the
    earlier ones took less than `BUDGET`, and after the last.
    """
    self._observation, config = None, self._run.config
    if not self._every or not self._table.evaluates(step):
      return None
    self._is_due = step >= self._table.total_steps
    if self._table.evaluations(step) % self._every == 0:
      elapsed = time.monotonic() - self._began
      affords = processes.is_first() and self._spent <= BUDGET * elapsed
      self._is_due |= processes.any_process(affords)
    # The plateau rule ends a run after an evaluation that nobody could foresee.
    if self._is_due or config.optimizer.schedule == 'plateau':
      num_classes = config.model.num_classes
      self._observation = observation.Observation(num_classes)
    return self._observation

  def write(
    self,
    step: int,
    state: train_state.TrainState,
    train_step: Callable,
    arguments: tuple,
    found: Mapping[str, float],
  ) -> None:
    """Writes what the last observer has seen, and the statistics of weights.

    Args:
      step: number of completed steps.
      state: the train state.
      train_step: from `train_step.compile_train_step`.
      arguments: the arguments of the next step, from `StepArguments`.
      found: metrics of the evaluation; those of many views say that the run
        ends, and the PROJECTOR tab is written.
    """
    kernels = pictures.conv1(state.params)
    if self._events is not None:
      self._events.image(step, 'visual/conv1_kernels', kernels)
    seen, self._observation = self._observation, None
    if seen is None:
      return
    began, has_ended = time.monotonic(), any('_view/' in tag for tag in found)
    if self._is_due or has_ended:
      weights = self._weights(
        train_step, state, self._first_batch(), arguments, self._run.mesh
      )
      if self._events is not None:
        self._write_statistics(step, seen, weights)
        self._write_pictures(step, seen)
        if has_ended:
          self._write_embedding(seen)
    self._spent += seen.seconds + time.monotonic() - began

  def _first_batch(self):
    """The first training batch, on the devices: the same at every time."""
    if self._batch is None:
      with contextlib.closing(self._run.train_batches(0)) as batches:
        self._batch = next(batches)
    return self._batch

  def _write_statistics(self, step, seen, weights):
    is_relu = self._run.config.model.activation == 'relu'
    scalars = {
      'units/dead_share': seen.dead_shares() if is_relu else {},
      'weights/colour_index': weights['colour_index'],
      'weights/update_ratio': weights['update_ratio'],
    }
    histograms = {
      'units/activations': seen.samples,
      'weights/gradients': weights['gradients'],
      'weights/updates': weights['updates'],
      'weights/values': weights['weights'],
    }
    self._events.scalars(step, _tagged(scalars))
    self._events.histograms(step, _tagged(histograms))

  def _write_pictures(self, step, seen):
    from alexnet_jax import sheet  # It draws: nothing else of a run needs it.

    confusion = sheet.of_confusion(seen.confusion, self._class_names)
    self._events.image(step, 'visual/confusion_matrix', np.asarray(confusion))
    if not seen.mistakes:
      return
    names = self._class_names
    images = self._images([mistake.row for mistake in seen.mistakes])
    shown = sheet.of_predictions(
      [
        sheet.Picture(
          image,
          title=f'true: {names[mistake.label]}',
          caption=f'row {mistake.row} of {self._split}',
          bars=[(names[c], share) for c, share in mistake.classes],
          true_bar=mistake.true_bar,
        )
        for mistake, image in zip(seen.mistakes, images, strict=True)
      ],
      side=150,
      columns=3,  # So that they can be read at the size of a card.
    )
    self._events.image(step, 'visual/confident_mistakes', np.asarray(shown))

  def _write_embedding(self, seen):
    from alexnet_jax import sheet

    names = self._class_names
    rows, labels, predicted = zip(*seen.examples, strict=True)
    small = [sheet.thumbnail(x, THUMBNAIL) for x in self._images(rows)]
    self._events.embedding(
      seen.layer,
      seen.features,
      np.stack(small),
      {
        'class': [names[label] for label in labels],
        'predicted': [names[label] for label in predicted],
        'right': np.where(np.equal(labels, predicted), 'yes', 'no').tolist(),
        'row': rows,
      },
    )

  @property
  def _split(self):
    return self._run.config.input.eval_split

  @property
  def _class_names(self):
    return [words.ilsvrc().get(n, n) for n in self._run.dataset.class_names]

  def _images(self, rows):
    """The stored images of some rows of the evaluation split."""
    if self._records is None:
      self._records = records.Records(self._run.dataset, self._split)
    images = np.empty(
      (len(rows), *self._run.dataset.mean_image.shape), np.uint8
    )
    for row, image in zip(rows, images, strict=True):
      self._records.decode_named(row, image)
    return images


def _tagged(values):
  """Values by tag, from values by the names of group and layer."""
  return {
    f'{group}/{layer}': value
    for group, layers in values.items()
    for layer, value in layers.items()
  }


def describe(run: run_lib.Run, commit: str) -> dict[str, object]:
  """The command, the code, the machine and the data set, by name."""
  dataset, inputs = run.dataset, run.config.input
  devices = jax.devices()
  splits = dict.fromkeys((inputs.train_split, inputs.eval_split))
  numbers = [f'{dataset.num_examples[split]:,} {split}' for split in splits]
  return {
    'command': shlex.join(sys.orig_argv),
    'commit or version': commit,
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    'processes': jax.process_count(),
    'CPU cores': processes.available_cores(),
    'system': platform.platform(),
    'Python': platform.python_version(),
    'JAX': jax.__version__,
    'data set': dataset.path,
    'examples': ', '.join(numbers),
    'classes': len(dataset.class_names),
    'fingerprint of the data set': dataset.fingerprint,
  }


def table_of(rows: Mapping[str, object]) -> str:
  """A Markdown table with a row per name."""
  escaped = lambda x: str(x).replace('|', '\\|').replace('\n', ' ')
  lines = [f'| {name} | `{escaped(value)}` |' for name, value in rows.items()]
  return '\n'.join(['| name | value |', '|---|---|', *lines])
