"""Rows for faults_benchmark_test.py, in a module that other processes can load."""

import contextlib
import os
import time

from benchmarks.faults import rows


@contextlib.contextmanager
def opened(shared):
  """Trials that note that they ran; 1 hangs, 2 dies, 3 fails."""
  numbers = shared / 'numbers'

  def trial(rng, folder):
    del rng
    assert not list(folder.iterdir())
    number = len(numbers.read_text()) if numbers.exists() else 0
    with open(numbers, 'a') as file:
      file.write('x')
    if number == 1:
      time.sleep(60)
    if number == 2:
      os._exit(3)
    rows.check(number != 3, 'of no use')
    return 'fine'

  yield trial


@contextlib.contextmanager
def unavailable(shared):
  """A row that this machine does not allow."""
  raise rows.Unavailable('it needs root')
  yield


@contextlib.contextmanager
def broken(shared):
  """A row that cannot be opened."""
  raise OSError('no')
  yield


def row(function, count=5):
  return rows.Row('name', 'injected', 'promise', count, 1, function, 2.0)
