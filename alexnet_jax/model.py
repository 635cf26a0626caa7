"""AlexNet, section 3 of the paper, as a Flax linen module.

The text of the paper: five convolutional and three fully connected layers,
ReLU on all but the last, local response normalisation and overlapping max
pooling, two towers that meet at conv3, fc6 and fc7. 60,965,224 parameters at
224 x 224 pixels and 1,000 classes. Widths, classes and the geometry of conv1
are arguments, so that small nets are the same code.
"""

from collections.abc import Sequence
import math

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from alexnet_jax import towers

# Hidden layers whose biases start at one, which gives their ReLUs positive
# inputs in the early stages of learning; the others start at zero. Section 5.
BIAS_ONE = ('conv2', 'conv4', 'conv5', 'fc6', 'fc7')


def feature_map_sizes(
  crop_size: int, conv1_kernel: int, conv1_stride: int, conv1_padding: int
) -> dict[str, int]:
  """Height (= width) in pixels of the maps; below 1 where nothing is left.

  conv1 covers its whole input: where the stride does not divide, the last
  window hangs over the right and bottom edge (the original source's rule,
  which gives the paper's 55 from 224 pixels, and 55 from 227 as well). conv2
  to conv5 keep the size, each pooling (3x3, stride 2) takes (n - 3) // 2 + 1.
  """
  covered = crop_size + 2 * conv1_padding - conv1_kernel
  sizes = {
    'conv1': 1 + math.ceil(covered / conv1_stride) if covered >= 0 else 0
  }
  for before, after in (
    ('conv1', 'pool1'),
    ('pool1', 'pool2'),
    ('pool2', 'pool5'),
  ):
    sizes[after] = (sizes[before] - 3) // 2 + 1
  return sizes


def local_response_norm(
  x: Float[Array, 'batch height width features'],
  groups: int,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 1e-4,
) -> Float[Array, 'batch height width features']:
  """`x / (k + alpha * sum of squares of `size` adjacent maps) ** 0.75`.

  Section 3.3, with its constants; the sum is not divided by `size`. The
  window ends at the edge of each of the `groups` equal groups of maps: the
  norm never looks into the other tower.
  """
  grouped = x.reshape(*x.shape[:-1], groups, -1)
  window = (1,) * (grouped.ndim - 1) + (size,)
  padding = [(0, 0)] * (grouped.ndim - 1) + [(size // 2, (size - 1) // 2)]
  squares = lax.reduce_window(
    jnp.square(grouped), 0.0, lax.add, window, (1,) * grouped.ndim, padding
  )
  # s ** -0.75 without a logarithm: twice as fast in forward and backward.
  root = lax.rsqrt(k + alpha * squares)
  return (grouped * (root * lax.sqrt(root))).reshape(x.shape)


def dropout(
  x: Float[Array, 'batch features'],
  key: Key[Array, ''],
  rate: float,
  rows: Int[Array, 'batch'],
  tower_numbers: Int[Array, 'towers'],
) -> Float[Array, 'batch features']:
  """Sets each unit to zero with probability `rate`, without rescaling.

  Section 4.2: no rescaling in training, all outputs times `1 - rate` at test.
  A unit's fate depends on the key, its example's row in the global batch and
  its tower, so it is the same on every mesh.
  """
  features = x.shape[1] // tower_numbers.size

  def keep(row):
    row_key = jax.random.fold_in(key, row)
    draw = lambda tower: jax.random.bernoulli(
      jax.random.fold_in(row_key, tower), 1 - rate, (features,)
    )
    return jax.vmap(draw)(tower_numbers).reshape(-1)

  return jnp.where(jax.vmap(keep)(rows), x, 0)


class TowerConv(nn.Module):
  """Convolution, bias and ReLU of one layer, on the towers of this device."""

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
    shape = (
      *(self.kernel_size,) * 2,
      x.shape[-1] // self.groups,
      self.features,
    )
    kernel = self.param('kernel', nn.initializers.normal(self.init_std), shape)
    bias = self.param(
      'bias', nn.initializers.constant(self.init_bias), (self.features,)
    )
    x = towers.grouped_conv(
      x, kernel, self.stride, (self.padding, self.padding), self.groups
    )
    return nn.relu(towers.add_bias(x, bias))


class AlexNet(nn.Module):
  """The network of Figure 2.

  Attributes:
    num_classes: outputs of fc8.
    conv_features: kernels of conv1 ... conv5, both towers together.
    fc_features: units of fc6 and fc7, both towers together.
    conv1_kernel: side of conv1's kernels in pixels.
    conv1_stride: stride of conv1 in pixels.
    conv1_padding: zeros on every side of the crop, in pixels.
    init_std: standard deviation of the initial weights (section 5).
    conv345_init_std: the same for conv3, conv4 and conv5.
    dropout_rate: share of fc6's and fc7's units that a training step drops.
    tower_devices: devices that share the network; with 2, call it inside
      `towers.shard`. Parameters are created with 1 and serve both.
  """

  num_classes: int = 1000
  conv_features: Sequence[int] = (96, 256, 384, 384, 256)
  fc_features: Sequence[int] = (4096, 4096)
  conv1_kernel: int = 11
  conv1_stride: int = 4
  conv1_padding: int = 0
  init_std: float = 0.01
  conv345_init_std: float = 0.01
  dropout_rate: float = 0.5
  tower_devices: int = 1

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'batch size size 3'],
    *,
    train: bool = False,
    rows: Int[Array, 'batch'] | None = None,
  ) -> Float[Array, 'batch classes']:
    """Logits of a batch of mean-subtracted RGB crops (scale of 0..255).

    Args:
      images: the crops.
      train: drop units, drawn from the rng stream 'dropout'.
      rows: rows of the global batch that these images are; default 0, 1, ...
    """
    here = towers.NUM_TOWERS // self.tower_devices
    gather = lambda x, **kwargs: towers.gather(x, self.tower_devices, **kwargs)
    rows = jnp.arange(images.shape[0]) if rows is None else rows

    def conv(number, kernel_size, groups, stride=1, padding=None):
      name = f'conv{number}'
      return TowerConv(
        features=self.conv_features[number - 1] // self.tower_devices,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding or (kernel_size // 2,) * 2,
        groups=groups,
        init_std=self.conv345_init_std if number > 2 else self.init_std,
        init_bias=float(name in BIAS_ONE),
        name=name,
      )

    def dense(name, features):
      return nn.Dense(
        features // self.tower_devices,
        kernel_init=nn.initializers.normal(self.init_std),
        bias_init=nn.initializers.constant(float(name in BIAS_ONE)),
        name=name,
      )

    def drop(x):
      if not train:
        return x * (1 - self.dropout_rate)
      key = self.make_rng('dropout')
      numbers = towers.local_towers(self.tower_devices)
      return dropout(x, key, self.dropout_rate, rows, numbers)

    pool = lambda x: nn.max_pool(x, (3, 3), (2, 2))  # Section 3.4.

    x = conv(
      1, self.conv1_kernel, 1, self.conv1_stride, self._conv1_padding(images)
    )(images)
    x = pool(local_response_norm(x, here))
    x = conv(2, 5, here)(x)
    x = pool(local_response_norm(x, here))
    x = conv(3, 3, 1)(gather(x))  # The towers meet.
    x = conv(4, 3, here)(x)
    x = conv(5, 3, here)(x)
    x = gather(pool(x))  # The towers meet.
    x = x.reshape(x.shape[0], -1)
    for name, features in zip(('fc6', 'fc7'), self.fc_features, strict=True):
      x = gather(drop(nn.relu(dense(name, features)(x))))  # The towers meet.
    return gather(dense('fc8', self.num_classes)(x), to='invarying')

  def _conv1_padding(self, images: Float[Array, 'batch size size 3']):
    size, pad = images.shape[1], self.conv1_padding
    geometry = (self.conv1_kernel, self.conv1_stride, pad)
    out = feature_map_sizes(size, *geometry)['conv1']
    hang = (out - 1) * self.conv1_stride + self.conv1_kernel - (size + 2 * pad)
    return pad, pad + hang


def compiler_options() -> dict[str, str]:
  """Options for `jax.jit` of this network on the backend at hand.

  On CPU, XLA's default sends convolutions to YNNPACK, where they are 1.3 to 2
  times slower than on Eigen; dots are better left there. The option is
  experimental: a version of XLA that does not know it gets none.
  """
  if jax.default_backend() != 'cpu':
    return {}
  options = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_DOT'}
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except (jax.errors.JaxRuntimeError, ValueError):
    return {}
  return options
