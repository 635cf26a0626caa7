"""AlexNet, section 3 of the paper, as a Flax linen module.

Five convolutional and three fully connected layers, ReLU on all but the last,
local response normalisation, overlapping max pooling, and two towers that meet
at conv3, fc6 and fc7: 60,965,224 parameters for 224 x 224 pixels and 1,000
classes. Widths, classes and geometry are arguments, as is every point in which
the original source differs from the text (docs/deviations.md, S2 to S4, S11).
`tests/plain_net.py` is the same network without switches and meshes.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from alexnet_jax import feature_maps
from alexnet_jax import layers
from alexnet_jax import pooling
from alexnet_jax import towers

CONVS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'conv6')
# Layers followed by max pooling (section 3.5), kept if the layer is left out.
POOLED = ('conv1', 'conv2', 'conv5')
# Layers that read the outputs of both towers: section 3.5; conv6 in run 146 of
# the original source. fc8 does so even without links: there is one softmax.
READ_BOTH_TOWERS = ('conv3', 'conv6', 'fc6', 'fc7', 'fc8')
# Hidden layers whose biases start at one, which gives their ReLUs positive
# inputs in the early stages of learning; the others start at zero. Section 5;
# conv6 in run 146 of the original source.
BIAS_ONE = ('conv2', 'conv4', 'conv5', 'conv6', 'fc6', 'fc7')
ACTIVATIONS = {'relu': nn.relu, 'tanh': jnp.tanh}


class AlexNet(nn.Module):
  """The network of Figure 2, and its variants.

  Attributes:
    num_classes: number of outputs of fc8.
    conv_features: kernels of conv1 ... conv5, summed over the towers, and of an
      optional sixth layer after the last pooling (section 6). 0 leaves the
      layer and its norm out (section 7), but not its pooling.
    fc_features: units of fc6 and fc7, summed over the towers; 0 leaves one out.
    conv1_kernel: side of conv1's kernels in pixels.
    conv1_stride: stride of conv1 in pixels.
    conv1_padding: zero padding on every side of the crop, in pixels.
    conv1_ceil_mode: whether conv1 covers its whole input, see
      `feature_maps.sizes`. Deviation S1: torchvision has only whole windows.
    pool_size: side of the max pooling windows, 3 or 2 pixels; the stride is 2.
    num_towers: 2, or 1: every layer then reads all maps of the previous one.
    tower_links: whether all layers in `READ_BOTH_TOWERS` do, or only fc8.
    activation: activation of the hidden layers, a key of `ACTIVATIONS`.
    lrn_layers: layers followed by a local response norm.
    lrn_k: additive constant of the norm.
    lrn_alpha: factor of the norm's sum of squares, which is not divided by 5.
      Deviation S2: the source divides, as Caffe does: 2e-5.
    lrn_across_towers: whether the norm's window crosses the boundary of the
      towers, as in Caffe; needs `tower_devices` 1.
    lrn_before_activation: layers whose norms precede their activation.
      Deviation S3: conv1 in the source. (The source also pools before the
      activation; both are monotone, so the result is the same.)
    within_map_norm_layers: layers with a `within_map_norm` after the local
      response norm. Deviation S3: conv2 in the source.
    init_std: standard deviation of the initial weights (section 5).
    conv345_init_std: the same for conv3, conv4, conv5 and conv6. Deviation S4:
      0.03 in the source.
    fc67_init_std: the same for fc6 and fc7; 0.005 in Caffe.
    init_bias: initial bias of the layers `BIAS_ONE`; 0.1 in Caffe.
    dropout_rate: probability of dropping an input of `dropout_inputs` in
      training.
    inverted_dropout: whether training divides the kept units by
      `1 - dropout_rate`, instead of multiplying all units by it at test time.
      Deviation S11: Caffe and others do.
    dropout_inputs: layers whose inputs are dropped; 'fc7' and 'fc8' stand for
      the outputs of fc6 and fc7, whichever layer reads them. Deviation S11: fc6
      and fc7 in torchvision.
    dtype: dtype of activations and computation, 'float32' or 'bfloat16'.
      Parameters, norms, logits and gradients summed over devices stay float32.
    tower_devices: devices that share the network, one tower each: 1, or 2 in
      the layout 'towers'.
    fc_devices: devices that share fc6, fc7 and fc8: 1, or all in the layout
      'one_weird_trick'. Unless both numbers are 1, call the network inside
      `mesh.shard_map`. Initialise with both 1: the parameters fit all layouts.
  """

  num_classes: int = 1000
  conv_features: Sequence[int] = (96, 256, 384, 384, 256)
  fc_features: Sequence[int] = (4096, 4096)
  conv1_kernel: int = 11
  conv1_stride: int = 4
  conv1_padding: int = 0
  conv1_ceil_mode: bool = True
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
  dropout_inputs: Sequence[str] = ('fc7', 'fc8')
  dtype: str = 'float32'
  tower_devices: int = 1
  fc_devices: int = 1

  @property
  def layers_sharded_over_data(self) -> tuple[str, ...]:
    """Layers whose units are sharded over the mesh axis 'data'.

    fc8 is replicated if `fc_devices` does not divide `num_classes`.
    """
    if self.fc_devices == 1:
      return ()
    rest = self.num_classes % self.fc_devices
    return ('fc6', 'fc7') if rest else ('fc6', 'fc7', 'fc8')

  def activation_spec(self, name: str) -> P:
    """Partition spec of an activation captured by `__call__`."""
    layer = name.partition('/')[0]
    if layer != 'fc8' and layer in self.layers_sharded_over_data:
      return P(None, 'data')
    if layer == 'fc8' or self.tower_devices == 1:
      return P('data')
    axes = (None, None) if layer.startswith('conv') else ()
    return P('data', *axes, 'tower')

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'batch size size 3'],
    *,
    train: bool = False,
    batch_indices: Int[Array, 'batch'] | None = None,
    capture: dict[str, Array] | None = None,
  ) -> Float[Array, 'batch classes']:
    """Logits of a batch of images.

    Args:
      images: RGB crops as `augment.view_at` gives them.
      train: whether to apply dropout, which needs the rng stream 'dropout'.
      batch_indices: index of each image in the global batch; default 0, 1, ...
      capture: dictionary to which the activations are added by name. 'conv1' is
        after activation, norms and pooling, 'fc6' before dropout and its factor
        at test time, 'conv1/linear' and 'fc6/linear' before the activation;
        likewise for the other layers. 'fc8' is the logits. `activation_spec`
        gives their sharding on a mesh.
    """
    if batch_indices is None:
      batch_indices = jnp.arange(images.shape[0])
    captured = {} if capture is None else capture
    activate = ACTIVATIONS[self.activation]
    x = images.astype(self.dtype)
    for name, features in zip(CONVS, self.conv_features, strict=False):
      if features:
        x, groups = self._inputs(name, x)
        x = captured[f'{name}/linear'] = self._conv(name, features, groups, x)
        if name in self.lrn_before_activation:
          x = activate(self._norms(name, x))
        else:
          x = self._norms(name, activate(x))
      if name in POOLED:  # Section 3.4.
        x = pooling.max_pool(x, self.pool_size)
      captured[name] = x
    readers = zip(('fc6', 'fc7'), self.fc_features, ('fc7', 'fc8'), strict=True)
    for name, features, reader in readers:
      if features:
        x, groups = self._inputs(name, x)
        if name == 'fc6' and name in self.dropout_inputs:
          x = x.reshape(x.shape[0], -1)
          x = self._drop(x, x.shape[1], train, batch_indices)
        x = captured[f'{name}/linear'] = self._dense(name, features, groups, x)
        x = captured[name] = activate(x)
        if reader in self.dropout_inputs:
          x = self._drop(x, features, train, batch_indices)
    x, groups = self._inputs('fc8', x)
    # The 8 bits of bfloat16 would make logits tie, and ties count as errors.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x = self._dense('fc8', self.num_classes, groups, x, dtype)
    captured['fc8'] = self._gather_logits(x)
    return captured['fc8']

  def _inputs(self, name, x):
    """The inputs of a layer, gathered if needed, and its number of groups."""
    if name not in READ_BOTH_TOWERS or not (self.tower_links or name == 'fc8'):
      return x, 1 if name == 'conv1' else self.num_towers // self.tower_devices
    with jax.named_scope(name):
      if self.tower_devices > 1:
        x = towers.gather(x, 'tower', axis=x.ndim - 1)
      elif self.fc_devices > 1 and name.startswith('fc'):
        are_maps = x.ndim == 4  # Maps: all features of this device's examples.
        if name in self.layers_sharded_over_data:
          x = towers.gather(x, 'data', axis=0 if are_maps else 1)
        elif not are_maps:
          x = towers.all_to_all_batch(x)
    return x, 1

  def _conv(self, name, features, groups, x):
    kernel_size, stride = {
      'conv1': (self.conv1_kernel, self.conv1_stride),
      'conv2': (5, 1),
    }.get(name, (3, 1))
    before = after = kernel_size // 2
    if name == 'conv1':
      before = self.conv1_padding
      out = feature_maps.conv1_size(
        x.shape[1], kernel_size, stride, before, self.conv1_ceil_mode
      )
      after = (out - 1) * stride + kernel_size - x.shape[1] - before
    is_late = CONVS.index(name) >= CONVS.index('conv3')
    return layers.TowerConv(
      features=features // self.tower_devices,
      kernel_size=kernel_size,
      stride=stride,
      padding=(before, after),
      groups=groups,
      init_std=self.conv345_init_std if is_late else self.init_std,
      init_bias=self.init_bias if name in BIAS_ONE else 0.0,
      name=name,
    )(x)

  def _norms(self, name, x):
    if name in self.lrn_layers:
      groups = self.num_towers // self.tower_devices
      groups = 1 if self.lrn_across_towers else groups
      x = layers.local_response_norm(
        x, groups, k=self.lrn_k, alpha=self.lrn_alpha
      )
    if name in self.within_map_norm_layers:
      x = layers.within_map_norm(x)
    return x

  def _dense(self, name, features, groups, x, output_dtype=None):
    is_sharded = name in self.layers_sharded_over_data
    devices = self.fc_devices if is_sharded else self.tower_devices
    return layers.TowerDense(
      features=features // devices,
      groups=groups,
      init_std=self.init_std if name == 'fc8' else self.fc67_init_std,
      init_bias=self.init_bias if name in BIAS_ONE else 0.0,
      output_dtype=output_dtype,
      name=name,
    )(x)

  def _drop(self, x, features, train, batch_indices):
    keep_rate = 1 - self.dropout_rate
    if not train:
      return x if self.inverted_dropout else x * keep_rate
    first_unit = 0
    if x.shape[1] < features:  # `x` has this device's units.
      axis = 'tower' if self.tower_devices > 1 else 'data'
      first_unit = lax.axis_index(axis) * x.shape[1]
    if self.fc_devices > 1:  # `x` has all examples.
      batch_indices = jnp.arange(x.shape[0])
    x = layers.dropout(
      x,
      self.make_rng('dropout'),
      self.dropout_rate,
      batch_indices,
      features,
      self.num_towers,
      first_unit,
    )
    return x / keep_rate if self.inverted_dropout else x

  def _gather_logits(self, logits):
    with jax.named_scope('logits'):
      if self.tower_devices > 1:
        return towers.gather(logits, 'tower', axis=1, to='invarying')
      if 'fc8' in self.layers_sharded_over_data:
        return towers.all_to_all_batch(logits)
    return logits
