"""Overlapping max pooling (section 3.4), with a fast gradient.

XLA's own gradient is a scatter, which on CPU handles one number at a time and
takes a seventh of the train step, and on an H200 a tenth (docs/speed.md). Here
every pixel gathers the gradient of the up to four windows that contain it, for a
vector of maps at a time. A TPU's compiler has a kernel for the scatter, with half
the bytes of the gathering (experiments/LOG.md), so there it stays.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8


def max_pool(
  x: Float[Array, 'batch height width features'], size: int
) -> Float[Array, 'batch out_height out_width features']:
  """Maxima of square windows of `size` (2 or 3) pixels, with stride 2.

  Only whole windows count: `(height - size) // 2 + 1` of them. The gradient
  goes to the first of equal maxima in row-major order, as in XLA and PyTorch;
  if a window has a NaN, which is then its maximum, to some pixel of the window.
  Only reverse-mode differentiation is supported.
  """
  pool = _maxima if jax.default_backend() == 'tpu' else _max_pool
  return pool(x, size)


def _maxima(x, size):
  return nn.max_pool(x, (size, size), (2, 2))


_max_pool = jax.custom_vjp(_maxima, nondiff_argnums=(1,))


def _places(
  x: Float[Array, 'batch height width features'], size: int
) -> Int8[Array, 'batch out_height out_width features']:
  """Position of each maximum in its window: row * `size` + column."""
  rows, columns = ((n - size) // 2 + 1 for n in x.shape[1:3])
  best, places = jnp.full((), -jnp.inf, x.dtype), jnp.int8(0)
  for place in range(size**2):
    row, column = divmod(place, size)
    here = x[
      :, row : row + 2 * rows - 1 : 2, column : column + 2 * columns - 1 : 2
    ]
    above = here > best
    best = jnp.where(above, here, best)
    places = jnp.where(above, jnp.int8(place), places)
  return places


def _forward(x, size):
  return _maxima(x, size), x


def _backward(size, x, g):
  batch, height, width, features = x.shape
  rows, columns = (height + 1) // 2, (width + 1) // 2
  # Pixel (2i + p, 2j + q) is in windows i and i - 1, j and j - 1. Windows
  # before the first and after the last have gradient 0.
  edges = (1, rows - g.shape[1]), (1, columns - g.shape[2])
  places = jnp.pad(_places(x, size), ((0, 0), *edges, (0, 0)))
  g = jnp.pad(g, ((0, 0), *edges, (0, 0)))

  def pixels(p, q):
    total = 0
    for row in range(p, size, 2):
      for column in range(q, size, 2):
        i, j = 1 - row // 2, 1 - column // 2
        window = (slice(None), slice(i, i + rows), slice(j, j + columns))
        is_maximum = places[window] == row * size + column
        total += jnp.where(is_maximum, g[window], 0)
    return total

  pairs = [jnp.stack([pixels(p, 0), pixels(p, 1)], axis=3) for p in (0, 1)]
  whole = jnp.stack(pairs, axis=2)  # [batch, rows, 2, columns, 2, features]
  whole = whole.reshape(batch, 2 * rows, 2 * columns, features)
  return (whole[:, :height, :width],)


_max_pool.defvjp(_forward, _backward)
