"""The network against the paper's counts, NumPy loops and PyTorch on CPU."""

import dataclasses
import importlib
import itertools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import feature_maps
from alexnet_jax import model
from alexnet_jax.runtime import compilation

# Kernel shapes of the text. In conv2, conv4 and conv5 a kernel sees the maps of
# its own tower only.
KERNELS = {
  'conv1': (11, 11, 3, 96),
  'conv2': (5, 5, 48, 256),
  'conv3': (3, 3, 256, 384),
  'conv4': (3, 3, 192, 384),
  'conv5': (3, 3, 192, 256),
  'fc6': (6 * 6 * 256, 4096),
  'fc7': (4096, 4096),
  'fc8': (4096, 1000),
}
OUTPUTS = {
  'conv1': (55, 55, 96),
  'conv2': (27, 27, 256),
  'conv3': (13, 13, 384),
  'conv4': (13, 13, 384),
  'conv5': (13, 13, 256),
  'fc6': (4096,),
  'fc7': (4096,),
  'fc8': (1000,),
}
UNLINKED = {
  'tower_links': False,
  'conv_features': (96, 320, 384, 384, 256),
  'fc_features': (8192, 4096),
}
# The nets of the paper and of the original source's run log: (config, changes,
# kernels that differ from those of the text (None: no such layer), number of
# parameters, added up by hand).
NETS = {
  'text': ('paper', {}, {}, 60_965_224),
  'run 145': ('source', {}, {}, 60_965_224),
  'table 1': ('ilsvrc2010', {}, {}, 60_965_224),
  'caffe': ('caffe', {}, {}, 60_965_224),
  'run 147, pooling 2/2': ('paper', {'pool_size': 2}, {}, 60_965_224),
  'run 148, no norms': ('paper', {'lrn_layers': ()}, {}, 60_965_224),
  'run 167, one norm': ('paper', {'lrn_layers': ('conv1',)}, {}, 60_965_224),
  # 23,296 + 307,392 + 663,936 + 884,992 + 590,080 in convolutions and
  # 37,752,832 + 16,781,312 + 4,097,000 in fully connected layers.
  'torchvision': (
    'torchvision',
    {},
    {
      'conv1': (11, 11, 3, 64),
      'conv2': (5, 5, 64, 192),
      'conv3': (3, 3, 192, 384),
      'conv4': (3, 3, 384, 256),
      'conv5': (3, 3, 256, 256),
    },
    61_100_840,
  ),
  'tanh': ('paper', {'activation': 'tanh'}, {}, 60_965_224),
  'one tower': (
    'one_tower',
    {},
    {
      'conv1': (11, 11, 3, 48),
      'conv2': (5, 5, 48, 128),
      'conv3': (3, 3, 128, 192),
      'conv4': (3, 3, 192, 192),
      'conv5': (3, 3, 192, 256),
    },
    59_798_312,
  ),
  # 34,944 + 384,320 + 553,344 + 663,936 + 442,624 in convolutions and
  # 37,756,928 + 16,781,312 + 4,097,000 in fully connected layers.
  'run 150, no links': (
    'paper',
    UNLINKED,
    {
      'conv2': (5, 5, 48, 320),
      'conv3': (3, 3, 160, 384),
      'fc6': (6 * 6 * 128, 8192),
      'fc7': (4096, 4096),
    },
    60_714_408,
  ),
  # The text plus 590,080 in conv6.
  'run 146, fine-tuned': (
    'conv6_finetune',
    {},
    {'conv6': (3, 3, 256, 256)},
    61_555_304,
  ),
  # In addition, fc8 has 21,843 * 4,097 instead of 1,000 * 4,097.
  'run 146, pretrained': (
    'conv6',
    {},
    {'conv6': (3, 3, 256, 256), 'fc8': (4096, 21_843)},
    146_949_075,
  ),
  # Section 7: a middle layer removed.
  'without conv2': (
    'paper',
    {'conv_features': (96, 0, 384, 384, 256)},
    {'conv2': None, 'conv3': (3, 3, 96, 384)},
    60_965_224 - 307_456 - 885_120 + 332_160,
  ),
  'without conv3': (
    'paper',
    {'conv_features': (96, 256, 0, 384, 256)},
    {'conv3': None, 'conv4': (3, 3, 128, 384)},
    60_965_224 - 885_120 - 663_936 + 442_752,
  ),
  'without conv4': (
    'paper',
    {'conv_features': (96, 256, 384, 0, 256)},
    {'conv4': None},
    60_965_224 - 663_936,
  ),
  'without conv5': (
    'paper',
    {'conv_features': (96, 256, 384, 384, 0)},
    {'conv5': None, 'fc6': (6 * 6 * 384, 4096)},
    60_965_224 - 442_624 - 37_752_832 + 56_627_200,
  ),
  'without fc6': (
    'paper',
    {'fc_features': (0, 4096)},
    {'fc6': None, 'fc7': (6 * 6 * 256, 4096)},
    60_965_224 - 16_781_312,
  ),
  'without fc7': (
    'paper',
    {'fc_features': (4096, 0)},
    {'fc7': None},
    60_965_224 - 16_781_312,
  ),
}
NARROW = {
  'num_classes': 10,
  'conv_features': (8, 12, 12, 16, 8),
  'fc_features': (16, 12),
}
# The smallest maps that every layer works on: 15, 7, 3 and 1 pixels.
SMALL = {'conv1_kernel': 3, 'conv1_stride': 2}
SMALL_CROP = 31
# Halves the time of compiling.
CHEAP = {'xla_backend_optimization_level': 0}


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip(
    'torch', reason='PyTorch is the oracle: pip install torch'
  )


@pytest.fixture(scope='module')
def full_size():
  """Shapes of the parameters and of every layer's output."""
  return shapes(model.AlexNet(), 224)


def shapes(net, crop_size):
  """(parameter shapes, output shapes by layer) for a batch of two images."""

  def fn():
    images = jnp.zeros((2, crop_size, crop_size, 3))
    params = net.init(jax.random.key(0), images)['params']
    return params, capture(net, params, images)[1]

  params, outputs = jax.eval_shape(fn)
  return jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, outputs)


def capture(net, params, images, **kwargs):
  """(logits, output of every layer by name, before its activation)."""
  logits, state = net.apply(
    {'params': params},
    images,
    capture_intermediates=True,
    mutable=['intermediates'],
    **kwargs,
  )
  outputs = state['intermediates']
  return logits, {
    k: v['__call__'][0] for k, v in outputs.items() if k != '__call__'
  }


def settings(config, **changes):
  """Arguments of the network of a config in configs/, with changes."""
  module = importlib.import_module(f'configs.{config}')
  return dict(module.get_config().model) | changes


def random_params(net, crop_size):
  """Weights at which signal and gradient keep their size through the net."""
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(
    shapes(net, crop_size)[0], is_leaf=lambda _, x: isinstance(x, tuple)
  )
  draw = lambda path, shape: rng.normal(
    scale=np.sqrt(2 / np.prod(shape[:-1])) if path[1] == 'kernel' else 0.3,
    size=shape,
  ).astype(np.float32)
  return flax.traverse_util.unflatten_dict(
    {path: draw(path, shape) for path, shape in flat.items()}
  )


def random_images(batch, size):
  """Crops of the scale of pixels minus their mean."""
  rng = np.random.default_rng(1)
  return rng.normal(scale=60, size=(batch, size, size, 3)).astype(np.float32)


def test_default_arguments_are_those_of_the_text():
  defaults = {f.name: f.default for f in dataclasses.fields(model.AlexNet)}
  text = settings('paper')
  assert {key: defaults[key] for key in text} == text


@pytest.mark.parametrize('name', NETS)
def test_every_net_has_its_kernels_and_its_number_of_parameters(name):
  config, changes, differ, expected = NETS[name]
  crop_size = 227 if config == 'caffe' else 224
  net = model.AlexNet(**settings(config, **changes))
  params, outputs = shapes(net, crop_size)
  kernels = {k: v for k, v in (KERNELS | differ).items() if v is not None}
  assert params == {
    name: {'kernel': shape, 'bias': shape[-1:]}
    for name, shape in kernels.items()
  }
  count = sum(np.prod(shape) + shape[-1] for shape in kernels.values())
  assert count == expected
  # Whichever layers there are, their maps are as large as those of the text.
  sizes = {
    k: shape[:-1] for k, shape in (OUTPUTS | {'conv6': (6, 6, 0)}).items()
  }
  assert {k: shape[1:-1] for k, shape in outputs.items()} == {
    k: sizes[k] for k in kernels
  }


def test_convolutions_have_their_number_of_parameters(full_size):
  convs = [full_size[0][f'conv{i}'] for i in range(1, 6)]
  count = sum(np.prod(c['kernel']) + np.prod(c['bias']) for c in convs)
  assert count == 2_334_080


def test_layers_have_the_output_shapes_of_the_text(full_size):
  assert full_size[1] == {k: (2, *shape) for k, shape in OUTPUTS.items()}


def test_conv1_also_has_55_pixels_from_crops_of_227():
  net = model.AlexNet(**NARROW)
  assert shapes(net, 227)[1]['conv1'] == (2, 55, 55, 8)


@pytest.mark.parametrize(
  ('geometry', 'sizes'),  # crop, kernel, stride, padding[, pool size, ceil]
  [
    ((224, 11, 4, 0), (55, 27, 13, 6)),
    ((224, 11, 4, 0, 3, False), (54, 26, 12, 5)),
    ((224, 11, 4, 2, 3, True), (56, 27, 13, 6)),
    ((224, 11, 4, 2, 3, False), (55, 27, 13, 6)),
    ((227, 11, 4, 0), (55, 27, 13, 6)),
    ((228, 11, 4, 0), (56, 27, 13, 6)),
    ((67, 11, 4, 0), (15, 7, 3, 1)),
    ((28, 5, 1, 2), (28, 13, 6, 2)),
    ((63, 11, 4, 0), (14, 6, 2, 0)),
    ((11, 11, 4, 0), (1, 0, -1, -1)),
    ((10, 11, 4, 0), (0, -1, -1, -1)),
    # Section 3.4: pools of 2 give "output of equivalent dimensions".
    ((224, 11, 4, 0, 2), (55, 27, 13, 6)),
    ((28, 5, 1, 2, 2), (28, 14, 7, 3)),
  ],
)
def test_feature_maps_have_these_sizes(geometry, sizes):
  names = ('conv1', 'pool1', 'pool2', 'pool5')
  assert feature_maps.sizes(*geometry) == dict(zip(names, sizes, strict=True))


@pytest.fixture(scope='module')
def initial():
  """Initial parameters of layers that are wide enough for statistics."""
  net = model.AlexNet(
    num_classes=128,
    conv_features=(64,) * 6,
    fc_features=(128, 128),
    init_std=0.01,
    conv345_init_std=0.03,
    fc67_init_std=0.02,
    init_bias=0.25,
  )
  images = jnp.zeros((1, 67, 67, 3))
  init = jax.jit(net.init, compiler_options=CHEAP)
  params = init(jax.random.key(0), images)['params']
  return jax.tree.map(np.asarray, params)


def test_initial_weights_have_the_std_of_their_layer(initial):
  stds = {name: layer['kernel'].std() for name, layer in initial.items()}
  expected = dict.fromkeys(('conv1', 'conv2', 'fc8'), 0.01)
  expected |= dict.fromkeys(('conv3', 'conv4', 'conv5', 'conv6'), 0.03)
  expected |= dict.fromkeys(('fc6', 'fc7'), 0.02)
  # The smallest kernel has 8,192 weights: five standard errors are 4%.
  assert stds == pytest.approx(expected, rel=0.04)


def test_initial_weights_are_normal_around_zero(initial):
  weights = np.concatenate(
    [(k := layer['kernel']).ravel() / k.std() for layer in initial.values()]
  )
  # Over 180,000 weights: 5 standard errors are 0.012 and 0.0025.
  assert weights.mean() == pytest.approx(0, abs=0.012)
  assert (np.abs(weights) > 2).mean() == pytest.approx(0.0455, abs=0.0025)


def test_initial_biases_are_those_of_the_text(initial):
  # Section 5; in run 146 also those of the sixth layer are 1.
  filled = ('conv2', 'conv4', 'conv5', 'conv6', 'fc6', 'fc7')
  assert {
    name: set(layer['bias'].tolist()) for name, layer in initial.items()
  } == {name: {0.25 if name in filled else 0.0} for name in initial}


def test_conv1_padding_pooling_and_flattening_match_torch(torch):
  # Maps of 28, 13, 6 and 2 pixels: conv5 has an even size, whose last row and
  # column no window covers, and is pooled to more than one pixel.
  net = model.AlexNet(**NARROW, conv1_kernel=5, conv1_stride=1, conv1_padding=2)
  params, images = random_params(net, 28), random_images(2, 28)
  _, out = jax.jit(lambda p, x: capture(net, p, x))(params, images)
  out = {k: torch.tensor(np.asarray(v)) for k, v in out.items()}
  weights = jax.tree.map(torch.tensor, params)
  conv1 = torch.nn.functional.conv2d(
    torch.tensor(images).permute(0, 3, 1, 2),
    weights['conv1']['kernel'].permute(3, 2, 0, 1),
    weights['conv1']['bias'],
    padding=2,
  )
  pool5 = torch.nn.functional.max_pool2d(out['conv5'].permute(0, 3, 1, 2), 3, 2)
  fc6 = pool5.relu().permute(0, 2, 3, 1).flatten(1) @ weights['fc6']['kernel']
  # float32 on both sides; activations are between 1 and 300.
  np.testing.assert_allclose(
    out['conv1'], conv1.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-3
  )
  np.testing.assert_allclose(
    out['fc6'], fc6 + weights['fc6']['bias'], rtol=1e-5, atol=1e-4
  )


def torch_weights(torch, params):
  return jax.tree.map(
    lambda w: torch.tensor(w, dtype=torch.float64, requires_grad=True), params
  )


def torch_logits(torch, net, weights, images):
  """The logits at test time, by PyTorch in float64."""
  F = torch.nn.functional
  activate = {'relu': torch.relu, 'tanh': torch.tanh}[net.activation]
  keep = 1 if net.inverted_dropout else 1 - net.dropout_rate

  def conv(number, x):
    kernel = weights[f'conv{number}']['kernel'].permute(3, 2, 0, 1)
    bias = weights[f'conv{number}']['bias']
    if number == 1:
      # Zeros below and to the right, until the windows cover every pixel.
      hang = -(x.shape[-1] - net.conv1_kernel) % net.conv1_stride
      x = F.pad(x, (0, hang, 0, hang))
      return F.conv2d(x, kernel, bias, stride=net.conv1_stride)
    all_maps = number in (3, 6) and net.tower_links
    return F.conv2d(
      x,
      kernel,
      bias,
      padding=2 if number == 2 else 1,
      groups=1 if all_maps else net.num_towers,
    )

  def norms(name, x):
    if name in net.lrn_layers:
      norm = lambda tower: F.local_response_norm(
        tower, 5, 5 * net.lrn_alpha, 0.75, net.lrn_k
      )
      parts = 1 if net.lrn_across_towers else net.num_towers
      x = torch.cat([norm(part) for part in x.chunk(parts, 1)], 1)
    if name in net.within_map_norm_layers:
      x = x / (1 + 1e-3 * F.avg_pool2d(x**2, 5, 1, 2)) ** 0.75
    return x

  def dense(name, x, num_groups):
    groups = [group.flatten(1) for group in x.chunk(num_groups, -1)]
    kernels = weights[name]['kernel'].chunk(num_groups, 1)
    outputs = [g @ k for g, k in zip(groups, kernels, strict=True)]
    return torch.cat(outputs, 1) + weights[name]['bias']

  x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
  for number, width in enumerate(net.conv_features, 1):
    name = f'conv{number}'
    late = name in net.lrn_before_activation
    if width:
      x = conv(number, x)
      x = norms(name, x if late else activate(x))
    if number in (1, 2, 5):
      x = F.max_pool2d(x, net.pool_size, 2)
    if width and late:  # The source's order: norm, pool, activation.
      x = activate(x)
  x = x.permute(0, 2, 3, 1)
  for name, width in zip(('fc6', 'fc7'), net.fc_features, strict=True):
    if width:
      num_groups = 1 if net.tower_links else net.num_towers
      x = activate(dense(name, x, num_groups)) * keep
  return dense('fc8', x, 1)


def torch_loss_and_gradients(torch, net, params, images, labels):
  weights = torch_weights(torch, params)
  logits = torch_logits(torch, net, weights, images)
  loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
  loss.backward()
  return loss.item(), jax.tree.map(lambda w: w.grad.numpy(), weights)


def assert_loss_and_gradients_match_torch(torch, net, crop_size, options):
  params = random_params(net, crop_size)
  images, labels = random_images(4, crop_size), np.array([3, 1, 4, 9])

  def loss(params):
    logits = net.apply({'params': params}, jnp.asarray(images))
    log_probs = jax.nn.log_softmax(logits)
    return -log_probs[jnp.arange(4), labels].mean()

  value, gradients = jax.jit(
    jax.value_and_grad(loss), compiler_options=options
  )(params)
  expected, expected_gradients = torch_loss_and_gradients(
    torch, net, params, images, labels
  )
  # float32 rounding through eight layers; a gradient of zero fails.
  assert value == pytest.approx(expected, rel=1e-5)
  errors = jax.tree.map(
    lambda g, e: np.linalg.norm(g - e) / np.linalg.norm(e),
    gradients,
    expected_gradients,
  )
  assert all(e < 1e-5 for e in jax.tree.leaves(errors)), errors


@pytest.mark.parametrize(
  ('config', 'changes', 'crop_size'),
  [
    # conv1 has 15 pixels, all of which pooling covers. Its last window extends
    # 3 pixels beyond the edge, as at 224.
    ('paper', {}, 64),
    ('source', {}, 67),  # Also 15, but within the image.
    ('one_tower', {}, 67),
    ('paper', {'tower_links': False}, 67),
  ],
  ids=['text', 'source', 'one tower', 'no links'],
)
def test_loss_and_gradients_match_torch(torch, config, changes, crop_size):
  net = model.AlexNet(**settings(config, **changes) | NARROW)
  is_text = config == 'paper' and not changes
  options = compilation.network_options() if is_text else CHEAP
  assert_loss_and_gradients_match_torch(torch, net, crop_size, options)


@pytest.mark.slow  # The paper's net: 60 million float64 weights in PyTorch.
def test_loss_and_gradients_of_the_full_net_match_torch(torch):
  options = compilation.network_options()
  assert_loss_and_gradients_match_torch(torch, model.AlexNet(), 224, options)


def numpy_logits(net, params, images):
  """The logits at test time, by NumPy in float64, window by window."""
  activate = {'relu': lambda x: np.maximum(x, 0), 'tanh': np.tanh}
  activate = activate[net.activation]
  params = jax.tree.map(np.float64, params)
  windows = lambda x, size, stride: np.lib.stride_tricks.sliding_window_view(
    x, (size, size), (1, 2)
  )[:, ::stride, ::stride]  # [batch, rows, columns, maps, size, size]

  def conv(name, x):
    layer = params[name]
    size, stride, before, after = len(layer['kernel']), 1, 0, 0
    if name == 'conv1':
      # `conv1_padding` zeros on every side, and below and to the right as
      # many more as the windows need to cover every pixel.
      stride, before = net.conv1_stride, net.conv1_padding
      hang = -(x.shape[1] + 2 * before - size) % stride
      after = before + hang
    else:
      before = after = size // 2
    edges = [(0, 0), (before, after), (before, after), (0, 0)]
    seen = windows(np.pad(x, edges), size, stride)
    meets = name in ('conv3', 'conv6') and net.tower_links
    groups = 1 if name == 'conv1' or meets else net.num_towers
    outputs = [
      np.einsum('bhwcij,ijcf->bhwf', part, kernel, optimize=True)
      for part, kernel in zip(
        np.split(seen, groups, 3),
        np.split(layer['kernel'], groups, -1),
        strict=True,
      )
    ]
    return np.concatenate(outputs, -1) + layer['bias']

  def norms(name, x):
    if name in net.lrn_layers:
      towers = 1 if net.lrn_across_towers else net.num_towers
      x = np.concatenate([lrn(tower) for tower in np.split(x, towers, -1)], -1)
    if name in net.within_map_norm_layers:
      edges = [(0, 0), (2, 2), (2, 2), (0, 0)]
      total = windows(np.pad(x**2, edges), 5, 1).sum((-2, -1))
      x = x / (1 + 1e-3 / 25 * total) ** 0.75
    return x

  def lrn(tower):
    maps = tower.shape[-1]
    total = np.stack(
      [(tower[..., max(i - 2, 0) : i + 3] ** 2).sum(-1) for i in range(maps)],
      -1,
    )
    return tower / (net.lrn_k + net.lrn_alpha * total) ** 0.75

  def dense(name, x, groups):
    outputs = [
      part.reshape(len(part), -1) @ kernel
      for part, kernel in zip(
        np.split(x, groups, -1),
        np.split(params[name]['kernel'], groups, -1),
        strict=True,
      )
    ]
    return np.concatenate(outputs, -1) + params[name]['bias']

  x = np.float64(images)
  for number, width in enumerate(net.conv_features, 1):
    name = f'conv{number}'
    late = name in net.lrn_before_activation
    if width:
      x = conv(name, x)
      x = activate(norms(name, x)) if late else norms(name, activate(x))
    if number in (1, 2, 5):
      x = windows(x, net.pool_size, 2).max((-2, -1))
  keep = 1 if net.inverted_dropout else 1 - net.dropout_rate
  for name, width in zip(('fc6', 'fc7'), net.fc_features, strict=True):
    if width:
      x = dense(name, x, 1 if net.tower_links else net.num_towers)
      x = activate(x) * keep
  return dense('fc8', x, 1)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    # Maps of 28, 13, 6 and 2 pixels: fc6 reads more than one pixel.
    {'conv1_kernel': 5, 'conv1_stride': 1, 'conv1_padding': 2},
    {'tower_links': False},
    {'lrn_k': 1.0},
    {'lrn_alpha': 2e-5},
    {'lrn_across_towers': True},
    {'lrn_layers': ()},
    {'lrn_layers': ('conv1',)},
    {'lrn_before_activation': ('conv1',)},
    {'within_map_norm_layers': ('conv2',)},
    {'pool_size': 2},
    {'inverted_dropout': True},
    {'dropout_rate': 0.2},
    {'activation': 'tanh'},
    {'conv_features': (8, 12, 12, 16, 8, 6)},
    {'conv_features': (8, 0, 0, 16, 8), 'fc_features': (0, 12)},
    {'conv_features': (8, 12, 12, 0, 0), 'fc_features': (16, 0)},
  ],
  ids=str,
)
def test_each_switch_matches_numpy_and_changes_the_logits(changes):
  text = model.AlexNet(**NARROW)
  net = model.AlexNet(**NARROW | changes)
  # At 64, as at 224, conv1's last window extends 3 pixels beyond the edge.
  size = 28 if 'conv1_padding' in changes else 64
  params, images = random_params(net, size), random_images(2, size)
  if 'activation' in changes:
    images /= 60  # Keeps tanh from saturating everywhere.
  logits = net.apply(
    {'params': jax.tree.map(jnp.asarray, params)}, jnp.asarray(images)
  )
  expected = numpy_logits(net, params, images)
  norm = np.linalg.norm(expected)
  # float32 rounding through eight layers.
  assert np.linalg.norm(logits - expected) < 1e-5 * norm
  if changes and jax.tree.map(jnp.shape, params) == shapes(text, 64)[0]:
    other = numpy_logits(text, params, images)
    assert np.linalg.norm(other - expected) > 0.01 * norm  # The switch matters.


@pytest.mark.parametrize('links', [True, False])
def test_towers_influence_each_other_only_through_links(links):
  net = model.AlexNet(**NARROW, tower_links=links)
  params = jax.tree.map(jnp.asarray, random_params(net, 67))
  images = jnp.asarray(random_images(2, 67))

  def louder(path, w):  # Only in tower 1.
    half = w.shape[-1] // 2
    loud = [w[..., :half], 1.5 * w[..., half:]]
    return w if path[0].key == 'fc8' else jnp.concatenate(loud, -1)

  others = jax.tree_util.tree_map_with_path(louder, params)
  before, after = (capture(net, p, images)[1]['fc7'] for p in (params, others))
  moved = np.split(np.asarray(before != after), 2, axis=-1)
  assert [tower.any() for tower in moved] == [links, True]


@pytest.fixture(scope='module')
def probe():
  """A function that shows what dropout does to fc6 and to fc7.

  It maps (train, key, batch indices) to the 64 units of fc6 and of fc7, which
  are 1 unless they are dropped or scaled. `which` chooses a net with inverted
  dropout or with activations in bfloat16.
  """
  net = model.AlexNet(
    num_classes=64,
    conv_features=(4,) * 5,
    fc_features=(64, 64),
    dropout_rate=0.2,
    **SMALL,
  )
  params = random_params(net, SMALL_CROP)
  zero, one = np.zeros(64, np.float32), np.ones(64, np.float32)
  params['fc6'] = {'kernel': params['fc6']['kernel'] * 0, 'bias': one}
  params['fc7'] = {'kernel': np.eye(64, dtype=np.float32), 'bias': one}
  params['fc8'] = {'kernel': np.eye(64, dtype=np.float32), 'bias': zero}

  def units(net, params, train, key, indices):
    images = jnp.zeros((3, SMALL_CROP, SMALL_CROP, 3))
    rngs = {'dropout': key} if train else {}
    logits, outputs = capture(
      net, params, images, train=train, batch_indices=indices, rngs=rngs
    )
    return outputs['fc7'] - 1, logits / outputs['fc7']

  # All nets are compiled as one program, which saves time.
  nets = {
    'plain': net,
    'inverted': net.clone(inverted_dropout=True),
    'bfloat16': net.clone(dtype='bfloat16'),
  }
  jitted = jax.jit(
    lambda params, train, key, indices: {
      name: units(net, params, train, key, indices)
      for name, net in nets.items()
    },
    static_argnums=1,
    compiler_options=CHEAP,
  )

  def fn(train, key=0, indices=(0, 1, 2), which='plain'):
    every = jitted(params, train, jax.random.key(key), jnp.array(indices))
    return jax.device_get(every[which])

  return fn


def test_hidden_units_are_dropped_in_training(probe):
  units = np.stack(probe(train=True))
  assert set(units.ravel().tolist()) == {0.0, 1.0}
  # Five standard errors of 384 units are 0.1.
  assert (units == 0).mean() == pytest.approx(0.2, abs=0.1)


def test_hidden_units_are_scaled_at_test(probe):
  # By 1 - rate, with one rounding of float32.
  np.testing.assert_allclose(np.stack(probe(train=False)), 0.8, rtol=1e-6)


def test_inverted_dropout_scales_in_training_and_not_at_test(probe):
  plain = np.stack(probe(train=True))
  inverted = np.stack(probe(train=True, which='inverted'))
  # A few roundings of float32.
  np.testing.assert_allclose(inverted, plain / 0.8, rtol=1e-6)
  at_test = np.stack(probe(train=False, which='inverted'))
  np.testing.assert_array_equal(at_test, np.ones_like(at_test))


def test_the_inputs_of_fc6_are_dropped_where_they_are_named():
  net = model.AlexNet(**NARROW | SMALL, dropout_inputs=('fc6',))
  params = random_params(net, SMALL_CROP)

  def run(params, images):
    rngs = {'dropout': jax.random.key(0)}
    trained = capture(net, params, images, train=True, rngs=rngs)
    return trained, capture(net, params, images)

  runs = jax.jit(run, compiler_options=CHEAP)(
    params, random_images(8, SMALL_CROP)
  )
  (_, trained), (_, tested) = runs = jax.device_get(runs)
  # The inputs are maps of one pixel: for each example another half of them.
  kernel, maps = params['fc6']['kernel'], np.maximum(tested['conv5'], 0)
  maps = maps[:, :3, :3].max((1, 2))
  bias = params['fc6']['bias']
  np.testing.assert_allclose(
    tested['fc6'], maps / 2 @ kernel + bias, rtol=1e-4, atol=1e-3
  )
  masks = [
    np.array(mask) for mask in itertools.product((0, 1), repeat=maps.shape[1])
  ]
  for i, units in enumerate(trained['fc6']):
    sums = [maps[i] * mask @ kernel + bias for mask in masks]
    assert min(np.abs(units - x).max() for x in sums) < 1e-3
  assert (np.abs(trained['fc6'] - (maps @ kernel + bias)) > 1e-3).any()
  # Nothing else is dropped or scaled.
  for logits, layers in runs:
    expected = np.maximum(layers['fc7'], 0) @ params['fc8']['kernel']
    expected += params['fc8']['bias']
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


def test_bfloat16_drops_the_same_units(probe):
  plain = np.stack(probe(train=True))
  assert {0.0, 1.0} == set(plain.ravel().tolist())
  # Zeros, ones and twos are exact.
  np.testing.assert_array_equal(probe(train=True, which='bfloat16'), plain)


def test_each_layer_and_key_draws_its_own_dropout(probe):
  (a6, a7), (b6, b7) = probe(train=True, key=0), probe(train=True, key=1)
  for x, y in ((a6, a7), (a6, b6), (a7, b7)):
    assert (x != y).mean() > 0.15  # Of 192 units; 0.32 is expected.


def test_network_passes_the_batch_indices_to_dropout(probe):
  first = probe(train=True, indices=(0, 1, 2))
  later = probe(train=True, indices=(2, 3, 4))
  for x, y in zip(first, later, strict=True):
    np.testing.assert_array_equal(x[2], y[0])
    assert (x[0] != y[0]).any()


def windows(x, size, stride):
  """Views of all windows, [batch, rows, columns, maps, size, size]."""
  found = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return found[:, ::stride, ::stride]


def plain_activations(net, params, images):
  """Every activation at test time, from its definition, by NumPy in float64."""
  weights = jax.tree.map(np.float64, params)
  found, x = {}, np.float64(images)

  def conv(name, x, size, stride, padding, groups):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    parts = [
      np.einsum('brcmij,ijmf->brcf', windows(part, size, stride), kernel)
      for part, kernel in zip(
        np.split(x, groups, -1),
        np.split(weights[name]['kernel'], groups, -1),
        strict=True,
      )
    ]
    return np.concatenate(parts, -1) + weights[name]['bias']

  def norm(x):  # Section 3.3, in each tower.
    out = np.empty_like(x)
    maps = x.shape[-1] // 2
    for i in range(x.shape[-1]):
      first = i // maps * maps
      near = x[..., max(first, i - 2) : min(first + maps, i + 3)]
      out[..., i] = x[..., i] / (2 + 1e-4 * (near**2).sum(-1)) ** 0.75
    return out

  for number, width in enumerate(net.conv_features, 1):
    name = f'conv{number}'
    if width:
      geometry = {1: (net.conv1_kernel, net.conv1_stride, 0), 2: (5, 1, 2)}
      groups = 1 if number in (1, 3, 6) else 2
      x = conv(name, x, *geometry.get(number, (3, 1, 1)), groups)
      found[f'{name}/linear'] = x
      late = name in net.lrn_before_activation
      x = x if late else np.maximum(x, 0)
      x = norm(x) if number <= 2 else x
      x = np.maximum(x, 0) if late else x
    if number in (1, 2, 5):
      x = windows(x, 3, 2).max((-2, -1))
    found[name] = x
  x = x.reshape(len(x), -1)
  for name, width in zip(('fc6', 'fc7'), net.fc_features, strict=True):
    if width:
      x = x @ weights[name]['kernel'] + weights[name]['bias']
      found[f'{name}/linear'] = x
      x = found[name] = np.maximum(x, 0)
      x = x * 0.5  # Units kept in training.
  found['fc8'] = x @ weights['fc8']['kernel'] + weights['fc8']['bias']
  return found


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'lrn_before_activation': ('conv1',)},
    {'conv_features': (8, 0, 12, 0, 8, 6), 'fc_features': (0, 12)},
  ],
  ids=str,
)
def test_every_captured_activation_matches_numpy(changes):
  net = model.AlexNet(**NARROW | SMALL | changes)
  params = random_params(net, SMALL_CROP)
  images = random_images(2, SMALL_CROP)
  expected = plain_activations(net, params, images)

  def fn(params, images):
    captured = {}
    logits = net.apply({'params': params}, images, capture=captured)
    return logits, captured

  jitted = jax.jit(fn, compiler_options=CHEAP)
  logits, captured = jax.device_get(jitted(params, images))
  assert captured.keys() == expected.keys()
  np.testing.assert_array_equal(captured['fc8'], logits)
  for name, value in expected.items():
    assert captured[name].shape == value.shape, name
    assert np.linalg.norm(value) > 1, name
    # float32 rounding through at most eight layers.
    error = np.linalg.norm(captured[name] - value) / np.linalg.norm(value)
    assert error < 1e-5, name


def test_activations_are_captured_before_dropout():
  net = model.AlexNet(**NARROW, **SMALL)
  params = jax.tree.map(jnp.asarray, random_params(net, SMALL_CROP))
  images = jnp.asarray(random_images(2, SMALL_CROP))

  def fn(key):
    captured = {}
    rngs = {'dropout': key}
    net.apply(
      {'params': params}, images, train=True, rngs=rngs, capture=captured
    )
    return captured['fc6'], captured['fc7/linear']

  jitted = jax.jit(fn, compiler_options=CHEAP)
  (fc6, later), (again, other) = (jitted(jax.random.key(k)) for k in (0, 1))
  np.testing.assert_array_equal(fc6, again)
  assert (later != other).any()  # fc7 reads the dropped units.


def both_dtypes(fn, **changes):
  """The results of `fn` on a narrow net in float32 and in bfloat16."""
  net = model.AlexNet(**NARROW | SMALL | changes)
  return [fn(net.clone(dtype=dtype)) for dtype in ('float32', 'bfloat16')]


def test_only_activations_are_bfloat16():
  net = model.AlexNet(**NARROW, dtype='bfloat16')
  images = jnp.asarray(random_images(2, 67))

  def fn():
    params = net.init(jax.random.key(0), images)['params']
    loss = lambda p: net.apply({'params': p}, images).sum()
    return params, jax.grad(loss)(params), capture(net, params, images)

  params, gradients, (logits, outputs) = jax.eval_shape(fn)
  dtypes = lambda tree: {x.dtype.name for x in jax.tree.leaves(tree)}
  assert set(outputs) == set(KERNELS)
  assert outputs.pop('fc8').dtype == jnp.float32
  assert dtypes(outputs) == {'bfloat16'}
  assert dtypes((params, gradients, logits)) == {'float32'}


def test_logits_are_not_rounded_to_bfloat16():
  net = model.AlexNet(**NARROW, **SMALL, dtype='bfloat16')
  params = jax.tree.map(jnp.asarray, random_params(net, SMALL_CROP))
  images = jnp.asarray(random_images(4, SMALL_CROP))
  apply = jax.jit(net.apply, compiler_options=CHEAP)
  logits = np.asarray(apply({'params': params}, images))
  rounded = logits.astype(jnp.bfloat16).astype(np.float32)
  assert (logits != rounded).mean() > 0.9  # Expected: all but 1 of 65,536.


def test_the_softmax_of_a_bfloat16_net_is_computed_in_float32():
  images = jnp.asarray(random_images(2, SMALL_CROP))

  def log_probs(net):
    params = net.init(jax.random.key(0), images)['params']
    params['fc8'] = jax.tree.map(jnp.zeros_like, params['fc8'])
    return jax.nn.log_softmax(net.apply({'params': params}, images))

  small = {'conv_features': (4, 0, 0, 0, 0), 'fc_features': (0, 0)}
  jitted = lambda net: jax.jit(lambda: log_probs(net), compiler_options=CHEAP)()
  for result in both_dtypes(jitted, **small):
    # ln(10) = 2.3026; its neighbours in bfloat16 are 2.2969 and 2.3125.
    np.testing.assert_allclose(result, -np.log(10), rtol=1e-6)


def test_bfloat16_gives_nearly_the_logits_and_gradients_of_float32():
  images = jnp.asarray(random_images(4, SMALL_CROP))

  def logits_and_gradients(net):
    params = random_params(net, SMALL_CROP)

    def first(params):
      logits = net.apply({'params': params}, images)
      return logits[:, 0].sum(), logits

    gradients, logits = jax.grad(first, has_aux=True)(params)
    return logits, gradients

  (expected, gradients), (logits, rounded) = both_dtypes(
    lambda net: jax.jit(
      lambda: logits_and_gradients(net), compiler_options=CHEAP
    )()
  )
  # bfloat16 rounds each value by up to 0.2%, in eight layers.
  error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
  assert 1e-4 < error < 0.02
  # Where bfloat16 makes two values of a pooling window equal, its gradient may
  # go to another pixel.
  errors = jax.tree.map(
    lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y), rounded, gradients
  )
  assert all(e < 0.4 for e in jax.tree.leaves(errors)), errors


def test_the_gradient_has_no_grouped_convolution():
  net = model.AlexNet(**NARROW, **SMALL)
  params = random_params(net, SMALL_CROP)
  images = jnp.asarray(random_images(2, SMALL_CROP))
  rngs = {'dropout': jax.random.key(0)}
  loss = lambda p: net.apply({'params': p}, images, train=True, rngs=rngs).sum()
  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
  counts = re.findall(r'(?:feature|batch)_group_count=(\d+)', jaxpr)
  assert set(counts) == {'1'}
