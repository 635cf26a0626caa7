"""The layers of AlexNet: norms, dropout, convolutional and fully connected.

Pure functions, and Flax modules for layers with parameters. Max pooling is in
`pooling.py`.
"""

import functools

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from alexnet_jax import towers


def local_response_norm(
  x: Float[Array, 'batch height width features'],
  groups: int,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 1e-4,
) -> Float[Array, 'batch height width features']:
  """`x / (k + alpha * sum of squares of `size` adjacent maps) ** 0.75`.

  Section 3.3, with its constants; the sum is not divided by `size`. The window
  stops at the edges of the `groups` equal groups of maps, so the norm never
  reads the other tower.
  """
  if jax.default_backend() == 'tpu':
    return _normalize_by_product(x, groups, size, k, alpha)
  grouped = x.reshape(*x.shape[:-1], groups, -1)
  out = _normalize(grouped, (1,) * (grouped.ndim - 1) + (size,), k, alpha)
  return out.reshape(x.shape)


def within_map_norm(
  x: Float[Array, 'batch height width features'],
  size: int = 5,
  alpha: float = 1e-3 / 25,
) -> Float[Array, 'batch height width features']:
  """`x / (1 + alpha * sum of squares of a window of its map) ** 0.75`.

  Deviation S3, with the constants of run 145 of the original source. The window
  is the `size` x `size` pixels around each pixel, in the same map.
  """
  return _normalize(x, (1, size, size, 1), 1.0, alpha)


# The backward pass computes the sums again: stored in float32, they would be
# four ninths of all that the step keeps in bfloat16.
@functools.partial(jax.checkpoint, static_argnums=(1, 2, 3))
def _normalize(x, window, k, alpha):
  # The 8 bits of bfloat16 are too few for k plus a sum of squares.
  dtype, x = x.dtype, _at_least_float32(x)
  squares = lax.reduce_window(
    jnp.square(x),
    0.0,
    lax.add,
    window,
    (1,) * x.ndim,
    [(size // 2, (size - 1) // 2) for size in window],
  )
  return _divide(x, squares, k, alpha).astype(dtype)


def _normalize_by_product(x, groups, size, k, alpha):
  """The norm over maps with its sums as a product with a matrix of 0 and 1.

  Compiled for a TPU, windows over maps are operations of their own, on float32
  arrays in other layouts: the norms alone then move 3.5 times as many bytes. On
  a GPU the product moves more (experiments/LOG.md).
  """
  dtype, x = x.dtype, _at_least_float32(x)
  maps = x.shape[-1] // groups
  read, written = jnp.indices((x.shape[-1],) * 2)
  near = (written - size // 2 <= read) & (read <= written + (size - 1) // 2)
  band = near & (read // maps == written // maps)
  squares = jnp.matmul(
    jnp.square(x), band.astype(x.dtype), precision=lax.Precision.HIGHEST
  )
  return _divide(x, squares, k, alpha).astype(dtype)


def _divide(x, squares, k, alpha):
  # s ** -0.75 by square roots: twice as fast as a power, forward and backward.
  root = lax.rsqrt(k + alpha * squares)
  return x * (root * lax.sqrt(root))


def _at_least_float32(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dropout(
  x: Float[Array, 'batch features'],
  key: Key[Array, ''],
  rate: float,
  batch_indices: Int[Array, 'batch'],
  features: int,
  num_towers: int,
  first_unit: int | Int[Array, ''] = 0,
) -> Float[Array, 'batch features']:
  """Sets each unit to zero with probability `rate`, without rescaling.

  Section 4.2. Whether a unit is dropped depends on the key, the index of its
  example in the global batch, its tower and its index in the tower, so the mask
  is the same on every mesh.

  Args:
    x: units `first_unit`, `first_unit` + 1, ... of the layer.
    key: random key of this step and layer.
    rate: probability of dropping a unit, in [0, 1).
    batch_indices: index of each example in the global batch.
    features: number of units of the whole layer, `[tower 0 | tower 1]`.
    num_towers: number of towers of the network.
    first_unit: index in the layer of the first unit of `x`.
  """
  all_towers = jnp.arange(num_towers)

  def keep(index):
    example_key = jax.random.fold_in(key, index)
    draw = lambda tower: jax.random.bernoulli(
      jax.random.fold_in(example_key, tower),
      1 - rate,
      (features // num_towers,),
    )
    units = jax.vmap(draw)(all_towers).reshape(-1)
    return lax.dynamic_slice(units, (first_unit,), x.shape[1:])

  return jnp.where(jax.vmap(keep)(batch_indices), x, 0)


class TowerConv(nn.Module):
  """Convolution and bias of one layer, for the towers of this device."""

  features: int
  kernel_size: int
  stride: int
  padding: tuple[int, int]
  groups: int
  init_std: float
  init_bias: float

  @nn.compact
  def __call__(
    self, x: Float[Array, 'batch height width in_features']
  ) -> Float[Array, 'batch out_height out_width features']:
    size, group_in = self.kernel_size, x.shape[-1] // self.groups
    shape = (size, size, group_in, self.features)
    kernel, bias = _kernel_and_bias(self, shape)
    x = towers.grouped_conv(
      x, kernel, self.stride, (self.padding, self.padding), self.groups
    )
    return towers.add_bias(x, bias)


class TowerDense(nn.Module):
  """Fully connected layer, for the towers of this device.

  Output group i (of `groups`) reads only input group i, flattened. The outputs
  have `output_dtype`, by default the dtype of `x`.
  """

  features: int
  groups: int
  init_std: float
  init_bias: float
  output_dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'batch *size in_features']
  ) -> Float[Array, 'batch features']:
    parts = [
      part.reshape(x.shape[0], -1) for part in jnp.split(x, self.groups, -1)
    ]
    shape = (parts[0].shape[1], self.features)
    kernel, bias = (
      towers.pvary_like(p, x) for p in _kernel_and_bias(self, shape)
    )
    kernels = jnp.split(kernel.astype(x.dtype), self.groups, axis=-1)
    outputs = [
      jnp.matmul(part, k, preferred_element_type=self.output_dtype)
      for part, k in zip(parts, kernels, strict=True)
    ]
    # The bias is added in float32 so that its gradient is summed in float32.
    outputs = jnp.concatenate(outputs, axis=-1)
    return (_at_least_float32(outputs) + bias[None]).astype(outputs.dtype)


def _kernel_and_bias(layer, shape):
  normal = nn.initializers.normal(layer.init_std)
  constant = nn.initializers.constant(layer.init_bias)
  return (
    layer.param('kernel', normal, shape),
    layer.param('bias', constant, shape[-1:]),
  )
