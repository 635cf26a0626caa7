"""Building blocks of layers in towers: gathers, grouped convolution, bias.

The paper (section 3.5) puts half of the kernels of every layer on each of two
GPUs, which communicate only where a layer reads the maps of both: at conv3,
fc6, fc7 and the logits. Here a tower is half of the output channels of every
layer, `[tower 0 | tower 1]` on the last axis of each parameter. One device
computes both towers; on a mesh these functions run inside `mesh.shard_map`, and
in the layout 'towers' the forward pass communicates only through `gather`.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gather(
  x: Float[Array, '...'], axis_name: str, axis: int, to: str = 'varying'
) -> Float[Array, '...']:
  """All-gather: every device gets the shards of the mesh axis, concatenated.

  With `to='varying'` the backward pass is a reduce-scatter. The logits use
  'invarying': the loss computed from them is the same on all devices.
  """
  return lax.all_gather(x, axis_name, axis=axis, tiled=True, to=to)


def all_to_all_batch(
  x: Float[Array, 'global_batch features'],
) -> Float[Array, 'batch all_features']:
  """Reshards the features axis to the batch axis, over the mesh axis 'data'."""
  return lax.all_to_all(x, 'data', split_axis=0, concat_axis=1, tiled=True)


def grouped_conv(
  x: Float[Array, 'batch height width in_features'],
  kernel: Float[Array, 'kernel_height kernel_width group_in features'],
  stride: int,
  padding: Sequence[tuple[int, int]],
  groups: int,
) -> Float[Array, 'batch out_height out_width features']:
  """Convolution, in the dtype of `x`; output group i reads only input group i.

  The groups are separate convolutions: with XLA's `feature_group_count` the
  weight gradient is 25 times slower on CPU and the partitioner gathers weights.
  Except on CPU, a stride is replaced by blocks of pixels: see `_on_blocks`.
  """
  kernel = pvary_like(kernel, x).astype(x.dtype)
  parts = [
    _conv(part, part_kernel, stride, padding)
    for part, part_kernel in zip(
      jnp.split(x, groups, axis=-1),
      jnp.split(kernel, groups, axis=-1),
      strict=True,
    )
  ]
  return jnp.concatenate(parts, axis=-1)


def _conv(x, kernel, stride, padding):
  if stride > 1 and jax.default_backend() != 'cpu':
    x, kernel = _on_blocks(x, kernel, stride, padding)
    stride, padding = 1, ((0, 0), (0, 0))
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _on_blocks(x, kernel, stride, padding):
  """Images and kernel of the same convolution with stride 1 ("space to depth").

  The pixels of a block of stride x stride become the features of one pixel, and
  the kernel is filled up with zeros: conv1 has 48 input features in place of 3
  and 3x3 pixels in place of 11x11. Matrix units are made for many features.
  """
  size, features = kernel.shape[0], kernel.shape[-1]
  window = -(-size // stride)  # Blocks.
  edges = [(0, 0, 0)]  # For `lax.pad`, which may also cut off.
  for n, (before, after) in zip(x.shape[1:3], padding, strict=True):
    out = (before + n + after - size) // stride + 1
    edges.append((before, (out + window - 1) * stride - n - before, 0))
  x = lax.pad(x, jnp.zeros((), x.dtype), [*edges, (0, 0, 0)])
  more = window * stride - size
  kernel = jnp.pad(kernel, ((0, more), (0, more), (0, 0), (0, 0)))
  batch, height, width = x.shape[0], *(n // stride for n in x.shape[1:3])
  x = x.reshape(batch, height, stride, width, stride, -1)
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)
  kernel = kernel.reshape(window, stride, window, stride, -1, features)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
  return x, kernel.reshape(window, window, -1, features)


def pvary_like(x: Array, other: Array) -> Array:
  """`x`, typed inside `shard_map` as varying over the mesh axes of `other`.

  The gradient of `x` is summed over those axes here, in the dtype of `x`.
  """
  missing = tuple(jax.typeof(other).mat.varying - jax.typeof(x).mat.varying)
  return lax.pcast(x, missing, to='varying') if missing else x


def add_bias(
  x: Float[Array, '... features'], bias: Float[Array, 'features']
) -> Float[Array, '... features']:
  """`x + bias`; on CPU the gradient of the bias is a matrix product with ones.

  XLA on CPU fuses the layer's whole backward pass into a plain sum; the product
  prevents this and saves 12% of the train step. Other backends use the sum: the
  step with the product, compiled for an A100, moves 14% more memory
  (experiments/LOG.md). `x` may have a lower precision than the bias and its
  gradient.
  """
  # Inside shard_map a custom gradient must vary over the axes of its primal.
  return _add_bias(x, pvary_like(bias, x))


@jax.custom_vjp
def _add_bias(x, bias):
  return x + bias.astype(x.dtype)[(None,) * (x.ndim - 1)]


def _add_bias_fwd(x, bias):
  return _add_bias(x, bias), None


def _add_bias_bwd(_, g):
  return g, _bias_gradient(g)


def _bias_gradient(g):
  dtype = jnp.promote_types(g.dtype, jnp.float32)
  if jax.default_backend() != 'cpu':
    return g.astype(dtype).sum(tuple(range(g.ndim - 1)))
  flat = g.reshape(-1, g.shape[-1])
  ones = jnp.ones((8, flat.shape[0]), g.dtype)  # 8 rows: one vector register.
  sums = jnp.matmul(
    ones, flat, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
  )
  return sums[0]


_add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
