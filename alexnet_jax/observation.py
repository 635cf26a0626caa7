"""What an evaluation shows of a net besides its errors: confusions, mistakes."""

import dataclasses
import time

from jaxtyping import Bool, Float, Int, PyTree
import numpy as np

from alexnet_jax import placement

# Mistakes that are kept, their classes, and examples of `Observation.features`.
MISTAKES, TOP, EXAMPLES = 9, 3, 500


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A wrong prediction.

  Attributes:
    row: row of the example in its split.
    label: its class.
    classes: (class, probability in 0..1), the most probable first.
  """

  row: int
  label: int
  classes: tuple[tuple[int, float], ...]

  @property
  def true_bar(self) -> int:
    """Place of the label among the classes, from 0; -1 if it is not there."""
    found = [c for c, _ in self.classes]
    return found.index(self.label) if self.label in found else -1


class Observation:
  """Collects batches of an evaluation: an `observer` of `evaluator.evaluate`.

  Attributes:
    confusion: int [classes, classes]: number of examples by label and predicted
      class.
    mistakes: the most confident wrong predictions, the most confident first.
    samples: activations of a few examples, by layer.
    active: bool [features] by layer: whether a unit has ever been active.
    features: activations [examples, ...] of the last hidden layer for the first
      examples of the split.
    examples: (row, label, predicted class) of each of `features`.
    seconds: what collecting has taken.
  """

  def __init__(self, num_classes: int):
    self.confusion = np.zeros((num_classes, num_classes), np.int64)
    self.mistakes: list[Mistake] = []
    self.samples, self.active = {}, {}
    self.features, self.examples, self.layer = None, [], ''
    self._rows, self.seconds = 0, 0.0

  def __call__(
    self,
    log_probs: Float[np.ndarray, 'batch classes'],
    labels: Int[np.ndarray, 'batch'],
    mask: Bool[np.ndarray, 'batch'],
    observed: PyTree,
  ) -> None:
    """Adds a batch; batches come in stored order.

    Args:
      log_probs: log-probabilities of the classes.
      labels: the classes.
      mask: selects the examples.
      observed: what `diagnostics.Activations` has returned for one view.
    """
    began = time.monotonic()
    rows = self._rows + np.flatnonzero(mask)
    self._rows += len(mask)
    log_probs, labels = log_probs[mask], labels[mask]
    predicted = log_probs.argmax(1)
    np.add.at(self.confusion, (labels, predicted), 1)
    self._add_mistakes(rows, log_probs, labels, predicted)
    for name, active in placement.fetch(observed['active']).items():
      seen = active.any((0, 1))
      self.active[name] = self.active.get(name, False) | seen
    if not self.samples:
      fetched = placement.fetch(observed['sample'])
      self.samples = {name: x[0] for name, x in fetched.items()}
    if len(self.examples) < EXAMPLES:
      ((self.layer, values),) = placement.fetch(observed['last']).items()
      values = values[0].reshape(len(mask), -1)[mask]
      earlier = [] if self.features is None else [self.features]
      self.features = np.concatenate([*earlier, values])[:EXAMPLES]
      found = zip(rows, labels, predicted, strict=True)
      self.examples += [tuple(map(int, one)) for one in found]
      del self.examples[EXAMPLES:]
    self.seconds += time.monotonic() - began

  def _add_mistakes(self, rows, log_probs, labels, predicted):
    wrong = np.flatnonzero(predicted != labels)
    confidence = log_probs[wrong, predicted[wrong]]
    for i in wrong[np.argsort(-confidence, kind='stable')[:MISTAKES]].tolist():
      best = np.argsort(-log_probs[i], kind='stable')[:TOP].tolist()
      classes = tuple((c, float(np.exp(log_probs[i, c]))) for c in best)
      self.mistakes.append(Mistake(int(rows[i]), int(labels[i]), classes))
    self.mistakes.sort(key=lambda mistake: -mistake.classes[0][1])
    del self.mistakes[MISTAKES:]

  def dead_shares(self) -> dict[str, float]:
    """By layer the share of units that were 0 for all examples."""
    return {
      name: 1 - float(active.mean()) for name, active in self.active.items()
    }
