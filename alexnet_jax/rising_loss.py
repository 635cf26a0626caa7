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
    steady_step: first step of the newest row that did not rise away: the state
      before it is a good one.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    lowest_loss: float,
    steady_step: int,
  ):
    """Starts from the lowest loss, and the `steady_step`, of earlier rows."""
    self._config, self._lowest_loss = config, lowest_loss
    self.steady_step, self._warned = steady_step, False

  def observe(self, loss: float, step: int) -> dict[str, float]:
    """Records a row of metrics.

    Args:
      loss: mean training loss of the row (nats).
      step: number of steps before the row.

    Returns:
      'lowest_loss' and 'steady_step', as `train_state.CheckpointMetadata` has
      them.
    """
    rate = self._config.optimizer.learning_rate
    classes = self._config.model.num_classes
    is_first = math.isinf(self._lowest_loss)
    self._lowest_loss = lowest = min(self._lowest_loss, loss)
    if is_first or not is_rising(loss, lowest, classes):
      self.steady_step = step
    elif not self._warned:
      self._warned = True
      log.warning(
        'The loss, %.4g, is more than %g times the lowest so far, %.4g, and'
        ' ln(%d) = %.4g: it rises away. The likely cause is a learning rate that'
        ' is too high: in a fresh --workdir set config.optimizer.learning_rate'
        ' (now %g) to %g. See "The loss is not finite" in'
        ' docs/troubleshooting.md of the repository.',
        *(loss, FACTOR, lowest, classes, math.log(classes), rate, rate / 10),
      )
    return {'lowest_loss': lowest, 'steady_step': self.steady_step}
