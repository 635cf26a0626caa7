"""Training of cuda-convnet's nets, as its author trained them.

Pixels are raw, less the mean image. Weight decay differs by layer, and biases
have none. The rates were lowered by hand: a training has stages of a number of
epochs with a rate each. The rate of biases is twice that of weights, but in the
released parameters of the nets with local layers it is not lowered with it
(`optimizer.drop_bias_rate`). `minibatches` has the order of the images.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import math
import pathlib
import time

import jax
from jaxtyping import PyTree
import ml_collections
import numpy as np
import optax

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import evaluator
from alexnet_jax import metrics
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import progress as progress_lib
from alexnet_jax import run as run_lib
from alexnet_jax import train as train_lib
from alexnet_jax import train_state
from alexnet_jax import train_step
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from experiments import cifar10_config
from experiments import cuda_convnet
from experiments import minibatches
from experiments import program

EVAL_MINIBATCH = 500  # Images; it does not change the results.
MOMENTUM, BIAS_RATE_FACTOR = 0.9, 2.0


def make_optimizer(
  rates: optimizer.Rates, decay: Mapping[str, float]
) -> optax.GradientTransformation:
  """SGD with momentum, and weight decay by layer on the weights alone.

  Args:
    rates: learning rates, as for `optimizer.paper_sgd`.
    decay: weight decay by layer.
  """

  def add_decay(grads, params):
    def add(path, g, w):
      return g + decay[path[-2].key] * w if path[-1].key == 'kernel' else g

    return jax.tree.map_with_path(add, grads, params)

  sgd = optimizer.paper_sgd(rates, MOMENTUM, 0.0, decay_biases=False)
  return optax.chain(optax.stateless(add_decay), sgd)


def rates_of(
  rate: float, settings: ml_collections.ConfigDict
) -> dict[str, float]:
  """The learning rates of all parameters, given that of the weights.

  Args:
    rate: learning rate of the weights in this stage.
    settings: config.optimizer.
  """
  of_first_stage = settings.stages[0][1]
  followed = rate if settings.drop_bias_rate else of_first_stage
  rates = {'kernel': rate, 'bias': BIAS_RATE_FACTOR * followed}
  return {key: rates[key.rpartition('/')[2]] for key in optimizer.RATE_KEYS}


def parts_until(
  parts: Sequence[minibatches.Part], max_epochs: float
) -> Sequence[minibatches.Part]:
  """The parts that end by `max_epochs`, at least one; all if it is 0."""
  limit = max_epochs or math.inf
  return [part for part in parts if part.epoch <= limit + 1e-6] or parts[:1]


class Trainer:
  """The steps, images and statistics of one training."""

  def __init__(self, config: ml_collections.ConfigDict):
    self.config, self.dataset = config, cifar10_config.open_dataset(config)
    inputs = config.input
    self._train, self._eval = (
      minibatches.read(self.dataset, split).first(inputs.max_examples)
      for split in (inputs.train_split, inputs.eval_split)
    )
    parts = minibatches.parts(config.optimizer.stages, len(self._train.labels))
    self.parts = parts_until(parts, config.train.max_epochs)
    layers = cuda_convnet.NETS[config.model.net]
    net = cuda_convnet.CudaConvnet(
      layers, cifar10_config.ACTIVATIONS[config.model.activation]
    )
    decay = {
      name: layer.decay * config.model.has_decay
      for name, layer in zip(cuda_convnet.names(layers), layers, strict=True)
    }
    optimizer_of = functools.partial(make_optimizer, decay=decay)
    self._create = jax.jit(
      functools.partial(
        train_state.initial_state, net, optimizer_of, inputs.crop_size
      )
    )
    random_views = functools.partial(
      augment.random_views,
      crop_size=inputs.crop_size,
      flip=config.augment.flip,
      central_mean=True,
    )
    self._train_step = train_step.make_train_step(
      net, None, random_views, optimizer_of
    )
    self._eval_step = evaluator.make_eval_step(
      net, None, inputs.crop_size, central_mean=True
    )
    no_noise = np.zeros((3, 3), np.float32)
    self._statistics = placement.place(
      run_lib.Statistics(self.dataset.mean_image, no_noise), None
    )
    self._key = placement.place(jax.random.key(config.seed), None)

  def create_or_restore(
    self, checkpoints: checkpoint.Checkpoints
  ) -> tuple[train_state.TrainState, dict]:
    """The newest state and the metadata of its checkpoint; at first a new one.

    Raises:
      ValueError: if the checkpoint has another config or data set.
    """
    start = jax.random.key(self.config.seed)
    metadata = {
      'config': cifar10_config.recorded(self.config),
      'dataset': self.dataset.fingerprint,
    }

    def check(found):
      differ = {
        'config': cifar10_config.differences(
          found['config'], metadata['config']
        ),
        'dataset': found['dataset'] != metadata['dataset'],
      }
      for key in filter(differ.get, differ):
        raise ValueError(
          f'the checkpoint was made with another {key}; use a fresh --output'
        )

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
      lambda x: x.update(sharding=sharding), jax.eval_shape(self._create, start)
    )
    restored = checkpoints.restore_latest(template, check)
    if restored is not None:
      return restored
    first = {'metrics': {}, 'epoch': 0.0, 'wall_seconds': 0.0}
    return self._create(start), metadata | first

  def train(
    self,
    state: train_state.TrainState,
    part: minibatches.Part,
    progress: progress_lib.Progress,
  ) -> tuple[train_state.TrainState, dict[str, float]]:
    """The state after a part, and its mean metrics by tag."""
    rates, no_noise = rates_of(part.rate, self.config.optimizer), 0.0
    values = jax.tree.map(np.float32, (rates, no_noise))
    values = placement.place(values, None)
    state, row = train_lib.run_steps(
      self._train_step,
      state,
      self._train.minibatches(minibatches.MINIBATCH, part.start, part.stop),
      [(self._statistics, self._key, *values)] * part.steps,
      part.step - part.steps,
      progress,
    )
    return state, {**row, 'train/learning_rate': part.rate}

  def evaluate(self, params: PyTree, *, many: bool) -> dict[str, float]:
    """Loss and errors on the evaluation split, by tag."""
    flip, crop_size = self.config.augment.flip, self.config.input.crop_size
    offsets = augment.view_offsets(
      self.dataset.image_size, crop_size, many=many, flip=flip
    )
    number = len(self._eval.labels)
    return evaluator.evaluate(
      self._eval_step,
      params,
      self._eval.minibatches(EVAL_MINIBATCH, 0, number),
      self._statistics.mean_image,
      placement.place(offsets, None),
      num_examples=number,
      prefix=metrics.many_view_prefix(flip) if many else 'eval',
    )


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> None:
  """Trains to the end of the stages, resuming from the newest checkpoint.

  It ends before at `train.target_error` or `train.max_epochs`.

  Args:
    config: a config with the keys of `cifar10_config.get_config`.
    workdir: folder for config.json, checkpoints/, metrics.csv and, at the end,
      result.json.

  Raises:
    ValueError: if the folder has a checkpoint of another config or data set.
    FileNotFoundError: if the data set has not been prepared.
    FloatingPointError: if the loss is not finite.
  """
  began, commit = time.time(), workdir_lib.current_commit()
  trainer = Trainer(config)
  workdir.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack, contextlib.ExitStack() as saving:
    stack.enter_context(files.locked(workdir))
    files.write_json(
      workdir / workdir_lib.CONFIG_FILE, cifar10_config.recorded(config)
    )
    checkpoints = saving.enter_context(checkpoint.opened(workdir))
    state, metadata = trainer.create_or_restore(checkpoints)
    step = int(placement.fetch(state.step))
    writer = metrics.MetricsWriter(workdir, config.augment.flip, step)
    stack.enter_context(writer)
    last = trainer.parts[-1]
    progress = progress_lib.Progress(step, last.step, began)
    stack.callback(progress.close)
    row, before = metadata['metrics'], metadata['wall_seconds']
    for part in trainer.parts:
      if part.step <= step or _is_reached(config, row):
        continue
      state, row = trainer.train(state, part, progress)
      step, ends = part.step, part is last or _is_reached(config, row)
      if ends or _is_multiple(part.epoch, config.train.eval_every_epochs):
        row |= trainer.evaluate(state.params, many=False)
      if ends and config.input.crop_size < trainer.dataset.image_size:
        row |= trainer.evaluate(state.params, many=True)
      writer.scalars(step, part.epoch, row)
      progress.report(step, part.epoch, row)
      metadata = metadata | {
        'metrics': row,
        'epoch': part.epoch,
        'wall_seconds': before + time.time() - began,
      }
      if ends or _is_multiple(part.epoch, 1):
        error = row.get('eval/top1_error')
        checkpoints.save(step, state, metadata, error)
    saving.close()  # Waits for the last save: if it fails, so does the run.
    workdir_lib.write_result(
      workdir, step, metadata['epoch'], metadata['wall_seconds'], commit, row
    )


def _is_reached(config, row):
  """Whether the training error is as low as the config's target."""
  target = config.train.target_error
  return target > 0 and row.get('train/top1_error', 1.0) <= target


def _is_multiple(epoch, number):
  return math.isclose(epoch / number, round(epoch / number), abs_tol=1e-6)


PROGRAM = program.Program(
  check=cifar10_config.check,
  check_recorded=cifar10_config.check_recorded,
  fingerprint=lambda config: cifar10_config.open_dataset(config).fingerprint,
  train=train_and_evaluate,
)
