"""The colour index of kernels whose colours are known."""

import numpy as np
import pytest

from alexnet_jax import colour_index


@pytest.mark.parametrize(
  ('rgb', 'expected'),
  [
    ((1, 1, 1), 0.0),
    ((-2, -2, -2), 0.0),
    ((1, -1, 0), 1.0),  # Red against green.
    ((-1, -1, 2), 1.0),  # Blue against yellow.
    ((1, 0, 0), 2 / 3),
    ((0, 0, 0), 0.0),
  ],
)
def test_the_index_of_one_colour(rgb, expected):
  edge = np.array([1.0, -1.0, 1e-3], np.float32)[:, None, None]
  edge = edge * np.array(rgb, np.float32)
  (found,) = colour_index.colour_index(edge[..., None])
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_independent_weights_have_two_thirds_at_any_scale():
  kernels = np.random.default_rng(0).normal(size=(11, 11, 3, 96))
  found = colour_index.colour_index(kernels.astype(np.float32))
  assert found.shape == (96,)
  np.testing.assert_allclose(found.mean(), 2 / 3, atol=0.01)
  scaled = colour_index.colour_index((1e-3 * kernels).astype(np.float32))
  np.testing.assert_allclose(scaled, found, atol=1e-5)
