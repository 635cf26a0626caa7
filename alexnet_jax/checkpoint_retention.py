"""Which checkpoints of a run are kept when it saves another one."""

from collections.abc import Sequence
import pathlib

import orbax.checkpoint as ocp

from alexnet_jax import checkpoint_files
from alexnet_jax import rising_loss

POLICIES = ocp.checkpoint_managers


def policy(folder: pathlib.Path) -> POLICIES.AnyPreservationPolicy:
  """Keeps the latest two, the one with the lowest error, and `newest_steady`.

  Without the last, a loss that rises for long would leave no way back.

  Args:
    folder: folder of the checkpoints.
  """
  best = POLICIES.BestN(
    get_metric_fn=error_of,
    reverse=True,
    n=1,
    keep_checkpoints_without_metrics=False,
  )
  return POLICIES.AnyPreservationPolicy(
    [POLICIES.LatestN(2), best, _NewestSteady(folder)]
  )


def error_of(metrics: dict[str, float]) -> float:
  """The validation error, a fraction."""
  return metrics[checkpoint_files.METRIC]


def newest_steady(
  folder: pathlib.Path, steps: Sequence[int], steady_step: int = 0
) -> int | None:
  """The newest checkpoint whose loss did not rise away, before or after it.

  Args:
    folder: folder of the checkpoints.
    steps: their steps.
    steady_step: first step of the newest row that did not rise away, if the
      records do not know it yet.

  Returns:
    Its step; None if there is none.
  """
  records = {s: checkpoint_files.read_record(folder / str(s)) for s in steps}
  return _newest_steady(records, steady_step)


def _newest_steady(records, steady_step=0):
  """See `newest_steady`; a record is None if it cannot be read."""
  records = {step: record for step, record in records.items() if record}
  known = [record.get('steady_step', 0) for record in records.values()]
  latest = max(steady_step, *known, 0)
  steady = [s for s, r in records.items() if rising_loss.is_steady(r)]
  return max((step for step in steady if step <= latest), default=None)


class _NewestSteady(POLICIES.PreservationPolicy):
  """Reads each record once; that of the pending save cannot be read yet."""

  def __init__(self, folder):
    self._folder, self._read = folder, {}

  def should_preserve(self, checkpoints, *, context):
    # A step that is saved again has another time.
    keys = {found.step: (found.step, found.time) for found in checkpoints}
    records = {
      step: self._read.get(key)
      or checkpoint_files.read_record(self._folder / str(step))
      for step, key in keys.items()
    }
    self._read = {keys[step]: record for step, record in records.items()}
    newest = _newest_steady(records)
    return [found.step == newest for found in checkpoints]
