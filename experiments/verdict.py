"""Verdicts on differences between nets, by the rule of experiments/README.md."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from experiments import summary

FEWEST_SEEDS, MOST_SEEDS = 3, 200
LEVEL, POWER = 0.95, 0.8


def half_width(standard_error: float, number: int) -> float:
  """Half of the confidence interval of a mean of `number` values."""
  return float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * standard_error


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
  """The confidence interval of the mean (Student's t, level 0.95).

  None for fewer than three values, which have no verdict.
  """
  if len(differences) < FEWEST_SEEDS:
    return None
  mean, error = summary.mean_and_standard_error(differences)
  width = half_width(error, len(differences))
  return mean - width, mean + width


def verdict(differences: Sequence[float], size: float | None) -> str:
  """The verdict on a claim that a difference is positive.

  Args:
    differences: the measured difference of each seed.
    size: the size that the claim gives; None if it gives none.

  Returns:
    'not run yet' for fewer than three seeds; 'noise' if the confidence interval
    of the mean (Student's t, level 0.95) includes 0; 'contradicted' if it is
    below 0; 'same sign, smaller' if it is above 0 and below `size`; otherwise
    'reproduced'.
  """
  found = interval(differences)
  if found is None:
    return 'not run yet'
  low, high = found
  if low > 0:
    is_smaller = size is not None and high < size
    return 'same sign, smaller' if is_smaller else 'reproduced'
  return 'contradicted' if high < 0 else 'noise'


def p_value(differences: Sequence[float]) -> float | None:
  """The p-value of Student's t test (two-sided) that the mean is 0.

  None for fewer than three values, which have no verdict.
  """
  if len(differences) < FEWEST_SEEDS:
    return None
  mean, error = summary.mean_and_standard_error(differences)
  if error == 0:
    return float(mean == 0)
  return float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def holm(p_values: Sequence[float], number: int) -> list[float]:
  """p-values of several tests, corrected for their number by Holm's method.

  If none of the effects exists, one of these is below 0.05 with a chance of at
  most 0.05, also if the tests share nets.

  Args:
    p_values: those of the tests that have been made.
    number: of all tests that are planned; the others count as larger p-values.
  """
  order = np.argsort(p_values)
  factors = number - np.arange(len(p_values))
  corrected = np.empty(len(p_values))
  corrected[order] = np.maximum.accumulate(factors * np.array(p_values)[order])
  return np.minimum(corrected, 1).tolist()


def deviation_interval(deviation: float, number: int) -> tuple[float, float]:
  """The confidence interval of a standard deviation, of `number` values."""
  quantiles = stats.chi2.ppf(((1 + LEVEL) / 2, (1 - LEVEL) / 2), number - 1)
  low, high = deviation * np.sqrt((number - 1) / quantiles)
  return float(low), float(high)


def power(deviation: float, size: float, number: int) -> float:
  """The chance that a difference of `size` has an interval above 0.

  Args:
    deviation: standard deviation of the difference between seeds, positive.
    size: true size of the difference, in the same unit.
    number: number of seeds.
  """
  limit = stats.t.ppf((1 + LEVEL) / 2, number - 1)
  distance = size * number**0.5 / deviation
  return float(stats.nct.sf(limit, number - 1, distance))


def seeds_needed(deviation: float, size: float) -> int | None:
  """The seeds with which `power` is at least `POWER`.

  Args:
    deviation: standard deviation of the difference between seeds, positive.
    size: true size of the difference, in the same unit.

  Returns:
    The number, at least three; None if it is above `MOST_SEEDS`.
  """
  for number in range(FEWEST_SEEDS, MOST_SEEDS + 1):
    if power(deviation, size, number) >= POWER:
      return number
  return None
