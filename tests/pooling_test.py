"""`pooling.max_pool` against loops over windows and pixels, in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import pooling


def _loops(x, size, g):
  """Maxima, and the gradient if the first maximum of each window gets it."""
  batch, height, width, features = x.shape
  rows, columns = (height - size) // 2 + 1, (width - size) // 2 + 1
  maxima = np.empty((batch, rows, columns, features), x.dtype)
  gradient = np.zeros(x.shape, np.float64)
  for n, i, j, f in np.ndindex(maxima.shape):
    window = x[n, 2 * i : 2 * i + size, 2 * j : 2 * j + size, f]
    row, column = np.unravel_index(window.argmax(), window.shape)
    maxima[n, i, j, f] = window[row, column]
    gradient[n, 2 * i + row, 2 * j + column, f] += g[n, i, j, f]
  return maxima, gradient


@pytest.fixture(params=['cpu', 'tpu'])  # XLA's gradient on a TPU.
def backend(request, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: request.param)


def _value_and_gradient(x, size, g):
  @jax.jit  # A new one in every test: another backend is traced anew.
  def function(x, g):
    out, pull = jax.vjp(lambda x: pooling.max_pool(x, size), x)
    return out, pull(g)[0]

  return function(x, g)


# Where 3 and an even side or 2 and an odd side meet, no window has the last
# row.
@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('height, width', [(3, 3), (7, 7), (8, 9), (4, 6)])
@pytest.mark.usefixtures('backend')
def test_maxima_and_their_gradient_equal_loops(size, height, width):
  rng = np.random.default_rng(0)
  # Few values, so that most windows have several equal maxima.
  x = rng.integers(-2, 3, (2, height, width, 5)).astype(np.float32)
  out = (height - size) // 2 + 1, (width - size) // 2 + 1
  # Integers, whose sums are exact in any order.
  g = rng.integers(-9, 10, (2, *out, 5)).astype(np.float32)
  maxima, gradient = _value_and_gradient(jnp.asarray(x), size, jnp.asarray(g))
  expected = _loops(x, size, g)
  np.testing.assert_array_equal(maxima, expected[0])
  np.testing.assert_array_equal(gradient, expected[1])


@pytest.mark.usefixtures('backend')
def test_of_equal_maxima_the_first_gets_the_gradient():
  x = jnp.zeros((1, 5, 5, 1))
  _, gradient = _value_and_gradient(x, 3, jnp.ones((1, 2, 2, 1)))
  rows, columns = np.nonzero(gradient[0, ..., 0])
  assert list(zip(rows, columns, strict=True)) == [
    (0, 0),
    (0, 2),
    (2, 0),
    (2, 2),
  ]


def test_bfloat16_stays_bfloat16_and_matches_loops():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 7, 7, 4)).astype(jnp.bfloat16)
  g = rng.integers(1, 5, (1, 3, 3, 4)).astype(jnp.bfloat16)
  maxima, gradient = _value_and_gradient(jnp.asarray(x), 3, jnp.asarray(g))
  assert maxima.dtype == gradient.dtype == jnp.bfloat16
  expected = _loops(x, 3, g)
  np.testing.assert_array_equal(maxima, expected[0])
  np.testing.assert_array_equal(np.float64(gradient), expected[1])


@pytest.mark.usefixtures('backend')
def test_nan_is_propagated():
  x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(jnp.nan)
  maxima, gradient = _value_and_gradient(x, 3, jnp.ones((1, 1, 1, 1)))
  assert jnp.isnan(maxima).all()
  assert gradient.sum() == 1  # Somewhere in the window.


def test_minus_infinity_can_be_a_maximum():
  x = jnp.full((1, 3, 3, 1), -jnp.inf)
  maxima, gradient = _value_and_gradient(x, 3, jnp.ones((1, 1, 1, 1)))
  assert maxima[0, 0, 0, 0] == -jnp.inf
  assert gradient[0, 0, 0, 0] == gradient.sum() == 1


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('side', [8, 9])
def test_equal_maxima_have_the_gradient_of_xla_and_pytorch(size, side):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  x = rng.integers(-2, 3, (2, side, side, 5)).astype(np.float32)
  count = (side - size) // 2 + 1
  g = rng.integers(-9, 10, (2, count, count, 5)).astype(np.float32)
  _, gradient = _value_and_gradient(jnp.asarray(x), size, jnp.asarray(g))
  _, pull = jax.vjp(
    lambda x: nn.max_pool(x, (size, size), (2, 2)), jnp.asarray(x)
  )
  np.testing.assert_array_equal(gradient, pull(jnp.asarray(g))[0])
  channels_first = lambda a: torch.tensor(a).permute(0, 3, 1, 2)
  leaf = channels_first(x).requires_grad_()
  torch.nn.functional.max_pool2d(leaf, size, 2).backward(channels_first(g))
  np.testing.assert_array_equal(gradient, leaf.grad.permute(0, 2, 3, 1))
