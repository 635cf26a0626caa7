"""Checkpoints, with Orbax: asynchronous, atomic, exact, sharding-aware.

A checkpoint holds the train state (step, parameters, v) and a JSON record:
the plateau controller, the config, the newest metrics. The latest two and the
one with the lowest validation error are kept.
"""

import json
import logging
import pathlib
import shutil

import jax
from jaxtyping import PyTree
import orbax.checkpoint as ocp

log = logging.getLogger(__name__)

FOLDER = 'checkpoints'
METRIC = 'eval/top1_error'
POLICIES = ocp.checkpoint_managers


class Checkpoints:
  """The checkpoints of one work directory."""

  def __init__(self, workdir: pathlib.Path, read_only: bool = False):
    best = POLICIES.BestN(
      get_metric_fn=_error,
      reverse=True,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    if not read_only:  # Saves that a kill cut short; Orbax ignores them.
      for broken in (workdir / FOLDER).glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
        shutil.rmtree(broken)
    for file in (workdir / FOLDER).glob('*/metrics/metrics'):
      _drop_unless_json(file)
    self._manager = ocp.CheckpointManager(
      workdir / FOLDER,
      options=ocp.CheckpointManagerOptions(
        create=not read_only,
        read_only=read_only,
        best_fn=_error,
        best_mode='min',
        preservation_policy=POLICIES.AnyPreservationPolicy(
          [POLICIES.LatestN(2), best]
        ),
      ),
      item_names=('state', 'record'),
    )

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def step_of(self, which: str) -> int:
    """The step with the lowest validation error ('best'), or the 'latest'.

    Raises:
      FileNotFoundError: if there is none yet.
    """
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
    """Starts saving; returns once the state has been copied off the device.

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

  def restore(self, template: PyTree, step: int) -> tuple[PyTree, dict]:
    """State and record of one checkpoint.

    Args:
      template: a state of the shapes, dtypes and shardings wanted.
      step: which.
    """
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_abstract(template)),
        record=ocp.args.JsonRestore(),
      ),
    )
    return restored.state, restored.record

  def restore_latest(self, template: PyTree) -> tuple[PyTree, dict] | None:
    """The newest readable checkpoint; None if there is none at all.

    A damaged one is named, passed over, and removed once an older one has
    been read, so that the run can save that step again.

    Raises:
      ValueError: if there are checkpoints, and none can be read.
    """
    damaged = {}
    for step in reversed(self.steps()):
      try:
        restored = self.restore(template, step)
      except (ValueError, OSError, KeyError) as error:
        damaged[step] = error
        log.error('checkpoint %d cannot be read: %s', step, error)
        continue
      for bad in damaged:
        log.warning('removing checkpoint %d, continuing at %d', bad, step)
        self._manager.delete(bad)
      return restored
    if damaged:
      raise ValueError(
        f'none of the checkpoints {sorted(damaged)} in {self._manager.directory}'
        f' can be read; the newest: {damaged[max(damaged)]}. Use a fresh'
        ' --workdir to start anew'
      )
    return None

  def close(self) -> None:
    """Waits for the saves under way."""
    self._manager.close()


def _drop_unless_json(file: pathlib.Path) -> None:
  """A damaged validation error must not cost the state beside it."""
  try:
    json.loads(file.read_text())
  except ValueError:
    step = file.parents[1].name
    log.error(
      'checkpoint %s has lost its validation error: not evaluated', step
    )
    shutil.rmtree(file.parent)


def _error(metrics: dict) -> float:
  return metrics[METRIC]


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )
