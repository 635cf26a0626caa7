"""Training of cuda-convnet's nets: the update, resuming, the end, mistakes."""

import csv
import json
import types

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax import metrics
from experiments import cifar10_config
from experiments import cifar10_training
from experiments import cuda_convnet
from experiments import sweep

NET = (
  cuda_convnet.Layer('conv', 4, 1e-3, 0.004, ('max', 'activation')),
  cuda_convnet.Layer('fc', 10, 0.01, 1.0),
)
SIZE = 500  # Images of a batch in these tests: 1,497 digits have three.


def test_an_update_is_that_of_cuda_convnet():
  """v <- 0.9 v - rate (g + decay w), without decay for biases."""
  params = {
    'conv1': {'kernel': jnp.array([2.0]), 'bias': jnp.array([3.0])},
    'fc2': {'kernel': jnp.array([5.0]), 'bias': jnp.array([7.0])},
  }
  grads = jax.tree.map(lambda x: x * 0 + 11, params)
  settings = cifar10_config.get_config().optimizer
  rates = cifar10_training.rates_of(0.1, settings)
  tx = cifar10_training.make_optimizer(rates, {'conv1': 0.5, 'fc2': 0.0})
  state = tx.init(params)
  updates, state = tx.update(grads, state, params)
  flat = jax.tree.map(lambda x: round(float(x[0]), 4), updates)
  assert flat == {
    'conv1': {'kernel': -1.2, 'bias': -2.2},  # 0.1 * (11 + 0.5 * 2)
    'fc2': {'kernel': -1.1, 'bias': -2.2},
  }
  updates, _ = tx.update(grads, state, params)
  assert float(updates['conv1']['kernel'][0]) == pytest.approx(-1.2 * 1.9)


@pytest.fixture
def small(monkeypatch, data_dir):
  """A config of three parts an epoch, with a tiny net on crops of digits."""
  monkeypatch.setitem(cuda_convnet.NETS, 'tiny', NET)
  monkeypatch.setattr(cifar10_training.minibatches, 'BATCH', SIZE)
  config = cifar10_config.get_config(str(data_dir), quick=True)
  config.model.net = 'tiny'
  config.input.crop_size = 12
  config.input.max_examples = 0
  config.optimizer.stages = ((1.0, 1e-3, 1.0), (0.4, 1e-4, 1.0))
  return config


def rows_of(workdir):
  with open(workdir / metrics.CSV_FILE, newline='') as file:
    rows = list(csv.DictReader(file))
  timed = ('train/images_per_second', 'train/input_wait_fraction')
  return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def test_a_resumed_training_equals_an_uninterrupted_one(
  small, tmp_path, monkeypatch
):
  cifar10_training.train_and_evaluate(small, tmp_path / 'whole')
  write = metrics.MetricsWriter.scalars

  def killed(self, step, *args):
    if step == 16:  # In the second stage, after a checkpoint.
      raise KeyboardInterrupt
    write(self, step, *args)

  monkeypatch.setattr(metrics.MetricsWriter, 'scalars', killed)
  with pytest.raises(KeyboardInterrupt):
    cifar10_training.train_and_evaluate(small, tmp_path / 'killed')
  monkeypatch.setattr(metrics.MetricsWriter, 'scalars', write)
  cifar10_training.train_and_evaluate(small, tmp_path / 'killed')
  rows = rows_of(tmp_path / 'whole')
  assert rows_of(tmp_path / 'killed') == rows
  # Batches of 500, 500 and 497 images: four minibatches each.
  assert [row['step'] for row in rows] == ['4', '8', '12', '16']
  assert [row['train/learning_rate'] for row in rows] == ['0.001'] * 3 + [
    '0.0001'
  ]
  evaluated = [bool(row['eval/top1_error']) for row in rows]
  assert evaluated == [False, False, True, True]
  results = [
    json.loads((tmp_path / name / 'result.json').read_text())
    for name in ('whole', 'killed')
  ]
  for result in results:
    assert result['step'] == 16
    assert result['epoch'] == pytest.approx(4 / 3)
    assert 0 <= result['eval_five_view/top1_error'] <= 1
  assert results[0]['eval/loss'] == results[1]['eval/loss']


def test_a_training_ends_at_its_target(small, tmp_path):
  small.train.target_error = 0.95  # More than chance.
  cifar10_training.train_and_evaluate(small, tmp_path)
  (row,) = rows_of(tmp_path)
  assert float(row['train/top1_error']) <= 0.95
  assert row['eval/top1_error']
  before = (tmp_path / 'result.json').read_text()
  cifar10_training.train_and_evaluate(small, tmp_path)  # Trains nothing.
  assert (tmp_path / 'result.json').read_text() == before
  assert len(rows_of(tmp_path)) == 1


@pytest.mark.parametrize(
  ('target', 'error', 'reached'),
  [(0.0, 0.0, False), (0.25, 0.25, True), (0.25, 0.3, False)],
)
def test_a_target_of_zero_ends_no_training(target, error, reached):
  config = cifar10_config.get_config()
  config.train.target_error = target
  row = {'train/top1_error': error}
  assert cifar10_training._is_reached(config, row) is reached
  assert not cifar10_training._is_reached(config, {})


@pytest.mark.parametrize(
  ('limit', 'last'), [(0.0, 10.0), (2.0, 2.0), (1.5, 1.4), (0.1, 0.2)]
)
def test_a_training_ends_at_its_cap(limit, last):
  parts = cifar10_training.minibatches.parts(
    cifar10_config.get_config().optimizer.stages, 50_000
  )
  found = cifar10_training.parts_until(parts, limit)
  assert found[-1].epoch == pytest.approx(last)


def test_a_quick_training_has_few_images(small):
  small.input.max_examples = 200
  trainer = cifar10_training.Trainer(small)
  assert [len(x.labels) for x in (trainer._train, trainer._eval)] == [200] * 2
  assert trainer.parts[0].stop == 200


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.net': '12pct'}, 'config.model.net=12pct is unknown; use 26pct or'),
    (
      {'model.activation': 'sine'},
      'config.model.activation=sine is unknown; use relu or tanh',
    ),
  ],
)
def test_unknown_nets_and_units_are_refused(small, tmp_path, changes, message):
  with pytest.raises(sweep.InputError, match=message):
    sweep.plan(
      small, {'a': changes}, 1, tmp_path / 'x', cifar10_training.PROGRAM
    )
  assert not (tmp_path / 'x').exists()


def test_another_config_is_refused_in_a_folder_that_has_trained(
  small, tmp_path
):
  plan = lambda changes: sweep.plan(
    small, {'a': changes}, 1, tmp_path, cifar10_training.PROGRAM
  )
  (training,) = plan({})
  training.workdir.mkdir(parents=True)
  recorded = cifar10_config.recorded(training.config)
  (training.workdir / 'config.json').write_text(json.dumps(recorded))
  (training.workdir / 'result.json').write_text('{}')
  plan({})
  plan({'train.max_epochs': 7.0})  # A higher cap continues a training.
  with pytest.raises(sweep.InputError, match='optimizer.stages differ'):
    plan({'optimizer.stages': ((2.0, 1e-3, 1.0),)})
  # The first records have no key for the rate of biases: it was lowered.
  del recorded['optimizer.drop_bias_rate']
  (training.workdir / 'config.json').write_text(json.dumps(recorded))
  plan({})
  with pytest.raises(sweep.InputError, match='optimizer.drop_bias_rate differ'):
    plan({'optimizer.drop_bias_rate': False})


@pytest.mark.parametrize(
  ('attributes', 'message'),
  [
    ({'image_size': 28}, 'images of 28 pixels, but this net needs 32'),
    ({'class_names': ('cat', 'dog')}, 'has 2 classes, but this net has 10'),
  ],
)
def test_other_images_are_refused(monkeypatch, attributes, message):
  found = {'image_size': 32, 'class_names': (None,) * 10, 'path': 'here'}
  dataset = types.SimpleNamespace(**found | attributes)
  monkeypatch.setattr(
    cifar10_config.dataset_lib, 'open_dataset', lambda *_: dataset
  )
  with pytest.raises(ValueError, match=message):
    cifar10_training.PROGRAM.fingerprint(cifar10_config.get_config())


def test_biases_learn_twice_as_fast():
  settings = cifar10_config.get_config().optimizer  # 0.001, then 0.0001.
  for drop, bias in ((True, 0.0002), (False, 0.002)):
    settings.drop_bias_rate = drop
    rates = cifar10_training.rates_of(0.0001, settings)
    assert rates['conv1/kernel'] == rates['kernel'] == 0.0001
    assert rates['conv1/bias'] == rates['bias'] == pytest.approx(bias)
