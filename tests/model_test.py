"""The network against the paper's counts, NumPy loops and PyTorch on CPU."""

import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import model
from alexnet_jax import towers

# Kernel shapes of the text: a kernel sees the maps of its own tower alone in
# conv2, conv4 and conv5.
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
NARROW = {
  'num_classes': 10,
  'conv_features': (8, 12, 12, 16, 8),
  'fc_features': (16, 12),
}
# The smallest maps that every layer works on: 15, 7, 3 and 1 pixels.
SMALL = {'conv1_kernel': 3, 'conv1_stride': 2}
SMALL_CROP = 31


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip(
    'torch', reason='PyTorch is the oracle: pip install torch'
  )


@pytest.fixture(scope='module')
def full_size():
  """Shapes of parameters and of every module's output, nothing computed."""
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
    k: v['__call__'][0] for k, v in outputs.items() if k in KERNELS
  }


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
  """Crops on the scale of 0..255 less mean."""
  rng = np.random.default_rng(1)
  return rng.normal(scale=60, size=(batch, size, size, 3)).astype(np.float32)


def test_parameter_counts(full_size):
  count = lambda layer: np.prod(layer['kernel']) + np.prod(layer['bias'])
  counts = {name: count(layer) for name, layer in full_size[0].items()}
  assert sum(counts.values()) == 60_965_224
  assert sum(counts[f'conv{i}'] for i in range(1, 6)) == 2_334_080


def test_parameter_shapes(full_size):
  assert full_size[0] == {
    name: {'kernel': shape, 'bias': shape[-1:]}
    for name, shape in KERNELS.items()
  }


def test_output_shapes(full_size):
  assert full_size[1] == {k: (2, *shape) for k, shape in OUTPUTS.items()}


def test_conv1_has_55_pixels_from_227_too():
  net = model.AlexNet(**NARROW)
  assert shapes(net, 227)[1]['conv1'] == (2, 55, 55, 8)


@pytest.mark.parametrize(
  ('geometry', 'sizes'),  # geometry: crop, kernel, stride, padding
  [
    ((224, 11, 4, 0), (55, 27, 13, 6)),
    ((227, 11, 4, 0), (55, 27, 13, 6)),
    ((228, 11, 4, 0), (56, 27, 13, 6)),
    ((67, 11, 4, 0), (15, 7, 3, 1)),
    ((28, 5, 1, 2), (28, 13, 6, 2)),
    ((63, 11, 4, 0), (14, 6, 2, 0)),
    ((11, 11, 4, 0), (1, 0, -1, -1)),
    ((10, 11, 4, 0), (0, -1, -1, -1)),
  ],
)
def test_feature_map_sizes(geometry, sizes):
  names = ('conv1', 'pool1', 'pool2', 'pool5')
  assert model.feature_map_sizes(*geometry) == dict(
    zip(names, sizes, strict=True)
  )


@pytest.fixture(scope='module')
def initial():
  """Initial parameters, wide enough for statistics of every layer."""
  net = model.AlexNet(
    num_classes=128,
    conv_features=(64,) * 5,
    fc_features=(128, 128),
    init_std=0.01,
    conv345_init_std=0.03,
  )
  images = jnp.zeros((1, 67, 67, 3))
  params = jax.jit(net.init)(jax.random.key(0), images)['params']
  return jax.tree.map(np.asarray, params)


def test_initial_weights_have_their_std(initial):
  stds = {name: layer['kernel'].std() for name, layer in initial.items()}
  wide = ('conv3', 'conv4', 'conv5')
  expected = {name: 0.03 if name in wide else 0.01 for name in KERNELS}
  # The smallest kernel has 8,192 weights: five standard errors are 4%.
  assert stds == pytest.approx(expected, rel=0.04)


def test_initial_weights_are_normal_around_zero(initial):
  weights = np.concatenate(
    [(k := layer['kernel']).ravel() / k.std() for layer in initial.values()]
  )
  # Over 180,000 weights: 5 standard errors are 0.012 and 0.0025.
  assert weights.mean() == pytest.approx(0, abs=0.012)
  assert (np.abs(weights) > 2).mean() == pytest.approx(0.0455, abs=0.0025)


def test_initial_biases(initial):
  ones = ('conv2', 'conv4', 'conv5', 'fc6', 'fc7')
  assert {
    name: set(layer['bias'].tolist()) for name, layer in initial.items()
  } == {name: {1.0 if name in ones else 0.0} for name in KERNELS}


@pytest.mark.parametrize('groups', [1, 2])
def test_response_norm_matches_the_formula(groups):
  # On this scale the sum weighs up to twice as much as k.
  x = np.random.default_rng(0).normal(scale=60, size=(2, 3, 2, 16))
  x = x.astype(np.float32)
  maps = 16 // groups
  expected = np.empty(x.shape)
  for i in range(16):
    first = i // maps * maps  # Of the group.
    total = np.zeros(x.shape[:-1])
    for j in range(max(first, i - 2), min(first + maps - 1, i + 2) + 1):
      total += x[..., j].astype(np.float64) ** 2
    expected[..., i] = x[..., i] / (2 + 1e-4 * total) ** 0.75
  out = model.local_response_norm(jnp.asarray(x), groups)
  np.testing.assert_allclose(out, expected, rtol=1e-6)  # float32


def test_response_norm_matches_torch(torch):
  x = np.random.default_rng(0).normal(scale=60, size=(2, 3, 2, 7))
  x = x.astype(np.float32)
  expected = torch.nn.functional.local_response_norm(
    torch.tensor(x).permute(0, 3, 1, 2),
    size=5,
    alpha=5e-4,  # Torch divides it by the size.
    beta=0.75,
    k=2.0,
  ).permute(0, 2, 3, 1)
  out = model.local_response_norm(jnp.asarray(x), 1)
  np.testing.assert_allclose(out, expected, rtol=1e-6)  # float32


def test_response_norm_stays_in_its_tower():
  x = np.full((1, 1, 1, 8), 100.0, np.float32)
  other = x.copy()
  other[..., 4:] = 1.0  # Tower 1.
  norm = lambda x, groups: model.local_response_norm(jnp.asarray(x), groups)
  np.testing.assert_array_equal(norm(x, 2)[..., :4], norm(other, 2)[..., :4])
  # Without towers, the window reaches two maps further.
  reached = norm(x, 1)[0, 0, 0] != norm(other, 1)[0, 0, 0]
  assert reached[:4].tolist() == [False, False, True, True]


@pytest.mark.parametrize('groups', [1, 2])
def test_grouped_convolution_matches_torch(torch, groups):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 7, 7, 6))
  kernel = rng.normal(size=(3, 3, 6 // groups, 4))
  out = towers.grouped_conv(
    jnp.float32(x), jnp.float32(kernel), 2, ((1, 2), (0, 1)), groups
  )
  padded = torch.nn.functional.pad(
    torch.tensor(x).permute(0, 3, 1, 2), (0, 1, 1, 2)
  )
  expected = torch.nn.functional.conv2d(
    padded, torch.tensor(kernel).permute(3, 2, 0, 1), stride=2, groups=groups
  ).permute(0, 2, 3, 1)
  # Sums of up to 54 products of float32, of size one.
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_conv1_padding_pooling_and_flattening_match_torch(torch):
  # Maps of 28, 13, 6 and 2 pixels: a pooled map of more than one pixel, from
  # one of even size, whose last row and column no window covers.
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
  # Float32 on both sides; activations are of size 1 to 300.
  np.testing.assert_allclose(
    out['conv1'], conv1.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-3
  )
  np.testing.assert_allclose(
    out['fc6'], fc6 + weights['fc6']['bias'], rtol=1e-5, atol=1e-4
  )


def torch_loss_and_gradients(torch, params, images, labels, hang):
  """The narrow net by PyTorch in float64, at test; conv1 11x11, stride 4."""
  F = torch.nn.functional
  weights = jax.tree.map(
    lambda w: torch.tensor(w, dtype=torch.float64, requires_grad=True), params
  )

  def conv(name, x, **kwargs):
    kernel = weights[name]['kernel'].permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, weights[name]['bias'], **kwargs).relu()

  def norm_and_pool(x):
    norm = lambda tower: F.local_response_norm(tower, 5, 5e-4, 0.75, 2.0)
    return F.max_pool2d(torch.cat([norm(t) for t in x.chunk(2, 1)], 1), 3, 2)

  def dense(name, x):
    return x @ weights[name]['kernel'] + weights[name]['bias']

  x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
  x = norm_and_pool(conv('conv1', F.pad(x, (0, hang, 0, hang)), stride=4))
  x = norm_and_pool(conv('conv2', x, padding=2, groups=2))
  x = conv('conv3', x, padding=1)
  x = conv('conv4', x, padding=1, groups=2)
  x = F.max_pool2d(conv('conv5', x, padding=1, groups=2), 3, 2)
  x = x.permute(0, 2, 3, 1).flatten(1)
  x = dense('fc6', x).relu() * 0.5
  x = dense('fc7', x).relu() * 0.5
  loss = F.cross_entropy(dense('fc8', x), torch.tensor(labels))
  loss.backward()
  gradients = jax.tree.map(lambda w: w.grad.numpy(), weights)
  return loss.item(), gradients


def assert_loss_and_gradients_match_torch(torch, net, crop_size, hang):
  params = random_params(net, crop_size)
  images, labels = random_images(4, crop_size), np.array([3, 1, 4, 9])

  def loss(params):
    logits = net.apply({'params': params}, jnp.asarray(images))
    log_probs = jax.nn.log_softmax(logits)
    return -log_probs[jnp.arange(4), labels].mean()

  value, gradients = jax.jit(
    jax.value_and_grad(loss), compiler_options=model.compiler_options()
  )(params)
  expected, expected_gradients = torch_loss_and_gradients(
    torch, params, images, labels, hang
  )
  # Float32 through eight layers; a gradient may not vanish.
  assert value == pytest.approx(expected, rel=1e-5)
  errors = jax.tree.map(
    lambda g, e: np.linalg.norm(g - e) / np.linalg.norm(e),
    gradients,
    expected_gradients,
  )
  assert all(e < 1e-5 for e in jax.tree.leaves(errors)), errors


@pytest.mark.parametrize(
  ('crop_size', 'hang'),
  [
    (67, 0),  # conv1: 15 pixels, which the pooling covers.
    (64, 3),  # Also 15, the last window 3 pixels over the edge, as at 224.
  ],
)
def test_loss_and_gradients_match_torch(torch, crop_size, hang):
  net = model.AlexNet(**NARROW)
  assert_loss_and_gradients_match_torch(torch, net, crop_size, hang)


@pytest.mark.slow  # The paper's net: 60 million float64 weights in PyTorch.
def test_loss_and_gradients_of_the_full_net_match_torch(torch):
  assert_loss_and_gradients_match_torch(torch, model.AlexNet(), 224, 3)


def test_gradients_of_add_bias():
  rng = np.random.default_rng(0)
  g = rng.normal(loc=0.1, size=(4, 9, 7, 5)).astype(np.float32)
  x, bias = jnp.zeros(g.shape), jnp.arange(5.0)
  out, pullback = jax.vjp(towers.add_bias, x, bias)
  x_gradient, bias_gradient = pullback(jnp.asarray(g))
  np.testing.assert_array_equal(out[2, 3, 4], bias)
  np.testing.assert_array_equal(x_gradient, g)
  # Sums of 252 float32 of size one.
  np.testing.assert_allclose(
    bias_gradient, g.astype(np.float64).sum((0, 1, 2)), atol=1e-4
  )


def dropout(key, rows, tower_numbers, rate=0.5):
  """What is left of ones of 100 units per tower."""
  ones = jnp.ones((len(rows), 100 * len(tower_numbers)))
  args = jax.random.key(key), rate, jnp.array(rows), jnp.array(tower_numbers)
  return np.asarray(jax.jit(model.dropout, static_argnums=2)(ones, *args))


@pytest.mark.parametrize('rate', [0.5, 0.2])
def test_dropout_drops_its_share_and_keeps_the_rest_unscaled(rate):
  out = dropout(0, range(50), [0, 1], rate)
  assert set(out.ravel().tolist()) == {0.0, 1.0}
  # 10,000 units: five standard errors are at most 0.025.
  assert (out == 0).mean() == pytest.approx(rate, abs=0.025)


def test_dropout_draws_anew_for_key_row_and_tower():
  first, second = dropout(0, [0, 1], [0, 1]), dropout(1, [0, 1], [0, 1])
  masks = [*first.reshape(4, 100), *second.reshape(4, 100)]
  # Two masks drawn apart agree on half of their units; five standard errors
  # of 100 units are 25.
  agreement = (np.array(masks)[:, None] == np.array(masks)).sum(-1)
  others = agreement[~np.eye(8, dtype=bool)]
  assert np.abs(others - 50).max() <= 25


def test_dropout_does_not_depend_on_the_split_over_devices():
  whole = dropout(0, range(6), [0, 1])
  np.testing.assert_array_equal(dropout(0, [3, 4, 5], [0, 1]), whole[3:])
  np.testing.assert_array_equal(dropout(0, range(6), [1]), whole[:, 100:])


@pytest.fixture(scope='module')
def probe():
  """A net whose fc layers show what dropout did to fc6 and to fc7.

  Maps (train, key, rows) to the 64 units of fc6 and of fc7, which are 1 until
  they are dropped or halved.
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

  def fn(params, train, key, rows):
    images = jnp.zeros((3, SMALL_CROP, SMALL_CROP, 3))
    rngs = {'dropout': key} if train else {}
    logits, outputs = capture(
      net, params, images, train=train, rows=rows, rngs=rngs
    )
    return outputs['fc7'] - 1, logits / outputs['fc7']

  jitted = jax.jit(fn, static_argnums=1)
  return lambda train, key=0, rows=(0, 1, 2): jax.device_get(
    jitted(params, train, jax.random.key(key), jnp.array(rows))
  )


def test_hidden_units_are_dropped_in_training(probe):
  units = np.stack(probe(train=True))
  assert set(units.ravel().tolist()) == {0.0, 1.0}
  # 384 units: five standard errors are 0.1.
  assert (units == 0).mean() == pytest.approx(0.2, abs=0.1)


def test_hidden_units_are_scaled_at_test(probe):
  # Times 1 - rate; one rounding of float32.
  np.testing.assert_allclose(np.stack(probe(train=False)), 0.8, rtol=1e-6)


def test_each_layer_and_key_draws_its_own_dropout(probe):
  (a6, a7), (b6, b7) = probe(train=True, key=0), probe(train=True, key=1)
  for x, y in ((a6, a7), (a6, b6), (a7, b7)):
    assert (x != y).mean() > 0.15  # 0.32 if apart; 192 units.


def test_network_passes_the_rows_to_dropout(probe):
  first = probe(train=True, rows=(0, 1, 2))
  later = probe(train=True, rows=(2, 3, 4))
  for x, y in zip(first, later, strict=True):
    np.testing.assert_array_equal(x[2], y[0])
    assert (x[0] != y[0]).any()


def test_gradient_holds_no_grouped_convolution():
  net = model.AlexNet(**NARROW, **SMALL)
  params = random_params(net, SMALL_CROP)
  images = jnp.asarray(random_images(2, SMALL_CROP))
  rngs = {'dropout': jax.random.key(0)}
  loss = lambda p: net.apply({'params': p}, images, train=True, rngs=rngs).sum()
  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
  counts = re.findall(r'(?:feature|batch)_group_count=(\d+)', jaxpr)
  assert set(counts) == {'1'}


@pytest.mark.parametrize(
  'refused',
  [
    {'xla_cpu_no_such_option': 'LIBRARY_FUSION_TYPE_DOT'},
    {'xla_cpu_experimental_ynn_fusion_type': 'NO_SUCH_VALUE'},
  ],
)
def test_compiler_options_are_empty_where_xla_refuses(monkeypatch, refused):
  jit = jax.jit
  monkeypatch.setattr(
    jax, 'jit', lambda fn, compiler_options: jit(fn, compiler_options=refused)
  )
  assert model.compiler_options() == {}


def test_compiler_options_are_not_empty_where_xla_accepts(monkeypatch):
  jit = jax.jit
  monkeypatch.setattr(jax, 'jit', lambda fn, compiler_options: jit(fn))
  assert model.compiler_options()


def test_compiler_options_are_empty_off_the_cpu(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert model.compiler_options() == {}
