"""Timing of several variants in turn, so that a ratio is of one and the same hour."""

from collections.abc import Callable, Mapping
import statistics
import time

TURN = 2, 0.5  # Steps and seconds of a variant's turn in a round, at least.


def seconds(
  variants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
  """Wall seconds of each call, by variant; every second round runs backwards.

  Args:
    variants: each does the work once and returns when it is done; a float is
      the seconds that count instead of the wall clock's.
    rounds: in which each variant runs once, after one call that is not timed.
  """
  taken = {name: [] for name in variants}
  for run in variants.values():
    run()
  for number in range(rounds):
    order = list(variants)[:: 1 if number % 2 else -1]
    for name in order:
      began = time.perf_counter()
      own = variants[name]()
      wall = time.perf_counter() - began
      taken[name].append(own if isinstance(own, float) else wall)
  return taken


def mean_seconds(work: Callable[[int], object], at_once: int = 1) -> float:
  """Of a step in a turn; `work` takes a number of steps, and waits for them."""
  steps, began = 0, time.perf_counter()
  least, duration = TURN
  while steps < least or time.perf_counter() - began < duration:
    work(at_once)
    steps += at_once
  return (time.perf_counter() - began) / steps


def wait_until_idle(cpu: Callable[[], float]) -> None:
  """Returns when `cpu`, in CPU-seconds, hardly grows any more."""
  before = -1.0
  while cpu() - before > 0.02:
    before = cpu()
    time.sleep(0.1)


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
  """Median and range of the ratios of pairs of one round."""
  pairs = [a / b for a, b in zip(numerator, denominator, strict=True)]
  return {
    'median': statistics.median(pairs),
    'least': min(pairs),
    'most': max(pairs),
  }
