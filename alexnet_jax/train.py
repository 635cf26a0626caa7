"""Training: the state, the compiled step, and the loop.

The loop is the documentation of the project: read `train_and_evaluate`.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import pathlib
import subprocess
import time

from clu import parameter_overview
import flax
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
import ml_collections
import numpy as np
import optax

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import evaluate
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import prepare
from alexnet_jax import towers

log = logging.getLogger(__name__)

# Streams of randomness within a step: what they draw is a function of
# (seed, step, stream, row of the global batch), on every mesh.
AUGMENT, DROPOUT = 0, 1

RESULT_FILE = 'result.json'


@flax.struct.dataclass
class TrainState:
  """All that a step changes: nothing random is in it.

  Fields are trees of arrays, or of what stands for them (specs, shapes).
  """

  step: PyTree  # int32 scalar: steps done.
  params: PyTree
  opt_state: PyTree  # v of the paper.


@flax.struct.dataclass
class Statistics:
  """The training set's statistics, on the device."""

  mean_image: PyTree  # [size, size, 3], 0..255
  directions: PyTree  # [3, 3], see augment.color_directions


def create_network(config: ml_collections.ConfigDict, mesh) -> nn.Module:
  """The network of `config.model` for this mesh."""
  return model.AlexNet(**config.model, tower_devices=towers.tower_devices(mesh))


def create_train_state(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | None
) -> TrainState:
  """The state before the first step, placed on the mesh."""
  crop = config.input.crop_size
  net = create_network(config, None)

  def create(key):
    params = net.init(key, jnp.zeros((1, crop, crop, 3)))['params']
    opt_state = optimizer.paper_sgd(0.0, 0.0, 0.0).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

  state = jax.jit(create)(jax.random.key(config.seed))
  return towers.place(state, mesh, towers.param_specs(state, mesh))


def make_train_step(
    net: nn.Module,
    mesh: jax.sharding.Mesh | None,
    *,
    crop_size: int,
    flip: bool,
    color_std: float,
    momentum: float,
    weight_decay: float,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """The compiled train step.

  It maps (state, batch, statistics, key, learning_rate), all on the device,
  to the next state and the sums of `metrics.batch_sums`. The state is donated.
  """

  def local_loss(params, batch, statistics, key):
    rows = towers.global_rows(batch['label'].size, mesh)
    images = augment.random_views(
        jax.random.fold_in(key, AUGMENT), batch['image'], rows,
        statistics.mean_image, statistics.directions,
        crop_size=crop_size, flip=flip, color_std=color_std,
    )
    logits = net.apply(
        {'params': params}, images, train=True, rows=rows,
        rngs={'dropout': jax.random.fold_in(key, DROPOUT)},
    )
    sums = metrics.batch_sums(jax.nn.log_softmax(logits), batch['label'], batch['mask'])
    sums = sums if mesh is None else lax.psum(sums, 'data')
    return sums['loss'] / sums['count'], sums

  def train_step(state, batch, statistics, key, learning_rate):
    specs = towers.param_specs(state.params, mesh), towers.batch_spec(), towers.P(), towers.P()
    loss = towers.shard(local_loss, mesh, specs, (towers.P(), towers.P()))
    step_key = jax.random.fold_in(key, state.step)
    grads, sums = jax.grad(loss, has_aux=True)(state.params, batch, statistics, step_key)
    sgd = optimizer.paper_sgd(learning_rate, momentum, weight_decay)
    updates, opt_state = sgd.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), sums

  return jax.jit(
      train_step, donate_argnums=0, compiler_options=model.compiler_options()
  )


@dataclasses.dataclass(frozen=True)
class Calendar:
  """What happens after which step; steps count from 1, epochs are fractions.

  All but the first two are the keys of config.train, and `drop_epochs` the
  one of config.optimizer (of the schedule 'steps'; else empty).
  """

  num_examples: int
  batch_size: int
  epochs: float
  log_every_steps: int
  eval_every_epochs: float
  checkpoint_every_steps: int
  drop_epochs: Sequence[float] = ()

  @property
  def total_steps(self) -> int:
    return math.ceil(self.epochs * self.num_examples / self.batch_size)

  def epoch(self, step: int) -> float:
    """Passes through the training set in `step` steps."""
    return step * self.batch_size / self.num_examples

  def drops(self, step: int) -> int:
    """How often the rate of the step after `step` has been dropped."""
    return optimizer.drops_at(self.epoch(step), self.drop_epochs)

  def evaluates(self, step: int) -> bool:
    """Whether a multiple of `eval_every_epochs` ends with this step."""
    done = lambda s: math.floor(self.epoch(s) / self.eval_every_epochs + 1e-9)
    return done(step) > done(step - 1) or step == self.total_steps

  def saves(self, step: int) -> bool:
    """Whether a checkpoint is saved."""
    return step % self.checkpoint_every_steps == 0 or self.evaluates(step)

  def logs(self, step: int) -> bool:
    """Whether a row of metrics ends with this step.

    Also before the rate changes and with every checkpoint, so that a row has
    one rate and a resumed run writes the rows of the uninterrupted one.
    """
    return (
        step % self.log_every_steps == 0
        or self.saves(step)
        or self.drops(step) != self.drops(step - 1)
    )

  def next_log(self, step: int) -> int:
    """The first step after `step` that ends a row of metrics."""
    return next(s for s in itertools.count(step + 1) if self.logs(s))


def load_dataset(config: ml_collections.ConfigDict) -> input_pipeline.Dataset:
  """The prepared data set, checked against the config.

  The digits, which need no download, are prepared on first use.
  """
  inputs = config.input
  path = input_pipeline.dataset_path(inputs.data_dir, inputs.dataset)
  if inputs.dataset == 'digits' and not path.exists():
    prepare.prepare('digits', 'digits', inputs.data_dir, size=inputs.image_size)
  dataset = input_pipeline.open_dataset(inputs.data_dir, inputs.dataset)
  input_pipeline.check_dataset(
      dataset,
      image_size=inputs.image_size,
      num_classes=config.model.num_classes,
      splits={
          'config.input.train_split': inputs.train_split,
          'config.input.eval_split': inputs.eval_split,
      },
  )
  return dataset


def make_evaluator(
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh | None,
    dataset: input_pipeline.Dataset,
    statistics: Statistics,
) -> Callable[..., dict[str, float]]:
  """A function (params, many) -> metrics of the evaluation split."""
  eval_step = evaluate.make_eval_step(
      create_network(config, mesh), mesh, config.input.crop_size
  )
  split = config.input.eval_split

  def evaluator(params: PyTree, many: bool) -> dict[str, float]:
    flip = config.augment.flip
    offsets = augment.view_offsets(
        config.input.image_size, config.input.crop_size, many=many, flip=flip
    )
    batches = input_pipeline.eval_batches(
        dataset, split, batch_size=config.eval.batch_size
    )
    return evaluate.evaluate(
        eval_step, params,
        input_pipeline.prefetch_to_device(batches, _batch_placer(mesh)),
        statistics.mean_image,
        towers.place(offsets, mesh),
        num_examples=dataset.num_examples[split],
        prefix=evaluate.many_view_prefix(flip) if many else 'eval',
    )

  return evaluator


@dataclasses.dataclass(frozen=True)
class Record:
  """What a checkpoint holds beside the train state."""

  config: dict[str, object]  # By dotted key.
  metrics: dict[str, float]  # The newest row, by tag.
  plateau: optimizer.Plateau = optimizer.Plateau()
  wall_seconds: float = 0.0  # Of all commands so far.


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike
) -> dict[str, float]:
  """Trains to the end of the config, or on from the newest checkpoint.

  Args:
    config: checked here, before anything is read.
    workdir: gets config.json, checkpoints/, metrics.csv, TensorBoard's event
      files, and at the end result.json.

  Returns:
    The last metrics, by tag.

  Raises:
    ValueError: if config, data set and work directory do not fit.
    FileNotFoundError: if the data set has not been prepared.
    FloatingPointError: if the loss is not finite; the checkpoints are kept.
  """
  began = time.time()
  config_lib.check(config, jax.device_count())
  dataset = load_dataset(config)
  workdir = config_lib.open_workdir(workdir, config)
  optim, inputs = config.optimizer, config.input
  calendar = Calendar(
      num_examples=dataset.num_examples[inputs.train_split],
      batch_size=inputs.batch_size,
      drop_epochs=optim.drop_epochs if optim.schedule == 'steps' else (),
      **config.train,
  )
  mesh = towers.create_mesh(config.mesh.layout, config.mesh.towers, jax.devices())
  statistics = place_statistics(dataset, mesh)
  evaluator = make_evaluator(config, mesh, dataset, statistics)
  train_step = make_train_step(
      create_network(config, mesh), mesh, crop_size=inputs.crop_size,
      flip=config.augment.flip, color_std=config.augment.color_std,
      momentum=optim.momentum, weight_decay=optim.weight_decay,
  )
  key = towers.place(jax.random.key(config.seed), mesh)

  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
        contextlib.closing(checkpoint.Checkpoints(workdir))
    )
    state, record = create_or_restore(config, mesh, checkpoints)
    first_step = step = int(metrics.fetch(state.step))
    host_batches = _host_batches(config, dataset, first_step)
    batches = stack.enter_context(contextlib.closing(
        input_pipeline.prefetch_to_device(host_batches, _batch_placer(mesh))
    ))
    writer = stack.enter_context(contextlib.closing(metrics.MetricsWriter(
        workdir, (*metrics.TRAIN_TAGS, *evaluate.tags(config.augment.flip)), step
    )))
    if step == 0:
      _write_start(writer, config, state, dataset)
    progress = stack.enter_context(contextlib.closing(
        metrics.Progress(step, calendar.total_steps, began)
    ))
    latest, plateau = record.metrics, record.plateau
    while step < calendar.total_steps and not _has_ended(optim, plateau):
      stop = calendar.next_log(step)
      rate = learning_rate(optim, calendar.drops(step), plateau)
      fixed = (statistics, key, towers.place(np.float32(rate), mesh))
      state, latest = run_steps(train_step, state, batches, fixed, step, stop, progress)
      latest |= {'train/learning_rate': rate}
      step, error = stop, None
      if calendar.evaluates(step):
        latest |= evaluator(state.params, many=False)
        error = latest['eval/top1_error']
        _check_finite(latest['eval/loss'], 'eval/loss', step)
        if optim.schedule == 'plateau':
          plateau = plateau.observe(error, optim.plateau_patience)
        if step == calendar.total_steps or _has_ended(optim, plateau):
          latest |= evaluator(state.params, many=True)
        writer.image(step, 'conv1/kernels', _conv1_picture(state))
      # In the files before the checkpoint: a resumed run cuts the files back
      # to its checkpoint, and so never lacks a row.
      writer.scalars(step, calendar.epoch(step), latest)
      progress.report(step, calendar.epoch(step), latest)
      if calendar.saves(step):
        seconds = record.wall_seconds + time.time() - began
        checkpoints.save(
            step, state, dataclasses.asdict(Record(
                config_lib.flatten(config), latest, plateau, seconds
            )), error,
        )
  if step > first_step or not (workdir / RESULT_FILE).exists():
    _write_result(workdir, step, calendar, record.wall_seconds + time.time() - began, latest)
  return latest


def run_steps(
    train_step: Callable,
    state: TrainState,
    batches: Iterator[PyTree],
    fixed: tuple,
    step: int,
    stop: int,
    progress: metrics.Progress,
) -> tuple[TrainState, dict[str, float]]:
  """Takes the steps up to `stop`; returns the state and their mean metrics.

  Args:
    train_step: from `make_train_step`.
    state: after `step` steps; donated.
    batches: on the device, beginning with that of the next step.
    fixed: the other arguments of `train_step`.
    step: steps done.
    stop: the last step to take, above `step`.
    progress: is told of every finished step.

  Raises:
    FloatingPointError: if a loss is not finite.
  """
  totals, waited, began, pending = metrics.Totals(), 0.0, time.time(), None

  def finish(step, sums):
    sums = metrics.fetch(sums)
    _check_finite(sums['loss'], 'train/loss', step)
    totals.add(sums)
    progress.update()

  for current in range(step + 1, stop + 1):
    asked = time.time()
    batch = next(batches)
    waited += time.time() - asked
    state, sums = train_step(state, batch, *fixed)
    if pending is not None:  # Of the step before, while this one runs.
      finish(current - 1, pending)
    pending = sums
  finish(stop, pending)
  seconds = time.time() - began
  return state, totals.means('train', ('loss', 'top1_error')) | {
      'train/images_per_second': totals.count / seconds,
      'train/input_wait_fraction': waited / seconds,
  }


def create_or_restore(
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh | None,
    checkpoints: checkpoint.Checkpoints,
    step: int | None = None,
) -> tuple[TrainState, Record]:
  """The state of the newest checkpoint (or of `step`), else a new one.

  Raises:
    ValueError: if the checkpoint was made with another config.
  """
  state = create_train_state(config, mesh)
  if step is None:
    restored = checkpoints.restore_latest(state)
  else:
    restored = checkpoints.restore(state, step)
  if restored is None:
    log.info('%s', parameter_overview.get_parameter_overview(
        state.params, include_stats=True
    ))
    return state, Record(config_lib.flatten(config), {})
  state, record = restored
  record['plateau'] = optimizer.Plateau(**record['plateau'])
  record = Record(**record)
  config_lib.check_unchanged(config, record.config, 'the checkpoint')
  log.info('Restored the checkpoint of step %d.', int(metrics.fetch(state.step)))
  return state, record


def evaluate_checkpoint(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike, which: str
) -> dict[str, float]:
  """Evaluates the 'best' or the 'latest' checkpoint on one and on many views.

  Prints the errors and writes them to evaluation.json in `workdir`.

  Raises:
    ValueError: if config, data set and work directory do not fit.
    FileNotFoundError: if there is no data set or no checkpoint.
  """
  config_lib.check(config, jax.device_count())
  workdir = pathlib.Path(workdir).expanduser().absolute()
  if not (workdir / 'checkpoints').is_dir():
    raise FileNotFoundError(
        f'no checkpoints in --workdir={workdir}; train first: --mode=train'
    )
  workdir = config_lib.open_workdir(workdir, config)
  dataset = load_dataset(config)
  mesh = towers.create_mesh(config.mesh.layout, config.mesh.towers, jax.devices())
  with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
    step = checkpoints.best_step() if which == 'best' else max(checkpoints.steps(), default=None)
    if step is None:
      raise FileNotFoundError(
          f'no complete {which} checkpoint in --workdir={workdir}; train on:'
          ' --mode=train'
      )
    state, _ = create_or_restore(config, mesh, checkpoints, step)
  evaluator = make_evaluator(config, mesh, dataset, place_statistics(dataset, mesh))
  result = evaluator(state.params, many=False) | evaluator(state.params, many=True)
  print(f'{which} checkpoint, step {step}, {config.input.eval_split} of {config.input.dataset}:')
  for tag in (t for t in result if t.endswith('error')):
    print(f'{tag:26} {result[tag]:.2%}')
  _write_json(workdir / 'evaluation.json', {'step': step, 'checkpoint': which, **result})
  return result


def place_statistics(dataset: input_pipeline.Dataset, mesh) -> Statistics:
  """The data set's statistics, on every device."""
  directions = augment.color_directions(dataset.rgb_covariance)
  return towers.place(Statistics(dataset.mean_image, directions), mesh)


def learning_rate(optim, drops: int, plateau: optimizer.Plateau) -> float:
  """The rate of the next step under `config.optimizer`."""
  drops = plateau.drops if optim.schedule == 'plateau' else drops
  return optim.learning_rate / optim.drop_factor**drops


def _has_ended(optim, plateau):
  return optim.schedule == 'plateau' and plateau.drops > optim.plateau_drops


def _check_finite(value, tag, step):
  if not math.isfinite(value):
    raise FloatingPointError(
        f'{tag} is {value} at step {step}. The checkpoints of earlier steps are'
        ' kept; lower config.optimizer.learning_rate, or look at the data'
    )


def _batch_placer(mesh):
  return lambda batch: towers.place(batch, mesh, towers.batch_spec())


def _host_batches(config, dataset, step):
  return input_pipeline.train_batches(
      dataset, config.input.train_split, batch_size=config.input.batch_size,
      seed=config.seed, start_step=step,
  )


def _write_start(writer, config, state, dataset):
  """Before the first step: hyperparameters, augmented inputs, kernels."""
  writer.hyperparameters(config_lib.flatten(config), 'eval/top1_error')
  with contextlib.closing(_host_batches(config, dataset, 0)) as batches:
    images = jnp.asarray(next(batches)['image'][:32])
  step_key = jax.random.fold_in(jax.random.key(config.seed), 0)
  no_mean = jnp.zeros(images.shape[1:])  # Pictures for the eye keep theirs.
  directions = jnp.asarray(augment.color_directions(dataset.rgb_covariance))
  random_views = jax.jit(functools.partial(
      augment.random_views, crop_size=config.input.crop_size,
      flip=config.augment.flip, color_std=config.augment.color_std,
  ))
  views = random_views(
      jax.random.fold_in(step_key, AUGMENT), images, jnp.arange(len(images)),
      no_mean, directions,
  )
  writer.image(0, 'augmented_inputs', metrics.image_grid(metrics.fetch(views), 8))
  writer.image(0, 'conv1/kernels', _conv1_picture(state))


def _conv1_picture(state):
  return metrics.kernel_grid(metrics.fetch(state.params['conv1']['kernel']))


def _write_result(workdir, step, calendar, wall_seconds, latest):
  _write_json(workdir / RESULT_FILE, {
      'step': step,
      'epoch': calendar.epoch(step),
      'wall_seconds': round(wall_seconds, 1),
      'commit': _commit(),
      'devices': [device.device_kind for device in jax.devices()],
      **latest,
  })


def _write_json(path, values):
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(values, indent=1) + '\n')
  os.replace(temporary, path)


def _commit():
  """The commit of this code, with '+' where files differ; '' outside git."""
  command = ['git', 'describe', '--always', '--dirty=+', '--abbrev=40', '--exclude=*']
  try:
    found = subprocess.run(
        command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True
    )
  except OSError:
    return ''
  return found.stdout.strip()
