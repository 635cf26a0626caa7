"""The plateau experiment: when a net has left the plateau; its runs and table.

A stand-in for training writes given losses; sweep_test.py trains.
"""

import csv
import os
import pathlib
import subprocess
import sys
import types

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_step
from alexnet_jax import workdir as workdir_lib
from configs import caffe
from configs import paper
from configs import source
from experiments import init_plateau
from experiments import summary
from experiments import sweep

ROOT = pathlib.Path(__file__).parents[1]
STUCK, LEARNS = [2.3] * 20, [2.3] * 10 + [2.0] * 10  # ln(10) is 2.3026.


def write_losses(workdir, losses):
  lines = ['step,train/loss', *(f'{n},{x}' for n, x in enumerate(losses, 1))]
  (workdir / 'metrics.csv').write_text('\n'.join(lines) + '\n')


@pytest.fixture
def command(tmp_path, data_dir, monkeypatch):
  """Runs the command on given losses; returns what it trained and its rows."""

  def run(losses, **changes):
    trained = []

    def end(config, workdir, stop):
      trained.append((config.model.conv345_init_std, config.seed))
      workdir_lib.write_config(workdir, config)
      workdir_lib.write_result(workdir, 20, 1.0, 5.0, 'abc', {})
      write_losses(workdir, losses)

    values = {
      'output': tmp_path / 'out',
      'data_dir': str(data_dir),
      'quick': True,
    }
    given = types.SimpleNamespace(**values | changes)
    given.set_default = lambda name, value: setattr(
      given, name, changes.get(name, value)
    )
    monkeypatch.setattr(init_plateau, 'FLAGS', given)
    monkeypatch.setattr(optimizer, 'SCHEDULES', dict(optimizer.SCHEDULES))
    monkeypatch.setattr(train, 'train_and_evaluate', end)
    monkeypatch.setattr(summary, 'draw', lambda output, labels: 'figure.png')
    init_plateau.main()
    with open(tmp_path / 'out' / 'runs.csv', newline='') as file:
      return trained, list(csv.DictReader(file))

  return run


@pytest.mark.parametrize(
  ('losses', 'left_at'),
  [
    (STUCK, None),
    # The mean of ten losses is 2.3, and 2.27 at step 11. The limit is
    # ln(10) - 0.02 = 2.2826.
    (LEARNS, 11),
    ([2.3] * 10 + [2.1] * 10, 11),  # 2.28
    ([2.3] * 10 + [2.2] * 10, 12),  # 2.29, 2.28
    ([1.0] * 9, None),  # Fewer than ten steps.
    ([1.0] * 12, 10),
    ([1.0] * 12 + [2.3] * 10, None),  # It has returned.
    ([1.0] * 12 + [2.3] * 10 + [2.0], 23),  # It has left again.
    ([9.0] * 12, None),
    ([2.3] * 12 + [float('nan')] * 10, None),
  ],
)
def test_a_net_has_left_the_plateau_if_it_does_not_return(
  tmp_path, losses, left_at
):
  workdir_lib.write_config(tmp_path, init_plateau.get_config())
  write_losses(tmp_path, losses)
  found = init_plateau.measure(tmp_path)
  assert found['left_at'] == left_at
  last = sum(losses[-10:]) / len(losses[-10:])
  assert found['last_loss'] == pytest.approx(last, nan_ok=True)


def test_every_init_and_seed_is_trained_once_and_has_a_row(command, capsys):
  trained, rows = command(STUCK, seeds=1)
  assert trained == [(std, 0) for std in (0.01, 0.03, 0.01, 0.01, 0.01)]
  assert [(row['variant'], row['left_at']) for row in rows] == [
    *(('text', ''), ('source', ''), ('caffe', '')),
    *(('caffe_preset', ''), ('caffe_warm_up', '')),
  ]
  assert '| text | 0 of 1 | - | 2.300 |' in capsys.readouterr().out
  assert command(LEARNS, seeds=1) == ([], rows)
  trained, more = command(LEARNS, seeds=3)
  assert [seed for _, seed in trained] == [1] * 5 + [2] * 5
  assert more[:5] == rows
  assert {row['left_at'] for row in more[5:]} == {'11'}
  # Last losses 2.3, 2.0 and 2.0.
  assert '| text | 2 of 3 | 11 (11 to 11) | 2.100 |' in capsys.readouterr().out


def test_another_number_of_steps_needs_another_folder(command):
  command(STUCK, seeds=1)
  with pytest.raises(
    ValueError, match='out/runs/text(?s:.*)config.train.epochs is'
  ):
    command(STUCK, seeds=1, steps=19)


def test_a_run_has_the_steps_of_the_flag_and_one_evaluation(data_dir):
  config = init_plateau.get_config(quick=True)
  config.input.data_dir = str(data_dir)
  init_plateau.set_steps(
    config, 100
  )  # Four epochs, evaluated only at their end.
  times = train_step.make_timetable(run_lib.open_run(config))
  steps = range(1, times.total_steps + 1)
  assert [step for step in steps if times.logs(step)] == [*range(1, 101)]
  assert [step for step in steps if times.evaluates(step)] == [100]


@pytest.mark.parametrize(
  ('init', 'config'), [('text', paper), ('source', source), ('caffe', caffe)]
)
def test_the_initial_values_are_those_of_the_configs(tmp_path, init, config):
  base = init_plateau.get_config()
  variant = {init: init_plateau.INITS[init]}
  (training,) = sweep.plan(base, variant, 1, tmp_path)
  found, expected = training.config.model, config.get_config().model
  for key in ('init_std', 'conv345_init_std', 'fc67_init_std', 'init_bias'):
    assert found[key] == expected[key]
  # Everything else is as in the text.
  for key in ('conv_features', 'lrn_alpha', 'lrn_k', 'inverted_dropout'):
    assert found[key] == paper.get_config().model[key]


@pytest.mark.parametrize(
  ('size', 'crop', 'crop_of_caffe'), [(112, 99, 99), (256, 224, 227)]
)
def test_the_preset_is_all_of_caffes_config(
  tmp_path, size, crop, crop_of_caffe
):
  base = init_plateau.get_config()
  base.input.image_size, base.input.crop_size = size, crop
  base.train.epochs = base.train.eval_every_epochs = 1.5
  overrides = init_plateau.variants(base)['caffe_preset']
  (training,) = sweep.plan(base, {'preset': overrides}, 1, tmp_path)
  found = config_lib.flatten(training.config)
  expected = config_lib.flatten(caffe.get_config())
  ours = {
    **{'input.crop_size': crop_of_caffe, 'input.image_size': size},
    **{'input.dataset': 'imagenette', 'model.num_classes': 10},
    **{'train.epochs': 3.0, 'train.eval_every_epochs': 3.0},
    'optimizer.drop_epochs': [],
  }
  logs = {'log_every_steps', 'checkpoint_every_steps', 'plateau_warning_steps'}
  differ = {k: v for k, v in found.items() if v != expected[k]}
  assert differ == {k: v for k, v in ours.items() if v != expected[k]} | {
    f'train.{key}': found[f'train.{key}'] for key in logs
  }
  assert found['input.batch_size'] == 256


def test_the_rate_rises_in_a_third_of_the_steps(monkeypatch):
  monkeypatch.setitem(optimizer.SCHEDULES, 'warm_up', init_plateau.warm_up)
  schedule = optimizer.RateSchedule('warm_up', 0.01, 3.0, 10.0)
  rates = [
    schedule.rates(epoch, 0)['kernel'] for epoch in (0.0, 0.25, 1.0, 2.9)
  ]
  assert 0 < rates[0] < 1e-6
  assert rates[1:] == pytest.approx([0.0025, 0.01, 0.01])


def test_no_other_command_knows_the_schedule():
  assert 'warm_up' not in optimizer.SCHEDULES


def test_the_flags_choose_the_data_and_the_geometry(monkeypatch):
  values = {'dataset': 'photographs', 'size': 256, 'crop_size': 224}
  given = {'quick': False, 'data_dir': '/data', 'steps': 7, **values}
  given |= {'seeds': 2, 'output': 'DIR'}
  monkeypatch.setattr(init_plateau, 'FLAGS', types.SimpleNamespace(**given))
  swept = []

  def run(config, variants, seeds, output, measure, keep_checkpoints):
    swept.append((config, seeds, output))
    return []

  monkeypatch.setattr(sweep, 'run', run)
  monkeypatch.setattr(summary, 'draw', lambda output, labels: 'figure.png')
  monkeypatch.setattr(optimizer, 'SCHEDULES', dict(optimizer.SCHEDULES))
  monkeypatch.setattr(
    init_plateau, 'set_steps', lambda config, steps: swept.append(steps)
  )
  init_plateau.main()
  steps, (config, seeds, output) = swept
  assert (steps, seeds, output) == (7, 2, 'DIR')
  assert config.input.dataset == 'photographs'
  assert config.input.data_dir == '/data'
  assert (config.input.image_size, config.input.crop_size) == (256, 224)


def test_the_recorded_runs_give_the_figures_of_the_log():
  rows = summary.read_runs(ROOT / 'experiments' / 'results' / 'init_plateau')
  assert init_plateau.table(rows).splitlines()[2:] == [
    '| text | 5 of 5 | 116 (108 to 128) | 2.122 |',
    '| source | 5 of 5 | 40 (36 to 50) | 1.617 |',
    '| caffe | 0 of 5 | - | 2.305 |',
    '| caffe_preset | 5 of 5 | 44 (42 to 46) | 1.558 |',
    '| caffe_warm_up | 0 of 5 | - | 2.303 |',
  ]
  # 2 of the C(10, 5) = 252 ways to choose those that left are as extreme.
  assert init_plateau.count_lines(rows) == [
    'source: 5 of 5 left the plateau, text 5 of 5: p = 1.000',
    'caffe: 0 of 5 left the plateau, text 5 of 5: p = 0.008',
    'caffe_preset: 5 of 5 left the plateau, text 5 of 5: p = 1.000',
    'caffe_warm_up: 0 of 5 left the plateau, text 5 of 5: p = 0.008',
  ]


def test_a_wrong_flag_is_one_line(tmp_path):
  flags = ['--seeds=0', f'--output={tmp_path / "out"}']
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.init_plateau', *flags],
    cwd=ROOT,
    env={**os.environ, 'GLIBC_TUNABLES': ''},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr == 'InputError: --seeds=0 must be at least 1\n'


@pytest.mark.slow  # It trains five nets.
def test_the_quick_command_trains_all_variants(data_dir, tmp_path):
  pytest.importorskip('matplotlib')
  command = [sys.executable, '-m', 'experiments.init_plateau', '--quick']
  command += [f'--output={tmp_path}', f'--data_dir={data_dir}']
  done = subprocess.run(
    command, cwd=ROOT, check=True, capture_output=True, text=True
  )
  rows = summary.read_runs(tmp_path)
  assert [row['variant'] for row in rows] == [
    *('text', 'source', 'caffe', 'caffe_preset', 'caffe_warm_up')
  ]
  assert not any(row['failed'] for row in rows)
  assert all(f'| {row["variant"]} | ' in done.stdout for row in rows)
  with open(tmp_path / 'runs/caffe_warm_up/seed0/metrics.csv') as file:
    rates = [float(row['train/learning_rate']) for row in csv.DictReader(file)]
  assert len(rates) == 20
  assert rates[:6] == sorted({*rates[:6]})  # It rises for a third of the steps.
  assert len({*rates[7:]}) == 1
