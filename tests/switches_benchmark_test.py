"""Every switch of benchmarks.switches computes what the package computes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import layers
from alexnet_jax import pooling
from alexnet_jax import towers
from benchmarks import switches


def conv1(x, g):
  kernel = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5, 3, 8)))
  kernel = kernel.astype(x.dtype)
  padding = ((1, 2), (0, 1))
  out, back = jax.vjp(
    lambda x, k: towers.grouped_conv(x, k, 4, padding, 1), x, kernel
  )
  return out, *back(jnp.broadcast_to(g.mean(), out.shape))


def conv2(x, g):
  kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 8)))
  kernel = kernel.astype(x.dtype)
  x = jnp.concatenate([x, 2 * x], axis=-1)
  out, back = jax.vjp(
    lambda x, k: towers.grouped_conv(x, k, 1, ((1, 1), (1, 1)), 2), x, kernel
  )
  return out, *back(jnp.broadcast_to(g.mean(), out.shape))


def bias(x, g):
  out, back = jax.vjp(towers.add_bias, x, jnp.float32([1, 2, 3]))
  return out, *back(g)


def norm(x, g):
  wide = lambda x: jnp.concatenate([x, 2 * x, -x, x * x], axis=-1)
  out, back = jax.vjp(lambda x: layers.local_response_norm(wide(x), 2), x)
  return out, *back(out)


def pool(x, g):
  out, back = jax.vjp(lambda x: pooling.max_pool(x, 3), x)
  return out, *back(out)


PLACES = {
  'feature_group_count': conv2,
  "XLA's pooling": pool,
  switches.PIXELS: conv1,
  switches.BLOCKS: conv1,
  'bias by a product': bias,
  'norm, all stored': norm,
  'norm by a product': norm,
}


def test_every_switch_is_tested_here_and_documented():
  assert {*PLACES, switches.AS_IS} == {*switches.PATCHES}
  table = switches.__doc__.partition('|---|---|')[2]
  listed = [line.split(' |')[0].strip('| ') for line in table.splitlines()]
  listed = [name for name in listed if name][: len(PLACES) + 1]
  assert listed == [
    *(name for name in switches.PATCHES if name != switches.AS_IS),
    switches.UNBUFFERED,
  ]


@pytest.mark.parametrize('name', PLACES)
def test_a_switch_computes_the_same(name):
  rng = np.random.default_rng(0)
  x, g = (jnp.float32(rng.normal(size=(2, 9, 9, 3))) for _ in range(2))
  expected = PLACES[name](x, g)
  with switches.patched(name):
    place, attribute, changed = switches.PATCHES[name]
    assert getattr(place, attribute) is changed
    found = PLACES[name](x, g)
  for one, other in zip(found, expected, strict=True):
    # Sums in float32 of up to 300 numbers, in another order.
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # It compiles a narrow train step for each.
@pytest.mark.parametrize('name', PLACES)
def test_a_whole_step_has_the_same_loss(monkeypatch, name):
  monkeypatch.setattr(switches, 'FLAGS', types.SimpleNamespace(quick=True))
  losses = []
  for changed in (switches.AS_IS, name):
    step = switches.create_step(changed, 2, 'float32')
    step(2)
    losses.append(step.losses)
  np.testing.assert_allclose(*losses, rtol=1e-5)
