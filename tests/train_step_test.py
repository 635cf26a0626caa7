"""The train step learns, and equals a step worked out by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step as train_step_lib


def test_training_overfits_eight_images():
  net = model.AlexNet(
    num_classes=10,
    conv_features=(8, 16, 16, 16, 16),
    fc_features=(32, 32),
    init_std=0.1,
    conv345_init_std=0.1,
    fc67_init_std=0.1,
    dropout_rate=0.0,
  )
  random_views = functools.partial(
    augment.random_views, crop_size=67, flip=False
  )
  sgd = functools.partial(optimizer.paper_sgd, momentum=0.9, weight_decay=0.0)
  step = train_step_lib.make_train_step(net, None, random_views, sgd)
  rng = np.random.default_rng(0)
  batch = {
    'image': jnp.asarray(rng.integers(0, 256, (8, 67, 67, 3), np.uint8)),
    'label': jnp.arange(8, dtype=jnp.int32),
    'mask': jnp.ones(8, bool),
  }
  fixed = run_lib.Statistics(jnp.full((67, 67, 3), 127.5), jnp.zeros((3, 3)))
  init = jax.jit(net.init)
  params = init(jax.random.key(0), jnp.zeros((1, 67, 67, 3)))['params']
  state = train_state.TrainState(jnp.int32(0), params, sgd({}).init(params))
  rates = dict.fromkeys(optimizer.RATE_KEYS, jnp.float32(0.003))
  settings = (jax.random.key(1), rates, jnp.float32(0))
  losses = []
  for _ in range(150):
    state, sums = step(state, batch, fixed, *settings)
    losses.append(float(sums['loss'] / sums['count']))
  assert losses[0] > 2
  assert losses[-1] < 0.05  # ln(10) is 2.3


class MeanColour(nn.Module):
  """A softmax over a linear function of an image's mean colour."""

  layers_sharded_over_data = ()

  @nn.compact
  def __call__(self, images, *, train, batch_indices, capture):
    return nn.Dense(4, name='fc8')(images.mean((1, 2)))


def test_one_step_with_the_switches_of_the_source_equals_a_hand_computation():
  rng = np.random.default_rng(0)
  kernel, bias = rng.normal(size=(3, 4)) / 100, rng.normal(size=4)
  colours = rng.integers(0, 256, (6, 3))
  labels = np.arange(6) % 4
  mean_image = rng.uniform(0, 255, (5, 5, 3))
  step = train_step_lib.make_train_step(
    MeanColour(),
    None,
    functools.partial(
      augment.random_views,
      crop_size=1,
      flip=True,
      color_divide=True,
      central_mean=True,
    ),
    functools.partial(
      optimizer.paper_sgd, momentum=0.9, weight_decay=0.5, decay_biases=False
    ),
  )
  params = jax.tree.map(jnp.float32, {'fc8': {'kernel': kernel, 'bias': bias}})
  opt_state = optimizer.paper_sgd({}, 0.0, 0.0).init(params)
  images = np.tile(colours[:, None, None].astype(np.uint8), (1, 5, 5, 1))
  batch = {'image': images, 'label': labels, 'mask': np.ones(6, bool)}
  rates = dict.fromkeys(optimizer.RATE_KEYS, 9.0)  # There are no such layers.
  rates |= {'fc8/kernel': 1e-3, 'fc8/bias': 0.2}
  state, sums = step(
    train_state.TrainState(jnp.int32(0), params, opt_state),
    jax.tree.map(jnp.asarray, batch),
    # Without directions of noise only the division by 1.25 is left.
    run_lib.Statistics(jnp.float32(mean_image), jnp.zeros((3, 3))),
    jax.random.key(0),
    jax.tree.map(jnp.float32, rates),
    jnp.float32(0.25),
  )
  # Images have one colour each, so the place of the crop does not matter.
  inputs = (colours - mean_image[2, 2]) / 1.25
  exp = np.exp(inputs @ kernel + bias)
  softmax = exp / exp.sum(1, keepdims=True)
  error = (softmax - np.eye(4)[labels]) / 6
  loss = -np.log(softmax[np.arange(6), labels]).sum()
  kernel_step = 1e-3 * (inputs.T @ error + 0.5 * kernel)
  near = {'rtol': 1e-5, 'atol': 1e-6}  # Sums of a dozen float32.
  np.testing.assert_allclose(sums['loss'], loss, **near)
  found = state.params['fc8']
  np.testing.assert_allclose(found['kernel'], kernel - kernel_step, **near)
  np.testing.assert_allclose(found['bias'], bias - 0.2 * error.sum(0), **near)
