"""Checkpoints, with Orbax: asynchronous, atomic, exact, sharding-aware.

A checkpoint holds the train state (step, parameters, v) and JSON metadata, see
`train_state.CheckpointMetadata`; `checkpoint_retention` says which are kept.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import os
import pathlib
import shutil

import jax
from jaxtyping import PyTree
import orbax.checkpoint as ocp

from alexnet_jax import checkpoint_files
from alexnet_jax import checkpoint_handlers
from alexnet_jax import checkpoint_path
from alexnet_jax import checkpoint_retention
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

FOLDER = 'checkpoints'
SAVE_SECONDS = 1200  # A save that takes longer has stalled.
STATE, METADATA = checkpoint_files.STATE, checkpoint_files.RECORD
METRICS, METRIC = checkpoint_files.METRICS, checkpoint_files.METRIC
DamagedError = checkpoint_files.DamagedError


def saved_steps(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints of a work directory, without opening them."""
  names = [path.name for path in (workdir / FOLDER).glob('*')]
  return sorted(int(name) for name in names if name.isdecimal())


@contextlib.contextmanager
def opened(workdir: pathlib.Path) -> Iterator['Checkpoints']:
  """The checkpoints of a run, until its last save; see `Checkpoints`.

  Raises:
    OSError: that says which checkpoint is whole, if the disk is full.
  """
  with checkpoint_files.full_disk_named(workdir / FOLDER):
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
      yield checkpoints


class Checkpoints:
  """The checkpoints of one work directory.

  Attributes:
    folder: folder of the checkpoints.
  """

  def __init__(self, workdir: pathlib.Path, read_only: bool = False):
    """Opens the checkpoints, and removes what an interrupted save has left.

    Args:
      workdir: work directory of the run.
      read_only: change nothing there.

    Raises:
      DamagedError: if the folder cannot be read.
    """
    self.folder, self._end_watch = workdir / FOLDER, lambda: None
    self._read_only = read_only
    name, self._descriptor = checkpoint_path.open_folder(workdir)
    if not read_only and processes.is_first():
      for broken in (workdir / FOLDER).glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
        shutil.rmtree(broken)  # A kill interrupted this save.
      checkpoint_files.put_back(workdir / FOLDER)
      for step in saved_steps(workdir):
        checkpoint_files.remove_unreadable(workdir / FOLDER / str(step))
      for state in (name / FOLDER).glob(f'*/{STATE}'):
        if checkpoint_path.is_incomplete(state, workdir):
          checkpoint_path.complete(state, workdir)
    processes.barrier('checkpoints')
    options = ocp.CheckpointManagerOptions(
      create=not read_only,
      read_only=read_only,
      best_fn=checkpoint_retention.error_of,
      best_mode='min',
      preservation_policy=checkpoint_retention.policy(self.folder),
      async_options=ocp.options.AsyncOptions(
        # Longer than ours, whose message is clearer.
        timeout_secs=2 * SAVE_SECONDS,
        post_finalization_callback=self._write_digests,
      ),
    )
    with checkpoint_files.reading():
      for step in saved_steps(workdir):  # The manager reads all of these.
        checkpoint_path.check_files(workdir / FOLDER / str(step) / METRICS)
      self._manager = ocp.CheckpointManager(
        name / FOLDER,
        options=options,
        handler_registry=checkpoint_handlers.handlers(self.folder),
      )

  def wait(self) -> None:
    """Waits until the pending save, if any, is complete."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def step_of(self, which: str) -> int:
    """The step of the 'best' (lowest validation error) or the 'latest'.

    Raises:
      FileNotFoundError: if there is no such checkpoint yet.
      DamagedError: if the folder cannot be read.
    """
    with checkpoint_files.reading():
      if which == 'latest':
        step = self._manager.latest_step()
      else:
        for folder in (self.folder / str(saved) for saved in self.steps()):
          if (folder / METRICS).exists():
            checkpoint_files.check_digests(folder, METRICS)
        step = self._manager.best_step()
    if step is None:
      raise FileNotFoundError(
        f'no {which} checkpoint in {self.folder} yet; continue the training:'
        ' --mode=train'
      )
    return step

  def save(
    self, step: int, state: PyTree, metadata: dict, error: float | None
  ) -> None:
    """Starts to save; returns when the state has been copied to the host.

    On CPU nothing is copied here: the next step, to which the state is donated,
    makes the copy.

    Args:
      step: number of completed steps.
      state: the train state.
      metadata: values that JSON can hold.
      error: validation error of exactly this state, a fraction; None if it has
        not been evaluated.
    """
    if step in self.steps():  # The run was stopped before the evaluation.
      checkpoint_files.set_aside(self.folder / str(step))
      self._manager.reload()
    self._end_watch()
    self._end_watch = processes.end_all_if(
      self._manager.is_saving_in_progress,
      SAVE_SECONDS,
      f'saving checkpoint {step} in {self.folder} has stalled',
    )
    items = {STATE: ocp.args.StandardSave(state)}
    items[METADATA] = ocp.args.JsonSave(metadata)
    self._manager.save(
      step,
      args=ocp.args.Composite(**items),
      metrics=None if error is None else {METRIC: error},
      force=True,
    )

  def _write_digests(self):
    """Called by Orbax in its thread, before the checkpoint gets its name.

    Only process 0 is called, when all have written their files.
    """
    with checkpoint_handlers.errors_end_all(self.folder):
      (unnamed,) = self.folder.glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*')
      digests.write(unnamed)

  def read_metadata(self, step: int) -> dict:
    """The metadata of one checkpoint, without its state.

    Raises:
      DamagedError: if it cannot be read.
    """
    return self._read(
      step, METADATA, ocp.JsonCheckpointHandler, ocp.args.JsonRestore()
    )

  def restore(self, template: PyTree, step: int) -> PyTree:
    """The state of one checkpoint.

    Args:
      template: tree of `jax.ShapeDtypeStruct`, with the shardings wanted.
      step: the step of the checkpoint.

    Raises:
      DamagedError: if it cannot be read, or has other shapes.
    """
    return self._read(
      step,
      STATE,
      ocp.StandardCheckpointHandler,
      ocp.args.StandardRestore(template),
    )

  def _read(self, step, item, handler, args):
    self.wait()
    saved = self.folder / str(step) / item
    if checkpoint_path.is_incomplete(saved, self.folder.parent):
      raise DamagedError(checkpoint_path.INCOMPLETE)
    with checkpoint_files.reading():
      checkpoint_path.check_files(saved)
    has_digests = checkpoint_files.check_digests(saved.parent, item)
    if item == STATE and not has_digests:
      log.warning(
        'Checkpoint %d has no digests: an earlier version saved it. A changed'
        ' value in it would not be noticed.',
        step,
      )
    # Each process reads on its own: with the manager, the processes that can
    # read would wait for one that cannot.
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
      primary_host=process,
      active_processes={process},
      barrier_sync_key_prefix=f'process_{process}',
    )
    with (
      checkpoint_files.reading(),
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
    """State and metadata of the newest readable checkpoint, if there are any.

    A damaged checkpoint is logged and skipped. Once an older one has been read
    it is renamed, so that the run can save that step again. One that
    `check_metadata` refuses is damaged if it accepts an older one.

    Args:
      template: as for `restore`.
      check_metadata: called with the metadata before the state is read; raises
        DamagedError if they are damaged, ValueError if they do not match.

    Returns:
      The pair, or None if there are no checkpoints.

    Raises:
      ValueError: if there are checkpoints, but none can be read; the error of
        `check_metadata` if it has refused one, and accepted none.
    """
    errors, steps = {}, self.steps()
    processes.check_same({'the list of checkpoints': str(steps)})
    for step in reversed(steps):
      error = None
      try:
        metadata = self.read_metadata(step)
        check_metadata(metadata)
        state = self.restore(template, step)
      except ValueError as found:  # A DamagedError is one.
        error = found
      if not processes.any_process(error is not None):
        if errors:
          checkpoint_files.rename_damaged(self.folder, errors)
          self._manager.reload()
        return state, metadata
      errors[step] = error or DamagedError('another process cannot read it')
    for error in errors.values():
      if not isinstance(error, DamagedError):
        raise error
    if errors:
      raise ValueError(
        f'none of the checkpoints {sorted(errors)} in {self.folder} can be'
        f' read; the newest: {errors[max(errors)]}. Start again with a fresh'
        ' --workdir'
      )
    return None

  def rename(self, step: int, word: str) -> None:
    """Takes a checkpoint out of use, as WORD.STEP; all processes call it."""
    self.wait()
    if processes.is_first():
      checkpoint_files.rename(self.folder / str(step), word)
    processes.barrier('renamed checkpoint')
    self._manager.reload()

  def close(self) -> None:
    """Waits for pending saves."""
    self._manager.close()
    self._end_watch()
    if not self._read_only:
      checkpoint_files.put_back(self.folder)
    if self._descriptor is not None:
      os.close(self._descriptor)
