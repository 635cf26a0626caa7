"""Training: the compiled step, and the loop.

The loop is the documentation of the project: read `train_and_evaluate`.
"""

from collections.abc import Callable, Generator, Iterator
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import time

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree
import ml_collections
import numpy as np
import optax

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import compilation
from alexnet_jax import config as config_lib
from alexnet_jax import evaluate
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import optimizer
from alexnet_jax import processes
from alexnet_jax import run as run_lib
from alexnet_jax import timetable
from alexnet_jax import towers

log = logging.getLogger(__name__)

# Streams of randomness within a step: what they draw is a function of
# (seed, step, stream, row of the global batch), on every mesh.
AUGMENT, DROPOUT = 0, 1


def make_train_step(
  net: nn.Module,
  mesh: jax.sharding.Mesh | None,
  *,
  crop_size: int,
  flip: bool,
  momentum: float,
  weight_decay: float,
  color_divide: bool = False,
  central_mean: bool = False,
  decay_biases: bool = True,
) -> Callable[..., tuple[run_lib.TrainState, dict[str, Array]]]:
  """The compiled train step.

  It maps (state, batch, statistics, key, rates, color_std), all on the device,
  to the next state and the sums of `metrics.batch_sums`. The state is donated.
  `net` has the properties and the call of `model.AlexNet`.
  `rates` are those of `optimizer.paper_sgd`; the other arguments are those of
  `augment.random_views` and `optimizer.paper_sgd`.
  """

  def local_loss(params, batch, statistics, key, color_std):
    rows = towers.global_rows(batch['label'].size, mesh)
    images = augment.random_views(
      jax.random.fold_in(key, AUGMENT),
      batch['image'],
      rows,
      statistics.mean_image,
      statistics.directions,
      color_std,
      crop_size=crop_size,
      flip=flip,
      color_divide=color_divide,
      central_mean=central_mean,
    )
    logits = net.apply(
      {'params': params},
      images,
      train=True,
      rows=rows,
      rngs={'dropout': jax.random.fold_in(key, DROPOUT)},
    )
    sums = metrics.batch_sums(
      jax.nn.log_softmax(logits), batch['label'], batch['mask']
    )
    sums = sums if mesh is None else lax.psum(sums, 'data')
    return sums['loss'] / sums['count'], sums

  def train_step(state, batch, statistics, key, rates, color_std):
    specs = (
      towers.param_specs(state.params, mesh, net.data_split),
      towers.batch_spec(),
      *(towers.REPLICATED,) * 3,
    )
    loss = towers.shard(
      local_loss, mesh, specs, (towers.REPLICATED, towers.REPLICATED)
    )
    step_key = jax.random.fold_in(key, state.step)
    grads, sums = jax.grad(loss, has_aux=True)(
      state.params, batch, statistics, step_key, color_std
    )
    sgd = optimizer.paper_sgd(rates, momentum, weight_decay, decay_biases)
    updates, opt_state = sgd.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return run_lib.TrainState(state.step + 1, params, opt_state), sums

  return jax.jit(
    train_step, donate_argnums=0, compiler_options=compilation.network_options()
  )


def train_step_of(run: run_lib.Run) -> Callable:
  """`make_train_step` with the settings of a run."""
  config = run.config
  return make_train_step(
    run.network,
    run.mesh,
    crop_size=config.input.crop_size,
    flip=config.augment.flip,
    color_divide=config.augment.color_divide,
    central_mean=config.augment.central_mean,
    momentum=config.optimizer.momentum,
    weight_decay=config.optimizer.weight_decay,
    decay_biases=config.optimizer.decay_biases,
  )


def step_arguments(
  run: run_lib.Run,
  schedule: optimizer.RateSchedule,
  key: Key[Array, ''],
  epoch: float,
  plateau_drops: int = 0,
) -> tuple:
  """What the train step takes beside state and batch, on the device.

  Args:
    run: whose statistics and colour noise.
    schedule: of the rates.
    key: of the run, on the device.
    epoch: passes through the training set before the step.
    plateau_drops: of the schedule 'plateau' so far.
  """
  rates = schedule.rates(epoch, plateau_drops)
  augmentation = run.config.augment
  ended = 0 < augmentation.color_end_epoch <= epoch
  color_std = 0.0 if ended else augmentation.color_std
  scalars = jax.tree.map(np.float32, (rates, color_std))
  return (run.statistics, key, *towers.place(scalars, run.mesh))


def rate_schedule(optim: ml_collections.ConfigDict) -> optimizer.RateSchedule:
  """The rates that config.optimizer asks for."""
  names = [field.name for field in dataclasses.fields(optimizer.RateSchedule)]
  return optimizer.RateSchedule(**{name: optim[name] for name in names})


def _timetable(
  run: run_lib.Run, schedule: optimizer.RateSchedule
) -> timetable.Timetable:
  config = run.config
  changes = (
    *schedule.change_epochs,
    config.augment.color_end_epoch,  # 0 for never: no step begins before it.
  )
  return timetable.Timetable(
    num_examples=run.dataset.num_examples[config.input.train_split],
    batch_size=config.input.batch_size,
    epochs=config.train.epochs,
    log_every_steps=config.train.log_every_steps,
    eval_every_epochs=config.train.eval_every_epochs,
    checkpoint_every_steps=config.train.checkpoint_every_steps,
    change_epochs=changes,
  )


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
  began, commit = time.time(), metrics.current_commit()
  run = run_lib.open_run(config, workdir)
  first = processes.is_first()  # It alone writes, but for the checkpoints.
  optim = config.optimizer
  schedule = rate_schedule(optim)
  table = _timetable(run, schedule)
  train_step = train_step_of(run)
  evaluator = evaluate.make_evaluator(run)
  key = towers.place(jax.random.key(config.seed), run.mesh)
  state_norm = jax.jit(lambda s: optax.tree.norm((s.params, s.opt_state)))

  with contextlib.ExitStack() as stack:
    opened = lambda thing: stack.enter_context(contextlib.closing(thing))
    stack.enter_context(run_lib.owned_workdir(run))
    checkpoints = opened(checkpoint.Checkpoints(run.workdir))
    state, record = run_lib.create_or_restore(run, checkpoints)
    step, plateau = int(metrics.fetch(state.step)), record.plateau
    batches = opened(
      input_pipeline.prefetch_to_device(
        host_batches(run, step), run.place_batch
      )
    )
    tags = (*metrics.TRAIN_TAGS, *evaluate.tags(config.augment.flip))
    writer = opened(
      metrics.MetricsWriter(run.workdir, tags, step)
      if first
      else metrics.NullWriter()
    )
    progress = opened(
      metrics.Progress(step, table.total_steps, began, silent=not first)
    )
    ended = lambda: (
      step >= table.total_steps or plateau.has_ended(optim.plateau_drops)
    )
    arguments = lambda: step_arguments(
      run, schedule, key, table.epoch(step), plateau.drops
    )
    if not ended():
      first_batch = next(batches)
      if step == 0:
        _write_start(writer, run, state, first_batch)
      # Here and not by the first step: no row of metrics has these seconds, and
      # a step of other shapes or shardings is an error, not one more program.
      lowered = train_step.lower(state, first_batch, *arguments())
      train_step = lowered.compile()
      # The iterator of a list that has ended lets go of the list.
      batches = itertools.chain(iter([first_batch]), batches)
      del first_batch

    latest = record.metrics
    guard = PlateauGuard(config, record.stuck_steps)
    result_file = run.workdir / metrics.RESULT_FILE
    while not ended():
      if first:
        result_file.unlink(missing_ok=True)  # Of a shorter run.
      rates = schedule.rates(table.epoch(step), plateau.drops)
      stop = table.next_log(step)
      state, latest = run_steps(
        train_step, state, batches, arguments(), step, stop, progress
      )
      latest |= {'train/learning_rate': rates['kernel']}
      guard.observe(latest['train/loss'], stop - step)
      step, error = stop, None
      if table.evaluates(step):
        latest |= evaluator(state.params, many=False)
        error = latest['eval/top1_error']
        _check_finite(latest['eval/loss'], 'eval/loss', step)
        if optim.schedule == 'plateau':
          plateau = plateau.observe(error, optim.plateau_patience)
        if ended():
          latest |= evaluator(state.params, many=True)
        writer.image(step, 'conv1/kernels', _conv1_picture(state))
      # In the files before the checkpoint: a resumed run cuts the files back
      # to its checkpoint, and so never lacks a row.
      writer.scalars(step, table.epoch(step), latest)
      progress.report(step, table.epoch(step), latest)
      record = dataclasses.replace(
        record,
        metrics=latest,
        plateau=plateau,
        stuck_steps=guard.stuck_steps,
        wall_seconds=record.wall_seconds + time.time() - began,
      )
      began = time.time()
      if table.saves(step):
        norm = metrics.fetch(state_norm(state))
        _check_finite(norm, 'the norm of the state', step)
        checkpoints.save(step, state, dataclasses.asdict(record), error)
  if first and not result_file.exists():
    seconds = record.wall_seconds + time.time() - began
    metrics.write_result(
      run.workdir, step, table.epoch(step), seconds, commit, latest
    )
  return latest


def run_steps(
  train_step: Callable,
  state: run_lib.TrainState,
  batches: Iterator[PyTree],
  fixed: tuple,
  step: int,
  stop: int,
  progress: metrics.Progress,
) -> tuple[run_lib.TrainState, dict[str, float]]:
  """Takes the steps up to `stop`; returns the state and their mean metrics.

  The metrics of a step are fetched while the next one runs; those of the last
  at once. Nothing else crosses between host and device but the batches: any
  transfer that is not asked for in so many words is an error.

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

  with jax.transfer_guard('disallow'):
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


class PlateauGuard:
  """Warns, once, of a loss that stays at ln(classes).

  There the net gives every class the same probability and learns nothing: what
  too small initial weights do to a deep net.
  """

  NEAR = 0.02  # nats

  def __init__(self, config: ml_collections.ConfigDict, stuck_steps: int):
    """Goes on after `stuck_steps` steps near ln(classes)."""
    self._config, self.stuck_steps, self._warned = config, stuck_steps, False

  def observe(self, loss: float, steps: int) -> None:
    """Takes note of a mean training loss over `steps` further steps."""
    net, classes = self._config.model, self._config.model.num_classes
    stuck = abs(loss - math.log(classes)) < self.NEAR
    before = self.stuck_steps
    self.stuck_steps = before + steps if stuck else 0
    limit = self._config.train.plateau_warning_steps
    if not before < limit <= self.stuck_steps or self._warned:
      return
    self._warned = True
    log.warning(
      'For %d steps the loss has been within %g of ln(%d) = %.3f: the net gives'
      ' every class the same probability. The likely cause is initial weights'
      ' that are too small: in a fresh --workdir set config.model.conv345_init_std'
      ' (now %g; 0.03 in the source) and, if the net is narrow,'
      ' config.model.init_std and config.model.fc67_init_std (now %g and %g) to'
      ' 0.05. See README.md, "A loss that stays at ln(classes)".',
      self.stuck_steps,
      self.NEAR,
      classes,
      math.log(classes),
      net.conv345_init_std,
      net.init_std,
      net.fc67_init_std,
    )


def _check_finite(value, tag, step):
  if not math.isfinite(value):
    raise FloatingPointError(
      f'{tag} is {value} at step {step}. The checkpoints of earlier steps are'
      ' kept; train in a fresh --workdir with a lower'
      ' config.optimizer.learning_rate, or look at the data'
    )


def host_batches(
  run: run_lib.Run, step: int
) -> Generator[input_pipeline.Batch]:
  """This process's rows of the batches after `step` steps; endless."""
  return input_pipeline.train_batches(
    run.dataset,
    run.config.input.train_split,
    batch_size=run.config.input.batch_size,
    seed=run.config.seed,
    start_step=step,
    rows=run.local_rows(run.config.input.batch_size),
  )


def _write_start(writer, run, state, batch):
  """Before the first step: hyperparameters, augmented inputs, kernels."""
  kernels = _conv1_picture(state)  # All processes take part in fetching it.
  if not processes.is_first():
    return
  writer.hyperparameters(config_lib.flatten(run.config), 'eval/top1_error')
  shard = batch['image'].addressable_shards[0]
  images = jnp.asarray(metrics.fetch(shard.data)[:32])
  rows = (shard.index[0].start or 0) + jnp.arange(len(images))
  no_mean = jnp.zeros(images.shape[1:])  # Pictures for the eye keep theirs.
  augmentation = run.config.augment
  step_key = jax.random.fold_in(jax.random.key(run.config.seed), 0)
  random_views = jax.jit(
    functools.partial(
      augment.random_views,
      crop_size=run.config.input.crop_size,
      flip=augmentation.flip,
      color_divide=augmentation.color_divide,
    ),
    compiler_options=compilation.once_options(),
  )
  views = random_views(
    jax.random.fold_in(step_key, AUGMENT),
    images,
    rows,
    no_mean,
    jnp.asarray(metrics.fetch(run.statistics.directions)),
    augmentation.color_std,
  )
  picture = metrics.image_grid(metrics.fetch(views), columns=8)
  writer.image(0, 'augmented_inputs', picture)
  writer.image(0, 'conv1/kernels', kernels)


def _conv1_picture(state):
  return metrics.kernel_grid(metrics.fetch(state.params['conv1']['kernel']))
