"""The paper's optimiser (section 5): update rule, rate schedules, plateau.

    v <- 0.9 v - 0.0005 rate w - rate <dL/dw>;    w <- w + v

The rate is inside v, so lowering it does not shrink what v has accumulated.
The usual `optax.sgd` and torch order scales v by the rate after the momentum:
the same at a constant rate, another trajectory after every drop.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Array, Float
import optax

SCHEDULES = ('steps', 'plateau')


def paper_sgd(
  learning_rate: float | Float[Array, ''], momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """The update above; its state is v, whatever the rate of the step."""
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
    optax.trace(momentum),
  )


def drops_at(epoch: float, drop_epochs: Sequence[float]) -> int:
  """Schedule 'steps': how many of `drop_epochs` lie at or before `epoch`."""
  return sum(epoch >= drop for drop in drop_epochs)


@dataclasses.dataclass(frozen=True)
class Plateau:
  """Schedule 'plateau': drop the rate when the validation error stalls.

  Section 5: "divide the learning rate by 10 when the validation error rate
  stopped improving with the current learning rate", three times, then stop.
  The controller is a value: `observe` returns the next one.

  Attributes:
    best_error: lowest validation error at the current rate, a fraction.
    stalled: evaluations since then.
    drops: how often the rate has been divided.
  """

  best_error: float = float('inf')
  stalled: int = 0
  drops: int = 0

  def observe(self, error: float, patience: int) -> 'Plateau':
    """The controller after one more validation error.

    Args:
      error: validation error, a fraction.
      patience: evaluations without a new lowest error that make a plateau.
    """
    if error < self.best_error:
      return dataclasses.replace(self, best_error=error, stalled=0)
    if self.stalled + 1 < patience:
      return dataclasses.replace(self, stalled=self.stalled + 1)
    return Plateau(drops=self.drops + 1)

  def has_ended(self, max_drops: int) -> bool:
    """Whether the rate would have to drop once more than it may."""
    return self.drops > max_drops
