"""benchmarks.faults: a row that cannot fail is worthless, so each is made to.

The code that keeps a promise is switched off, and the row must say so.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import operator
import pathlib
import pickle
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from alexnet_jax import checkpoint_files
from alexnet_jax import config as config_lib
from alexnet_jax import divergence
from alexnet_jax import images as images_lib
from alexnet_jax import train
from alexnet_jax import weights
from alexnet_jax.prepare import imagenet
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import files
from benchmarks import harness
from benchmarks.faults import __main__ as faults
from benchmarks.faults import checkpoints
from benchmarks.faults import damage
from benchmarks.faults import rows
from benchmarks.faults import runs
from benchmarks.faults import soak
from benchmarks.faults import victim
from tests import fault_rows

# Orbax's threads, after an error.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def row_of(name):
  (row,) = faults.chosen([name])
  if name == 'checkpoint_state':  # TensorStore notices damage of short values.
    hurt = functools.partial(checkpoints.damaged, hurt=flip_long_values)
    row = dataclasses.replace(row, opened=hurt)
  return row


def flip_long_values(newest, _):
  damage.flip_middle(
    max(newest.glob('state/**/d/*'), key=lambda file: file.stat().st_size)
  )
  return 'long values'


def play(row, count, folder, first=0):
  """What was seen, and the problems, of trials in this process."""
  _, *found = rows.play(row, first, count, folder)
  return [seen for _, seen, _ in found], [p for *_, p in found if p]


def unnamed(*_):
  raise ValueError('damaged')


def too_many_lines(*_):
  raise ValueError('config\n' * 4)


# By row: what is switched off, what takes its place, and the number of trials.
SWITCHES = {
  'checkpoint_state': (checkpoint_files, 'check_digests', lambda *_: True, 2),
  'data_set': (digests, 'problems', lambda *_, **__: [], 4),
  'images': (images_lib, 'read_pixels', unnamed, 2),
  'archives': (imagenet, '_regular_files', unnamed, 2),
  'configs': (config_lib, 'check', too_many_lines, 8),
  'full_disk_injected': (
    *(files, 'full_disk_named', lambda *_: contextlib.nullcontext(), 8),
  ),
  'work_directories': (checkpoint_files, 'check_digests', lambda *_: True, 2),
  'not_finite': (divergence, 'check', lambda *_: None, 1),
}
NO_TRAINING = ('full_disk_injected', 'work_directories')
SLOW = ('not_finite',)  # It trains, and compiles the net again for the cause.


def without_training(monkeypatch):
  """Lets runs write some files, and restore checkpoints, in place of training."""

  def train_here(_, workdir):
    with checkpoint_files.full_disk_named(workdir / 'checkpoints'):
      for number in range(8):
        files.write_bytes(workdir / f'{number}.json', b'x')
    if (workdir / 'checkpoints').exists():
      checkpoints.restored(workdir)

  def check_same(_, workdir):
    rows.check(len([*workdir.iterdir()]) == 8, 'files are missing')

  def save(_, workdir, stop):
    checkpoints.save(workdir, {checkpoints.OLD: 0.5, checkpoints.NEW: 0.4})

  def hurt(workdir, rng):
    return flip_long_values(workdir / f'checkpoints/{checkpoints.NEW}', rng)

  for name, function in (
    ('train_here', train_here),
    ('check_same', check_same),
  ):
    monkeypatch.setattr(runs, name, function)
  for name in ('reference', 'results', 'load_config'):
    monkeypatch.setattr(runs, name, lambda *_: {'step': 8, 'arrays': {}})
  monkeypatch.setattr(train, 'train_and_evaluate', save)
  monkeypatch.setattr(damage, 'hurt', hurt)


@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SWITCHES],
)
def test_a_promise_that_is_not_kept_is_reported(name, tmp_path, monkeypatch):
  owner, function, replacement, count = SWITCHES[name]
  row = row_of(name)
  if name in NO_TRAINING:
    without_training(monkeypatch)
  elif name in SLOW:
    runs.prepare_digits(tmp_path)
  seen, problems = play(row, count, tmp_path)
  assert problems == [] and len([x for x in seen if x]) == count
  monkeypatch.setattr(owner, function, replacement)
  _, problems = play(row, count, tmp_path)
  assert problems and all(p.startswith('trial ') for p in problems)


def test_a_trial_depends_on_its_number_alone(tmp_path):
  row = row_of('configs')
  seen, _ = play(row, 8, tmp_path)
  assert play(row, 8, tmp_path, first=5)[0] == seen[5:]


def test_what_a_file_runs_is_noticed():
  with damage.nothing_is_run():
    weights.check_names(['a'], 'here')
  with pytest.raises(RuntimeError, match='subprocess.Popen'):
    with damage.nothing_is_run():
      subprocess.run([sys.executable, '-c', ''])
  with pytest.raises(RuntimeError, match='pickle.find_class'):
    with damage.nothing_is_run():
      pickle.loads(b'cbuiltins\nlen\n.')


def test_a_trial_that_hangs_or_dies_is_counted_and_the_others_go_on(tmp_path):
  row, saved = fault_rows.row(fault_rows.opened), []
  entry = rows.entry_of(row, None, row.full, 'c')
  with contextlib.closing(rows.Player(tmp_path)) as player:
    player(row, entry, lambda: saved.append(entry['done']))
  assert (entry['done'], entry['seen'], entry['broken']) == (5, {'fine': 2}, 3)
  assert entry['failures'] == [
    'trial 1: no end within 2 s',
    'trial 2: the process died with exit code 3',
    'trial 3: Broken: of no use',
  ]
  assert saved[-1] == 5 and not rows.holds(row, entry)
  assert (tmp_path / 'numbers').read_text() == 'x' * 5


@pytest.mark.parametrize(
  ('function', 'reason', 'is_kept'),
  [
    (fault_rows.unavailable, 'it needs root', True),
    (fault_rows.broken, 'the row could not be opened', False),
  ],
)
def test_a_row_that_cannot_be_played_says_why(
  tmp_path, function, reason, is_kept
):
  row = fault_rows.row(function)
  entry = rows.entry_of(row, None, 3, 'c')
  with contextlib.closing(rows.Player(tmp_path)) as player:
    player(row, entry, lambda: None)
  assert (entry['not_run'], entry['seen']) == (reason, {})
  assert rows.holds(row, entry) == is_kept
  assert 'not run' in faults.line_of(row, entry)


@pytest.fixture
def command(tmp_path, monkeypatch):
  """Function that runs the command here; returns its outcome and the trials."""

  def run(**flags):
    played = []

    def play_all(chosen, entries, save):
      for row in chosen:
        entry = entries[row.name]
        for number in range(entry['done'], entry['count']):
          played.append((row.name, number))
          problem = 'trial: no' if number == flags.get('fails') else ''
          rows.add(entry, number + 1, 'fine', problem)
          save()
          if len(played) == flags.get('ends_after'):
            raise KeyboardInterrupt

    values = {'quick': False, 'rows': ['images', 'soak'], 'most': 4, 'first': 0}
    values |= {'output': str(tmp_path / 'record.json')} | flags
    monkeypatch.setattr(faults, 'FLAGS', types.SimpleNamespace(**values))
    monkeypatch.setattr(faults, 'play_all', play_all)
    monkeypatch.setattr(faults.workdir_lib, 'current_commit', lambda: 'c')
    outcome = None
    with contextlib.suppress(KeyboardInterrupt):
      outcome = faults.measure()
    return outcome, played

  return run


def test_a_command_goes_on_where_it_was_stopped(command, tmp_path):
  _, played = command(ends_after=6)
  trials = lambda name: [(name, i) for i in range(4)]
  assert played == (trials('soak') + trials('images'))[:6]
  outcome, played = command()
  assert played == trials('images')[2:]
  assert outcome.passed and outcome.verdict == '2 promises hold'
  record = json.loads((tmp_path / 'record.json').read_text())
  assert record['figures']['rows']['images']['seen'] == {'fine': 4}
  assert command()[1] == []
  # More trials are added; another size begins again.
  assert command(most=5)[1] == [*(('soak', i) for i in range(5)), ('images', 4)]
  record = json.loads((tmp_path / 'record.json').read_text())
  assert {*record['figures']['rows']} == {'images', 'soak'}


def test_a_record_of_the_commit_has_no_other_first_trial(command):
  command(rows=['images'])
  with pytest.raises(SystemExit, match='--first=2 begins .* another --output'):
    command(rows=['images'], first=2)


@pytest.mark.parametrize(('commit', 'done'), [('c', 3), ('c+', 0)])
def test_a_row_that_was_not_run_is_tried_again(commit, done):
  row = row_of('images')
  earlier = rows.entry_of(row, None, 5, commit)
  earlier |= {'done': 3, 'not_run': 'it needs root'}
  entry = rows.entry_of(row, earlier, 5, commit)
  assert entry['done'] == done and 'not_run' not in entry
  assert earlier['not_run']  # The record itself is not changed.


@pytest.mark.parametrize('moment', victim.MOMENTS)
def test_a_moment_is_a_function_of_the_package(moment):
  module, _, path = victim.MOMENTS[moment].partition(':')
  owner = importlib.import_module(module)
  assert callable(operator.attrgetter(path)(owner))


def test_a_broken_promise_is_named_and_fails_the_check(command, capsys):
  outcome, _ = command(fails=2, rows=['images'])
  assert not outcome.passed
  assert outcome.verdict == '0 promises hold; BROKEN: images'
  harness.finish(outcome, '', check=False)
  with pytest.raises(SystemExit, match='1'):
    harness.finish(outcome, '', check=True)
  assert 'BROKEN: images' in capsys.readouterr().out


def test_an_unknown_row_is_named():
  with pytest.raises(
    SystemExit, match='--rows=x is not one of soak, same_seed, '
  ):
    faults.chosen(['images', 'x'])


def test_the_name_of_every_row_is_its_own():
  names = [row.name for row in (*faults.ROWS, *faults.ALONE)]
  assert len({*names}) == len(names) > 20
  for row in (*faults.ROWS, *faults.ALONE):
    assert row.quick < row.full
    assert pickle.loads(pickle.dumps(row)).name == row.name


def test_every_row_is_in_the_table_or_named_as_not_run():
  root = pathlib.Path(__file__).parents[1]
  text = (root / 'docs/promises.md').read_text()
  not_run = re.findall(r'^Not run yet: ((?:`\w+`[,.]\s)+)', text, re.M)
  played = re.findall(r'^\| `(\w+)` \|', text, re.M)
  names = [row.name for row in (*faults.ROWS, *faults.ALONE)]
  assert sorted([*played, *re.findall(r'\w+', ''.join(not_run))]) == sorted(
    names
  )


def test_a_slope_has_its_standard_error():
  x = np.arange(5.0)
  found, error = soak.slope(x, np.array([1.0, 3.0, 2.0, 5.0, 4.0]))
  # By hand: Sxx = 10, Sxy = 8; residuals of 3.6 in all, with 3 degrees.
  assert (found, error) == pytest.approx((0.8, (3.6 / 3 / 10) ** 0.5))
