"""The update rule against float64 arithmetic by hand, and the schedules.

The rates of configs/source.py are literals here, taken from the source's layer
files and run notes (deviations S5 and S6).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import optimizer
from alexnet_jax import train_step
from configs import conv6_finetune
from configs import paper
from configs import source

NAN = float('nan')


def same(rate):
  """The same rate for every kind of parameter."""
  return dict.fromkeys(optimizer.RATE_KEYS, rate)


def run(make, rates, weights, gradients):
  """Parameters and v after each step of the optimisers `make(rate)`."""
  single = lambda tree: jax.tree.map(jnp.float32, tree)
  params, state, out = single(weights), None, []
  for rate, gradient in zip(rates, gradients, strict=True):
    sgd = make(single(rate))
    state = sgd.init(params) if state is None else state
    updates, state = sgd.update(single(gradient), state, params)
    params = optax.apply_updates(params, updates)
    found = (params, optax.tree.get(state, 'trace'))
    out.append(jax.tree.map(np.asarray, found))
  return out


def run_kernel(make, rates, weights, gradients):
  """Weights of one layer after each step."""
  layer = lambda kernel: {'fc8': {'kernel': np.asarray(kernel)}}
  steps = run(make, rates, layer(weights), map(layer, gradients))
  return [params['fc8']['kernel'] for params, _ in steps]


def test_three_steps_worked_by_hand():
  # v1 = .5 * 0      - .5 * .1  * 1       - .1  * 1  = -.15
  # v2 = .5 * -.15   - .5 * .01 * .85     - .01 * -1 = -.06925
  # v3 = .5 * -.06925 - .5 * .01 * .78075 - .01 * 2  = -.05852875
  steps = run_kernel(
    lambda rate: optimizer.paper_sgd(same(rate), 0.5, 0.5),
    rates=[0.1, 0.01, 0.01],
    weights=1.0,
    gradients=[1.0, -1.0, 2.0],
  )
  # A few roundings of float32.
  np.testing.assert_allclose(steps, [0.85, 0.78075, 0.72222125], rtol=5e-7)


def test_the_update_is_that_of_the_paper_across_a_rate_change():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(4, 3))
  gradients = rng.normal(size=(3, 4, 3))
  rates = [0.01, 0.01, 0.001]
  steps = run_kernel(
    lambda rate: optimizer.paper_sgd(same(rate), 0.9, 0.0005),
    rates,
    weights,
    gradients,
  )
  w, v = weights, np.zeros_like(weights)
  for rate, gradient, step in zip(rates, gradients, steps, strict=True):
    v = 0.9 * v - 0.0005 * rate * w - rate * gradient
    w = w + v
    # A few roundings of float32. Decay alone changes a weight by 5e-7 to 5e-6
    # of itself a step; the sum over three steps exceeds the tolerance.
    np.testing.assert_allclose(step, w, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize('decay_biases', [True, False])
def test_every_kind_of_parameter_has_its_own_rate_across_a_change(decay_biases):
  rng = np.random.default_rng(1)
  draw = lambda: {
    layer: {'kernel': rng.normal(size=(2, 3)), 'bias': rng.normal(size=3)}
    for layer in ('conv1', 'conv2', 'fc8')
  }
  weights, gradients = draw(), [draw() for _ in range(4)]
  early, late = (
    (0.1, 0.2, 0.05, 0.3, 0.4, 0.15),
    (0.01, 0.2, 0.001, 0.3, 0.2, 0.1),
  )
  keys = (
    'kernel',
    'bias',
    'conv1/kernel',
    'conv1/bias',
    'fc8/kernel',
    'fc8/bias',
  )
  rates = [dict(zip(keys, r, strict=True)) for r in (early, early, late, late)]
  steps = run(
    lambda rate: optimizer.paper_sgd(rate, 0.9, 0.5, decay_biases),
    rates,
    weights,
    gradients,
  )
  for layer in weights:
    for name in ('kernel', 'bias'):
      key = name if layer == 'conv2' else f'{layer}/{name}'
      decay = 0.5 if name == 'kernel' or decay_biases else 0.0
      w, v = weights[layer][name], 0.0
      for rate, gradient, found in zip(rates, gradients, steps, strict=True):
        v = 0.9 * v - decay * rate[key] * w - rate[key] * gradient[layer][name]
        w = w + v
        # A dozen float32 sums of terms of about 1, each rounded by 6e-8.
        near = {'rtol': 1e-6, 'atol': 1e-6}
        np.testing.assert_allclose(found[0][layer][name], w, **near)
        np.testing.assert_allclose(found[1][layer][name], v, **near)


def test_a_rate_of_zero_freezes_weights_and_v_until_a_later_rate():
  # v1 = -.1 * 1 = -.1, w1 = .9; frozen; then
  # v4 = .5 * -.1 - .5 * .2 * .9 - .2 * -1 = .06, w4 = .96.
  layers = lambda value: {
    layer: {'kernel': value, 'bias': value} for layer in ('conv1', 'conv2')
  }
  frozen = {'kernel': 0.1, 'bias': 0.1, 'conv1/kernel': 0.0, 'conv1/bias': 0.0}
  steps = run(
    lambda rate: optimizer.paper_sgd(rate, 0.5, 0.5, decay_biases=True),
    rates=[same(0.1), frozen, frozen, same(0.2)],
    weights=layers(1.0),
    # The first gradient is 1 minus the decay of that step, .5 * 1.
    gradients=[layers(0.5), layers(7.0), layers(-3.0), layers(-1.0)],
  )
  for name in ('kernel', 'bias'):
    (w1, v1), (w2, v2), (w3, v3), (w4, v4) = [
      (params['conv1'][name], trace['conv1'][name]) for params, trace in steps
    ]
    np.testing.assert_allclose((w1, v1), (0.9, -0.1), rtol=1e-6)  # float32
    assert (w1, v1) == (w2, v2) == (w3, v3)
    np.testing.assert_allclose((w4, v4), (0.96, 0.06), rtol=1e-6)
    others = [params['conv2'][name] for params, _ in steps]
    assert len(set(map(float, others))) == 4


def test_weights_decay_without_a_gradient():
  (step,) = run_kernel(
    lambda rate: optimizer.paper_sgd(same(rate), 0.9, 0.0005),
    rates=[2.0],
    weights=[1.0, -3.0],
    gradients=[[0.0, 0.0]],
  )
  np.testing.assert_allclose(step, [0.999, -2.997], rtol=2e-7)  # float32


def test_the_usual_order_of_rate_and_momentum_differs_only_after_a_drop():
  make_usual = lambda rate: optax.chain(
    optax.add_decayed_weights(0.0005), optax.sgd(rate, momentum=0.9)
  )
  make_paper = lambda rate: optimizer.paper_sgd(same(rate), 0.9, 0.0005)
  rates, weights, gradients = [0.1, 0.1, 0.01], [1.0, 2.0], [[1.0, -1.0]] * 3
  usual = run_kernel(make_usual, rates, weights, gradients)
  paper_ = run_kernel(make_paper, rates, weights, gradients)
  np.testing.assert_allclose(usual[:2], paper_[:2], rtol=1e-6)  # float32
  # Neglecting decay, v is -+.19 after two steps, of which the paper keeps .171
  # and the usual order .0171.
  difference = np.array(usual[2]) - paper_[2]
  np.testing.assert_allclose(difference, [0.1539, -0.1539], rtol=2e-3)


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
def test_the_rate_drops_at_its_epochs(epoch, drop_epochs, drops):
  assert optimizer.drops_at(epoch, drop_epochs) == drops


def schedule_of(config, **changes):
  """The schedule of a config, with changes."""
  return dataclasses.replace(train_step.rate_schedule(config), **changes)


def rates_of(schedule, epoch, plateau_drops=0):
  """Rates of weights, biases, and those of conv1; fc8 has those of weights."""
  rates = schedule.rates(epoch, plateau_drops)
  keys = ('kernel', 'bias', 'conv1/kernel', 'conv1/bias')
  assert sorted(rates) == sorted([*keys, 'fc8/kernel', 'fc8/bias'])
  assert rates['fc8/kernel'] == rates['kernel']
  assert rates['fc8/bias'] == rates['bias']
  # 0.01 / 10 ** 2 differs from 1e-4 by a rounding.
  return [pytest.approx(rates[key], rel=1e-12) for key in keys]


SOURCE_WEIGHTS = [  # First and last epoch; rate of weights, of conv1's weights.
  (0.0, 22.999, 0.01, 0.01),
  (23.0, 50.999, 0.001, 0.001),
  (51.0, 67.999, 1e-4, 1e-4),
  (68.0, 71.999, 1e-4, 1e-5),
  (72.0, 77.999, 1e-4, 0.0),
  (78.0, 93.0, 1e-5, 0.0),
]


@pytest.mark.parametrize(('first', 'last', 'weights', 'conv1'), SOURCE_WEIGHTS)
def test_the_source_has_these_rates_epoch_by_epoch(first, last, weights, conv1):
  schedule = schedule_of(source.get_config())
  biases = [0.02, 0.0 if first >= 72 else 0.02]
  expected = [weights, biases[0], conv1, biases[1]]
  for epoch in (first, (first + last) / 2, last):
    assert expected == rates_of(schedule, epoch)


@pytest.mark.parametrize(('first', 'last', 'weights', 'conv1'), SOURCE_WEIGHTS)
def test_rates_of_biases_may_drop_with_those_of_the_weights(
  first, last, weights, conv1
):
  schedule = schedule_of(source.get_config(), drop_bias_rate=True)
  bias = 2 * weights
  expected = [weights, bias, conv1, 0.0 if first >= 72 else bias]
  for epoch in (first, last):
    assert expected == rates_of(schedule, epoch)


@pytest.mark.parametrize(
  ('epoch', 'expected'),
  [
    (0.0, [0.001, 0.02, 1e-4, 0.02]),
    (5.0, [0.001, 0.02, 1e-5, 0.02]),
    (7.0, [0.001, 0.02, 0.0, 0.0]),
    (22.0, [1e-4, 0.02, 0.0, 0.0]),
    (42.0, [1e-5, 0.02, 0.0, 0.0]),
  ],
)
def test_fine_tuning_as_in_the_source_has_these_rates(epoch, expected):
  assert expected == rates_of(schedule_of(conv6_finetune.get_config()), epoch)


@pytest.mark.parametrize('drops', [0, 1, 3])
def test_a_plateau_drop_lowers_all_rates_of_the_text(drops):
  schedule = schedule_of(paper.get_config())
  expected = [0.01, 0.001, 1e-4, 1e-5][drops]
  assert [expected] * 4 == rates_of(schedule, 50.0, drops)


def test_a_plateau_drop_can_leave_the_rates_of_biases():
  schedule = optimizer.RateSchedule(
    'plateau', 0.01, 90.0, 10.0, bias_rate_factor=2.0, drop_bias_rate=False
  )
  assert [1e-4, 0.02, 1e-4, 0.02] == rates_of(schedule, 9.0, 2)


@pytest.mark.parametrize(
  ('name', 'drop_epochs', 'plateau_drops'),
  [('steps', (1.0, 2.0), 0), ('plateau', (), 2)],
)
def test_drops_divide_by_the_drop_factor(name, drop_epochs, plateau_drops):
  schedule = optimizer.RateSchedule(
    name, 1.0, 90.0, 4.0, drop_epochs, conv1_drop_epochs=(2.0,)
  )
  expected = [0.0625, 0.0625, 1 / 64, 0.0625]
  assert expected == rates_of(schedule, 2.0, plateau_drops)


# Share x of the epochs: factor (1 + cos(pi x)) / 2 by hand.
COSINE = {
  0.0: 1.0,
  0.25: (2 + math.sqrt(2)) / 4,
  1 / 3: 0.75,
  0.5: 0.5,
  2 / 3: 0.25,
  0.75: (2 - math.sqrt(2)) / 4,
  1.0: 0.0,
}


@pytest.mark.parametrize('epochs', [6.0, 90.0])
@pytest.mark.parametrize('share', COSINE)
def test_a_cosine_falls_from_the_initial_rate_to_zero(share, epochs):
  config = paper.get_config()
  config.optimizer.schedule = 'cosine'
  config.train.epochs = epochs
  rates = schedule_of(config).rates(share * epochs, 0)
  near = pytest.approx(0.01 * COSINE[share], rel=1e-12, abs=1e-18)
  assert rates == dict.fromkeys(optimizer.RATE_KEYS, near)


@pytest.mark.parametrize('drops', [0, 1])
def test_the_classifier_of_caffes_fine_tuning_learns_ten_times_as_fast(drops):
  # Caffe's finetune_flickr_style: fc8 has lr_mult 10 and 20, others 1 and 2.
  schedule = optimizer.RateSchedule(
    'plateau', 0.001, 90.0, 10.0, bias_rate_factor=2.0, fc8_rate_factor=10.0
  )
  rates, at = schedule.rates(0.0, drops), 0.001 / 10**drops
  assert rates == {
    key: pytest.approx(multiplier * at, rel=1e-12)
    for key, multiplier in {
      'kernel': 1,
      'bias': 2,
      'conv1/kernel': 1,
      'conv1/bias': 2,
      'fc8/kernel': 10,
      'fc8/bias': 20,
    }.items()
  }


def test_frozen_layers_keep_weights_and_v_whatever_their_gradient():
  ones = {
    layer: {'kernel': np.ones(2, 'f'), 'bias': np.ones(1, 'f')}
    for layer in ('conv1', 'fc7', 'fc8')
  }
  sgd = lambda frozen: functools.partial(
    optimizer.paper_sgd, momentum=0.9, weight_decay=0.5, frozen_layers=frozen
  )
  _, (all_params, all_v) = run(
    lambda rate: sgd(())(same(rate)), [0.1, 0.1], ones, [ones, ones]
  )
  _, (params, v) = run(
    lambda rate: sgd(('conv1', 'fc8'))(same(rate)),
    *([0.1, 0.1], ones, [ones, ones]),
  )
  zeros = jax.tree.map(np.zeros_like, ones)
  assert (all_params['conv1']['kernel'] < 1).all()
  for layer in ones:
    frozen = layer != 'fc7'
    expected = ones if frozen else all_params, zeros if frozen else all_v
    for found, tree in zip((params, v), expected, strict=True):
      jax.tree.map(np.testing.assert_array_equal, found[layer], tree[layer])


def test_a_cosine_is_zero_after_the_last_epoch():
  schedule = optimizer.RateSchedule('cosine', 0.1, 2.5, 10.0)
  near_zero = pytest.approx(0.0, abs=1e-17)
  assert rates_of(schedule, 2.6) == [near_zero] * 4


def test_rules_for_biases_and_conv1_hold_for_a_cosine():
  schedule = optimizer.RateSchedule(
    'cosine',
    0.01,
    90.0,
    10.0,
    bias_rate_factor=2.0,
    drop_bias_rate=False,
    conv1_drop_epochs=(30.0,),
    conv1_freeze_epoch=60.0,
  )
  assert [0.0075, 0.02, 0.00075, 0.02] == rates_of(schedule, 30.0)
  assert [0.0025, 0.02, 0.0, 0.0] == rates_of(schedule, 60.0)


@pytest.mark.parametrize('name', ['steps', 'cosine'])
def test_plateau_drops_change_only_the_plateau_schedule(name):
  schedule = optimizer.RateSchedule(name, 0.01, 90.0, 10.0)
  assert schedule.rates(20.0, 3) == schedule.rates(20.0, 0)


def test_a_cosine_has_another_rate_at_every_step():
  schedule = optimizer.RateSchedule('cosine', 0.01, 2.0, 10.0)
  rates = [schedule.rates(step / 8, 0)['kernel'] for step in range(16)]
  assert rates == sorted(set(rates), reverse=True)
  assert min(rates) > 0


@pytest.mark.parametrize(
  ('make', 'expected'),
  [
    (source.get_config, [23, 51, 68, 72, 78]),
    (conv6_finetune.get_config, [5, 7, 22, 42]),
    (paper.get_config, []),
  ],
  ids=['source', 'fine-tuning', 'paper'],
)
def test_change_epochs_are_all_epochs_at_which_a_rate_changes(make, expected):
  epochs = schedule_of(make()).change_epochs
  assert (
    sorted(epoch for epoch in epochs if epoch) == expected
  )  # Not the start.


@pytest.mark.parametrize(
  ('errors', 'patience', 'drops', 'stalled'),
  [
    ([], 2, 0, 0),
    ([0.9], 1, 0, 0),  # The first error is an improvement.
    ([0.5, 0.4, 0.3], 1, 0, 0),
    ([0.5, 0.5], 2, 0, 1),  # An equal error is no improvement.
    ([0.5, 0.6, 0.4], 2, 0, 0),
    ([0.5, 0.6, 0.4, 0.45], 2, 0, 1),
    ([0.3, 0.5, 0.4], 3, 0, 2),  # Below the last but not the lowest.
    ([0.5, 0.6, 0.6], 2, 1, 0),
    ([0.5, 0.5], 1, 1, 0),
    ([0.5, 0.6, 0.6, 0.7], 2, 1, 0),  # A new rate starts a new count,
    ([0.5, 0.6, 0.6, 0.7, 0.7], 2, 1, 1),
    (
      [0.5, 0.6, 0.6, 0.7, 0.65],
      2,
      1,
      0,
    ),  # and is compared with its own errors.
    ([0.5] * 6, 1, 3, 0),
    ([0.5, NAN], 2, 0, 1),  # NaN is no improvement,
    ([NAN, NAN], 2, 1, 0),  # not even as the first.
  ],
)
def test_a_plateau_counts_evaluations_without_improvement(
  errors, patience, drops, stalled
):
  plateau = optimizer.Plateau()
  for error in errors:
    plateau = plateau.observe(error, patience)
  assert (plateau.drops, plateau.stalled) == (drops, stalled)


@pytest.mark.parametrize(
  ('drops', 'ended'), [(0, False), (3, False), (4, True)]
)
def test_training_ends_when_a_fourth_drop_would_follow(drops, ended):
  assert optimizer.Plateau(drops=drops).has_ended(3) == ended
