"""What is collected during an evaluation, against counts by hand."""

import numpy as np
import pytest

from alexnet_jax import observation


def observe(batches, classes=3):
  """An observation of batches of (probabilities, labels, mask)."""
  found = observation.Observation(classes)
  for n, (probabilities, labels, mask) in enumerate(batches):
    size = len(labels)
    active = np.zeros((1, 2, 4), bool)
    active[0, n % 2, n] = True
    units = np.arange(size * 2, dtype=np.float32).reshape(1, size, 2) + 100 * n
    observed = {
      'active': {'conv1': active},
      'sample': {'conv1': np.full((1, 5), float(n))},
      'last': {'fc7': units},
    }
    log_probs = np.log(np.array(probabilities, np.float32))
    found(log_probs, np.array(labels), np.array(mask), observed)
  return found


BATCHES = [
  ([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], [0, 2], [True, True]),
  ([[0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.9, 0.1, 0.0]], [0, 1, 0], [1, 1, 0]),
]


@pytest.mark.filterwarnings('ignore:divide by zero')
def test_an_evaluation_is_collected_without_what_is_masked(monkeypatch):
  masks = [(p, y, np.array(m, bool)) for p, y, m in BATCHES]
  found = observe(masks)
  np.testing.assert_array_equal(
    found.confusion, [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
  )
  # The most confident first, with the row of the split.
  assert [(m.row, m.label) for m in found.mistakes] == [(2, 0), (1, 2)]
  assert [c for c, _ in found.mistakes[1].classes] == [1, 2, 0]
  assert found.mistakes[1].classes[0][1] == pytest.approx(0.6)
  assert [m.true_bar for m in found.mistakes] == [1, 1]
  # Units 0 and 1 of four have been active, each on another device.
  assert found.dead_shares() == {'conv1': 0.5}
  assert found.samples['conv1'].tolist() == [0.0] * 5  # Of the first batch.
  assert found.layer == 'fc7'
  np.testing.assert_array_equal(
    found.features, [[0, 1], [2, 3], [100, 101], [102, 103]]
  )
  assert found.examples == [(0, 0, 0), (1, 2, 1), (2, 0, 1), (3, 1, 1)]


@pytest.mark.filterwarnings('ignore:divide by zero')
def test_what_is_kept_is_bounded(monkeypatch):
  monkeypatch.setattr(observation, 'MISTAKES', 1)
  monkeypatch.setattr(observation, 'EXAMPLES', 3)
  found = observe([(p, y, np.array(m, bool)) for p, y, m in BATCHES])
  assert [m.row for m in found.mistakes] == [2]
  assert len(found.features) == len(found.examples) == 3
