"""What Orbax saves a checkpoint with; an error in one process ends them all.

Orbax would let the others wait for a process that cannot write until its
timeout, and raise the error in the main thread of that process after that.
"""

from collections.abc import Iterator
import contextlib
import pathlib

import orbax.checkpoint as ocp

from alexnet_jax import checkpoint_files
from alexnet_jax.runtime import processes


def handlers(
  folder: pathlib.Path,
) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
  """The handlers of the items of the checkpoints in a folder."""
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  state = _StateHandler(folder)
  registry.add(checkpoint_files.STATE, ocp.args.StandardSave, state)
  registry.add(checkpoint_files.STATE, ocp.args.StandardRestore, state)
  for item, options in (
    (checkpoint_files.RECORD, {}),
    (checkpoint_files.METRICS, {'filename': checkpoint_files.METRICS}),
  ):
    handler = _JsonHandler(folder, **options)
    registry.add(item, ocp.args.JsonSave, handler)
    registry.add(item, ocp.args.JsonRestore, handler)
  return registry


@contextlib.contextmanager
def errors_end_all(folder: pathlib.Path) -> Iterator[None]:
  """Lets an error of a save in the background end all processes, in one line.

  A single process raises it in its main thread, when it saves again or ends.

  Args:
    folder: folder of the checkpoints.
  """
  with processes.abort_all_on_error():
    try:
      with checkpoint_files.full_disk_named(folder):
        yield
    except Exception as error:
      if processes.is_single_process():
        raise
      reason = getattr(error, 'strerror', None) or error
      raise SystemExit(f'a checkpoint cannot be saved: {reason}') from error


class _ErrorsEndAll:
  """What both handlers have in common: `errors_end_all` in the background."""

  def __init__(self, folder, **options):
    super().__init__(**options)
    self._checkpoints = folder

  async def async_save(self, *args, **kwargs):
    parts = await super().async_save(*args, **kwargs)
    return [_Part(part, self._checkpoints) for part in parts or ()]

  def finalize(self, directory):
    with errors_end_all(self._checkpoints):
      super().finalize(directory)


class _StateHandler(_ErrorsEndAll, ocp.StandardCheckpointHandler):
  pass


class _JsonHandler(_ErrorsEndAll, ocp.JsonCheckpointHandler):
  pass


class _Part(ocp.Future):
  """A part of a save in the background."""

  def __init__(self, part, folder):
    self._part, self._folder = part, folder

  def result(self, timeout=None):
    with errors_end_all(self._folder):
      return self._part.result(timeout)
