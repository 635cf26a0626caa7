"""What each layer of AlexNet computes, and what it takes on its own."""

from collections.abc import Callable, Iterator
import functools
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment
from alexnet_jax import layers
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import pooling
from alexnet_jax.runtime import compilation

GROUPS = {'conv2': 2, 'conv4': 2, 'conv5': 2}


def macs() -> dict[str, int]:
  """Multiplications (with their additions) of one image, by layer.

  Of the paper's net at 224 pixels, in the forward direction. Taps that fall on
  padding count as well.
  """
  net = model.AlexNet()
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(net.init, jax.random.key(0), images)['params']
  sizes = model.feature_map_sizes(224, 11, 4, 0)
  sides = {
    'conv1': sizes['conv1'],
    'conv2': sizes['pool1'],
    **dict.fromkeys(('conv3', 'conv4', 'conv5'), sizes['pool2']),
  }
  return {
    name: layer['kernel'].size * sides.get(name, 1) ** 2
    for name, layer in params.items()
  }


def train_flops() -> int:
  """Floating-point operations of a train step, for each image.

  Two for a multiplication with its addition; forward, gradient of the weights
  and gradient of the inputs, which conv1 does not need. Norms, pooling and the
  update are not counted.
  """
  counts = macs()
  return 2 * (3 * sum(counts.values()) - counts['conv1'])


def _parts(
  batch: int, dtype: str, jit: Callable
) -> Iterator[tuple[str, Callable, Callable, tuple]]:
  """Every part of a step, in order: name, function, jitted, its arguments."""
  net = model.AlexNet(dtype=dtype)
  images = jnp.zeros((batch, 224, 224, 3), dtype)
  params = net.init(jax.random.key(0), images[:1])['params']

  def layer(name):
    features = params[name]['bias'].size
    if name.startswith('fc'):
      module = layers.TowerDense(
        features=features,
        groups=1,
        init_std=0.0,
        init_bias=0.0,
        rounded=name != 'fc8',
      )
    else:
      first = name == 'conv1'
      side = params[name]['kernel'].shape[0]
      module = layers.TowerConv(
        features=features,
        kernel_size=side,
        stride=4 if first else 1,
        padding=(0, 3) if first else (side // 2,) * 2,
        groups=GROUPS.get(name, 1),
        init_std=0.0,
        init_bias=0.0,
      )
    activate = (lambda x: x) if name == 'fc8' else nn.relu
    return name, lambda p, x: activate(module.apply({'params': p}, x))

  norm = lambda _, x: layers.local_response_norm(x, 2)
  pool = lambda _, x: pooling.max_pool(x, 3)
  rows = jnp.arange(batch)
  # From a constant XLA would draw beforehand.
  key = lambda p: jax.random.key(jnp.int32(p['seed']))
  drop = lambda p, x: layers.dropout(x, key(p), 0.5, rows, x.shape[1], 2)
  chain = [
    layer('conv1'),
    ('norm1', norm),
    ('pool1', pool),
    layer('conv2'),
    ('norm2', norm),
    ('pool2', pool),
    *map(layer, ('conv3', 'conv4', 'conv5')),
    ('pool5', pool),
    layer('fc6'),
    ('dropout6', drop),
    layer('fc7'),
    ('dropout7', drop),
    layer('fc8'),
  ]
  noise = np.random.default_rng(0)
  x = jnp.asarray(noise.normal(0, 64, images.shape), dtype)
  for name, function in chain:
    own = params.get(name, {'seed': jnp.zeros(())})
    forward = jit(function)
    yield name, function, forward, (own, x)
    x = forward(own, x)


def _augmentation(batch):
  """The function, and all that it reads: XLA computes constants beforehand."""
  rng = np.random.default_rng(0)
  stored = rng.integers(0, 256, (batch, 256, 256, 3), np.uint8)
  mean_image = rng.uniform(0, 255, (256, 256, 3)).astype(np.float32)
  rest = (jnp.arange(batch), mean_image, np.eye(3, dtype=np.float32), 0.1)
  views = functools.partial(augment.random_views, crop_size=224, flip=True)
  return views, jax.device_put((jax.random.key(0), stored, *rest))


class _Update:
  """The update of all parameters in place, as in a step."""

  def __init__(self, options: dict):
    images = jnp.zeros((1, 224, 224, 3))
    params = model.AlexNet().init(jax.random.key(0), images)['params']
    rates = dict.fromkeys(optimizer.RATE_KEYS, 0.01)
    sgd = optimizer.paper_sgd(rates, 0.9, 5e-4)

    def update(params, state, grads):
      changes, state = sgd.update(grads, state, params)
      return jax.tree.map(jnp.add, params, changes), state

    self._grads = jax.tree.map(lambda w: 0.5 * w, params)
    self._update = jax.jit(
      update, donate_argnums=(0, 1), compiler_options=options
    )
    self._state = params, sgd.init(params)

  def __call__(self):
    self._state = self._update(*self._state, self._grads)
    return self._state


def seconds(batch: int, dtype: str, rounds: int) -> list[dict[str, object]]:
  """Median seconds of every part of a step, each compiled for itself.

  In the step XLA joins neighbours, so the parts do not add up to it.

  Returns:
    'name', 'forward_seconds', 'backward_seconds' and 'gflop' (of a step) of
    every part, in order; the last are the augmentation and the update.
  """
  counts, rows = macs(), []
  options = compilation.network_options()
  jit = functools.partial(jax.jit, compiler_options=options)
  for name, function, forward, arguments in _parts(batch, dtype, jit):
    first = name == 'conv1'  # Its input needs no gradient.
    out = forward(*arguments)

    def both(p, x, g, function=function, first=first):
      if first:
        out, gradients = jax.vjp(lambda p: function(p, x), p)
      else:
        out, gradients = jax.vjp(function, p, x)
      return out, gradients(g)

    alone = _median(forward, arguments, rounds)
    whole = _median(jit(both), (*arguments, out), rounds)
    flops = 2 * counts.get(name, 0) * batch * (2 if first else 3)
    rows.append(
      {
        'name': name,
        'forward_seconds': alone,
        'backward_seconds': max(whole - alone, 0.0),
        'gflop': flops / 1e9,
      }
    )
  views, arguments = _augmentation(batch)
  for name, taken in (
    ('augmentation', _median(jit(views), arguments, rounds)),
    ('update', _median(_Update(options), (), rounds)),
  ):
    rows.append(
      {
        'name': name,
        'forward_seconds': taken,
        'backward_seconds': 0.0,
        'gflop': 0.0,
      }
    )
  return rows


def calls_at_once() -> int:
  """How many calls one wait should time.

  A GPU takes less time for many a layer than it takes to ask for it.
  """
  return 1 if jax.default_backend() == 'cpu' else 50


def _median(function, arguments, rounds):
  jax.block_until_ready(function(*arguments))
  taken, number = [], calls_at_once()
  for _ in range(rounds):
    began = time.perf_counter()
    for _ in range(number):
      out = function(*arguments)
    jax.block_until_ready(out)
    taken.append((time.perf_counter() - began) / number)
  return statistics.median(taken)
