"""The paper's optimiser (section 5): update rule, rate schedules, plateau.

    v <- 0.9 v - 0.0005 rate w - rate <dL/dw>;    w <- w + v

The rate is inside v, so lowering it does not shrink what v has accumulated.
The usual `optax.sgd` and torch order scales v by the rate after the momentum:
the same at a constant rate, another trajectory after every drop.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

SCHEDULES = ('steps', 'plateau')

# Rates by kind of parameter; a rate of 0 freezes.
Rates = Mapping[str, float | Float[Array, '']]
RATE_KEYS = ('kernel', 'bias', 'conv1/kernel', 'conv1/bias')


def paper_sgd(
  rates: Rates, momentum: float, weight_decay: float, decay_biases: bool = True
) -> optax.GradientTransformation:
  """The update above; its state is v, whatever the rates of the step.

  Args:
    rates: by `RATE_KEYS`. Where one is 0 neither w nor v changes: as in the
      original source, which skips the update (Deviation S6 freezes conv1 so).
    momentum: 0.9 in section 5.
    weight_decay: 0.0005 in section 5.
    decay_biases: let weight decay act on biases as well, as the text has it.
      Deviation S5: not so in the original source.
  """

  def update(grads, state, params):
    def new_v(path, g, w, v):
      rate = rates[_kind(path)]
      if decay_biases or path[-1].key != 'bias':
        g += weight_decay * w
      return jnp.where(rate > 0, momentum * v - rate * g, v)

    def step(path, v):
      return jnp.where(rates[_kind(path)] > 0, v, 0)

    v = jax.tree.map_with_path(new_v, grads, params, state.trace)
    return jax.tree.map_with_path(step, v), optax.TraceState(v)

  return optax.GradientTransformation(optax.trace(momentum).init, update)


def _kind(path):
  prefix = 'conv1/' if path[-2].key == 'conv1' else ''
  return prefix + path[-1].key


def drops_at(epoch: float, drop_epochs: Sequence[float]) -> int:
  """Schedule 'steps': how many of `drop_epochs` lie at or before `epoch`."""
  return sum(epoch >= drop for drop in drop_epochs)


@dataclasses.dataclass(frozen=True)
class RateSchedule:
  """The rates of every epoch.

  Attributes:
    learning_rate: at the start.
    drop_factor: what a drop divides by.
    drop_epochs: of the schedule 'steps', ascending; () with 'plateau'.
    bias_rate_factor: rate of the biases at the start, in units of
      `learning_rate`. Deviation S5: 2 in the original source.
    drop_bias_rate: let the rate of the biases drop with that of the weights.
      Deviation S5: the original source lowers the weights' alone.
    conv1_drop_epochs: further drops of the rate of conv1's weights.
      Deviation S6.
    conv1_freeze_epoch: from here on conv1 does not change; 0 for never.
      Deviation S6.
  """

  learning_rate: float
  drop_factor: float
  drop_epochs: Sequence[float] = ()
  bias_rate_factor: float = 1.0
  drop_bias_rate: bool = True
  conv1_drop_epochs: Sequence[float] = ()
  conv1_freeze_epoch: float = 0.0

  @property
  def change_epochs(self) -> tuple[float, ...]:
    """Epochs at which some rate changes, in no order."""
    return (
      *self.drop_epochs,
      *self.conv1_drop_epochs,
      self.conv1_freeze_epoch,  # 0 for never: no change, as nothing is before.
    )

  def rates(self, epoch: float, plateau_drops: int) -> dict[str, float]:
    """The rates of a step that begins at `epoch`, by `RATE_KEYS`.

    Args:
      epoch: passes through the training set before the step.
      plateau_drops: drops of the schedule 'plateau' so far.
    """
    drops = plateau_drops + drops_at(epoch, self.drop_epochs)
    conv1_drops = drops_at(epoch, self.conv1_drop_epochs)
    frozen = 0 < self.conv1_freeze_epoch <= epoch
    weights = self.learning_rate / self.drop_factor**drops
    biases = self.bias_rate_factor * (
      weights if self.drop_bias_rate else self.learning_rate
    )
    conv1 = weights / self.drop_factor**conv1_drops
    values = (
      weights,
      biases,
      0.0 if frozen else conv1,
      0.0 if frozen else biases,
    )
    return dict(zip(RATE_KEYS, values, strict=True))


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
