"""Sweeps: runs, resuming, refused input, tables and figure.

One small sweep is trained, killed and resumed; for the other tests a stand-in
for training finishes a run at once. Statistics are worked out by hand.
"""

import json
import pathlib
import re
import shutil
import signal
import sys
import types

import jax
import numpy as np
import pytest

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import digits
from alexnet_jax import metrics
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from alexnet_jax.runtime import signals
from configs import quickstart
from experiments import run_files
from experiments import summary
from experiments import sweep

SLOW = {'optimizer.learning_rate': 0.001}
VARIANTS = {'diverges': {'optimizer.learning_rate': 1e30}, 'slow': SLOW}

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture(scope='module')
def base(data_dir):
  """Four steps of a tiny net on the digits, with a row and a save at each."""
  config = quickstart.get_config()
  config.model.conv_features = (4, 0, 0, 0, 8)
  config.model.fc_features = (0, 16)
  config.model.init_std = config.model.fc67_init_std = 0.1
  config.input.data_dir = str(data_dir)
  config.input.batch_size = 16
  config.mesh.layout = 'data'
  config.train.epochs = 4 * 16 / 1497
  config.train.log_every_steps = 1
  config.train.checkpoint_every_steps = 1
  config.train.diagnostics_every_evals = 0
  config.eval.batch_size = 100
  return config


# A sweep that is trained


@pytest.fixture(scope='module')
def trained(shared_programs, base, tmp_path_factory):
  """A sweep that was killed in its second run and resumed.

  Attributes:
    output: its folder.
    rows: what `sweep.run` returned in the end.
    steps: the steps at which a row of metrics.csv was written.
    before: the rows of runs.csv after the kill.
  """
  output, steps = tmp_path_factory.mktemp('sweep'), []
  write = metrics.MetricsWriter.scalars

  def kill_once(self, step, *args):
    steps.append(step)
    if steps == [1, 1, 2, 3]:
      raise KeyboardInterrupt
    write(self, step, *args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics.MetricsWriter, 'scalars', kill_once)
    with pytest.raises(KeyboardInterrupt):
      sweep.run(base, VARIANTS, 1, output)
    before = summary.read_runs(output)
    rows = sweep.run(base, VARIANTS, 1, output)
  return types.SimpleNamespace(
    output=output, rows=rows, steps=steps, before=before
  )


def test_a_killed_sweep_resumes_the_run_that_was_interrupted(trained):
  assert [row['variant'] for row in trained.before] == ['diverges']
  assert [row['variant'] for row in trained.rows] == ['diverges', 'slow']
  # The failed run is not tried again; the other one resumes after step 2.
  assert trained.steps == [1] + [1, 2, 3] + [3, 4]
  file = trained.output / 'runs' / 'slow' / 'seed0' / 'metrics.csv'
  lines = file.read_text().splitlines()
  assert [line.partition(',')[0] for line in lines] == ['step', *'1234']


def test_a_run_is_trained_as_main_trains_it(trained, base):
  workdir, row = trained.output / 'runs' / 'slow' / 'seed0', trained.rows[1]
  config = base.copy_and_resolve_references()
  config.optimizer.learning_rate = 0.001
  assert workdir_lib.read_config(workdir) == config
  result = json.loads((workdir / 'result.json').read_text())
  assert {name: row[name] for name in result if '/' in name} == {
    name: value for name, value in result.items() if '/' in name
  }
  assert (row['wall_seconds'], row['commit']) == (
    result['wall_seconds'],
    result['commit'],
  )
  assert row['failed'] == ''
  assert row['device'] == f'{jax.device_count()} x cpu'


def test_a_failed_run_is_recorded_and_the_sweep_continues(trained):
  failed, after = trained.rows
  assert failed['failed'] == 'the norm of the state is inf at step 1'
  assert failed['eval/loss'] is None
  assert after['eval/loss'] > 0
  workdir = trained.output / 'runs' / 'diverges' / 'seed0'
  assert not (workdir / 'result.json').exists()
  lines = (trained.output / 'summary.csv').read_text().splitlines()
  assert 'diverges,eval/loss,,,0,1' in lines


def test_a_finished_sweep_trains_nothing(trained, base, monkeypatch):
  monkeypatch.setattr(train, 'train_and_evaluate', None)
  texts = lambda: [p.read_text() for p in sorted(trained.output.glob('*.csv'))]
  before = texts()
  assert sweep.run(base, VARIANTS, 1, trained.output) == trained.rows
  assert texts() == before


# Runs that finish at once


@pytest.fixture
def finished_at_once(monkeypatch):
  """Replaces training; returns a list that gets the names of the runs.

  The loss of a run is its learning rate plus its seed.
  """
  names = []

  def end(config, workdir, stop):
    assert stop is signals.received
    names.append('/'.join(workdir.parts[-2:]))
    workdir_lib.write_config(workdir, config)
    (workdir / 'checkpoints').mkdir(exist_ok=True)
    loss = config.optimizer.learning_rate + config.seed
    workdir_lib.write_result(workdir, 4, 0.1, 5.0, 'abc', {'eval/loss': loss})

  monkeypatch.setattr(train, 'train_and_evaluate', end)
  return names


def test_seeds_and_variants_can_be_added(
  base, finished_at_once, tmp_path, capsys
):
  sweep.run(base, {'a': {}}, 1, tmp_path)
  sweep.run(base, {'a': {}, 'b': SLOW}, 2, tmp_path)
  assert finished_at_once == ['a/seed0', 'b/seed0', 'a/seed1', 'b/seed1']
  rows = summary.read_runs(tmp_path)
  assert [(r['variant'], r['seed'], r['eval/loss']) for r in rows] == [
    ('a', 0, 0.01),
    ('b', 0, 0.001),
    ('a', 1, 1.01),
    ('b', 1, 1.001),
  ]
  lines = [s for s in capsys.readouterr().out.splitlines() if s[:3] == 'run']
  assert lines[:2] == ['run 1/1: a, seed 0', 'run 2/4: b, seed 0']
  assert lines[2].startswith('run 3/4: a, seed 1; remaining 00:0')


def test_a_signal_between_two_runs_ends_the_sweep(
  base, finished_at_once, tmp_path, monkeypatch
):
  def measure(workdir):
    monkeypatch.setattr(signals, '_received', signal.SIGTERM)
    return sweep.last_metrics(workdir)

  with pytest.raises(signals.Stopped):
    sweep.run(base, {'a': {}, 'b': SLOW}, 1, tmp_path, measure)
  assert finished_at_once == ['a/seed0']
  assert [row['variant'] for row in summary.read_runs(tmp_path)] == ['a']


def test_runs_of_earlier_commands_stay_in_the_tables(
  base, finished_at_once, tmp_path, capsys
):
  sweep.run(base, {'a': {}}, 2, tmp_path)
  capsys.readouterr()
  rows = sweep.run(base, {'b': SLOW}, 1, tmp_path)
  assert [(r['variant'], r['seed']) for r in rows] == [
    ('a', 0),
    ('a', 1),
    ('b', 0),
  ]
  assert 'run 1/1: b, seed 0' in capsys.readouterr().out
  assert len(sweep.run(base, {'a': {}}, 1, tmp_path)) == 3


def test_a_run_that_could_not_be_measured_keeps_its_result(
  base, finished_at_once, tmp_path
):
  unmeasurable = lambda workdir: 1 / 0
  with pytest.raises(ZeroDivisionError):
    sweep.run(base, {'a': {}}, 1, tmp_path, unmeasurable)
  assert (tmp_path / 'runs/a/seed0/result.json').exists()
  assert not (tmp_path / 'runs/a/seed0/row.json').exists()
  assert summary.read_runs(tmp_path) == []


def test_a_run_is_measured_before_its_checkpoints_are_removed(
  base, finished_at_once, tmp_path
):
  measure = lambda workdir: {
    'folders': len([*workdir.glob('checkpoints')]),
    'never': None,
  }
  rows = sweep.run(base, {'a': {}}, 1, tmp_path, measure, False)
  assert (rows[0]['folders'], rows[0]['never']) == (1, None)
  assert not (tmp_path / 'runs/a/seed0/checkpoints').exists()
  sweep.run(base, {'a': {}}, 2, tmp_path)
  assert (tmp_path / 'runs/a/seed1/checkpoints').exists()


def test_changed_overrides_are_refused_by_name(
  base, finished_at_once, tmp_path
):
  sweep.run(base, {'a': {}}, 1, tmp_path)
  with pytest.raises(ValueError, match='fresh --output') as error:
    sweep.run(base, {'b': {}, 'a': SLOW}, 1, tmp_path)
  assert 'config.optimizer.learning_rate is 0.01 there' in str(error.value)
  assert '--workdir' not in str(error.value)
  # Also a key that a single run may change when it resumes.
  longer = {'train.epochs': 1.0}
  with pytest.raises(ValueError, match='config.train.epochs is 0.04'):
    sweep.run(base, {'b': {}, 'a': longer}, 1, tmp_path)
  assert finished_at_once == ['a/seed0']


def test_a_run_that_saved_nothing_may_have_another_config(base, tmp_path):
  (training,) = sweep.plan(base, {'a': {}}, 1, tmp_path)
  workdir_lib.write_config(training.workdir, training.config)
  (training.workdir / 'checkpoints').mkdir()
  sweep.plan(base, {'a': SLOW}, 1, tmp_path)
  (training.workdir / sweep.ROW_FILE).write_text('{}')  # It has failed.
  with pytest.raises(ValueError, match='fresh --output'):
    sweep.plan(base, {'a': SLOW}, 1, tmp_path)


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    *(('row.json', text) for text in ('{"seed": 0', '[]', '{}')),
    *(('config.json', text) for text in (None, '{"seed": 0')),
  ],
)
def test_a_lost_file_of_a_run_is_named_and_the_way_out_works(
  base, finished_at_once, tmp_path, name, content
):
  sweep.run(base, {'a': {}}, 1, tmp_path)
  file = tmp_path / 'runs/a/seed0' / name
  file.unlink()
  if content is not None:
    file.write_text(content)
  messages = []
  for _ in range(3):  # Without a config.json that was removed, it says more.
    try:
      rows = sweep.run(base, {'a': {}}, 1, tmp_path)
      break
    except (sweep.InputError, run_files.RunFileError) as error:
      messages.append(str(error))
    assert str(file) in messages[-1]
    (named,) = re.findall(r'remove ([^ ,]+), ', messages[-1])
    named = file if named == 'it' else pathlib.Path(named)
    assert named in (file, file.parent)
    shutil.rmtree(named) if named.is_dir() else named.unlink()
  assert 1 <= len(messages) <= 2
  assert len(rows) == 1
  assert file.exists()


def test_other_images_are_refused(base, finished_at_once, tmp_path, data_dir):
  sweep.run(base, {'a': {}}, 1, tmp_path / 'out')
  shutil.copytree(data_dir / 'digits', tmp_path / 'digits')
  base = base.copy_and_resolve_references()
  base.input.data_dir = str(tmp_path)
  sweep.run(base, {'a': {}}, 1, tmp_path / 'out')  # The same images, moved.
  file = dataset_lib.dataset_path(tmp_path, 'digits') / 'statistics.npz'
  with np.load(file) as stored:
    changed = {**stored, 'fingerprint': 'other'}
  np.savez(file, **changed)
  (file.parent / 'digests.json').unlink()
  with pytest.raises(ValueError, match='other images than .*fresh --output'):
    sweep.run(base, {'a': {}, 'b': {}}, 1, tmp_path / 'out')
  assert finished_at_once == ['a/seed0']


def test_two_sweeps_do_not_share_a_folder(base, finished_at_once, tmp_path):
  with files.locked(tmp_path), pytest.raises(ValueError, match='at work in'):
    sweep.run(base, {'a': {}}, 1, tmp_path)
  assert finished_at_once == []


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'seeds': 0}, '--seeds=0 must be at least 1'),
    ({'output': ''}, '--output= is empty; name a folder'),
    ({'output': __file__}, f'--output={__file__} cannot be written'),
    (
      {'variants': {'a': {'model.width': 3}}},
      "variant 'a': 'model.width' is not a key that it can set",
    ),
    (
      {'variants': {'a': {'seed': 3}}},
      "variant 'a': 'seed' is not a key that it can set",
    ),
    (
      {'variants': {'a': {'model.init_std': 'small'}}},
      "variant 'a': Could not override field 'init_std'",
    ),
    (
      {'variants': {'a': {}, 'b': {'model.init_std': -1.0}}},
      "variant 'b': config.model.init_std=-1.0 must be positive",
    ),
    (
      {'variants': {'../a': {}}},
      "variant '../a': use only letters, digits and _.+-",
    ),
  ],
)
def test_wrong_input_is_one_line_before_anything_is_read_or_written(
  base, monkeypatch, tmp_path, changes, message
):
  monkeypatch.setattr(digits, 'prepare_if_missing', None)
  monkeypatch.setattr(run_lib, 'open_run', None)
  arguments = {'variants': {'a': {}}, 'seeds': 1, 'output': tmp_path / 'out'}
  with pytest.raises(ValueError) as error:
    sweep.run(base, **arguments | changes)
  assert str(error.value).startswith(message)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('flag_values', 'told', 'message'),
  [
    ({'seeds': 0}, None, 'InputError: --seeds=0 must be at least 1'),
    ({}, sweep.InputError('of main'), 'InputError: of main'),
    ({}, run_files.RunFileError('of a run'), 'RunFileError: of a run'),
  ],
)
def test_a_command_ends_with_one_line(
  monkeypatch, tmp_path, flag_values, told, message
):
  values = {'seeds': 1, 'output': tmp_path, 'quick': False}
  values['compilation_cache_dir'] = ''
  given = types.SimpleNamespace(**values | flag_values)
  monkeypatch.setattr(sweep, 'FLAGS', given)
  monkeypatch.setattr(sweep.compilation, 'enable_compilation_cache', print)
  monkeypatch.setattr(sweep.huge_pages, 'reexec_with_huge_pages', lambda: None)
  monkeypatch.setattr(sweep.command, 'run', lambda main: main([]))

  def main():
    raise told

  with pytest.raises(SystemExit) as error:
    sweep.run_command(main)
  assert error.value.code == message


# Statistics and figure


@pytest.mark.parametrize(
  ('values', 'mean', 'standard_error'),
  [
    ([], None, None),
    ([3.0], 3.0, None),
    ([1.0, 2.0, 3.0, 4.0], 2.5, (5 / 3 / 4) ** 0.5),
    ([2.0, 2.0], 2.0, 0.0),
  ],
)
def test_mean_and_standard_error_equal_those_by_hand(
  values, mean, standard_error
):
  found = summary.mean_and_standard_error(values)
  assert found == (mean, pytest.approx(standard_error))


def row_of(variant, seed, failed='', **measured):
  rest = {'commit': 'abc', 'device': '1 x cpu', 'dataset': 'digest'}
  row = {'variant': variant, 'seed': seed, **measured, 'wall_seconds': 1.5}
  return row | {'failed': failed} | rest


ROWS = [
  row_of('a', 0, error=0.25, left_at=10),
  row_of('b', 0, failed='train/loss is nan at step 2'),
  row_of('a', 1, error=0.75, left_at=None),
  row_of('b', 1, error=0.5, other=1.0),
]


def test_the_tables_have_every_run_and_every_metric(tmp_path):
  summary.write(tmp_path, ROWS)
  assert (tmp_path / 'runs.csv').read_text().splitlines() == [
    'variant,seed,error,left_at,other,wall_seconds,failed,commit,device,dataset',
    'a,0,0.25,10,,1.5,,abc,1 x cpu,digest',
    'b,0,,,,1.5,train/loss is nan at step 2,abc,1 x cpu,digest',
    'a,1,0.75,,,1.5,,abc,1 x cpu,digest',
    'b,1,0.5,,1.0,1.5,,abc,1 x cpu,digest',
  ]
  assert (tmp_path / 'summary.csv').read_text().splitlines() == [
    'variant,metric,mean,standard_error,n,failed',
    'a,error,0.5,0.25,2,0',
    'a,left_at,10.0,,1,0',
    'a,other,,,0,0',
    'b,error,0.5,,1,1',
    'b,left_at,,,0,1',
    'b,other,1.0,,1,1',
  ]
  read = summary.read_runs(tmp_path)
  assert read[1]['error'] is None and read[1]['failed']
  assert (read[0]['seed'], read[0]['left_at']) == (0, 10.0)
  assert summary.summarize(read) == summary.summarize(ROWS)


def test_the_figure_is_drawn_from_the_csv(tmp_path, monkeypatch):
  pytest.importorskip('matplotlib', reason='the figure needs matplotlib')
  from matplotlib import axes

  summary.write(tmp_path, ROWS)
  (tmp_path / 'summary.csv').unlink()
  bars, errorbar = [], axes.Axes.errorbar

  def draw(self, x, y, xerr, **kwargs):
    bars.append((x, y, xerr))
    return errorbar(self, x, y, xerr=xerr, **kwargs)

  monkeypatch.setattr(axes.Axes, 'errorbar', draw)
  path = summary.draw(tmp_path, {'error': 'test error', 'left_at': 'step'})
  assert path.read_bytes().startswith(b'\x89PNG')
  assert bars == [(0.5, 0, 0.25), (0.5, 1, None), (10, 0, None)]


def test_a_figure_without_matplotlib_is_one_line(tmp_path, monkeypatch):
  summary.write(tmp_path, ROWS)
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(ModuleNotFoundError, match='pip install matplotlib;'):
    summary.draw(tmp_path, {})
