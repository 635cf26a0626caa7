"""Checkpoints, with Orbax: asynchronous, atomic, exact, sharding-aware.

A checkpoint holds the train state (step, parameters, v) and a JSON record:
the plateau controller, the config, the newest metrics. The latest two and the
one with the lowest validation error are kept.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import logging
import pathlib
import shutil

import jax
from jaxtyping import PyTree
import orbax.checkpoint as ocp

from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

FOLDER = 'checkpoints'
METRIC = 'eval/top1_error'
POLICIES = ocp.checkpoint_managers


class DamagedError(ValueError):
  """A checkpoint's files are cut short, changed or missing."""


@contextlib.contextmanager
def _reading() -> Iterator[None]:
  try:
    yield
  except Exception as error:
    # Orbax's; where an array cannot be read it raises Exception itself.
    known = isinstance(error, ValueError | KeyError | FileNotFoundError)
    if not known and type(error) is not Exception:
      raise
    raise DamagedError(str(error.__cause__ or error)) from error


class Checkpoints:
  """The checkpoints of one work directory."""

  def __init__(self, workdir: pathlib.Path, read_only: bool = False):
    best = POLICIES.BestN(
      get_metric_fn=_error,
      reverse=True,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    if not read_only and processes.is_first():
      for broken in (workdir / FOLDER).glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
        shutil.rmtree(broken)  # A save that a kill cut short.
      for file in (workdir / FOLDER).glob('*/metrics/metrics'):
        _drop_unreadable_error(file)
    processes.barrier('checkpoints')
    options = ocp.CheckpointManagerOptions(
      create=not read_only,
      read_only=read_only,
      best_fn=_error,
      best_mode='min',
      preservation_policy=POLICIES.AnyPreservationPolicy(
        [POLICIES.LatestN(2), best]
      ),
    )
    with _reading():
      self._manager = ocp.CheckpointManager(
        workdir / FOLDER, options=options, item_names=('state', 'record')
      )

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def step_of(self, which: str) -> int:
    """The step with the lowest validation error ('best'), or the 'latest'.

    Raises:
      FileNotFoundError: if there is none yet.
    """
    with _reading():
      if which == 'latest':
        step = self._manager.latest_step()
      else:
        step = self._manager.best_step()
    if step is None:
      raise FileNotFoundError(
        f'no {which} checkpoint in {self._manager.directory} yet; train on:'
        ' --mode=train'
      )
    return step

  def save(
    self, step: int, state: PyTree, record: dict, error: float | None
  ) -> None:
    """Starts saving; returns once the host has the state.

    Where the device is the host nothing is copied here: the step to which the
    state is donated makes the copy (benchmarks/saving.py).

    Args:
      step: training steps done.
      state: the train state.
      record: JSON values.
      error: validation error of exactly this state; None if not evaluated.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
      ),
      metrics=None if error is None else {METRIC: error},
      force=True,
    )

  def read_metadata(self, step: int) -> dict:
    """The record of one checkpoint, without its state."""
    return self._read(
      step, 'record', ocp.JsonCheckpointHandler, ocp.args.JsonRestore()
    )

  def restore(self, template: PyTree, step: int) -> PyTree:
    """The state of one checkpoint.

    Args:
      template: `jax.ShapeDtypeStruct`s of the state, with the shardings wanted.
      step: which.
    """
    return self._read(
      step,
      'state',
      ocp.StandardCheckpointHandler,
      ocp.args.StandardRestore(template),
    )

  def _read(self, step, item, handler, args):
    self._manager.wait_until_finished()
    # Each process by itself: the manager would let those that can read wait
    # for one that cannot.
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
      primary_host=me,
      active_processes={me},
      barrier_sync_key_prefix=f'process_{me}',
    )
    with (
      _reading(),
      contextlib.closing(
        ocp.Checkpointer(
          handler(multiprocessing_options=options),
          multiprocessing_options=options,
        )
      ) as reader,
    ):
      folder = pathlib.Path(self._manager.directory) / str(step) / item
      return reader.restore(folder, args=args)

  def restore_latest(
    self, template: PyTree, check_metadata: Callable[[dict], None]
  ) -> tuple[PyTree, dict] | None:
    """State and record of the newest readable checkpoint; None without any.

    A damaged one is named, passed over, and put aside once an older one has
    been read, so that the run can save that step again.

    Args:
      template: as for `restore`.
      check_metadata: is called with the record before the state is read.

    Raises:
      ValueError: if there are checkpoints, and none can be read.
    """
    damaged, steps = {}, self.steps()
    processes.check_same({'the list of checkpoints': str(steps)})
    for step in reversed(steps):
      error = None
      try:
        record = self.read_metadata(step)
        check_metadata(record)
        state = self.restore(template, step)
      except DamagedError as found:
        error = found
      if not processes.any_process(error is not None):
        self._put_aside(damaged)
        return state, record
      damaged[step] = error or DamagedError('another process cannot read it')
    if damaged:
      raise ValueError(
        f'none of the checkpoints {sorted(damaged)} in {self._manager.directory}'
        f' can be read; the newest: {damaged[max(damaged)]}. Use a fresh'
        ' --workdir to start anew'
      )
    return None

  def _put_aside(self, damaged: dict[int, Exception]) -> None:
    for step, error in damaged.items() if processes.is_first() else ():
      folder = pathlib.Path(self._manager.directory) / str(step)
      aside = folder.with_name(f'damaged.{step}')
      log.error('checkpoint %d cannot be read (%s); now %s', step, error, aside)
      shutil.rmtree(aside, ignore_errors=True)
      folder.rename(aside)
    if damaged:
      processes.barrier('damaged checkpoints')
      self._manager.reload()

  def close(self) -> None:
    """Waits for the saves under way."""
    self._manager.close()


def _drop_unreadable_error(file: pathlib.Path) -> None:
  """A damaged validation error must not cost the state beside it."""
  try:
    float(json.loads(file.read_text())[METRIC])
  except (ValueError, KeyError, TypeError):
    step = file.parents[1].name
    log.error(
      'checkpoint %s has lost its validation error: not evaluated', step
    )
    shutil.rmtree(file.parent)


def _error(metrics: dict) -> float:
  return metrics[METRIC]
