"""The paper's net and its train step written straight down, for comparison.

The plainest AlexNet of the project: sections 3 to 5 for two GPUs, as a single
device computes them, with two groups in place of two towers, no switches and no
meshes. `alexnet_jax/model.py` and `train_step.py` are compared with it, in their
results by plain_net_test.py, in their time by benchmarks/towers.py.
"""

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from alexnet_jax import augment
from alexnet_jax import layers
from alexnet_jax import pooling
from alexnet_jax import towers
from alexnet_jax import train_step as train_step_lib


class PlainNet(nn.Module):
  """Logits of float32 images [batch, size, size, 3] less their mean.

  The weights are those of a `model.AlexNet`, whatever its widths. Dropout is on,
  and draws what `model.AlexNet` draws.
  """

  @nn.compact
  def __call__(self, params, images):
    # 224 pixels give 55 positions; the last window hangs over by 3 pixels.
    x = conv(images, params['conv1'], stride=4, padding=(0, 3))
    x = pooling.max_pool(response_norm(x), 3)
    x = conv(x, params['conv2'], padding=(2, 2), groups=2)
    x = pooling.max_pool(response_norm(x), 3)
    x = conv(x, params['conv3'])
    x = conv(x, params['conv4'], groups=2)
    x = conv(x, params['conv5'], groups=2)
    x = pooling.max_pool(x, 3).reshape(len(x), -1)
    x = self.dropout(nn.relu(dense(x, params['fc6'])))
    x = self.dropout(nn.relu(dense(x, params['fc7'])))
    return dense(x, params['fc8'])

  def dropout(self, x):
    key, batch_indices = self.make_rng('dropout'), jnp.arange(len(x))
    return layers.dropout(x, key, 0.5, batch_indices, x.shape[1], 2)


def conv(x, layer, stride=1, padding=(1, 1), groups=1):
  """Convolution, bias and ReLU; each group reads its own part of the maps."""
  parts = [
    lax.conv_general_dilated(
      part,
      kernel,
      (stride, stride),
      (padding, padding),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    for part, kernel in zip(
      jnp.split(x, groups, -1),
      jnp.split(layer['kernel'], groups, -1),
      strict=True,
    )
  ]
  x = jnp.concatenate(parts, -1)
  return nn.relu(towers.add_bias(x, layer['bias']))  # With a fast gradient.


def response_norm(x):
  """x / (2 + 1e-4 * sum over 5 adjacent maps of x ** 2) ** 0.75, by halves."""
  halves = x.reshape(*x.shape[:3], 2, -1)
  padding = [(0, 0)] * 4 + [(2, 2)]
  window, strides = (1, 1, 1, 1, 5), (1,) * 5
  sums = lax.reduce_window(halves**2, 0.0, lax.add, window, strides, padding)
  root = lax.rsqrt(2 + 1e-4 * sums)
  return (halves * root * jnp.sqrt(root)).reshape(x.shape)


def dense(x, layer):
  """A fully connected layer without its activation."""
  return x @ layer['kernel'] + layer['bias'][None]


def train_step(state, batch, statistics, key, rates, color_std):
  """A step with crops of 224 pixels; takes and returns what the package's does."""
  key = jax.random.fold_in(key, state.step)
  indices = jnp.arange(len(batch['label']))

  def loss_fn(params):
    images = augment.random_views(
      jax.random.fold_in(key, train_step_lib.AUGMENT),
      batch['image'],
      indices,
      statistics.mean_image,
      statistics.directions,
      color_std,
      crop_size=224,
      flip=True,
    )
    rngs = {'dropout': jax.random.fold_in(key, train_step_lib.DROPOUT)}
    logits = PlainNet().apply({}, params, images, rngs=rngs)
    return -jax.nn.log_softmax(logits)[indices, batch['label']].mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  rate = rates['kernel']
  v = jax.tree.map(  # Section 5.
    lambda v, g, w: 0.9 * v - rate * (g + 0.0005 * w),
    state.opt_state.trace,
    grads,
    state.params,
  )
  params = jax.tree.map(jnp.add, state.params, v)
  opt_state = state.opt_state._replace(trace=v)
  state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
  return state, {'loss': loss, 'count': jnp.ones(())}
