"""The paper's optimiser (section 5), and learning rate schedules.

    v <- 0.9 v - 0.0005 rate w - rate <dL/dw>;    w <- w + v

The rate is inside v, so lowering it does not shrink what v has accumulated.
`optax.sgd` and PyTorch multiply v by the rate instead: this is the same at a
constant rate, but the trajectories differ after every drop.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

# Learning rates by kind of parameter (`RATE_KEYS`); 0 freezes the parameters.
Rates = Mapping[str, float | Float[Array, '']]
RATE_KEYS = tuple(
  f'{prefix}{name}'
  for prefix in ('', 'conv1/', 'fc8/')
  for name in ('kernel', 'bias')
)


def paper_sgd(
  rates: Rates,
  momentum: float,
  weight_decay: float,
  decay_biases: bool = True,
  frozen_layers: Sequence[str] = (),
) -> optax.GradientTransformation:
  """The update rule above; its state is v, so rates may change at any step.

  Args:
    rates: learning rates by `RATE_KEYS`, unused by `init`. If one is 0, neither
      w nor v changes, as in the original source, which skips the update
      (Deviation S6: it freezes conv1).
    momentum: factor of v, 0.9 in section 5.
    weight_decay: factor of w, 0.0005 in section 5.
    decay_biases: whether weight decay applies to biases, as in the text.
      Deviation S5: in the original source it does not.
    frozen_layers: layers whose w and v do not change.
  """

  def rate_of(path):
    return 0.0 if path[-2].key in frozen_layers else rates[_kind(path)]

  def update(grads, state, params):
    def new_v(path, g, w, v):
      rate = rate_of(path)
      if decay_biases or path[-1].key != 'bias':
        g += weight_decay * w
      return jnp.where(rate > 0, momentum * v - rate * g, v)

    def step(path, v):
      return jnp.where(rate_of(path) > 0, v, 0)

    v = jax.tree.map_with_path(new_v, grads, params, state.trace)
    return jax.tree.map_with_path(step, v), optax.TraceState(v)

  return optax.GradientTransformation(optax.trace(momentum).init, update)


def _kind(path):
  layer = path[-2].key
  prefix = f'{layer}/' if layer in ('conv1', 'fc8') else ''
  return prefix + path[-1].key


def drops_at(epoch: float, drop_epochs: Sequence[float]) -> int:
  """Number of `drop_epochs` at or before `epoch`."""
  return sum(epoch >= drop for drop in drop_epochs)


@dataclasses.dataclass(frozen=True)
class RateSchedule:
  """Learning rates as a function of the epoch.

  Attributes:
    schedule: schedule of the rate of the weights, a key of `SCHEDULES`.
    learning_rate: initial rate of the weights.
    epochs: length of the run, for the schedule 'cosine'.
    drop_factor: number by which a drop divides the rate.
    drop_epochs: epochs of the drops of the schedule 'steps', ascending; () for
      the others.
    bias_rate_factor: initial rate of the biases divided by `learning_rate`.
      Deviation S5: 2 in the original source.
    drop_bias_rate: whether the rate of the biases follows that of the weights.
      Deviation S5: the original source lowers only that of the weights.
    conv1_drop_epochs: epochs of further drops for conv1's weights.
      Deviation S6.
    conv1_freeze_epoch: epoch from which conv1 is frozen; 0 for never.
      Deviation S6.
    fc8_rate_factor: rates of fc8 divided by those of the other layers.
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
  fc8_rate_factor: float = 1.0

  @property
  def change_epochs(self) -> tuple[float, ...]:
    """Epochs at which a rate jumps, in no particular order."""
    # A freeze epoch of 0 (never) precedes all steps, so it changes nothing.
    return (*self.drop_epochs, *self.conv1_drop_epochs, self.conv1_freeze_epoch)

  def rates(self, epoch: float, plateau_drops: int) -> dict[str, float]:
    """The rates of a step that begins at `epoch`, by `RATE_KEYS`.

    Args:
      epoch: passes through the training set before the step.
      plateau_drops: number of drops of the schedule 'plateau' so far.
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
      weights * self.fc8_rate_factor,
      biases * self.fc8_rate_factor,
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
  """Ours: half a cosine from the initial rate down to 0 at the end."""
  del plateau_drops
  progress = min(epoch / schedule.epochs, 1.0)
  return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


# Functions of (schedule, epoch, plateau drops so far): the rate of the weights.
SCHEDULES = {'steps': _steps, 'plateau': _plateau, 'cosine': _cosine}


@dataclasses.dataclass(frozen=True)
class Plateau:
  """State of the schedule 'plateau', which drops the rate on a plateau.

  Section 5: "divide the learning rate by 10 when the validation error rate
  stopped improving with the current learning rate", three times, then stop.

  Attributes:
    best_error: lowest validation error at the current rate, a fraction.
    stalled: number of evaluations since then.
    drops: number of drops so far.
  """

  best_error: float = float('inf')
  stalled: int = 0
  drops: int = 0

  def observe(self, error: float, patience: int) -> 'Plateau':
    """The next state, after one more evaluation.

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
