"""A training loss that rises away: what that means, and a warning.

It rises away if the mean of a row of metrics is more than `FACTOR` times the
lowest one so far, and more than `FACTOR` times ln(classes), the loss of a net
that knows nothing. A loss below that may fall again by itself.
"""

from collections.abc import Mapping
import logging
import math

import ml_collections

log = logging.getLogger(__name__)

FACTOR = 2.0


def is_rising(loss: float, lowest_loss: float, num_classes: int) -> bool:
  """Whether a loss (nats) rises away; `lowest_loss` is inf if unknown."""
  lowest = lowest_loss if math.isfinite(lowest_loss) else 0.0
  return not loss <= FACTOR * max(lowest, math.log(num_classes))


def is_steady(record: Mapping[str, object]) -> bool:
  """Whether the loss at a checkpoint did not rise away.

  Args:
    record: metadata of the checkpoint, see `train_state.CheckpointMetadata`.
      Without a loss or a number of classes it counts as steady.
  """
  sums, recorded = record.get('unfinished') or {}, record['config']
  loss = record['metrics'].get('train/loss')
  if sums.get('count'):  # Those of the steps after that row.
    loss = sums['loss'] / sums['count']
  num_classes = recorded.get('model.num_classes')
  if loss is None or num_classes is None:
    return True
  lowest = record.get('lowest_loss', math.inf)
  return not is_rising(loss, lowest, num_classes)


class RisingLossWarning:
  """Warns once if the training loss rises away.

  Attributes:
    lowest_loss: lowest loss of a row so far (nats); inf before the first.
  """

  def __init__(self, config: ml_collections.ConfigDict, lowest_loss: float):
    """Starts from the lowest loss of earlier rows."""
    self._config, self.lowest_loss, self._warned = config, lowest_loss, False

  def observe(self, loss: float) -> float:
    """Records the mean training loss (nats) of a row; returns the lowest."""
    rate = self._config.optimizer.learning_rate
    classes = self._config.model.num_classes
    is_first = math.isinf(self.lowest_loss)
    self.lowest_loss = min(self.lowest_loss, loss)
    rises = not is_first and is_rising(loss, self.lowest_loss, classes)
    if not rises or self._warned:
      return self.lowest_loss
    self._warned = True
    log.warning(
      'The loss, %.4g, is more than %g times the lowest so far, %.4g, and ln(%d)'
      ' = %.4g: it rises away. The likely cause is a learning rate that is too'
      ' high: in a fresh --workdir set config.optimizer.learning_rate (now %g)'
      ' to %g. See "The loss is not finite" in docs/troubleshooting.md of the'
      ' repository.',
      *(loss, FACTOR, self.lowest_loss, classes, math.log(classes)),
      *(rate, rate / 10),
    )
    return self.lowest_loss
