"""AlexNet, section 3 of the paper, as a Flax linen module.

The text of the paper: five convolutional and three fully connected layers,
ReLU on all but the last, local response normalisation and overlapping max
pooling, two towers that meet at conv3, fc6 and fc7. 60,965,224 parameters at
224 x 224 pixels and 1,000 classes. Widths, classes and geometry are arguments,
so that small nets are the same code; so is every point in which the original
source differs from the text (Deviations S2 to S4, S11: table in README.md).
"""

from collections.abc import Sequence
import math

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from alexnet_jax import pooling
from alexnet_jax import towers

CONVS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'conv6')
# Layers that a max pooling follows (section 3.5), present or left out.
POOLED = ('conv1', 'conv2', 'conv5')
# Layers that read the maps of both towers: section 3.5; conv6 in run 146 of
# the original source. fc8 feeds the one softmax, so it does even without links.
MEETING = ('conv3', 'conv6', 'fc6', 'fc7', 'fc8')
# Hidden layers whose biases start at one, which gives their ReLUs positive
# inputs in the early stages of learning; the others start at zero. Section 5;
# conv6 in run 146 of the original source.
BIAS_ONE = ('conv2', 'conv4', 'conv5', 'conv6', 'fc6', 'fc7')
ACTIVATIONS = {'relu': nn.relu, 'tanh': jnp.tanh}


def feature_map_sizes(
  crop_size: int,
  conv1_kernel: int,
  conv1_stride: int,
  conv1_padding: int,
  pool_size: int = 3,
) -> dict[str, int]:
  """Height (= width) in pixels of the maps; below 1 where nothing is left.

  conv1 covers its whole input: where the stride does not divide, the last
  window hangs over the right and bottom edge (the original source's rule,
  which gives the paper's 55 from 224 pixels, and 55 from 227 as well). The
  other convolutions keep the size. Each pooling has stride 2 and takes whole
  windows alone, (n - pool_size) // 2 + 1, so that pools of 3 and of 2 pixels
  give outputs of equal size at 224 pixels, as section 3.4 has it.
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
    sizes[after] = (sizes[before] - pool_size) // 2 + 1
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
  out = _normalize(grouped, (1,) * (grouped.ndim - 1) + (size,), k, alpha)
  return out.reshape(x.shape)


def within_map_norm(
  x: Float[Array, 'batch height width features'],
  size: int = 5,
  alpha: float = 1e-3 / 25,
) -> Float[Array, 'batch height width features']:
  """`x / (1 + alpha * sum of squares of a window of its map) ** 0.75`.

  Deviation S3, with the constants of run 145 of the original source: the
  window is `size` x `size` pixels around each, of the same map.
  """
  return _normalize(x, (1, size, size, 1), 1.0, alpha)


def _normalize(x, window, k, alpha):
  # bfloat16 has 8 bits for k plus a sum of squares.
  dtype, x = x.dtype, _at_least_float32(x)
  squares = lax.reduce_window(
    jnp.square(x),
    0.0,
    lax.add,
    window,
    (1,) * x.ndim,
    [(size // 2, (size - 1) // 2) for size in window],
  )
  # s ** -0.75 without a logarithm: twice as fast in forward and backward.
  root = lax.rsqrt(k + alpha * squares)
  return (x * (root * lax.sqrt(root))).astype(dtype)


def _at_least_float32(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dropout(
  x: Float[Array, 'batch features'],
  key: Key[Array, ''],
  rate: float,
  rows: Int[Array, 'batch'],
  features: int,
  num_towers: int,
  first_unit: int | Int[Array, ''] = 0,
) -> Float[Array, 'batch features']:
  """Sets each unit to zero with probability `rate`, without rescaling.

  Section 4.2. A unit's fate depends on the key, its example's row in the
  global batch, its tower and its place there, so it is the same on every mesh.

  Args:
    x: units `first_unit`, `first_unit` + 1, ... of the layer.
    key: of this step and layer.
    rate: in [0, 1).
    rows: the row of the global batch that each example is.
    features: units of the layer, `[tower 0 | tower 1]`.
    num_towers: of the network.
    first_unit: of those in `x`.
  """
  all_towers = jnp.arange(num_towers)

  def keep(row):
    row_key = jax.random.fold_in(key, row)
    draw = lambda tower: jax.random.bernoulli(
      jax.random.fold_in(row_key, tower), 1 - rate, (features // num_towers,)
    )
    units = jax.vmap(draw)(all_towers).reshape(-1)
    return lax.dynamic_slice(units, (first_unit,), x.shape[1:])

  return jnp.where(jax.vmap(keep)(rows), x, 0)


class TowerConv(nn.Module):
  """Convolution and bias of one layer, on the towers of this device."""

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
    kernel, bias = _kernel_and_bias(self, shape)
    x = towers.grouped_conv(
      x, kernel, self.stride, (self.padding, self.padding), self.groups
    )
    return towers.add_bias(x, bias)


class TowerDense(nn.Module):
  """Fully connected layer, on the towers of this device.

  Each of the `groups` equal groups of outputs reads all units of one group of
  input maps, flattened. The outputs have the dtype of `x`, where they are not
  `rounded` at least float32.
  """

  features: int
  groups: int
  init_std: float
  init_bias: float
  rounded: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, 'batch *size in_features']
  ) -> Float[Array, 'batch features']:
    parts = [
      part.reshape(len(part), -1) for part in jnp.split(x, self.groups, axis=-1)
    ]
    shape = (parts[0].shape[1], self.features)
    kernel, bias = (towers.vary_as(p, x) for p in _kernel_and_bias(self, shape))
    kernels = jnp.split(kernel.astype(x.dtype), self.groups, axis=-1)
    dtype = None if self.rounded else jnp.promote_types(x.dtype, jnp.float32)
    outputs = [
      jnp.matmul(part, k, preferred_element_type=dtype)
      for part, k in zip(parts, kernels, strict=True)
    ]
    # Added in float32, so that its gradient is summed in float32.
    outputs = jnp.concatenate(outputs, axis=-1)
    return (_at_least_float32(outputs) + bias[None]).astype(outputs.dtype)


def _kernel_and_bias(layer, shape):
  normal = nn.initializers.normal(layer.init_std)
  constant = nn.initializers.constant(layer.init_bias)
  return (
    layer.param('kernel', normal, shape),
    layer.param('bias', constant, shape[-1:]),
  )


class AlexNet(nn.Module):
  """The network of Figure 2, and with other arguments its relatives.

  Attributes:
    num_classes: outputs of fc8.
    conv_features: kernels of conv1 ... conv5, all towers together, and of a
      sixth layer over the last pooling where there is one (section 6). 0 leaves
      the layer out, and with it its norm (section 7); its pooling stays.
    fc_features: units of fc6 and fc7, all towers together; 0 as above.
    conv1_kernel: side of conv1's kernels in pixels.
    conv1_stride: stride of conv1 in pixels.
    conv1_padding: zeros on every side of the crop, in pixels.
    pool_size: side of the windows of max pooling, 3 or 2; their stride is 2.
    num_towers: 2, or 1: every layer reads all maps of the one before.
    tower_links: whether the towers meet before the softmax, in `MEETING`.
    activation: of the hidden layers, a key of `ACTIVATIONS`.
    lrn_layers: layers that a local response norm follows.
    lrn_k: constant of the norm.
    lrn_alpha: factor of the norm's sum of squares, which is not divided by 5.
      Deviation S2: the source divides, as Caffe does: 2e-5.
    lrn_across_towers: let the norm's window cross the middle of the maps, as
      Caffe's does; with `tower_devices` 1 alone.
    lrn_before_activation: layers whose norms come before their activation, not
      after it. Deviation S3: conv1 in the source. (The source also pools before
      the activation; since both are monotone, that changes nothing.)
    within_map_norm_layers: layers with a `within_map_norm` after the local
      response norm. Deviation S3: conv2 in the source.
    init_std: standard deviation of the initial weights (section 5).
    conv345_init_std: the same for conv3, conv4, conv5 and conv6. Deviation S4:
      0.03 in the source.
    fc67_init_std: the same for fc6 and fc7; Caffe has 0.005.
    init_bias: initial bias of the layers `BIAS_ONE`; Caffe has 0.1.
    dropout_rate: share of fc6's and fc7's units that a training step drops.
    inverted_dropout: divide what is kept by `1 - dropout_rate` in training,
      instead of multiplying by it at test. Deviation S11: Caffe and others do.
    dtype: of the activations and what computes them, 'float32' or 'bfloat16'.
      Parameters, norms, logits and the gradients that devices sum stay float32.
    tower_devices: devices that share the network, a tower on each: 1, or 2 in
      the layout 'towers'.
    fc_devices: devices that share fc6, fc7 and fc8: 1, or all in the layout
      'one_weird_trick'. Where one of these is not 1, call the network inside
      `towers.shard`. Parameters are created with 1 and serve all layouts.
  """

  num_classes: int = 1000
  conv_features: Sequence[int] = (96, 256, 384, 384, 256)
  fc_features: Sequence[int] = (4096, 4096)
  conv1_kernel: int = 11
  conv1_stride: int = 4
  conv1_padding: int = 0
  pool_size: int = 3
  num_towers: int = 2
  tower_links: bool = True
  activation: str = 'relu'
  lrn_layers: Sequence[str] = ('conv1', 'conv2')
  lrn_k: float = 2.0
  lrn_alpha: float = 1e-4
  lrn_across_towers: bool = False
  lrn_before_activation: Sequence[str] = ()
  within_map_norm_layers: Sequence[str] = ()
  init_std: float = 0.01
  conv345_init_std: float = 0.01
  fc67_init_std: float = 0.01
  init_bias: float = 1.0
  dropout_rate: float = 0.5
  inverted_dropout: bool = False
  dtype: str = 'float32'
  tower_devices: int = 1
  fc_devices: int = 1

  @property
  def data_split(self) -> tuple[str, ...]:
    """Layers whose units are split over the mesh axis 'data'.

    The classes of fc8 may not divide; then every device has all of them.
    """
    if self.fc_devices == 1:
      return ()
    whole = self.num_classes % self.fc_devices
    return ('fc6', 'fc7') if whole else ('fc6', 'fc7', 'fc8')

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
    rows = jnp.arange(images.shape[0]) if rows is None else rows
    x = images.astype(self.dtype)
    for name, features in zip(CONVS, self.conv_features, strict=False):
      if features:
        x = self._conv(name, features, x)
      if name in POOLED:  # Section 3.4.
        x = pooling.max_pool(x, self.pool_size)
    for name, features in zip(('fc6', 'fc7'), self.fc_features, strict=True):
      if features:
        x = ACTIVATIONS[self.activation](self._dense(name, features, x))
        x = self._drop(x, features, train, rows)
    # Rounded to the 8 bits of bfloat16 they would tie, and a tie is an error.
    logits = self._dense('fc8', self.num_classes, x)
    with jax.named_scope('logits'):
      if self.tower_devices > 1:
        return towers.gather(logits, 'tower', axis=1, to='invarying')
      if 'fc8' in self.data_split:
        return towers.send_rows_home(logits)
    return logits

  def _read(self, name, x):
    """What a layer reads, and in how many groups: here the GPUs talk."""
    if name not in MEETING or not (self.tower_links or name == 'fc8'):
      return x, 1 if name == 'conv1' else self.num_towers // self.tower_devices
    with jax.named_scope(name):
      if self.tower_devices > 1:
        x = towers.gather(x, 'tower', axis=x.ndim - 1)
      elif self.fc_devices > 1 and name.startswith('fc'):
        whole = x.ndim == 4  # Maps: all features of this device's rows.
        if name in self.data_split:
          x = towers.gather(x, 'data', axis=0 if whole else 1)
        elif not whole:
          x = towers.send_rows_home(x)
    return x, 1

  def _conv(self, name, features, x):
    kernel_size, stride = {
      'conv1': (self.conv1_kernel, self.conv1_stride),
      'conv2': (5, 1),
    }.get(name, (3, 1))
    padding = (kernel_size // 2,) * 2
    if name == 'conv1':
      padding = self._conv1_padding(x)
    x, groups = self._read(name, x)
    deep = CONVS.index(name) >= CONVS.index('conv3')
    x = TowerConv(
      features=features // self.tower_devices,
      kernel_size=kernel_size,
      stride=stride,
      padding=padding,
      groups=groups,
      init_std=self.conv345_init_std if deep else self.init_std,
      init_bias=self.init_bias if name in BIAS_ONE else 0.0,
      name=name,
    )(x)
    activate = ACTIVATIONS[self.activation]
    if name in self.lrn_before_activation:
      return activate(self._norms(name, x))
    return self._norms(name, activate(x))

  def _norms(self, name, x):
    if name in self.lrn_layers:
      groups = self.num_towers // self.tower_devices
      groups = 1 if self.lrn_across_towers else groups
      x = local_response_norm(x, groups, k=self.lrn_k, alpha=self.lrn_alpha)
    if name in self.within_map_norm_layers:
      x = within_map_norm(x)
    return x

  def _dense(self, name, features, x):
    x, groups = self._read(name, x)
    devices = self.fc_devices if name in self.data_split else self.tower_devices
    return TowerDense(
      features=features // devices,
      groups=groups,
      init_std=self.init_std if name == 'fc8' else self.fc67_init_std,
      init_bias=self.init_bias if name in BIAS_ONE else 0.0,
      rounded=name != 'fc8',
      name=name,
    )(x)

  def _drop(self, x, features, train, rows):
    keep_rate = 1 - self.dropout_rate
    if not train:
      return x if self.inverted_dropout else x * keep_rate
    first_unit = 0
    if self.tower_devices > 1:
      first_unit = lax.axis_index('tower') * x.shape[1]
    elif self.fc_devices > 1:  # Some units of all examples.
      first_unit = lax.axis_index('data') * x.shape[1]
      rows = jnp.arange(len(x))
    x = dropout(
      x,
      self.make_rng('dropout'),
      self.dropout_rate,
      rows,
      features,
      self.num_towers,
      first_unit,
    )
    return x / keep_rate if self.inverted_dropout else x

  def _conv1_padding(self, images: Float[Array, 'batch size size 3']):
    size, pad = images.shape[1], self.conv1_padding
    geometry = (self.conv1_kernel, self.conv1_stride, pad)
    out = feature_map_sizes(size, *geometry)['conv1']
    hang = (out - 1) * self.conv1_stride + self.conv1_kernel - (size + 2 * pad)
    return pad, pad + hang
