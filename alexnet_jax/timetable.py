"""What happens after which step: changes of rates, logs, evaluations, saves."""

from collections.abc import Sequence
import dataclasses
import itertools
import math

from alexnet_jax import optimizer

ROUNDING = 1e-9  # 0.07 * 100 is a little more than 7 in floating point.


@dataclasses.dataclass(frozen=True)
class Timetable:
  """What happens after which step; steps count from 1, epochs are fractions.

  Attributes:
    num_examples: number of training examples.
    batch_size: examples per step.
    epochs: epochs of the run; a key of config.train, as are the next three.
    log_every_steps: steps between rows of metrics.
    eval_every_epochs: epochs between evaluations.
    checkpoint_every_steps: steps between checkpoints.
    change_epochs: epochs at which rates jump or augmentation changes, in any
      order.
  """

  num_examples: int
  batch_size: int
  epochs: float
  log_every_steps: int
  eval_every_epochs: float
  checkpoint_every_steps: int
  change_epochs: Sequence[float] = ()

  @property
  def total_steps(self) -> int:
    """Number of steps of the whole run."""
    steps = self.epochs * self.num_examples / self.batch_size
    return max(1, math.ceil(steps - ROUNDING))

  def epoch(self, step: int) -> float:
    """Passes through the training set in `step` steps."""
    return step * self.batch_size / self.num_examples

  def changes(self, step: int) -> int:
    """Number of changes before the step that follows `step`."""
    return optimizer.drops_at(self.epoch(step), self.change_epochs)

  def evaluates(self, step: int) -> bool:
    """Whether to evaluate after this step.

    It is the first at or after a multiple of `eval_every_epochs`, or the last.
    A run whose `epochs` were lowered may stand behind its last step.
    """
    is_due = self.evaluations(step) > self.evaluations(step - 1)
    return is_due or step >= self.total_steps

  def evaluations(self, step: int) -> int:
    """Number of evaluations due in `step` steps, besides that at the end."""
    return math.floor(self.epoch(step) / self.eval_every_epochs + ROUNDING)

  def saves(self, step: int) -> bool:
    """Whether to save a checkpoint after this step."""
    return step % self.checkpoint_every_steps == 0 or self.evaluates(step)

  def logs(self, step: int) -> bool:
    """Whether to write a row of metrics after this step.

    Rows also end before every change, so that no rate jumps within a row, and
    with every checkpoint, so that a resumed run writes the same rows as an
    uninterrupted one.
    """
    return (
      step % self.log_every_steps == 0
      or self.saves(step)
      or self.changes(step) != self.changes(step - 1)
    )

  def next_log(self, step: int) -> int:
    """The first step after `step` at which `logs` holds."""
    return next(s for s in itertools.count(step + 1) if self.logs(s))
