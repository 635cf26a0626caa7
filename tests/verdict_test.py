"""The rule of verdicts: as the report has it, and the seeds that it needs."""

import numpy as np
import pytest
from scipy import stats

from experiments import summary
from experiments import verdict
from tests import report_test


@pytest.mark.parametrize('size', [0.5, 1.5])
@pytest.mark.parametrize('number', [2, 3, 5])
@pytest.mark.parametrize('mean', [-1.0, -0.1, 0.2, 0.9, 1.6, 4.0])
def test_verdicts_are_those_of_the_report(mean, number, size):
  spread = np.resize([0.3, -0.3, 0.1], number)
  values = list(mean + spread - spread.mean())
  found = summary.mean_and_standard_error(values)
  expected = report_test.expected_verdict(size, *found, number)
  assert verdict.verdict(values, size) == expected


def test_a_claim_without_a_size_is_reproduced_by_any():
  assert verdict.verdict([0.1, 0.11, 0.12], None) == 'reproduced'
  assert verdict.verdict([0.1, 0.11, 0.12], 1.0) == 'same sign, smaller'
  assert verdict.verdict([-0.1, -0.11, -0.12], None) == 'contradicted'


@pytest.mark.parametrize('number', report_test.T)
def test_the_interval_is_that_of_the_report(number):
  found = verdict.half_width(0.5, number)
  assert found == pytest.approx(0.5 * report_test.T[number], rel=1e-3)


@pytest.mark.parametrize(
  ('ratio', 'number'),
  # Cohen's d and the pairs of a t test (two-sided, level 0.05, power 0.8), as in
  # tables of power: 34 for 0.5, 15 for 0.8, 10 for 1.0.
  [(0.5, 34), (0.8, 15), (1.0, 10), (30.0, 3), (1e6, 3), (0.01, None)],
)
def test_the_seeds_that_a_size_needs(ratio, number):
  assert verdict.seeds_needed(2.0, 2.0 * ratio) == number


def test_power_is_the_share_of_samples_that_are_not_noise():
  samples = np.random.default_rng(0).normal(1.5, 1.0, (2000, 4))
  found = [verdict.verdict(list(s), None) == 'reproduced' for s in samples]
  assert verdict.power(1.0, 1.5, 4) == pytest.approx(np.mean(found), abs=0.03)


def test_the_interval_of_a_deviation_holds_it():
  samples = np.random.default_rng(0).normal(0, 2.0, (2000, 4))
  intervals = [verdict.deviation_interval(s, 4) for s in samples.std(1, ddof=1)]
  held = np.mean([low < 2 < high for low, high in intervals])
  assert held == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize('values', [[1.0, 2.0, 4.0], [-1.0, 0.5, 0.2, 0.1]])
def test_p_is_below_the_level_where_the_interval_leaves_0(values):
  found = verdict.p_value(values)
  assert found == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
  assert (found < 0.05) == (verdict.verdict(values, None) != 'noise')
  assert verdict.p_value(values[:2]) is None
  assert (verdict.p_value([1.0] * 3), verdict.p_value([0.0] * 3)) == (0, 1)


def test_holms_correction():
  # Holm (1979): 0.01 x 4, 0.02 x 3 raised to no less, 0.03 x 2, 0.6.
  found = verdict.holm([0.03, 0.01, 0.6, 0.02], 4)
  assert found == pytest.approx([0.06, 0.04, 0.6, 0.06])
  assert verdict.holm([0.4, 0.5], 2) == pytest.approx([0.8, 0.8])
  # Two more that have not been made: 0.01 x 4, 0.02 x 3.
  assert verdict.holm([0.02, 0.01], 4) == pytest.approx([0.06, 0.04])
  assert verdict.holm([], 4) == []
