"""Training: the compiled step, and the loop.

The loop is the documentation of the project: read `train_and_evaluate`.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import math
import os
import time

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
from alexnet_jax import files
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import timetable
from alexnet_jax import towers

# Streams of randomness within a step: what they draw is a function of
# (seed, step, stream, row of the global batch), on every mesh.
AUGMENT, DROPOUT = 0, 1


def make_train_step(
  net: nn.Module,
  mesh: jax.sharding.Mesh | None,
  *,
  crop_size: int,
  flip: bool,
  color_std: float,
  momentum: float,
  weight_decay: float,
) -> Callable[..., tuple[run_lib.TrainState, dict[str, Array]]]:
  """The compiled train step.

  It maps (state, batch, statistics, key, learning_rate), all on the device,
  to the next state and the sums of `metrics.batch_sums`. The state is donated.
  """

  def local_loss(params, batch, statistics, key):
    rows = towers.global_rows(batch['label'].size, mesh)
    images = augment.random_views(
      jax.random.fold_in(key, AUGMENT),
      batch['image'],
      rows,
      statistics.mean_image,
      statistics.directions,
      crop_size=crop_size,
      flip=flip,
      color_std=color_std,
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

  def train_step(state, batch, statistics, key, learning_rate):
    specs = (
      towers.param_specs(state.params, mesh),
      towers.batch_spec(),
      towers.REPLICATED,
      towers.REPLICATED,
    )
    loss = towers.shard(
      local_loss, mesh, specs, (towers.REPLICATED, towers.REPLICATED)
    )
    step_key = jax.random.fold_in(key, state.step)
    grads, sums = jax.grad(loss, has_aux=True)(
      state.params, batch, statistics, step_key
    )
    sgd = optimizer.paper_sgd(learning_rate, momentum, weight_decay)
    updates, opt_state = sgd.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return run_lib.TrainState(state.step + 1, params, opt_state), sums

  return jax.jit(
    train_step, donate_argnums=0, compiler_options=model.compiler_options()
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
  run.workdir.mkdir(parents=True, exist_ok=True)
  optim, inputs = config.optimizer, config.input
  table = timetable.Timetable(
    num_examples=run.dataset.num_examples[inputs.train_split],
    batch_size=inputs.batch_size,
    drop_epochs=optim.drop_epochs if optim.schedule == 'steps' else (),
    **config.train,
  )
  train_step = make_train_step(
    run.network,
    run.mesh,
    crop_size=inputs.crop_size,
    momentum=optim.momentum,
    weight_decay=optim.weight_decay,
    **config.augment,
  )
  evaluator = evaluate.make_evaluator(run)
  key = towers.place(jax.random.key(config.seed), run.mesh)
  state_norm = jax.jit(lambda s: optax.tree.norm((s.params, s.opt_state)))

  with contextlib.ExitStack() as stack:
    opened = lambda thing: stack.enter_context(contextlib.closing(thing))
    stack.enter_context(files.locked(run.workdir))
    config_lib.open_workdir(workdir, config)
    checkpoints = opened(checkpoint.Checkpoints(run.workdir))
    state, record = run_lib.create_or_restore(run, checkpoints)
    step = int(metrics.fetch(state.step))
    batches = opened(
      input_pipeline.prefetch_to_device(
        _host_batches(run, step), run.place_batch
      )
    )
    tags = (*metrics.TRAIN_TAGS, *evaluate.tags(config.augment.flip))
    writer = opened(metrics.MetricsWriter(run.workdir, tags, step))
    progress = opened(metrics.Progress(step, table.total_steps, began))
    if step == 0:
      _write_start(writer, run, state)

    latest, plateau = record.metrics, record.plateau
    result_file = run.workdir / metrics.RESULT_FILE
    while step < table.total_steps and not plateau.has_ended(
      optim.plateau_drops
    ):
      result_file.unlink(missing_ok=True)  # Of a shorter run.
      drops = plateau.drops + table.drops(step)  # One of them is always 0.
      rate = optim.learning_rate / optim.drop_factor**drops
      fixed = (run.statistics, key, towers.place(np.float32(rate), run.mesh))
      stop = table.next_log(step)
      state, latest = run_steps(
        train_step, state, batches, fixed, step, stop, progress
      )
      latest |= {'train/learning_rate': rate}
      step, error = stop, None
      if table.evaluates(step):
        latest |= evaluator(state.params, many=False)
        error = latest['eval/top1_error']
        _check_finite(latest['eval/loss'], 'eval/loss', step)
        if optim.schedule == 'plateau':
          plateau = plateau.observe(error, optim.plateau_patience)
        if step == table.total_steps or plateau.has_ended(optim.plateau_drops):
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
        wall_seconds=record.wall_seconds + time.time() - began,
      )
      began = time.time()
      if table.saves(step):
        norm = metrics.fetch(state_norm(state))
        _check_finite(norm, 'the norm of the state', step)
        checkpoints.save(step, state, dataclasses.asdict(record), error)
  if not result_file.exists():
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
  at once.

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


def _check_finite(value, tag, step):
  if not math.isfinite(value):
    raise FloatingPointError(
      f'{tag} is {value} at step {step}. The checkpoints of earlier steps are'
      ' kept; train in a fresh --workdir with a lower'
      ' config.optimizer.learning_rate, or look at the data'
    )


def _host_batches(run, step):
  return input_pipeline.train_batches(
    run.dataset,
    run.config.input.train_split,
    batch_size=run.config.input.batch_size,
    seed=run.config.seed,
    start_step=step,
  )


def _write_start(writer, run, state):
  """Before the first step: hyperparameters, augmented inputs, kernels."""
  writer.hyperparameters(config_lib.flatten(run.config), 'eval/top1_error')
  with contextlib.closing(_host_batches(run, 0)) as batches:
    images = jnp.asarray(next(batches)['image'][:32])
  no_mean = jnp.zeros(images.shape[1:])  # Pictures for the eye keep theirs.
  directions = jnp.asarray(augment.color_directions(run.dataset.rgb_covariance))
  step_key = jax.random.fold_in(jax.random.key(run.config.seed), 0)
  random_views = jax.jit(
    functools.partial(
      augment.random_views,
      crop_size=run.config.input.crop_size,
      **run.config.augment,
    )
  )
  views = random_views(
    jax.random.fold_in(step_key, AUGMENT),
    images,
    jnp.arange(len(images)),
    no_mean,
    directions,
  )
  picture = metrics.image_grid(metrics.fetch(views), columns=8)
  writer.image(0, 'augmented_inputs', picture)
  writer.image(0, 'conv1/kernels', _conv1_picture(state))


def _conv1_picture(state):
  return metrics.kernel_grid(metrics.fetch(state.params['conv1']['kernel']))
