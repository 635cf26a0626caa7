"""The update rule against float64 arithmetic by hand, and the two schedules."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import optimizer

NAN = float('nan')


def run(make, rates, weights, gradients):
  """Weights after each step of the optimisers `make(rate)`, one per step."""
  params, state, out = jnp.float32(weights), None, []
  for rate, gradient in zip(rates, gradients, strict=True):
    sgd = make(jnp.float32(rate))
    state = sgd.init(params) if state is None else state
    updates, state = sgd.update(jnp.float32(gradient), state, params)
    params = optax.apply_updates(params, updates)
    out.append(np.asarray(params))
  return out


def test_three_steps_worked_by_hand():
  # v1 = .5 * 0      - .5 * .1  * 1       - .1  * 1  = -.15
  # v2 = .5 * -.15   - .5 * .01 * .85     - .01 * -1 = -.06925
  # v3 = .5 * -.06925 - .5 * .01 * .78075 - .01 * 2  = -.05852875
  steps = run(
    lambda rate: optimizer.paper_sgd(rate, momentum=0.5, weight_decay=0.5),
    rates=[0.1, 0.01, 0.01],
    weights=1.0,
    gradients=[1.0, -1.0, 2.0],
  )
  # A few roundings of float32.
  np.testing.assert_allclose(steps, [0.85, 0.78075, 0.72222125], rtol=5e-7)


def test_update_is_the_papers_across_a_rate_change():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(4, 3))
  gradients = rng.normal(size=(3, 4, 3))
  rates = [0.01, 0.01, 0.001]
  steps = run(
    lambda rate: optimizer.paper_sgd(rate, momentum=0.9, weight_decay=0.0005),
    rates,
    weights,
    gradients,
  )
  w, v = weights, np.zeros_like(weights)
  for rate, gradient, step in zip(rates, gradients, steps, strict=True):
    v = 0.9 * v - 0.0005 * rate * w - rate * gradient
    w = w + v
    # A few roundings of float32; the decay alone moves a weight by 5e-7 to
    # 5e-6 of itself, and only the sum of three steps' decays shows.
    np.testing.assert_allclose(step, w, rtol=3e-7, atol=3e-7)


def test_weights_decay_without_a_gradient():
  (step,) = run(
    lambda rate: optimizer.paper_sgd(rate, momentum=0.9, weight_decay=0.0005),
    rates=[2.0],
    weights=[1.0, -3.0],
    gradients=[[0.0, 0.0]],
  )
  np.testing.assert_allclose(step, [0.999, -2.997], rtol=2e-7)  # float32


def test_usual_order_differs_only_after_the_rate_drops():
  make_usual = lambda rate: optax.chain(
    optax.add_decayed_weights(0.0005), optax.sgd(rate, momentum=0.9)
  )
  make_paper = lambda rate: optimizer.paper_sgd(rate, 0.9, 0.0005)
  example = [0.1, 0.1, 0.01], [1.0, 2.0], [[1.0, -1.0]] * 3
  usual, paper = run(make_usual, *example), run(make_paper, *example)
  np.testing.assert_allclose(usual[:2], paper[:2], rtol=1e-6)  # float32
  # Of v = -+.19 after two steps, momentum carries on .171, the usual order .0171.
  difference = np.array(usual[2]) - paper[2]
  np.testing.assert_allclose(difference, [0.1539, -0.1539], rtol=2e-3)  # Decay.


@pytest.mark.parametrize(
  ('epoch', 'drop_epochs', 'drops'),
  [
    (0.0, (), 0),
    (100.0, (), 0),
    (0.0, (0.0,), 1),
    (0.0, (1.5, 3.0), 0),
    (1.499, (1.5, 3.0), 0),
    (1.5, (1.5, 3.0), 1),
    (2.999, (1.5, 3.0), 1),
    (3.0, (1.5, 3.0), 2),
    (90.0, (1.5, 3.0), 2),
  ],
)
def test_rate_drops_at_its_epoch(epoch, drop_epochs, drops):
  assert optimizer.drops_at(epoch, drop_epochs) == drops


@pytest.mark.parametrize(
  ('errors', 'patience', 'drops', 'stalled'),
  [
    ([], 2, 0, 0),
    ([0.9], 1, 0, 0),  # The first error is an improvement.
    ([0.5, 0.4, 0.3], 1, 0, 0),
    ([0.5, 0.5], 2, 0, 1),  # An equal error is none.
    ([0.5, 0.6, 0.4], 2, 0, 0),
    ([0.5, 0.6, 0.4, 0.45], 2, 0, 1),
    ([0.3, 0.5, 0.4], 3, 0, 2),  # Below the last, not below the lowest.
    ([0.5, 0.6, 0.6], 2, 1, 0),
    ([0.5, 0.5], 1, 1, 0),
    ([0.5, 0.6, 0.6, 0.7], 2, 1, 0),  # The new rate starts afresh,
    ([0.5, 0.6, 0.6, 0.7, 0.7], 2, 1, 1),
    ([0.5, 0.6, 0.6, 0.7, 0.65], 2, 1, 0),  # and is judged by its own errors.
    ([0.5] * 6, 1, 3, 0),
    ([0.5, NAN], 2, 0, 1),  # NaN is no improvement,
    ([NAN, NAN], 2, 1, 0),  # not even as the first.
  ],
)
def test_plateau_counts(errors, patience, drops, stalled):
  plateau = optimizer.Plateau()
  for error in errors:
    plateau = plateau.observe(error, patience)
  assert (plateau.drops, plateau.stalled) == (drops, stalled)


@pytest.mark.parametrize(
  ('drops', 'ended'), [(0, False), (3, False), (4, True)]
)
def test_training_ends_where_a_fourth_drop_would_follow(drops, ended):
  assert optimizer.Plateau(drops=drops).has_ended(3) == ended
