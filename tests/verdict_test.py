"""The rule of verdicts: as the report has it, and the seeds that it needs."""

import numpy as np
import pytest

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
  ('deviation', 'size', 'number'),
  [
    # The widths of 3 seeds are 4.303 / sqrt(3) = 2.484 deviations, of 4 seeds
    # 1.591, of 5 seeds 1.242.
    (1.0, 2.5, 3),
    (1.0, 2.4, 4),
    (0.5, 0.7, 5),
    (0.0, 0.1, 3),
    (100.0, 0.1, None),
  ],
)
def test_the_seeds_that_a_size_needs(deviation, size, number):
  assert verdict.seeds_needed(deviation, size) == number
