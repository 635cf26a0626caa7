"""The paper's optimiser (section 5): update rule, rate schedules, plateau.

    v <- 0.9 v - 0.0005 rate w - rate <dL/dw>;    w <- w + v

The rate is inside v, so lowering it does not shrink what v has accumulated.
`optax.sgd` and PyTorch scale v by the rate after the momentum: the same at a
constant rate, another trajectory after every drop.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

# Learning rates by kind of parameter, `RATE_KEYS`; a rate of 0 freezes it.
Rates = Mapping[str, float | Float[Array, '']]
RATE_KEYS = ('kernel', 'bias', 'conv1/kernel', 'conv1/bias')


def paper_sgd(
  rates: Rates, momentum: float, weight_decay: float, decay_biases: bool = True
) -> optax.GradientTransformation:
  """The update above; its state is v, whatever the rates of the step.

  Args:
    rates: by `RATE_KEYS`. If one is 0 neither w nor v changes, as in the
      original source, which skips the update (Deviation S6: it freezes conv1).
      Initialisation does not use them.
    momentum: 0.9 in section 5.
    weight_decay: 0.0005 in section 5.
    decay_biases: apply weight decay to biases as well, as in the text.
      Deviation S5: the original source does not.
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
  """Number of `drop_epochs` at or before `epoch`."""
  return sum(epoch >= drop for drop in drop_epochs)


@dataclasses.dataclass(frozen=True)
class RateSchedule:
  """The learning rates at every point of a training.

  Attributes:
    schedule: how the rate of the weights changes, a key of `SCHEDULES`.
    learning_rate: rate of the weights at the start.
    epochs: length of the training, for the schedule 'cosine'.
    drop_factor: divisor of the rate at a drop.
    drop_epochs: epochs of the drops of the schedule 'steps', ascending; () with
      the others.
    bias_rate_factor: rate of the biases at the start, in units of
      `learning_rate`. Deviation S5: 2 in the original source.
    drop_bias_rate: let the rate of the biases follow that of the weights.
      Deviation S5: the original source lowers only that of the weights.
    conv1_drop_epochs: further drops of the rate of conv1's weights.
      Deviation S6.
    conv1_freeze_epoch: epoch after which conv1 does not change; 0 for never.
      Deviation S6.
  """

  schedule: str
  learning_rate: float
  epochs: float
  drop_factor: float
  drop_epochs: Sequence[float] = ()
  bias_rate_factor: float = 1.0
  drop_bias_rate: bool = True
  conv1_drop_epochs: Sequence[float] = ()
  conv1_freeze_epoch: float = 0.0

  @property
  def change_epochs(self) -> tuple[float, ...]:
    """Epochs at which some rate jumps, in no particular order."""
    return (
      *self.drop_epochs,
      *self.conv1_drop_epochs,
      self.conv1_freeze_epoch,  # No step begins before 0, which is never.
    )

  def rates(self, epoch: float, plateau_drops: int) -> dict[str, float]:
    """The rates of a step that begins at `epoch`, by `RATE_KEYS`.

    Args:
      epoch: passes through the training set before the step.
      plateau_drops: drops of the schedule 'plateau' so far.
    """
    weights = SCHEDULES[self.schedule](self, epoch, plateau_drops)
    biases = self.bias_rate_factor * (
      weights if self.drop_bias_rate else self.learning_rate
    )
    conv1_drops = drops_at(epoch, self.conv1_drop_epochs)
    frozen = 0 < self.conv1_freeze_epoch <= epoch
    values = (
      weights,
      biases,
      0.0 if frozen else weights / self.drop_factor**conv1_drops,
      0.0 if frozen else biases,
    )
    return dict(zip(RATE_KEYS, values, strict=True))


def _steps(schedule: RateSchedule, epoch: float, plateau_drops: int) -> float:
  del plateau_drops
  drops = drops_at(epoch, schedule.drop_epochs)
  return schedule.learning_rate / schedule.drop_factor**drops


def _plateau(schedule: RateSchedule, epoch: float, plateau_drops: int) -> float:
  del epoch
  return schedule.learning_rate / schedule.drop_factor**plateau_drops


def _cosine(schedule: RateSchedule, epoch: float, plateau_drops: int) -> float:
  """Ours: half a cosine from the rate at the start to 0 at the end."""
  del plateau_drops
  progress = min(epoch / schedule.epochs, 1.0)
  return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


# Rate of the weights, from (schedule, epoch, plateau drops so far).
SCHEDULES = {'steps': _steps, 'plateau': _plateau, 'cosine': _cosine}


@dataclasses.dataclass(frozen=True)
class Plateau:
  """Schedule 'plateau': drop the rate when the validation error stalls.

  Section 5: "divide the learning rate by 10 when the validation error rate
  stopped improving with the current learning rate", three times, then stop.
  The controller is a value: `observe` returns the next one.

  Attributes:
    best_error: lowest validation error at the current rate, a fraction.
    stalled: evaluations since that error.
    drops: number of drops so far.
  """

  best_error: float = float('inf')
  stalled: int = 0
  drops: int = 0

  def observe(self, error: float, patience: int) -> 'Plateau':
    """The controller after one more validation error.

    Args:
      error: validation error, a fraction.
      patience: number of evaluations without a new lowest error that counts as
        a plateau.
    """
    if error < self.best_error:
      return dataclasses.replace(self, best_error=error, stalled=0)
    if self.stalled + 1 < patience:
      return dataclasses.replace(self, stalled=self.stalled + 1)
    return Plateau(drops=self.drops + 1)

  def has_ended(self, max_drops: int) -> bool:
    """Whether the rate has dropped more than `max_drops` times."""
    return self.drops > max_drops
