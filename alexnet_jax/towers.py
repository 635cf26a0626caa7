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
  """
  kernel = pvary_like(kernel, x).astype(x.dtype)
  parts = [
    lax.conv_general_dilated(
      part,
      part_kernel,
      (stride, stride),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    for part, part_kernel in zip(
      jnp.split(x, groups, axis=-1),
      jnp.split(kernel, groups, axis=-1),
      strict=True,
    )
  ]
  return jnp.concatenate(parts, axis=-1)


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
  dtype = jnp.promote_types(g.dtype, jnp.float32)
  if jax.default_backend() != 'cpu':
    return g, g.astype(dtype).sum(tuple(range(g.ndim - 1)))
  flat = g.reshape(-1, g.shape[-1])
  ones = jnp.ones((8, flat.shape[0]), g.dtype)  # 8 rows: one vector register.
  sums = jnp.matmul(
    ones, flat, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
  )
  return g, sums[0]


_add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
