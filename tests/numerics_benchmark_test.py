"""What benchmarks.numerics calls different, and what it calls too different."""

import numpy as np
import pytest

from benchmarks import numerics


def test_a_difference_is_relative_to_the_reference():
  reference = {'a': np.float32([3, 4]), 'zero': np.zeros(2), 'not asked for': 1}
  found = {'a': np.float32([3, 4.5]), 'zero': np.float32([0, 0.25])}
  assert numerics.differences(found, reference) == {'a': 0.1, 'zero': 0.25}
  found = {'a': np.float32([3, np.nan])}
  assert np.isnan(numerics.differences(found, reference)['a'])


@pytest.mark.parametrize(
  'precision, name, limit',
  [
    ('parts', 'crops', 0.0),
    ('parts', 'update', 5e-6),
    ('highest', 'loss', 1e-5),
    ('bfloat16', 'gradient of conv1 kernel', 0.4),
  ],
)
def test_what_is_above_its_tolerance_is_named(precision, name, limit):
  wrong = lambda value: numerics.excesses({precision: {name: value}})
  assert wrong(limit) == []
  (line,) = wrong(2 * limit + 1e-9)
  assert line.startswith(f'{precision} {name}: ')
  assert wrong(np.nan) == [f'{precision} {name}: nan, tolerance {limit:.1e}']


def test_every_part_has_a_tolerance_and_is_computed_twice_alike():
  found = numerics.parts(2)
  assert found.keys() == numerics.PARTS.keys()
  same = numerics.differences(numerics.parts(2), found)
  assert set(same.values()) == {0.0}
  # Nothing is all zeros, which would agree with anything.
  assert all(np.abs(np.float64(x)).max() > 0 for x in found.values())
