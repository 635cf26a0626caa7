"""The split of the towers: against scikit-learn, all assignments, and by hand."""

import itertools
import math

import numpy as np
import pytest
from sklearn import metrics

from experiments import colour_split

RNG = np.random.default_rng(0)
GREY, HUE = colour_split.GREY, colour_split.RED_GREEN


def auc_of(index, is_second):
  """The area under the ROC curve, of the more coloured side."""
  auc = metrics.roc_auc_score(is_second, index)
  return max(auc, 1 - auc), int(auc >= 0.5)


@pytest.mark.parametrize('shift', [0.0, 0.8, -2.0])
def test_a_split_is_that_of_scikit_learn_and_of_all_assignments(shift):
  index = RNG.normal(size=8) + shift * (np.arange(8) >= 4)
  found = colour_split.split(index)
  is_second = np.arange(8) >= 4
  assert (found.auc, found.coloured) == auc_of(index, is_second)
  as_high = [
    auc_of(index, np.isin(np.arange(8), second))[0] >= found.auc - 1e-9
    for second in itertools.combinations(range(8), 4)
  ]
  assert found.p == pytest.approx(np.mean(as_high))
  swapped = colour_split.split(np.roll(index, 4))
  assert (swapped.auc, swapped.p) == pytest.approx((found.auc, found.p))
  assert swapped.coloured == 1 - found.coloured


def test_a_split_with_ties_is_that_of_all_assignments():
  """Dead kernels have index 0; not so many that they would be separated."""
  index, is_second = (
    np.array([0, 0, 0, 0.3, 0, 0.2, 0.5, 0.9]),
    np.arange(8) > 3,
  )
  found = colour_split.split(index)
  assert (found.auc, found.coloured) == auc_of(index, is_second)
  as_high = [
    auc_of(index, np.isin(np.arange(8), second))[0] >= found.auc - 1e-9
    for second in itertools.combinations(range(8), 4)
  ]
  assert found.p == pytest.approx(np.mean(as_high))
  assert colour_split.split(np.zeros(64)).p == 1


def test_no_split_of_many_kernels_by_chance():
  """p is uniform if the towers do not matter."""
  p = [colour_split.split(RNG.normal(size=24)).p for _ in range(400)]
  assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.035)


@pytest.mark.parametrize(
  ('p', 'coloured', 'step'),
  [
    ([0.9, 0.01, 0.9, 0.01, 0.01], [0, 0, 0, 0, 0], 8),
    ([0.01, 0.01, 0.01, 0.01, 0.01], [1, 1, 0, 0, 0], 4),
    ([0.01, 0.01, 0.01, 0.01, 0.05], [0, 0, 0, 0, 0], None),
    ([0.04] * 5, [1] * 5, 0),
  ],
)
def test_the_towers_are_split_from_a_step_on_to_the_end(p, coloured, step):
  splits = [
    colour_split.Split(0.9, c, one) for one, c in zip(p, coloured, strict=True)
  ]
  assert colour_split.split_step([0, 2, 4, 8, 16], splits) == step


def test_p_values_are_combined_by_fishers_method():
  p = 0.2 * 0.03  # -2 ln(p) has a chi-squared distribution with 4 degrees.
  assert colour_split.combined_p([0.2, 0.03]) == pytest.approx(
    p * (1 - math.log(p))
  )
  assert colour_split.combined_p([0.3]) == pytest.approx(0.3)


def uniform(vector, size=5):
  return np.broadcast_to(vector, (size, size, 3))


def test_the_index_of_responses_of_kernels_of_one_colour():
  edge = np.sign(np.arange(5) - 2.0)[:, None, None]
  kernels = [
    uniform(GREY),
    uniform(HUE),
    edge * uniform(GREY),
    edge * uniform(-HUE),
    uniform(0.3 * GREY + 0.1 * HUE),
    uniform(np.zeros(3)),
  ]
  found = colour_split.response_index(np.stack(kernels, -1))
  assert found == pytest.approx([0, 1, 0, 1, 0.25, 0])


def test_the_index_of_responses_is_that_of_each_grating_in_turn():
  kernel = RNG.normal(size=(4, 4, 3))
  best = {'grey': 0.0, 'coloured': 0.0}
  for grating in colour_split.gratings(4):
    assert np.square(grating).sum() == pytest.approx(1)
    plane = np.einsum('yx,yxc->c', grating, kernel)
    best['grey'] = max(best['grey'], abs(plane @ GREY))
    for hue in np.arange(12) * np.pi / 6:
      vector = math.cos(hue) * HUE + math.sin(hue) * colour_split.BLUE_YELLOW
      assert vector.sum() == pytest.approx(0)
      best['coloured'] = max(best['coloured'], abs(plane @ vector))
  expected = best['coloured'] / sum(best.values())
  found = colour_split.response_index(kernel[..., None])
  assert found == pytest.approx([expected])


def test_the_first_singular_vector():
  # Kernels 0 and 2 are read by the first units, 1 and 3 by the others.
  together = np.array([0, 1, 0, 1])
  reads = np.array([[5.0, 5, 1, 1], [1, 1, 5, 5]])[together]
  reads += RNG.uniform(0, 9, (4, 1)) + RNG.uniform(0, 9, 4)  # Left out.
  kernels = RNG.choice([-1, 1], (2, 2, 4, 4)) * reads / 4
  vector = colour_split.first_singular_vector(kernels, centred=True)
  assert np.abs(vector) == pytest.approx([0.5] * 4)
  assert list(np.sign(vector) == np.sign(vector[0])) == [True, False] * 2
  # Uncentred, of rank one: how much each kernel has in total.
  totals = np.array([1.0, 2, 3, 4])
  kernels = np.ones((1, 1, 1, 3)) * totals[:, None]
  vector = colour_split.first_singular_vector(kernels, centred=False)
  assert np.abs(vector) == pytest.approx(totals / np.sqrt(30))


def test_plain_and_centred_vectors_may_disagree():
  # Kernel 3 is read most of all, 0 and 1 by other units than 2 and 3.
  reads = np.array([[3.0, 1], [3, 1], [1, 3], [5, 7]])[None, None]
  plain = colour_split.first_singular_vector(reads, centred=False)
  assert (plain > 0).all() and plain.argmax() == 3
  centred = colour_split.first_singular_vector(reads, centred=True)
  assert np.abs(centred) == pytest.approx([0.5] * 4)
  assert (
    list(np.sign(centred) == np.sign(centred[0])) == [True] * 2 + [False] * 2
  )


def test_the_p_value_of_a_correlation_is_that_of_all_pairings():
  a, b = np.arange(5.0), np.array([0.0, 1, 3, 2, 4])
  found = abs(colour_split.rank_correlation(a, b))
  as_high = [
    abs(colour_split.rank_correlation(a, np.array(c))) >= found - 1e-9
    for c in itertools.permutations(b)
  ]
  assert colour_split.correlation_p(a, b) == pytest.approx(np.mean(as_high))


def test_the_share_of_a_kernel_that_its_start_explains():
  start, other = RNG.normal(size=(2, 5, 5, 3))
  other -= (other * start).sum() / np.square(start).sum() * start
  ends = [start, -3 * start, other, start + other, 0 * start]
  share = np.square(start).sum() / np.square(start + other).sum()
  found = colour_split.kept_share(np.stack([start] * 5, -1), np.stack(ends, -1))
  assert found == pytest.approx([1, 1, 0, share, 0], abs=1e-9)
