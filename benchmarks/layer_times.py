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
from benchmarks import harness
from benchmarks import synthetic

GROUPS = {'conv2': 2, 'conv4': 2, 'conv5': 2}


def macs() -> dict[str, int]:
  """Multiply-adds of one image in the forward pass, by layer.

  Those of the paper's net at 224 pixels; what falls on padding counts as well.
  """
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  key = jax.random.key(0)
  params = jax.eval_shape(model.AlexNet().init, key, images)['params']
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

  Two for a multiply-add; forward, gradient of the weights and gradient of the
  inputs, which conv1 does not need. Norms, pooling and the update are not
  counted.
  """
  counts = macs()
  return 2 * (3 * sum(counts.values()) - counts['conv1'])


def _layer(name, params):
  """The function of (params, x) that a layer with parameters computes."""
  kernel = params[name]['kernel']
  settings = {
    'features': kernel.shape[-1],
    'groups': GROUPS.get(name, 1),
    'init_std': 0.0,
    'init_bias': 0.0,
  }
  if name == 'fc8':
    module = layers.TowerDense(output_dtype='float32', **settings)
    return lambda p, x: module.apply({'params': p}, x)
  if name.startswith('fc'):
    module = layers.TowerDense(**settings)
  else:
    side, is_first = kernel.shape[0], name == 'conv1'
    module = layers.TowerConv(
      kernel_size=side,
      stride=4 if is_first else 1,
      padding=(0, 3) if is_first else (side // 2, side // 2),
      **settings,
    )
  return lambda p, x: nn.relu(module.apply({'params': p}, x))


def _network_parts(
  batch: int, dtype: str, jit: Callable
) -> Iterator[tuple[str, Callable, Callable, tuple]]:
  """Every part of the network in order: name, function, jitted, arguments."""
  images = jnp.zeros((1, 224, 224, 3), dtype)
  net = model.AlexNet(dtype=dtype)
  params = net.init(jax.random.key(0), images)['params']
  indices = jnp.arange(batch)

  def dropout(p, x):
    # From a constant key XLA would draw when it compiles.
    key = jax.random.key(jnp.int32(p['seed']))
    return layers.dropout(x, key, 0.5, indices, x.shape[1], 2)

  functions = {name: _layer(name, params) for name in params}
  for number in (1, 2):
    functions[f'norm{number}'] = lambda _, x: layers.local_response_norm(x, 2)
  for number in (1, 2, 5):
    functions[f'pool{number}'] = lambda _, x: pooling.max_pool(x, 3)
  functions |= {'dropout6': dropout, 'dropout7': dropout}
  order = (
    'conv1 norm1 pool1 conv2 norm2 pool2 conv3 conv4 conv5 pool5'
    ' fc6 dropout6 fc7 dropout7 fc8'
  )
  noise = np.random.default_rng(0).normal(0, 64, (batch, *images.shape[1:]))
  x = jnp.asarray(noise, dtype)
  for name in order.split():
    own = params.get(name, {'seed': jnp.zeros(())})
    forward = jit(functions[name])
    yield name, functions[name], forward, (own, x)
    x = forward(own, x)


def _augmentation(batch):
  """The function and its arguments: XLA would compute with constants."""
  rng = np.random.default_rng(0)
  stored = rng.integers(0, 256, (batch, 256, 256, 3), np.uint8)
  mean_image = rng.uniform(0, 255, (256, 256, 3)).astype(np.float32)
  rest = (jnp.arange(batch), mean_image, np.eye(3, dtype=np.float32), 0.1)
  views = functools.partial(augment.random_views, crop_size=224, flip=True)
  return views, jax.device_put((jax.random.key(0), stored, *rest))


def _update(jit):
  """A function that updates all parameters in place, as a step does."""
  rates = dict.fromkeys(optimizer.RATE_KEYS, synthetic.RATE)
  sgd = synthetic.make_optimizer(rates)
  images = jnp.zeros((1, 224, 224, 3))
  params = model.AlexNet().init(jax.random.key(0), images)['params']
  grads = jax.tree.map(lambda w: 0.5 * w, params)
  state = [(params, sgd.init(params))]

  def update(params, opt_state, grads):
    changes, opt_state = sgd.update(grads, opt_state, params)
    return jax.tree.map(jnp.add, params, changes), opt_state

  compiled = jit(update, donate_argnums=(0, 1))

  def step():
    state[0] = compiled(*state[0], grads)
    return state[0]

  return step


def _row(name, forward, backward=0.0, flops=0):
  return {
    'name': name,
    'forward_seconds': forward,
    'backward_seconds': backward,
    'gflop': flops / 1e9,
  }


def seconds(batch: int, dtype: str, rounds: int) -> list[dict[str, object]]:
  """Median seconds of every part of a step, each compiled on its own.

  In the step XLA fuses neighbours, so the parts do not add up to it.

  Returns:
    'name', 'forward_seconds', 'backward_seconds' and 'gflop' (of a step) of
    every part, in order; the last are the augmentation and the update.
  """
  counts, rows = macs(), []
  options = compilation.network_options()
  jit = functools.partial(jax.jit, compiler_options=options)
  for name, function, forward, arguments in _network_parts(batch, dtype, jit):
    is_first = name == 'conv1'  # Its input needs no gradient.

    def both(p, x, g, function=function, is_first=is_first):
      if is_first:
        out, gradients = jax.vjp(lambda p: function(p, x), p)
      else:
        out, gradients = jax.vjp(function, p, x)
      return out, gradients(g)

    out = forward(*arguments)
    alone = _median(forward, arguments, rounds)
    whole = _median(jit(both), (*arguments, out), rounds)
    flops = 2 * counts.get(name, 0) * batch * (2 if is_first else 3)
    rows.append(_row(name, alone, max(whole - alone, 0.0), flops))
  views, arguments = _augmentation(batch)
  rows.append(_row('augmentation', _median(jit(views), arguments, rounds)))
  rows.append(_row('update', _median(_update(jit), (), rounds)))
  return rows


def _median(function, arguments, rounds):
  jax.block_until_ready(function(*arguments))
  taken, number = [], harness.steps_per_wait()
  for _ in range(rounds):
    began = time.perf_counter()
    for _ in range(number):
      out = function(*arguments)
    jax.block_until_ready(out)
    taken.append((time.perf_counter() - began) / number)
  return statistics.median(taken)
