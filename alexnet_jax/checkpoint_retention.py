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


def newest_steady(folder: pathlib.Path, steps: Sequence[int]) -> int | None:
  """The newest of the steps whose loss did not rise away, if there is one."""
  for step in sorted(steps, reverse=True):
    record = checkpoint_files.read_record(folder / str(step))
    if record is not None and rising_loss.is_steady(record):
      return step
  return None


class _NewestSteady(POLICIES.PreservationPolicy):
  def __init__(self, folder):
    self._folder = folder

  def should_preserve(self, checkpoints, *, context):
    steps = [found.step for found in checkpoints]
    newest = newest_steady(self._folder, steps)
    return [step == newest for step in steps]
