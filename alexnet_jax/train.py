"""The training loop: read `train_and_evaluate`."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import functools
import logging
import os
import time

import jax
from jaxtyping import PyTree
import ml_collections

from alexnet_jax import chance_loss
from alexnet_jax import checkpoint
from alexnet_jax import dashboard
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import divergence
from alexnet_jax import evaluator as evaluator_lib
from alexnet_jax import metrics
from alexnet_jax import placement
from alexnet_jax import pretrained
from alexnet_jax import progress as progress_lib
from alexnet_jax import rising_loss
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step as train_step_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import agreement
from alexnet_jax.runtime import processes
from alexnet_jax.runtime import profiler
from alexnet_jax.runtime import replicas
from alexnet_jax.runtime import signals

log = logging.getLogger(__name__)


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  stop: Callable[[], int] = lambda: 0,
) -> dict[str, float]:
  """Trains to the end of the config, resuming from the newest checkpoint.

  Args:
    config: a config with the keys of configs/paper.py, checked here.
    workdir: folder for config.json, checkpoints/, metrics.csv, TensorBoard's
      event files and, at the end, result.json.
    stop: asked before a step; if not 0 in any process, all save and end.

  Returns:
    The last metrics, by tag.

  Raises:
    ValueError: if config, data set and work directory do not match.
    FileNotFoundError: if the data set has not been prepared.
    FloatingPointError: if the loss is not finite; the checkpoints are kept.
    signals.Stopped: if `stop` has ended the run.
  """
  began, commit = time.time(), workdir_lib.current_commit()
  workdir, config, run = _open(workdir, config)
  table = train_step_lib.make_timetable(run)
  arguments = train_step_lib.StepArguments(run, table)
  stop = agreement.Agreement(stop)
  with contextlib.ExitStack() as stack, contextlib.ExitStack() as saving:
    stack.enter_context(workdir_lib.owned_workdir(workdir, config))
    checkpoints = saving.enter_context(checkpoint.opened(workdir))
    state, metadata = _create_or_restore(run, checkpoints)
    step, earlier = int(placement.fetch(state.step)), metadata.wall_seconds
    seconds = lambda: earlier + time.time() - began
    batches = stack.enter_context(contextlib.closing(run.train_batches(step)))
    written = metadata.rows_until(step)
    writer = stack.enter_context(_open_writer(workdir, config, written))
    board = dashboard.Dashboard(run, table, writer)
    board.start(state, step, commit)
    evaluator = evaluator_lib.Evaluator(run, stop, board.observe)
    progress = stack.enter_context(_open_progress(table, config, step, began))
    profile = stack.enter_context(_open_profile(workdir, config))
    warning = chance_loss.ChanceLossWarning(config, metadata.stuck_steps)
    rising = rising_loss.RisingLossWarning(
      config, metadata.lowest_loss, metadata.steady_step
    )
    saving.enter_context(
      divergence.explained(run, checkpoints, arguments, rising)
    )
    if not _is_done(step, metadata, table, config):
      train_step = _compile(workdir, run, state, arguments(step))

    stack.enter_context(signals.deferred())  # `stop` is asked from here on.
    while not _is_done(step, metadata, table, config):
      totals, plateau = metrics.Totals(metadata.unfinished), metadata.plateau
      first = step - totals.batches
      end = table.next_log(step - bool(totals.sums))
      inputs = arguments.for_steps(step, end, plateau.drops, stop)
      traced = profile.steps(inputs, step)
      state, row = run_steps(
        train_step, state, batches, traced, step, progress, totals
      )
      step = first + totals.batches
      profile.end_row(step)
      evaluate = functools.partial(evaluator, observer=board.observer(step))
      found = _evaluate(evaluate, state, step, end, plateau, table, config)
      if found is None:
        _save_unfinished(checkpoints, step, state, metadata, totals, seconds())
        raise signals.Stopped(stop(), f': step {step} is saved')
      row['train/learning_rate'] = arguments.rate(step - 1, plateau.drops)
      warning.observe(row['train/loss'], totals.batches)
      # The row precedes the checkpoint: a resumed run truncates the files to
      # its checkpoint, so they never lack a row.
      writer.scalars(step, table.epoch(step), row | found)
      progress.report(step, table.epoch(step), row | found)
      metadata = dataclasses.replace(
        metadata,
        metrics=row | found,
        plateau=_update_plateau(plateau, found, config),
        stuck_steps=warning.stuck_steps,
        **rising.observe(row['train/loss'], first),
        wall_seconds=seconds(),
        unfinished={},
      )
      if found:
        next_step = arguments(step, plateau.drops)
        board.write(step, state, train_step, next_step, found)
      if table.saves(step):
        _save(checkpoints, step, state, metadata)
    saving.close()  # Waits for the last save: if it fails, so does the run.
    workdir_lib.write_result(
      workdir, step, table.epoch(step), seconds(), commit, metadata.metrics
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


def _open_writer(workdir, config, written):
  flip, num_classes = config.augment.flip, config.model.num_classes
  return metrics.MetricsWriter(workdir, flip, written, num_classes)


def _open_progress(table, config, step, began):
  values = step, table.total_steps, began, config.model.num_classes
  return contextlib.closing(progress_lib.Progress(*values))


def _open_profile(workdir, config):
  first, count = config.train.profile_step, config.train.profile_steps
  return contextlib.closing(profiler.Profile(workdir, first, count))


def _create_or_restore(run, checkpoints):
  create = train_state.create_train_state
  if run.config.train.init_from:
    create = pretrained.create_train_state
  return train_state.create_or_restore(run, checkpoints, create)


def _compile(workdir, run, state, arguments):
  """The compiled train step; removes the result of a shorter run."""
  workdir_lib.remove_result(workdir)
  log.info('Compiling the train step.')
  return train_step_lib.compile_train_step(run, state, arguments)


def _save(checkpoints, step, state, metadata):
  found = divergence.norm(state), replicas.digests(state)
  norm, digests = placement.fetch(found)  # One wait for both.
  divergence.check(norm, 'the norm of the state', step, state, step)
  replicas.check(state, digests, checkpoints.steps())
  error = metadata.metrics.get('eval/top1_error')  # None without evaluation.
  if metadata.unfinished:  # The metrics are those of an earlier step.
    error = None
  checkpoints.save(step, state, dataclasses.asdict(metadata), error)


def _save_unfinished(checkpoints, step, state, metadata, totals, seconds):
  """Saves a state between two rows, or with its evaluation still to come."""
  if step not in checkpoints.steps():
    metadata = dataclasses.replace(
      metadata, unfinished=totals.sums, wall_seconds=seconds
    )
    _save(checkpoints, step, state, metadata)


def _evaluate(evaluator, state, step, end, plateau, table, config):
  """The evaluations due after a row of metrics; None if it was stopped."""
  if step < end:
    return None
  if not table.evaluates(step):
    return {}
  try:
    row = evaluator(state.params, many=False)
    divergence.check(row['eval/loss'], 'eval/loss', step, state, step)
    plateau = _update_plateau(plateau, row, config)
    if _has_ended(step, plateau, table, config):
      row |= evaluator(state.params, many=True, observer=None)
  except signals.Stopped:
    return None
  return row


def _update_plateau(plateau, row, config):
  """The state of the plateau schedule after a row of metrics."""
  optim = config.optimizer
  if optim.schedule != 'plateau' or 'eval/top1_error' not in row:
    return plateau
  return plateau.observe(row['eval/top1_error'], optim.plateau_patience)


def _is_done(step, metadata, table, config):
  """Whether the run has ended, and its last row of metrics is written."""
  return not metadata.unfinished and _has_ended(
    step, metadata.plateau, table, config
  )


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
  progress: progress_lib.Progress,
  totals: metrics.Totals | None = None,
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
    totals: sums of earlier steps of the same row, to which these are added.

  Returns:
    The train state, and the mean metrics of all these steps by tag.

  Raises:
    FloatingPointError: if a loss is not finite.
  """
  totals = totals or metrics.Totals()
  waited, began, pending = 0.0, time.time(), None

  def finish(step, sums):
    sums = placement.fetch(sums)
    # Not even the step that runs now has changed this state.
    divergence.check(sums['loss'], 'train/loss', step, state, step - 1)
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
    if pending is not None:
      finish(step, pending)
      totals.add_seconds(time.time() - began, waited)
  names = [tag.partition('/')[2] for tag in metrics.TRAIN_TAGS]
  means = totals.means([name for name in names if name in totals.sums])
  return state, {f'train/{name}': mean for name, mean in means.items()} | {
    'train/images_per_second': totals.rate('count'),
    'train/input_wait_fraction': totals.rate('waited'),
  }
