"""The plain net, in small, is the network of the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import model
from tests import plain_net


# Conv1 hangs over 70 pixels.
@pytest.mark.parametrize(
  'crop_size', [pytest.param(67, marks=pytest.mark.slow), 70]
)
def test_logits_and_gradients_are_those_of_the_model(crop_size):
  net = model.AlexNet(
    num_classes=6, conv_features=(8, 8, 12, 12, 8), fc_features=(16, 16)
  )
  rng = np.random.default_rng(0)
  shape = (4, crop_size, crop_size, 3)
  images = jnp.asarray(rng.normal(0, 64, shape), jnp.float32)
  params = jax.jit(net.init)(jax.random.key(0), images)['params']
  params = jax.tree.map(lambda w: 10 * w, params)
  weights = rng.normal(0, 1, (4, 6)).astype(np.float32)
  rngs = {'dropout': jax.random.key(1)}
  ours = lambda p: net.apply({'params': p}, images, train=True, rngs=rngs)
  plain = lambda p: plain_net.PlainNet().apply({}, p, images, rngs=rngs)

  def logits_and_gradients(f):
    def weighted(params):
      logits = f(params)
      return (logits * weights).sum(), logits

    gradients, logits = jax.jit(jax.grad(weighted, has_aux=True))(params)
    return logits, gradients

  found, expected = map(logits_and_gradients, (plain, ours))
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 2e-3, 1e-4 * abs(b).max()),
    found[1],
    expected[1],
  )
