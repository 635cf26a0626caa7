"""Statistics that say whether a net is healthy: of its units and its weights.

Nothing is trained or compiled twice for them. The evaluation step returns those
of the units (`Activations`); one more call of the train step, on a copy of the
state, gives the gradient (`Weights`). Histograms are drawn of samples, so that
little is copied to the host.
"""

from collections.abc import Callable
import dataclasses
import logging

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, PyTree
import numpy as np
import optax

from alexnet_jax import colour_index
from alexnet_jax import model
from alexnet_jax import placement
from alexnet_jax import train_state
from alexnet_jax.runtime import compilation

log = logging.getLogger(__name__)

# Values of a histogram, and examples whose activations are in it, per device.
SAMPLE, EXAMPLES = 2**14, 8


@dataclasses.dataclass(frozen=True)
class Activations:
  """Statistics of the hidden units for a batch, see `evaluator.predict`.

  Attributes:
    net: network with the interface of `model.AlexNet`.
  """

  net: nn.Module

  @property
  def layers(self) -> tuple[str, ...]:
    """The hidden layers, in order."""
    net = self.net
    return tuple(
      name
      for names, widths in (
        (model.CONVS, net.conv_features),
        (('fc6', 'fc7'), net.fc_features),
      )
      for name, width in zip(names, widths, strict=False)
      if width
    )

  def __call__(
    self, captured: dict[str, Array], mask: Bool[Array, 'batch']
  ) -> dict[str, dict[str, Array]]:
    """Statistics by name and layer; call it inside `mesh.shard_map`.

    Args:
      captured: activations, see `model.AlexNet.__call__`.
      mask: selects this device's examples that can make units active.

    Returns:
      'sample': activations of a few examples; 'active': bool [1, features],
      whether a unit is not 0 for some example, at some place of its map;
      'last': all activations of the last hidden layer.
    """
    named = {name: captured[name] for name in self.layers}
    last = self.layers[-1]
    return {
      'sample': {name: sample(x[:EXAMPLES]) for name, x in named.items()},
      'active': {name: _active(x, mask)[None] for name, x in named.items()},
      'last': {last: named[last].astype(jnp.float32)},
    }

  @property
  def specs(self) -> dict[str, dict[str, P]]:
    """Partition specs of what a call returns, with a first axis of views."""
    specs = {name: self.net.activation_spec(name) for name in self.layers}
    features = lambda spec: spec[-1] if len(spec) > 1 else None
    last = self.layers[-1]
    return {
      'sample': {
        name: P(None, tuple(axis for axis in spec if axis))
        for name, spec in specs.items()
      },
      'active': {
        name: P(None, spec[0], features(spec)) for name, spec in specs.items()
      },
      'last': {last: P(None, *specs[last])},
    }


def _active(x, mask):
  """Which features are not 0 for some example that the mask selects."""
  if len(x) > len(mask):  # All devices' examples: fc layers are divided.
    mask = lax.all_gather(mask, 'data', tiled=True)
  found = (x != 0) & mask.reshape(-1, *[1] * (x.ndim - 1))
  return found.any(tuple(range(x.ndim - 1)))


def sample(x: Array) -> Array:
  """About `SAMPLE` elements of `x`; all, if it has fewer.

  They are as many of each feature, the last axis, in rows that differ from
  feature to feature. So a device that has some of the features takes its part
  of the sample without the others.
  """
  rows = x.reshape(-1, x.shape[-1])
  stride = min(max(x.size // SAMPLE, 1), len(rows))
  blocks = rows[: len(rows) // stride * stride].reshape(-1, stride, x.shape[-1])
  offsets = lax.iota(np.int32, x.shape[-1]) % stride
  offsets = jnp.broadcast_to(offsets, (len(blocks), 1, x.shape[-1]))
  chosen = jnp.take_along_axis(blocks, offsets, axis=1, mode='clip')
  return chosen.reshape(-1).astype(jnp.float32)


class Weights:
  """Statistics of the weights, their last update and their gradient."""

  def __init__(self, num_towers: int):
    self._num_towers = num_towers
    self._options = compilation.fast_compile_options()
    self._statistics = jax.jit(self._of, compiler_options=self._options)
    self._copy = None

  def __call__(
    self,
    train_step: Callable,
    state: train_state.TrainState,
    batch: PyTree,
    arguments: tuple,
    mesh: jax.sharding.Mesh | None,
  ) -> dict[str, dict[str, np.ndarray]]:
    """Statistics by name and layer, on the host.

    The gradient is that of the loss on `batch` with weight decay, which the
    rate multiplies: minus the update of a step with rate 1 and no momentum.

    Args:
      train_step: from `train_step.compile_train_step`.
      state: the train state; not changed.
      batch: a training batch, on the devices.
      arguments: the other arguments of a step, from `StepArguments`.
      mesh: mesh of the run.

    Returns:
      'weights', 'updates', 'gradients': samples of the kernels;
      'update_ratio': the norm of the last update divided by that of the
      weights; 'colour_index': its mean over conv1's kernels, by tower.
    """
    statistics, key, rates, color_std = arguments
    ones = placement.place({name: np.float32(1) for name in rates}, mesh)
    if self._copy is None:
      log.info('Compiling the statistics of the weights.')
      shardings = jax.tree.map(lambda x: x.sharding, state)
      self._copy = jax.jit(
        _without_momentum,
        out_shardings=shardings,
        compiler_options=self._options,
      )
    copy = self._copy(state)  # The step deletes what it is given.
    stepped, _ = train_step(copy, batch, statistics, key, ones, color_std)
    found = self._statistics(
      state.params, state.opt_state.trace, stepped.opt_state.trace, rates
    )
    return placement.fetch(found)

  def _of(self, params, updates, negative_gradient, rates):
    kernels, updates, negative = (
      {layer: leaves['kernel'] for layer, leaves in tree.items()}
      for tree in (params, updates, negative_gradient)
    )
    # A frozen conv1 keeps its momentum, which moves nothing.
    moves = rates['conv1/kernel'] > 0
    updates['conv1'] = jnp.where(moves, updates['conv1'], 0)
    norms = lambda tree: {name: optax.tree.norm(x) for name, x in tree.items()}
    ratio = lambda update, weight: update / jnp.maximum(weight, 1e-30)
    index = colour_index.colour_index(kernels['conv1'])
    towers = index.reshape(self._num_towers, -1).mean(1)
    return {
      'weights': jax.tree.map(sample, kernels),
      'updates': jax.tree.map(sample, updates),
      'gradients': jax.tree.map(lambda x: -sample(x), negative),
      'update_ratio': jax.tree.map(ratio, norms(updates), norms(kernels)),
      'colour_index': {f'tower_{i}': x for i, x in enumerate(towers)},
    }


def _without_momentum(state):
  copied = jax.tree.map(jnp.copy, state)
  zeros = jax.tree.map(jnp.zeros_like, state.opt_state)
  return copied.replace(opt_state=zeros)
