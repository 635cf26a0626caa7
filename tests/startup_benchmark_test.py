"""The benchmark of the start: which line ends it, and what it starts."""

import re
import sys
import time

import pytest

from benchmarks import startup
from configs import quickstart


def talking(*lines, last=''):
  """A command that prints lines, and then waits for a minute, or does `last`."""
  code = ['import sys, time']
  code += [f'print({line!r}, flush=True)' for line in lines]
  return [sys.executable, '-c', '\n'.join([*code, last or 'time.sleep(60)'])]


FIRST = 'first step done 3.5 s after the start'


def test_command_ends_at_the_line_of_its_first_step():
  began = time.perf_counter()
  found = startup.first_step(talking('before', FIRST, 'after'))
  took = time.perf_counter() - began
  assert found['said_seconds'] == 3.5
  # A Python that does nothing starts in some hundredths of a second.
  assert 0 < found['seconds'] <= took < 30
  assert 0 < found['cpu_seconds'] < took + 1


def test_seconds_are_those_up_to_the_line():
  late = f'time.sleep(0.5); print({FIRST!r}, flush=True); time.sleep(60)'
  assert startup.first_step(talking(last=late))['seconds'] > 0.5


@pytest.mark.parametrize(
  ('last', 'words'),
  [
    ('sys.exit("ValueError: no such thing")', 'ValueError: no such thing'),
    ('pass', 'it printed nothing'),
  ],
)
def test_command_without_a_first_step_is_one_line(last, words):
  message = f'the command ended before its first step: {words}'
  with pytest.raises(SystemExit, match=f'^{re.escape(message)}$'):
    startup.first_step(talking('step 1', last=last))


def test_command_is_the_readmes_within_one_folder(tmp_path):
  python, *arguments = startup.quick_start(tmp_path, 'run', 'cache')
  assert python == sys.executable
  readme = (startup.ROOT / 'README.md').read_text()
  assert ' '.join(arguments[:3]) in readme
  assert [argument.partition('=')[2] for argument in arguments[3:]] == [
    f'{tmp_path}/{name}' for name in ('run', 'data', 'cache')
  ]


def test_a_round_has_cold_and_warm_starts_of_one_data_set(monkeypatch):
  begun = []

  def first_step(arguments):
    begun.append([a.rpartition('/')[2] for a in arguments[-3:]])
    return {'seconds': float(len(begun))}

  monkeypatch.setattr(startup, 'first_step', first_step)
  figures = startup.one_round(quick=False)
  assert begun == [
    ['fresh', 'data', 'cache'],
    ['cold', 'data', 'empty'],
    ['warm', 'data', 'cache'],
  ]
  assert list(figures) == [startup.FRESH, startup.COLD, startup.WARM]
  assert list(startup.one_round(quick=True)) == [startup.FRESH, startup.WARM]


def test_config_is_the_quick_starts():
  path = startup.ROOT / startup.CONFIG
  assert path.samefile(quickstart.__file__)
