"""A warning for AlexNet's most common failure: a loss that never decreases."""

import logging
import math

import ml_collections

log = logging.getLogger(__name__)


class ChanceLossWarning:
  """Warns once if the loss stays at ln(classes), its value at chance level.

  The net then gives every class the same probability and learns nothing. The
  usual cause is initial weights that are too small for a deep net.

  Attributes:
    stuck_steps: number of the latest steps at chance level.
  """

  NEAR = 0.02  # nats

  def __init__(self, config: ml_collections.ConfigDict, stuck_steps: int):
    """Starts from `stuck_steps` earlier steps at chance level."""
    self._config, self.stuck_steps, self._warned = config, stuck_steps, False

  def observe(self, loss: float, steps: int) -> None:
    """Records the mean training loss (nats) of `steps` further steps."""
    net, classes = self._config.model, self._config.model.num_classes
    # With one class the loss is 0 = ln(1), which says nothing about the net.
    stuck = classes > 1 and abs(loss - math.log(classes)) < self.NEAR
    before = self.stuck_steps
    self.stuck_steps = before + steps if stuck else 0
    limit = self._config.train.plateau_warning_steps
    if not before < limit <= self.stuck_steps or self._warned:
      return
    self._warned = True
    log.warning(
      'For %d steps the loss has been within %g of ln(%d) = %.3f: the net gives'
      ' every class the same probability. The likely cause is initial weights'
      ' that are too small: in a fresh --workdir set'
      ' config.model.conv345_init_std (now %g; 0.03 in the source) and, if the'
      ' net is narrow,'
      ' config.model.init_std and config.model.fc67_init_std (now %g and %g) to'
      ' 0.05. See "A loss that stays at ln(classes)" in docs/troubleshooting.md'
      ' of the repository.',
      self.stuck_steps,
      self.NEAR,
      classes,
      math.log(classes),
      net.conv345_init_std,
      net.init_std,
      net.fc67_init_std,
    )
