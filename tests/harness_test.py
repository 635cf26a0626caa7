"""What the benchmarks share: flags, turns, workers, and the record."""

import itertools
import json
import time

from absl import flags
import jax
import pytest

from alexnet_jax import workdir as workdir_lib
from benchmarks import harness


def test_a_turn_has_its_steps_and_its_seconds(monkeypatch):
  steps = []
  monkeypatch.setattr(harness, 'TURN', (3, 0.0))
  assert 0 < harness.mean_seconds(steps.append, 1) < 0.1
  assert steps == [1, 1, 1]
  steps.clear()
  assert harness.mean_seconds(lambda n: time.sleep(0.01 * n), 5) < 0.02
  harness.mean_seconds(steps.append, 2)
  assert steps == [2, 2]
  monkeypatch.setattr(harness, 'TURN', (1, 0.05))
  seconds = harness.mean_seconds(lambda _: steps.append(time.sleep(0.02)), 1)
  assert len(steps) >= 3 + 2
  assert seconds >= 0.02


def test_all_run_in_every_round_and_turn_back():
  assert list(harness.turns(['a', 'b'], 2)) == [
    *((0, 'b'), (0, 'a'), (1, 'a'), (1, 'b'), (2, 'b'), (2, 'a'))
  ]


def test_seconds_of_its_own_count_instead_of_the_wall():
  taken = harness.seconds({'own': lambda: 7.0, 'wall': lambda: None}, 3)
  assert taken['own'] == [7.0] * 3
  assert all(0 <= s < 1 for s in taken['wall'])


def test_the_round_to_warm_up_is_not_kept():
  calls = itertools.count()
  assert harness.seconds({'a': lambda: float(next(calls))}, 2)['a'] == [1, 2]


def test_a_range_has_median_least_and_most():
  assert harness.shown([3.0, 1.0, 2.0]) == '2 (1 to 3)'
  ratio = harness.ratio([8, 9, 20], [10, 10, 10])
  assert ratio == {'median': 0.9, 'least': 0.8, 'most': 2.0}


def test_figures_are_printed_after_their_keys(capsys):
  ratio = {'median': 1.5, 'least': 1.0, 'most': 2.0}
  rounds = [{'seconds': 3.0}, {'seconds': 4.0}, {'seconds': 9.0}]
  figures = {'batch': 8, 'ratios': {'a / b': ratio}, 'rounds': rounds}
  harness.print_figures(figures, 'title')
  lines = [line.split('  ') for line in capsys.readouterr().out.splitlines()]
  assert [(line[0], line[-1].strip()) for line in lines] == [
    ('title > batch', '8'),
    ('title > ratios > a / b', '1.5 (1 to 2)'),
    ('title > rounds > seconds', '4 (3 to 9)'),
  ]


def test_a_worker_answers_past_what_libraries_print():
  code = (
    'import sys\nfrom benchmarks import harness\n'
    'for line in sys.stdin:\n'
    "  print('a library')\n  harness.answer([line.strip(), 1.5])\n"
    "  sys.exit() if 'end' in line else None"
  )
  worker = harness.Worker([harness.sys.executable, '-c', code])
  assert worker('one') == ['one', 1.5]
  assert worker('end') == ['end', 1.5]
  with pytest.raises(SystemExit, match='a worker ended without an answer'):
    worker('more')
  worker.close()


def test_workers_go_together_and_the_last_one_answers():
  code = (
    'import sys\nfrom benchmarks import harness\n'
    'for line in sys.stdin:\n  harness.answer(%r + line.strip())'
  )
  commands = [[harness.sys.executable, '-c', code % name] for name in 'ab']
  worker = harness.Worker(*commands)
  assert [worker('1'), worker('2')] == ['b1', 'b2']
  worker.close()


def test_a_worker_has_more_environment_variables():
  code = 'import os\nfrom benchmarks import harness\n'
  code += "harness.answer([os.environ['MORE'], 'PATH' in os.environ])"
  worker = harness.Worker([harness.sys.executable, '-c', code], MORE='x')
  assert worker.receive() == ['x', True]
  worker.close()


def test_the_command_line_of_a_worker_calls_a_benchmarks_function():
  python, option, code = harness.command_line('harness.answer', {'a': [1, "'"]})
  worker = harness.Worker([python, option, code])
  assert worker.receive() == {'a': [1, "'"]}
  worker.close()


def test_peak_memory_grows_by_what_is_touched():
  # In a process of its own: here an earlier peak may hide the growth.
  code = (
    'import numpy; from benchmarks import harness;'
    'before = harness.peak_bytes(); numpy.ones(300_000_000, numpy.uint8);'
    'harness.answer(harness.peak_bytes() - before)'
  )
  worker = harness.Worker([harness.sys.executable, '-c', code])
  assert 280e6 < worker.receive() < 400e6
  worker.close()


@pytest.fixture
def values(monkeypatch):
  """The flags of the process are others, and `app.run` parses words."""
  found = flags.FlagValues()
  monkeypatch.setattr(harness, 'FLAGS', found)
  monkeypatch.setattr(flags, 'FLAGS', found)
  for name in ('string', 'bool', 'integer', 'list'):
    define = getattr(flags, f'DEFINE_{name}')
    monkeypatch.setattr(
      flags,
      f'DEFINE_{name}',
      lambda *args, _define=define, **kw: _define(
        *args, flag_values=found, **kw
      ),
    )
  words = ['command']
  monkeypatch.setattr(
    harness.app, 'run', lambda main, flags_parser: main(found(words))
  )
  return words


def run(outcome, **flags_):
  harness.run(lambda: outcome, quick='q', **{'check': 'c', **flags_})


def test_a_missed_bar_fails_only_a_check(values, capsys):
  missed = harness.Outcome([1], 'the verdict', passed=False)
  run(missed)
  assert capsys.readouterr().out.endswith('\nthe verdict\n')


def test_a_check_of_a_missed_bar_fails_after_the_record(values, tmp_path):
  values += ['--check', f'--output={tmp_path}/figures.json']
  with pytest.raises(SystemExit) as ended:
    run(harness.Outcome([1], 'the verdict', passed=False))
  assert ended.value.code == 1
  content = json.loads((tmp_path / 'figures.json').read_text())
  assert content['figures'] == [1]


def test_flags_have_the_type_of_their_defaults(values):
  values += ['--folder=a', '--steps=3', '--names=a,b', '--number=0']
  more = {'folder': (str, ''), 'steps': (20, ''), 'names': (['x'], '')}
  more |= {'number': (0, ''), 'word': ('', '')}
  run(harness.Outcome([], ''), rounds=7, **more)
  found = harness.FLAGS.flag_values_dict()
  assert [found[name] for name in more] == ['a', 3, ['a', 'b'], 0, '']
  assert (found['rounds'], found['quick'], found['check']) == (7, False, False)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--folder=a', '--steps=0'], 'steps'),
    (['--folder=a', '--rounds=0'], 'rounds'),
    ([], 'folder'),
  ],
)
def test_wrong_flags_are_refused(values, words, message):
  values += words
  with pytest.raises(flags.Error, match=message):
    run(None, rounds=7, folder=(str, ''), steps=(20, ''))


def test_without_a_bar_there_is_no_check(values):
  run(harness.Outcome([], ''), check=None)
  assert 'check' not in harness.FLAGS


def test_the_record_says_where_and_with_what(monkeypatch, tmp_path, capsys):
  words = ['--folder=/home/me/photographs', '--check', '--batch=8']
  monkeypatch.setattr('sys.argv', ['anything', *words])
  path = tmp_path / 'figures.json'
  outcome = harness.Outcome([{'received_bytes': 12}], 'the verdict')
  harness.finish(outcome, str(path), check=True)
  content = json.loads(path.read_text())
  assert content['figures'] == [{'received_bytes': 12}]
  environment = content['environment']
  assert environment['jax'] == jax.__version__
  assert environment['commit'] == workdir_lib.current_commit()
  assert environment['command'].startswith('python -m ')
  # Not where the folder lies on this machine.
  assert environment['command'].endswith(' --folder=DIR --check --batch=8')
  assert environment['cores'] > 0
  assert all(
    environment[key] for key in ('machine', 'python', 'jaxlib', 'flax')
  )
  assert environment['devices'] == ['cpu']
  assert f'jax {jax.__version__}, ' in capsys.readouterr().out


def test_the_record_is_not_written_unless_asked_for(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  harness.finish(harness.Outcome([], ''), '', check=False)
  assert list(tmp_path.iterdir()) == []
