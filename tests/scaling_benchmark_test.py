"""The benchmark of scaling: its layouts and their processes."""

import re

import pytest

from benchmarks import harness
from benchmarks import scaling


def test_names_say_layout_mesh_and_processes():
  assert [scaling.name_of(*layout) for layout in scaling.QUICK] == [
    'one device',
    'towers 1x2',
    'data 2x1',
    'data 2x1, 2 processes',
    'one_weird_trick 2x1',
  ]


class Fake:
  """In place of the processes of a layout."""

  def __init__(self, *arguments):
    self.calls, self.closed = 0, False
    made.append(self)

  def __call__(self):
    self.calls += 1

  def close(self):
    self.closed = True


made = []


def test_layouts_run_in_turn_and_are_ended(monkeypatch):
  monkeypatch.setattr(scaling, 'start_worker', Fake)
  made.clear()
  taken = scaling.fixed_costs(scaling.QUICK, rounds=3, steps=10)
  assert list(taken) == [scaling.name_of(*layout) for layout in scaling.QUICK]
  assert all(len(seconds) == 3 for seconds in taken.values())
  # Compiled, untimed, and three rounds.
  assert [(fake.calls, fake.closed) for fake in made] == [(5, True)] * 5


def test_a_process_that_ends_early_is_one_line(monkeypatch):
  monkeypatch.setattr(harness.sys, 'executable', '/bin/false')
  worker = scaling.start_worker('data', 1, 1, 1)
  try:
    with pytest.raises(SystemExit, match=re.escape('ended without an answer')):
      worker()
  finally:
    worker.close()
