"""Verdicts on differences between nets, by the rule of experiments/README.md."""

from collections.abc import Sequence

from scipy import stats

from experiments import summary

FEWEST_SEEDS, MOST_SEEDS = 3, 200
LEVEL = 0.95


def half_width(standard_error: float, number: int) -> float:
  """Half of the confidence interval of a mean of `number` values."""
  return float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * standard_error


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
  if len(differences) < FEWEST_SEEDS:
    return 'not run yet'
  mean, error = summary.mean_and_standard_error(differences)
  width = half_width(error, len(differences))
  if mean - width > 0:
    is_smaller = size is not None and mean + width < size
    return 'same sign, smaller' if is_smaller else 'reproduced'
  return 'contradicted' if mean + width < 0 else 'noise'


def seeds_needed(deviation: float, size: float) -> int | None:
  """The seeds with which a difference of `size` would not be called noise.

  Args:
    deviation: standard deviation of the difference between seeds.
    size: size of the difference, in the same unit.

  Returns:
    The number, at least three; None if it is above `MOST_SEEDS`.
  """
  for number in range(FEWEST_SEEDS, MOST_SEEDS + 1):
    if half_width(deviation / number**0.5, number) < size:
      return number
  return None
