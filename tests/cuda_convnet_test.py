"""cuda-convnet's nets against NumPy, window by window, and published counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cuda_convnet

CROPS = {'26pct': 32, '18pct': 32, '13pct': 24, '11pct': 24}


def windows(size):
  """First and last + 1 pixel of each 3-pixel window, clipped at the edge."""
  firsts = range(0, size, 2)
  kept = [f for f in firsts if f == 0 or f + 1 < size]
  return [(f, min(f + 3, size)) for f in kept]


def pool(x, function):
  _, height, width, _ = x.shape
  rows = [
    [function(x[:, t:b, left:right], (1, 2)) for left, right in windows(width)]
    for t, b in windows(height)
  ]
  return np.stack([np.stack(row, 1) for row in rows], 1)


def padded(x, n):
  return np.pad(x, ((0, 0), (n, n), (n, n), (0, 0)))


def conv(x, kernel, bias):
  size, (_, height, width, _) = kernel.shape[0], x.shape
  x, out = padded(x, size // 2), 0.0
  for i in range(size):
    for j in range(size):
      out += x[:, i : i + height, j : j + width] @ kernel[i, j]
  return out + bias


def local(x, kernel, bias):
  """Its kernel has axes [row, column, place * channels + channel, feature]."""
  _, height, width, channels = x.shape
  around = padded(x, 1)
  out = np.zeros((*x.shape[:3], kernel.shape[-1]))
  for i in range(height):
    for j in range(width):
      patch = around[:, i : i + 3, j : j + 3].reshape(len(x), 9 * channels)
      out[:, i, j] = patch @ kernel[i, j]
  return out + bias


def norm_within(x):
  squares, around = 0.0, padded(x**2, 1)
  for i in range(3):
    for j in range(3):
      squares += around[:, i : i + x.shape[1], j : j + x.shape[2]]
  return x / (1 + 5e-5 / 9 * squares) ** 0.75


def norm_across(x):
  out = np.empty_like(x)
  for map_ in range(x.shape[-1]):
    near = x[..., max(0, map_ - 4) : map_ + 5]
    out[..., map_] = x[..., map_] / (1 + 0.001 / 9 * (near**2).sum(-1)) ** 0.75
  return out


FUNCTIONS = {
  'activation': lambda x: np.maximum(x, 0),
  'max': lambda x: pool(x, np.max),
  'average': lambda x: pool(x, np.mean),
  'norm_within': norm_within,
  'norm_across': norm_across,
}
# The order of the functions, in which the author's files differ.
ORDER = {
  '26pct': [
    ('conv1', 'max', 'activation'),
    ('conv2', 'activation', 'average'),
    ('conv3', 'activation', 'average'),
    ('fc4', 'activation'),
    ('fc5',),
  ],
  '18pct': [
    ('conv1', 'max', 'activation', 'norm_within'),
    ('conv2', 'activation', 'average', 'norm_within'),
    ('conv3', 'activation', 'average'),
    ('fc4',),
  ],
  '13pct': [
    ('conv1', 'activation', 'max'),
    ('conv2', 'activation', 'max'),
    ('local3', 'activation'),
    ('local4', 'activation'),
    ('fc5',),
  ],
  '11pct': [
    ('conv1', 'activation', 'max', 'norm_across'),
    ('conv2', 'activation', 'norm_across', 'max'),
    ('local3', 'activation'),
    ('local4', 'activation'),
    ('fc5',),
  ],
}


def reference(net, params, x):
  """The activations of a net by layer, in float64."""
  outputs = {}
  for name, *then in ORDER[net]:
    kernel, bias = (
      np.asarray(params[name][key], np.float64) for key in ('kernel', 'bias')
    )
    if name.startswith('fc'):
      x = x.reshape(len(x), -1) @ kernel + bias
    else:
      x = (local if name.startswith('local') else conv)(x, kernel, bias)
    for function in then:
      x = FUNCTIONS[function](x)
    outputs[name] = x
  return outputs


def random_params(module, crop):
  """Parameters with which all activations are of the order of 1 to 100."""
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), jnp.zeros((1, crop, crop, 3))
  )['params']
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    fan_in = 1 if path[-1].key == 'bias' else np.prod(leaf.shape[-4:-1])
    if path[-2].key.startswith('local') and path[-1].key == 'kernel':
      fan_in = leaf.shape[2]
    return jnp.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, jnp.float32)

  return jax.tree.map_with_path(draw, shapes)


@pytest.mark.parametrize('net', ORDER)
def test_every_activation_equals_numpy(net):
  module = cuda_convnet.CudaConvnet(cuda_convnet.NETS[net])
  crop = CROPS[net]
  params = random_params(module, crop)
  images = np.random.default_rng(1).normal(0, 60, (2, crop, crop, 3))
  captured = {}
  logits = module.apply(
    {'params': params}, jnp.asarray(images, jnp.float32), capture=captured
  )
  expected = reference(net, params, images)
  assert list(captured) == list(expected)
  for name, value in expected.items():
    # Single precision, with sums of at most 2,304 products.
    scale = np.abs(value).max()
    np.testing.assert_allclose(captured[name], value, atol=1e-5 * scale)
  np.testing.assert_array_equal(logits, captured[ORDER[net][-1][0]])


@pytest.mark.parametrize('size', [5, 6])
def test_gradients_of_poolings_equal_pytorch(size):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, size, size, 3)).astype(np.float32)
  pairs = (
    (cuda_convnet.max_pool, torch.nn.MaxPool2d(3, 2, ceil_mode=True)),
    (cuda_convnet.average_pool, torch.nn.AvgPool2d(3, 2, ceil_mode=True)),
  )
  for ours, theirs in pairs:
    there = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    value = theirs(there)
    g = rng.normal(size=value.shape).astype(np.float32)
    value.backward(torch.tensor(g))
    found, vjp = jax.vjp(ours, jnp.asarray(x))
    np.testing.assert_allclose(
      found, value.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-6
    )
    (gradient,) = vjp(jnp.asarray(g.transpose(0, 2, 3, 1)))
    # A sum of up to four terms of either sign.
    np.testing.assert_allclose(
      gradient, there.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6
    )


@pytest.mark.parametrize(
  ('net', 'parameters'),
  [
    # 5x5 kernels and biases of each map; 4x4 maps reach the first fc layer.
    ('26pct', 2_432 + 25_632 + 51_264 + 65_600 + 650),
    # Caffe's `cifar10_full`, which is the same net, has as many.
    ('18pct', 89_578),
    # 36 pixels with kernels and biases of their own.
    ('13pct', 4_864 + 102_464 + 2 * 36 * 32 + 36 * 9 * 32 * (64 + 32) + 11_530),
    ('11pct', 4_864 + 102_464 + 36 * (36_928 + 18_464) + 11_530),
    ('11pct_without_norm', 2_112_970),
  ],
)
def test_number_of_parameters(net, parameters):
  module = cuda_convnet.CudaConvnet(cuda_convnet.NETS[net])
  crop = CROPS.get(net, 24)
  images = jnp.zeros((1, crop, crop, 3))
  params = jax.eval_shape(module.init, jax.random.key(0), images)['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_initial_weights_have_the_released_deviations():
  module = cuda_convnet.CudaConvnet(cuda_convnet.NETS['13pct'])
  params = module.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))['params']
  stds = {name: float(jnp.std(p['kernel'])) for name, p in params.items()}
  expected = {
    'conv1': 1e-4,
    'conv2': 0.01,
    'local3': 0.04,
    'local4': 0.04,
    'fc5': 0.01,
  }
  # 4,800 draws and more: the deviation is within 4% but for one time in 10,000.
  assert stds == pytest.approx(expected, rel=0.04)
  biases = [p['bias'] for p in params.values()]
  assert not any(bias.any() for bias in biases)


def test_the_released_pair_differs_in_three_points_and_ours_in_one():
  nets = cuda_convnet.NETS
  norms = lambda net: [
    [f for f in layer.then if f.startswith('norm')] for layer in nets[net]
  ]
  widths = lambda net: [layer.features for layer in nets[net]]
  decay = lambda net: [layer.decay for layer in nets[net]]
  assert norms('13pct') != norms('11pct')
  assert widths('13pct') != widths('11pct')
  assert decay('13pct') != decay('11pct')
  ours = '11pct_without_norm'
  assert norms(ours) == norms('13pct')
  assert (widths(ours), decay(ours)) == (widths('11pct'), decay('11pct'))


def test_tanh_replaces_every_relu():
  net = cuda_convnet.NETS['26pct']
  module = cuda_convnet.CudaConvnet(net, jnp.tanh)
  params = random_params(module, 32)
  captured = {}
  images = jnp.ones((1, 32, 32, 3)) * 50
  module.apply({'params': params}, images, capture=captured)
  hidden = [value for name, value in captured.items() if name != 'fc5']
  assert all(float(abs(value).max()) <= 1 for value in hidden)
  assert all(float(value.min()) < 0 for value in hidden)
