"""What happens after which step: rates, rows of metrics, evaluations, saves."""

from collections.abc import Sequence
import dataclasses
import itertools
import math

from alexnet_jax import optimizer

ROUNDING = 1e-9  # 0.07 * 100 is a little more than 7 in floating point.


@dataclasses.dataclass(frozen=True)
class Timetable:
  """What happens after which step; steps count from 1, epochs are fractions.

  The fields are keys of config.train, but for the first two and
  `change_epochs`: epochs at which rates or augmentation change.
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
    steps = self.epochs * self.num_examples / self.batch_size
    return math.ceil(steps - ROUNDING)

  def epoch(self, step: int) -> float:
    """Passes through the training set in `step` steps."""
    return step * self.batch_size / self.num_examples

  def changes(self, step: int) -> int:
    """How many changes the step after `step` has behind it."""
    return optimizer.drops_at(self.epoch(step), self.change_epochs)

  def evaluates(self, step: int) -> bool:
    """Whether a multiple of `eval_every_epochs` ends with this step."""
    done = lambda s: math.floor(
      self.epoch(s) / self.eval_every_epochs + ROUNDING
    )
    return done(step) > done(step - 1) or step == self.total_steps

  def saves(self, step: int) -> bool:
    """Whether a checkpoint is saved."""
    return step % self.checkpoint_every_steps == 0 or self.evaluates(step)

  def logs(self, step: int) -> bool:
    """Whether a row of metrics ends with this step.

    Also before a change and with every checkpoint, so that a row has one rate
    and a resumed run writes the rows of the uninterrupted one.
    """
    return (
      step % self.log_every_steps == 0
      or self.saves(step)
      or self.changes(step) != self.changes(step - 1)
    )

  def next_log(self, step: int) -> int:
    """The first step after `step` that ends a row of metrics."""
    return next(s for s in itertools.count(step + 1) if self.logs(s))
