"""What each layer of AlexNet computes, and how long it takes on its own."""

import functools
import statistics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import feature_maps
from alexnet_jax import layers
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import pooling
from alexnet_jax import towers
from alexnet_jax.runtime import compilation
from benchmarks import harness
from benchmarks import synthetic


def macs() -> dict[str, int]:
  """Multiply-adds of an image in the forward pass, by layer; padding counts."""
  sides = feature_maps.sizes(224, 11, 4, 0)
  sides |= {'conv2': sides['pool1']}
  sides |= dict.fromkeys(('conv3', 'conv4', 'conv5'), sides['pool2'])
  create = functools.partial(synthetic.create_state, model.AlexNet(), 224)
  params = jax.eval_shape(create, jax.random.key(0)).params
  return {
    name: layer['kernel'].size * sides.get(name, 1) ** 2
    for name, layer in params.items()
  }


def train_flops() -> int:
  """Floating-point operations of a train step, for each image.

  Two for a multiply-add; forward, gradient of the weights and gradient of the
  inputs, which conv1 does not need. Norms, pooling and the update do not count.
  """
  counts = macs()
  return 2 * (3 * sum(counts.values()) - counts['conv1'])


def _conv(stride, padding, groups):
  conv = lambda p, x: towers.grouped_conv(
    x, p['kernel'], stride, (padding, padding), groups
  )
  return lambda p, x: nn.relu(towers.add_bias(conv(p, x), p['bias']))


def _dense(p, x):
  x = x.reshape(len(x), -1) @ p['kernel'].astype(x.dtype)
  return (x + p['bias'][None]).astype(x.dtype)


def _dropout(p, x):
  # XLA would evaluate the draws when it compiles if the key were constant.
  key = jax.random.key(p['bias'][0].astype(int))
  return layers.dropout(x, key, 0.5, jnp.arange(len(x)), x.shape[1], 2)


_relu = lambda function: lambda p, x: nn.relu(function(p, x))
NORM = lambda _, x: layers.local_response_norm(x, 2)
POOL = lambda _, x: pooling.max_pool(x, 3)
# The functions of (parameters, x), in the order of the network.
NETWORK = {'conv1': _conv(4, (0, 3), 1), 'norm1': NORM, 'pool1': POOL}
NETWORK |= {'conv2': _conv(1, (2, 2), 2), 'norm2': NORM, 'pool2': POOL}
NETWORK |= {'conv3': _conv(1, (1, 1), 1), 'conv4': _conv(1, (1, 1), 2)}
NETWORK |= {'conv5': _conv(1, (1, 1), 2), 'pool5': POOL}
NETWORK |= {'fc6': _relu(_dense), 'dropout6': _dropout}
NETWORK |= {'fc7': _relu(_dense), 'dropout7': _dropout, 'fc8': _dense}


def seconds(batch: int, dtype: str, rounds: int) -> list[dict[str, object]]:
  """Median seconds (and GFLOP of a step) of its parts, each compiled on its own.

  In the step XLA fuses neighbours, so the parts do not add up to it.
  """
  counts, rows = macs(), []
  options = compilation.network_options()
  jit = functools.partial(jax.jit, compiler_options=options)
  state = synthetic.create_state(model.AlexNet(), 224, jax.random.key(0))
  noise = np.random.default_rng(0).normal(0, 64, (batch, 224, 224, 3))
  x = jnp.asarray(noise, dtype)

  def add_row(name, forward, backward=0.0, flops=0):
    values = name, forward, backward, flops / 1e9
    keys = 'name', 'forward_seconds', 'backward_seconds', 'gflop'
    rows.append(dict(zip(keys, values, strict=True)))

  for name, function in NETWORK.items():
    params = state.params.get(name, {'bias': jnp.zeros(1)})
    is_first = name == 'conv1'  # Its input needs no gradient.

    def both(p, x, g, function=function, is_first=is_first):
      of_params = lambda p: function(p, x)
      out, pull = jax.vjp(*(of_params, p) if is_first else (function, p, x))
      return out, pull(g)

    forward = jit(function)
    out = forward(params, x)
    alone = _median(forward, (params, x), rounds)
    whole = _median(jit(both), (params, x, out), rounds)
    flops = 2 * counts.get(name, 0) * batch * (2 if is_first else 3)
    add_row(name, alone, max(whole - alone, 0.0), flops)
    x = out
  views, arguments = synthetic.random_views(224), _view_arguments(batch)
  add_row('augmentation', _median(jit(views), arguments, rounds))
  grads = jax.tree.map(lambda w: 0.5 * w, state.params)
  rates = dict.fromkeys(optimizer.RATE_KEYS, synthetic.RATE)
  current = [(state.params, state.opt_state)]

  @functools.partial(jit, donate_argnums=(0, 1))  # In place, as in a step.
  def update(params, opt_state, grads):
    sgd = synthetic.make_optimizer(rates)
    changes, opt_state = sgd.update(grads, opt_state, params)
    return jax.tree.map(jnp.add, params, changes), opt_state

  def next_update():
    current[0] = update(*current[0], grads)
    return current[0]

  add_row('update', _median(next_update, (), rounds))
  return rows


def _view_arguments(batch):
  """The arguments of the augmentation: XLA would compute with constants."""
  stored = synthetic.create_batch(batch, 256, 1)['image']
  given, key, _, color_std = synthetic.create_arguments(stored)
  indices = jnp.arange(batch)
  views = key, stored, indices, given.mean_image, given.directions, color_std
  return jax.device_put(views)


def _median(function, arguments, rounds):
  number = harness.steps_per_wait()
  calls = lambda: [function(*arguments) for _ in range(number)][-1]
  work = {'': lambda: jax.block_until_ready(calls())}
  return statistics.median(harness.seconds(work, rounds)['']) / number
