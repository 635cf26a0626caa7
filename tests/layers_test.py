"""The norms against loops in NumPy and PyTorch on CPU; what dropout draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import layers

# Compiles in half the time.
CHEAP = {'xla_backend_optimization_level': 0}


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip(
    'torch', reason='PyTorch is the oracle: pip install torch'
  )


# Section 3.3; Deviation S2 with Caffe's k.
@pytest.fixture(params=[{}, {'k': 1.0, 'alpha': 2e-5}], ids=['text', 'caffe'])
def constants(request):
  return request.param


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])  # By a product on a TPU.
@pytest.mark.parametrize('groups', [1, 2])
def test_response_norm_matches_the_formula(
  monkeypatch, groups, constants, backend
):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  k, alpha = constants.get('k', 2), constants.get('alpha', 1e-4)
  # On this scale the sum weighs about as much as k.
  x = np.random.default_rng(0).normal(scale=60, size=(2, 3, 2, 16))
  x = x.astype(np.float32)
  maps = 16 // groups
  expected = np.empty(x.shape)
  for i in range(16):
    first = i // maps * maps  # Of the group.
    total = np.zeros(x.shape[:-1])
    for j in range(max(first, i - 2), min(first + maps - 1, i + 2) + 1):
      total += x[..., j].astype(np.float64) ** 2
    expected[..., i] = x[..., i] / (k + alpha * total) ** 0.75
  out = layers.local_response_norm(jnp.asarray(x), groups, **constants)
  np.testing.assert_allclose(out, expected, rtol=1e-6)  # float32


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('size', [4, 5])
def test_the_norm_of_a_tpu_has_the_same_gradient(monkeypatch, size, dtype):
  rng = np.random.default_rng(0)
  x, g = (
    jnp.asarray(rng.normal(scale=scale, size=(2, 3, 2, 16)), dtype)
    for scale in (60, 1)
  )
  found = {}
  for backend in ('cpu', 'tpu'):
    monkeypatch.setattr(jax, 'default_backend', lambda b=backend: b)
    norm = lambda x: layers.local_response_norm(x, 2, size)
    found[backend] = jax.vjp(norm, x)[1](g)[0]
  assert found['tpu'].dtype == dtype
  # The sums are in float32 in both, in another order; terms may cancel.
  np.testing.assert_allclose(
    *(np.float32(f) for f in found.values()), rtol=1e-6, atol=1e-7
  )


def test_response_norm_matches_torch(torch, constants):
  k, alpha = constants.get('k', 2.0), constants.get('alpha', 1e-4)
  x = np.random.default_rng(0).normal(scale=60, size=(2, 3, 2, 7))
  x = x.astype(np.float32)
  expected = torch.nn.functional.local_response_norm(
    torch.tensor(x).permute(0, 3, 1, 2),
    size=5,
    alpha=5 * alpha,  # Torch divides it by the size.
    beta=0.75,
    k=k,
  ).permute(0, 2, 3, 1)
  out = layers.local_response_norm(jnp.asarray(x), 1, **constants)
  np.testing.assert_allclose(out, expected, rtol=1e-6)  # float32


def test_within_map_norm_matches_the_formula():
  # On this scale the sum of a whole window weighs up to three times the 1.
  x = np.random.default_rng(0).normal(scale=60, size=(2, 7, 6, 3))
  x = x.astype(np.float32)
  squares = np.square(x, dtype=np.float64)
  expected = np.empty(x.shape)
  for i, j in np.ndindex(7, 6):
    window = squares[:, max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3]
    total = window.sum((1, 2))  # Less at the edges of the map.
    expected[:, i, j] = x[:, i, j] / (1 + 1e-3 / 25 * total) ** 0.75
  out = layers.within_map_norm(jnp.asarray(x))
  np.testing.assert_allclose(out, expected, rtol=1e-6)  # float32


def test_within_map_norm_matches_torch(torch):
  x = np.random.default_rng(0).normal(scale=60, size=(2, 7, 6, 3))
  x = x.astype(np.float32)
  mean_square = torch.nn.functional.avg_pool2d(
    torch.tensor(x).permute(0, 3, 1, 2) ** 2,
    kernel_size=5,
    stride=1,
    padding=2,
    count_include_pad=True,  # Divides by 25 at the edges, too.
  ).permute(0, 2, 3, 1)
  expected = x / (1 + 1e-3 * mean_square.numpy()) ** 0.75
  out = layers.within_map_norm(jnp.asarray(x))
  np.testing.assert_allclose(out, expected, rtol=1e-6)  # float32


def test_response_norm_stays_in_its_tower():
  x = np.full((1, 1, 1, 8), 100.0, np.float32)
  other = x.copy()
  other[..., 4:] = 1.0  # Tower 1.
  norm = lambda x, groups: layers.local_response_norm(jnp.asarray(x), groups)
  np.testing.assert_array_equal(norm(x, 2)[..., :4], norm(other, 2)[..., :4])
  # Without towers, the window reaches two maps further.
  reached = norm(x, 1)[0, 0, 0] != norm(other, 1)[0, 0, 0]
  assert reached[:4].tolist() == [False, False, True, True]


def dropout(key, indices, units=range(200), rate=0.5):
  """Ones after dropout, for some units of a layer of 100 per tower."""
  ones = jnp.ones((len(indices), len(units)))
  args = jax.random.key(key), rate, jnp.array(indices), 200, 2, units[0]
  jitted = jax.jit(
    layers.dropout, static_argnums=(2, 4, 5), compiler_options=CHEAP
  )
  return np.asarray(jitted(ones, *args))


@pytest.mark.parametrize('rate', [0.5, 0.2])
def test_dropout_drops_its_share_and_keeps_the_rest_unscaled(rate):
  out = dropout(0, range(50), rate=rate)
  assert set(out.ravel().tolist()) == {0.0, 1.0}
  # 10,000 units: five standard errors are at most 0.025.
  assert (out == 0).mean() == pytest.approx(rate, abs=0.025)


def test_dropout_draws_anew_for_key_example_and_tower():
  first, second = dropout(0, [0, 1]), dropout(1, [0, 1])
  masks = [*first.reshape(4, 100), *second.reshape(4, 100)]
  # Two masks drawn apart agree on half of their units; five standard errors
  # of 100 units are 25.
  agreement = (np.array(masks)[:, None] == np.array(masks)).sum(-1)
  others = agreement[~np.eye(8, dtype=bool)]
  assert np.abs(others - 50).max() <= 25


def test_dropout_does_not_depend_on_the_split_over_devices():
  whole = dropout(0, range(6))
  np.testing.assert_array_equal(dropout(0, [3, 4, 5]), whole[3:])
  for units in (range(100, 200), range(50), range(50, 150)):
    part = dropout(0, range(6), units)
    np.testing.assert_array_equal(part, whole[:, units[0] : units[-1] + 1])


# In 8 bits 256 + 1 is 256, and these norms would be 1.2% too large.
@pytest.mark.parametrize('place', [0, 2, 4])
def test_norms_of_bfloat16_are_computed_in_float32(place):
  values = np.ones(5, np.float32)
  values[place] = 16
  expected = values / 260**0.75
  maps = jnp.asarray(values, jnp.bfloat16).reshape(1, 1, 1, 5)
  # Five maps that all lie in the window of the one in the middle.
  out = layers.local_response_norm(maps, 1, k=0.0, alpha=1.0)
  assert out.dtype == jnp.bfloat16
  # Half of the last of 8 bits.
  np.testing.assert_allclose(
    np.float32(out[0, 0, 0, 2]), expected[2], rtol=2**-8
  )
  column = maps.reshape(1, 5, 1, 1)
  out = layers.within_map_norm(column, alpha=1.0)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.float32(out[0, 2, 0, 0]), values[2] / 261**0.75, rtol=2**-8
  )
