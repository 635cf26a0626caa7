"""The training loop: read `train_and_evaluate`."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import logging
import math
import os
import time

import jax
from jaxtyping import PyTree
import ml_collections
import optax

from alexnet_jax import chance_loss
from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import evaluator as evaluator_lib
from alexnet_jax import metrics
from alexnet_jax import pictures
from alexnet_jax import placement
from alexnet_jax import pretrained
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step as train_step_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: str | os.PathLike
) -> dict[str, float]:
  """Trains to the end of the config, resuming from the newest checkpoint.

  Args:
    config: a config with the keys of configs/paper.py, checked here.
    workdir: folder for config.json, checkpoints/, metrics.csv, TensorBoard's
      event files and, at the end, result.json.

  Returns:
    The last metrics, by tag.

  Raises:
    ValueError: if config, data set and work directory do not match.
    FileNotFoundError: if the data set has not been prepared.
    FloatingPointError: if the loss is not finite; the checkpoints are kept.
  """
  began, commit = time.time(), workdir_lib.current_commit()
  workdir, config, run = _open(workdir, config)
  table = train_step_lib.make_timetable(run)
  arguments = train_step_lib.StepArguments(run, table)
  evaluator = evaluator_lib.Evaluator(run)
  with contextlib.ExitStack() as stack, contextlib.ExitStack() as saving:
    stack.enter_context(workdir_lib.owned_workdir(workdir, config))
    checkpoints = saving.enter_context(checkpoint.opened(workdir))
    state, metadata = _create_or_restore(run, checkpoints)
    step = int(placement.fetch(state.step))
    batches = run.train_batches(step)
    stack.callback(batches.close)
    writer = metrics.MetricsWriter(workdir, config.augment.flip, step)
    stack.enter_context(writer)
    _write_start(writer, run, state, step)
    progress = metrics.Progress(step, table.total_steps, began)
    stack.callback(progress.close)
    warning = chance_loss.ChanceLossWarning(config, metadata.stuck_steps)
    if not _has_ended(step, metadata.plateau, table, config):
      workdir_lib.remove_result(workdir)  # Left by a shorter run.
      train_step = train_step_lib.compile_train_step(
        run, state, arguments(step)
      )

    while not _has_ended(step, metadata.plateau, table, config):
      stop, plateau = table.next_log(step), metadata.plateau
      inputs = arguments.for_steps(step, stop, plateau.drops)
      state, row = run_steps(train_step, state, batches, inputs, step, progress)
      row['train/learning_rate'] = arguments.rate(stop - 1, plateau.drops)
      warning.observe(row['train/loss'], stop - step)
      step = stop
      if table.evaluates(step):
        row |= evaluator(state.params, many=False)
        _check_finite(row['eval/loss'], 'eval/loss', step)
        plateau = _update_plateau(plateau, row, config.optimizer)
        if _has_ended(step, plateau, table, config):
          row |= evaluator(state.params, many=True)
        writer.image(step, 'conv1/kernels', pictures.conv1(state.params))
      # The row precedes the checkpoint: a resumed run truncates the files to
      # its checkpoint, so they never lack a row.
      writer.scalars(step, table.epoch(step), row)
      progress.report(step, table.epoch(step), row)
      metadata = dataclasses.replace(
        metadata,
        metrics=row,
        plateau=plateau,
        stuck_steps=warning.stuck_steps,
        wall_seconds=metadata.wall_seconds + time.time() - began,
      )
      began = time.time()
      if table.saves(step):
        _check_finite(_norm(state), 'the norm of the state', step)
        error = row.get('eval/top1_error')  # None without evaluation.
        checkpoints.save(step, state, dataclasses.asdict(metadata), error)
    saving.close()  # Waits for the last save: if it fails, so does the run.
    seconds = metadata.wall_seconds + time.time() - began
    workdir_lib.write_result(
      workdir, step, table.epoch(step), seconds, commit, metadata.metrics
    )
  return metadata.metrics


def _open(workdir, config):
  """Checks work directory and config and opens the run; writes nothing."""
  workdir = workdir_lib.check_workdir(workdir, config)
  run = run_lib.open_run(config)
  processes.check_same({'--workdir': str(workdir)})
  dataset_lib.warn_of_sizes(
    run.dataset,
    train_split=config.input.train_split,
    train_batch_size=config.input.batch_size,
    eval_split=config.input.eval_split,
    eval_batch_size=config.eval.batch_size,
  )
  if config.train.init_from and not checkpoint.saved_steps(workdir):
    pretrained.check(run)
  return workdir, run.config, run


def _create_or_restore(run, checkpoints):
  create = train_state.create_train_state
  if run.config.train.init_from:
    create = pretrained.create_train_state
  return train_state.create_or_restore(run, checkpoints, create)


def _write_start(writer, run, state, step):
  """Writes hyperparameters and, at step 0, the first pictures."""
  hyperparameters = config_lib.flatten(run.config)
  writer.hyperparameters(hyperparameters, 'eval/top1_error')
  if step > 0:
    return
  kernels = pictures.conv1(state.params)  # All processes must call `fetch`.
  if processes.is_first():
    writer.image(0, 'augmented_inputs', pictures.first_inputs(run, 32))
    writer.image(0, 'conv1/kernels', kernels)


@jax.jit
def _state_norm(state):
  return optax.tree.norm((state.params, state.opt_state))


def _norm(state):
  return placement.fetch(_state_norm(state))


def _update_plateau(plateau, row, optim):
  """The state of the plateau schedule after an evaluation."""
  if optim.schedule != 'plateau':
    return plateau
  return plateau.observe(row['eval/top1_error'], optim.plateau_patience)


def _has_ended(step, plateau, table, config):
  return step >= table.total_steps or plateau.has_ended(
    config.optimizer.plateau_drops
  )


def run_steps(
  train_step: Callable,
  state: train_state.TrainState,
  batches: Iterator[PyTree],
  inputs: Iterable[tuple],
  step: int,
  progress: metrics.Progress,
) -> tuple[train_state.TrainState, dict[str, float]]:
  """Runs one train step per element of `inputs`.

  The metrics of a step are fetched while the next step runs. The only other
  transfers are those of batches and changed rates; implicit transfers raise.

  Args:
    train_step: from `train_step.compile_train_step`.
    state: train state after `step` steps; donated.
    batches: batches on the devices, beginning with that of the next step.
    inputs: the other arguments of `train_step`, one tuple per step.
    step: number of completed steps.
    progress: notified of every finished step.

  Returns:
    The train state, and the mean metrics of these steps by tag.

  Raises:
    FloatingPointError: if a loss is not finite.
  """
  totals, waited, began, pending = metrics.Totals(), 0.0, time.time(), None

  def finish(step, sums):
    sums = placement.fetch(sums)
    _check_finite(sums['loss'], 'train/loss', step)
    totals.add(sums)
    progress.update()

  with jax.transfer_guard('disallow'):
    for arguments in inputs:
      requested = time.time()
      batch = next(batches)
      waited += time.time() - requested
      state, sums = train_step(state, batch, *arguments)
      if pending is not None:  # Fetched while this step runs.
        finish(step, pending)
      pending, step = sums, step + 1
    finish(step, pending)
  seconds = time.time() - began
  names = [tag.partition('/')[2] for tag in metrics.TRAIN_TAGS]
  means = totals.means([name for name in names if name in totals.sums])
  return state, {f'train/{name}': mean for name, mean in means.items()} | {
    'train/images_per_second': totals.count / seconds,
    'train/input_wait_fraction': waited / seconds,
  }


def _check_finite(value, tag, step):
  if not math.isfinite(value):
    raise FloatingPointError(
      f'{tag} is {value} at step {step}. Checkpoints of earlier steps, if any,'
      ' are kept; train in a fresh --workdir with a lower'
      ' config.optimizer.learning_rate, or look at the data'
    )
