"""Signals, in small programs of their own: no test replaces handlers here."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from alexnet_jax.runtime import signals

ROOT = pathlib.Path(signals.__file__).parents[2]
NUMBERS = sorted(signals.SIGNALS)
START = r"""
import os, pathlib, signal, sys, time
# Shells start background processes, perhaps these tests, with SIGINT ignored,
# and nohup with SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from alexnet_jax.runtime import signals
def ready():
  os.write(1, b'ready\n')
"""
INSTALLED = START + 'signals.install()\n'


def start(program, *arguments):
  """Starts a program, and returns it once it prints a line."""
  process = subprocess.Popen(
    [sys.executable, '-c', program, *arguments],
    cwd=ROOT,
    env=os.environ | {'PYTHONUNBUFFERED': ''},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n', process.stderr.read()
  return process


def end(process):
  """The exit code and all that the program still printed."""
  out, err = process.communicate(timeout=30)
  return process.returncode, out, err


def test_nothing_is_printed_after_the_line_that_ends_the_program():
  program = """
ready()
while True:
  os.write(2, b'working\\n')
"""
  process = start(INSTALLED + program)
  process.send_signal(signal.SIGINT)
  code, _, err = end(process)
  assert code == 128 + signal.SIGINT
  assert err.splitlines()[-1] == 'interrupted by SIGINT; nothing was begun'


@pytest.mark.parametrize('number', NUMBERS)
def test_a_signal_ends_the_program_with_one_line(number):
  # In a callback an exception would be printed and forgotten.
  program = """
class Callback:
  def __del__(self):
    ready()
    time.sleep(20)
del (callback := [Callback()])[0]
print('survived')
"""
  process = start(INSTALLED + program)
  process.send_signal(number)
  name = signal.Signals(number).name
  line = f'interrupted by {name}; nothing was begun\n'
  assert end(process) == (128 + number, '', line)


def test_what_was_printed_is_written_and_temporary_files_are_removed(tmp_path):
  program = """
path = pathlib.Path(sys.argv[1])
path.write_text('half')
signals.temporary_files.add(path)
print('row', end='')
ready()
time.sleep(20)
"""
  process = start(INSTALLED + program, str(tmp_path / 'x.tmp'))
  process.terminate()
  assert end(process)[:2] == (128 + signal.SIGTERM, 'row')
  assert list(tmp_path.iterdir()) == []


DEFERRED = """
signals.AGAIN_SECONDS = 0.3
with signals.deferred():
  ready()
  while not signals.received():
    time.sleep(0.01)
  print(signals.received(), flush=True)
  time.sleep(float(sys.argv[1]))
try:
  signals.check()
except KeyboardInterrupt as stopped:
  signals.resume_hint = 'more'
  raise signals.ended(stopped)
"""


def test_a_deferred_signal_is_received_and_twice_the_same_is_one_request():
  process = start(INSTALLED + DEFERRED, '0.1')
  process.send_signal(signal.SIGHUP)
  assert process.stdout.readline() == '1\n'
  process.send_signal(signal.SIGHUP)
  assert end(process) == (129, '', 'interrupted by SIGHUP; more\n')


def test_the_last_line_stays_the_last_if_the_end_takes_long():
  program = DEFERRED.replace(
    '  raise signals.ended(stopped)',
    '  end = signals.ended(stopped)\n  time.sleep(1)\n  raise end',
  )
  process = start(INSTALLED + program, '0')
  process.terminate()
  assert end(process)[2] == 'interrupted by SIGTERM; more\n'


@pytest.mark.parametrize('second', [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_program_at_once(second):
  process = start(INSTALLED + DEFERRED, '20')
  process.send_signal(signal.SIGTERM)
  notice = process.stderr.readline()
  assert notice == 'SIGTERM: stopping; once more ends at once\n'
  process.send_signal(second)
  began = time.monotonic()
  code, _, err = end(process)
  assert (code, time.monotonic() - began < 5) == (128 + second, True)
  name = signal.Signals(second).name
  assert err == f'interrupted by {name}; nothing was begun\n'


def test_a_signal_that_is_ignored_stays_ignored():
  program = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As nohup does.
signals.install()
ready()
time.sleep(0.3)
print('done')
"""
  process = start(START + program)
  process.send_signal(signal.SIGHUP)
  assert end(process) == (0, 'done\n', '')


def test_a_program_that_restarts_itself_loses_no_signal():
  # The signal comes when the new program has not yet installed its handlers.
  program = """
if len(sys.argv) == 1:
  signals.install()
  signals.restart(['-c', sys.argv[0] or CODE, 'again'])
os.kill(os.getpid(), signal.SIGTERM)
ready()
signals.install()
time.sleep(20)
"""
  code = START + program.replace('sys.argv[0] or CODE', 'os.environ["CODE"]')
  os.environ['CODE'] = code
  try:
    process = start(code)
  finally:
    del os.environ['CODE']
  line = 'interrupted by SIGTERM; nothing was begun\n'
  assert end(process) == (128 + signal.SIGTERM, '', line)


def test_processes_started_while_signals_are_blocked_have_them_blocked():
  code = 'import signal; print(sorted(signal.pthread_sigmask(0, ())))'
  with signals.blocked():
    found = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True
    ).stdout
  assert all(signal.Signals(number).name in found for number in NUMBERS)
  assert not signals.SIGNALS & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_until_yields_items_before_the_stop():
  asked = iter([0, 0, signal.SIGHUP])
  found = signals.until(lambda: next(asked), 'abc')
  assert [next(found), next(found)] == ['a', 'b']
  with pytest.raises(signals.Stopped) as stopped:
    next(found)
  assert stopped.value.args == (signal.SIGHUP, '')


def test_an_import_of_the_package_leaves_the_handlers_alone():
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert signals.received() == 0
  signals.check()


def test_a_signal_just_before_a_restart_is_not_lost(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(
    START
    + """
if 'AGAIN' in os.environ:
  sys.exit('the signal is lost')
os.environ['AGAIN'] = '1'
signals.install()
sys.setswitchinterval(5)  # The thread that reads the signal has to wait.
os.kill(os.getpid(), signal.SIGINT)
signals.restart(sys.argv)
"""
  )
  done = subprocess.run(
    [sys.executable, program],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.stderr == 'interrupted by SIGINT; nothing was begun\n'
  assert done.returncode == 130
