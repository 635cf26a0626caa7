"""The plateau experiment: when a net has left, by hand; what a file gets.

Losses are given here. That the experiment trains as the training loop does is
in train_test.py, which has the compiled step.
"""

import csv
import types

from absl import flags
import pytest

from configs import caffe
from configs import paper
from configs import source
from experiments import init_plateau

FLAGS = flags.FLAGS
STUCK, LEARNS = [2.3] * 20, [2.3] * 10 + [2.0] * 10  # ln(10) is 2.3026.


@pytest.fixture
def flag_values(tmp_path, monkeypatch):
  """The flags of the command with their defaults, apart from other commands'."""
  before = set(FLAGS)
  init_plateau.define_flags()
  defined = {name: FLAGS[name].value for name in set(FLAGS) - before}
  for name in defined:
    delattr(FLAGS, name)
  values = types.SimpleNamespace(**defined)
  values.output = str(tmp_path / 'runs.csv')
  monkeypatch.setattr(init_plateau, 'FLAGS', values)
  return values


def run_main(flag_values, monkeypatch, losses, **changes):
  """Runs the command on given losses: what it trained, and its rows."""
  trained = []

  def given(config, steps):
    trained.append((config.model.conv345_init_std, config.seed))
    return losses[:steps]

  monkeypatch.setattr(init_plateau, 'losses', given)
  for name, value in changes.items():
    setattr(flag_values, name, value)
  init_plateau.main([])
  with open(flag_values.output, newline='') as file:
    return trained, list(csv.DictReader(file))


@pytest.mark.parametrize(
  ('losses', 'left_at'),
  [
    (STUCK, ''),
    # Means of ten: 2.3, and 2.27 from step 11 on; 2.2826 is 0.02 below ln(10).
    (LEARNS, 11),
    ([2.3] * 10 + [2.1] * 10, 11),  # 2.28
    ([2.3] * 10 + [2.2] * 10, 12),  # 2.29, 2.28
    ([1.0] * 9, ''),  # No ten steps yet.
    ([1.0] * 12, 10),
    ([1.0] * 12 + [2.3] * 10, ''),  # Has come back.
    ([1.0] * 12 + [2.3] * 10 + [2.0], 23),  # Has left again.
    ([9.0] * 12, ''),
    ([2.3] * 12 + [float('nan')] * 10, ''),
  ],
)
def test_a_net_has_left_from_the_step_after_which_it_stays_away(
  flag_values, monkeypatch, losses, left_at
):
  monkeypatch.setattr(init_plateau, 'losses', lambda config, steps: losses)
  row = init_plateau.run_one('text', 3)
  assert row['left_at'] == left_at
  assert (row['init'], row['seed']) == ('text', 3)
  assert row['last_loss'] == f'{sum(losses[-10:]) / len(losses[-10:]):.3f}'


def test_every_init_and_seed_is_a_row_and_none_is_run_again(
  flag_values, monkeypatch, capsys
):
  run = lambda losses, **changes: run_main(
    flag_values, monkeypatch, losses, steps=20, **changes
  )
  trained, rows = run(STUCK, seeds=1)
  assert trained == [(0.01, 0), (0.03, 0), (0.01, 0)]
  assert [(row['init'], row['left_at']) for row in rows] == [
    ('text', ''),
    ('source', ''),
    ('caffe', ''),
  ]
  assert '| text | 0 of 1 | - | 2.300 |' in capsys.readouterr().out
  assert run(LEARNS, seeds=1) == ([], rows)
  trained, more = run(LEARNS, seeds=3)
  assert [seed for _, seed in trained] == [1, 1, 1, 2, 2, 2]
  assert more[:3] == rows
  assert {row['left_at'] for row in more[3:]} == {'11'}
  # Last losses 2.3, 2.0 and 2.0.
  assert '| text | 2 of 3 | 11 | 2.100 |' in capsys.readouterr().out


def test_runs_of_other_numbers_of_steps_are_other_runs(
  flag_values, monkeypatch, capsys
):
  run_main(flag_values, monkeypatch, STUCK, steps=20, seeds=1)
  capsys.readouterr()
  trained, rows = run_main(flag_values, monkeypatch, LEARNS, steps=19, seeds=1)
  assert len(trained) == 3
  assert [row['steps'] for row in rows] == ['20'] * 3 + ['19'] * 3
  assert '| text | 1 of 1 | 11 |' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('init', 'config'), [('text', paper), ('source', source), ('caffe', caffe)]
)
def test_initial_values_are_those_of_the_configs(flag_values, init, config):
  found = init_plateau.get_config(init, 5).model
  expected = config.get_config().model
  for key in ('init_std', 'conv345_init_std', 'fc67_init_std', 'init_bias'):
    assert found[key] == expected[key]
  # All else is the text's.
  for key in ('conv_features', 'lrn_alpha', 'lrn_k', 'inverted_dropout'):
    assert found[key] == paper.get_config().model[key]


def test_a_run_has_its_own_seed_data_and_geometry(flag_values):
  flag_values.dataset, flag_values.data_dir = 'photographs', '/data'
  flag_values.size, flag_values.crop_size = 256, 224
  config = init_plateau.get_config('text', 5)
  assert config.seed == 5
  assert config.input.dataset == 'photographs'
  assert config.input.data_dir == '/data'
  assert (config.input.image_size, config.input.crop_size) == (256, 224)
