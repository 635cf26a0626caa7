"""What Orbax saves a checkpoint with; an error in one process ends them all.

Orbax would let the others wait for a process that cannot write until its
timeout, and raise the error in the main thread of that process after that.
"""

import orbax.checkpoint as ocp

from alexnet_jax import checkpoint_files
from alexnet_jax.runtime import processes


def handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
  """The handlers of the items of a checkpoint."""
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  state, record = _StateHandler(), _RecordHandler()
  registry.add(checkpoint_files.STATE, ocp.args.StandardSave, state)
  registry.add(checkpoint_files.STATE, ocp.args.StandardRestore, state)
  registry.add(checkpoint_files.RECORD, ocp.args.JsonSave, record)
  registry.add(checkpoint_files.RECORD, ocp.args.JsonRestore, record)
  return registry


class _StateHandler(ocp.StandardCheckpointHandler):
  async def async_save(self, *args, **kwargs):
    parts = await super().async_save(*args, **kwargs)
    return [_EndsAll(part) for part in parts or ()]


class _RecordHandler(ocp.JsonCheckpointHandler):
  async def async_save(self, *args, **kwargs):
    parts = await super().async_save(*args, **kwargs)
    return [_EndsAll(part) for part in parts or ()]


class _EndsAll(ocp.Future):
  """A part of a save in the background; its error ends all processes.

  A single process raises it in its main thread, when it saves again or ends.
  """

  def __init__(self, part):
    self._part = part

  def result(self, timeout=None):
    with processes.abort_all_on_error():
      try:
        return self._part.result(timeout)
      except Exception as error:
        if processes.is_single_process():
          raise
        raise SystemExit(f'a checkpoint cannot be saved: {error}') from error
