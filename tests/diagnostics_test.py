"""Statistics of weights and units, against JAX's gradients and plain NumPy."""

import functools
import logging
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import colour_index
from alexnet_jax import diagnostics
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step

DECAY, RATE = 0.01, 0.25


class Tiny(nn.Module):
  """A net with conv1 and fc8, and the interface of `model.AlexNet`."""

  layers_sharded_over_data = ()

  @nn.compact
  def __call__(self, x, train=False, batch_indices=None, capture=None):
    x = nn.Conv(4, (3, 3), name='conv1')(x)
    return nn.Dense(3, name='fc8')(x.mean((1, 2)))


class Widths(nn.Module):
  """The part of `model.AlexNet` that names its layers."""

  conv_features: tuple[int, ...]
  fc_features: tuple[int, ...]


def views(key, images, indices, mean_image, directions, color_std):
  del key, indices, directions, color_std
  return images / 255 - mean_image[None]


@pytest.mark.parametrize('conv1_rate', [RATE, 0.0])
def test_statistics_of_weights(conv1_rate, caplog):
  caplog.set_level(logging.INFO, 'alexnet_jax')
  net, key = Tiny(), jax.random.key(0)
  images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
  batch = {
    'image': jnp.asarray(images),
    'label': jnp.array([0, 1, 2, 0, 1, 2]),
    'mask': jnp.ones(6, bool),
  }
  make = functools.partial(
    optimizer.paper_sgd, momentum=0.9, weight_decay=DECAY
  )
  params = net.init(key, jnp.zeros((1, 8, 8, 3)))['params']
  state = train_state.TrainState(jnp.int32(3), params, make({}).init(params))
  state = state.replace(
    opt_state=jax.tree.map(lambda x: x + 0.5, state.opt_state)
  )
  statistics = run_lib.Statistics(jnp.zeros((8, 8, 3)), jnp.eye(3))
  rates = dict.fromkeys(optimizer.RATE_KEYS, jnp.float32(RATE))
  rates['conv1/kernel'] = jnp.float32(conv1_rate)
  step = train_step.make_train_step(net, None, views, make)
  arguments = (statistics, key, rates, jnp.float32(0))
  weights = diagnostics.Weights(2)
  found = [weights(step, state, batch, arguments, None) for _ in range(2)][1]
  assert caplog.messages == ['Compiling the statistics of the weights.']

  def loss(params):
    logits = net.apply({'params': params}, images / 255)
    log_probs = jax.nn.log_softmax(logits)
    return -log_probs[np.arange(6), batch['label']].mean()

  grads = jax.grad(loss)(params)  # Also: the state was not deleted.
  for layer in ('conv1', 'fc8'):
    kernel = params[layer]['kernel']
    expected = grads[layer]['kernel'] + DECAY * kernel
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    close(found['gradients'][layer], expected.ravel())
    close(found['weights'][layer], kernel.ravel())
    moves = layer != 'conv1' or conv1_rate > 0
    close(found['updates'][layer], np.full(kernel.size, 0.5 * moves))
    norm = lambda x: np.sqrt((np.asarray(x, np.float64) ** 2).sum())
    ratio = norm(np.full(kernel.size, 0.5 * moves)) / norm(kernel)
    close(found['update_ratio'][layer], ratio)
  index = np.asarray(colour_index.colour_index(params['conv1']['kernel']))
  assert found['colour_index']['tower_0'] == pytest.approx(index[:2].mean())
  assert found['colour_index']['tower_1'] == pytest.approx(index[2:].mean())


@pytest.mark.parametrize(
  'shape', [(10,), (2**14,), (512, 256), (11, 11, 3, 96), (3, 3, 64, 96)]
)
def test_a_sample_is_bounded_and_meets_all_features(shape):
  x = np.arange(np.prod(shape)).reshape(shape)
  found = np.asarray(diagnostics.sample(jnp.asarray(x))).astype(int)
  assert min(x.size, 2000) <= found.size <= 2 * diagnostics.SAMPLE
  assert np.isin(found, x).all()
  if len(shape) > 1:
    counts = np.bincount(found % shape[-1], minlength=shape[-1])
    assert counts.min() == counts.max() > 0
  assert len({*found}) == found.size


@pytest.mark.parametrize('layout', ['towers', 'one_weird_trick'])
def test_only_samples_of_the_kernels_cross_devices(layout):
  mesh = mesh_lib.create_mesh(layout, 'auto', jax.devices()[:4])
  sharded = ('fc6',) if layout == 'one_weird_trick' else ()
  kernel = lambda *shape: {'kernel': jax.ShapeDtypeStruct(shape, jnp.float32)}
  shapes = {'conv1': kernel(11, 11, 3, 96), 'fc6': kernel(4096, 1024)}
  specs = mesh_lib.param_specs(shapes, mesh, sharded)
  place = lambda x, sharding: x.update(sharding=sharding)
  kernels = jax.tree.map(place, shapes, mesh_lib.shardings(mesh, specs))
  rates = dict.fromkeys(optimizer.RATE_KEYS, 1.0)
  statistics = diagnostics.Weights(2)._statistics
  lowered = statistics.lower(kernels, kernels, kernels, rates)
  compiled = lowered.compile()
  # No kernel is copied on the way: fc6 has 16 MB.
  assert compiled.memory_analysis().temp_size_in_bytes < 2e6
  results = re.findall(
    r' = (.*?) (?:all-|collective-|reduce-scatter)', compiled.as_text()
  )
  sizes = [
    np.prod([int(n) for n in shape.split(',') if n])
    for result in results
    for shape in re.findall(r'f32\[([\d,]*)\]', result)
  ]
  assert len(sizes) > 3 and max(sizes) <= 2 * diagnostics.SAMPLE


def test_a_unit_that_only_a_masked_example_makes_active_is_dead():
  net = Widths((3,), (0, 2))
  black = np.array([[False], [True]])  # The padding of a batch.
  conv1 = np.zeros((2, 4, 4, 3), np.float32)
  conv1[:, 2, 1, 0], conv1[1, :, :, 1] = 1, 1
  captured = {'conv1': conv1, 'fc7': np.float32(black & [True, False])}
  observe = diagnostics.Activations(net)
  arguments = jax.tree.map(jnp.asarray, (captured, ~black[:, 0]))
  active = observe(*arguments)['active']
  assert active['conv1'].tolist() == [[True, False, False]]
  assert active['fc7'].tolist() == [[False, False]]
