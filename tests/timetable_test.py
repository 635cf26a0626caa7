"""The timetable against steps counted by hand."""

import math

import pytest

from alexnet_jax import timetable

TABLE = timetable.Timetable(
  num_examples=1000,
  batch_size=100,
  epochs=2.45,
  log_every_steps=6,
  eval_every_epochs=1.0,
  checkpoint_every_steps=8,
  change_epochs=(0.5, 1.05),
)


def steps_where(happens, last=25):
  return [step for step in range(1, last + 1) if happens(step)]


def test_the_last_epoch_is_rounded_up_to_whole_steps():
  assert TABLE.total_steps == 25


@pytest.mark.parametrize(
  ('method', 'steps'),
  [
    ('evaluates', [10, 20, 25]),
    ('saves', [8, 10, 16, 20, 24, 25]),
    # At every save, at every change, and every 6 steps.
    ('logs', [5, 6, 8, 10, 11, 12, 16, 18, 20, 24, 25]),
  ],
)
def test_evaluations_saves_and_rows_come_after_these_steps(method, steps):
  assert steps_where(getattr(TABLE, method)) == steps


def test_behind_the_last_step_a_row_ends_at_once_with_an_evaluation():
  # So does an interrupted row whose run goes on with a lower train.epochs.
  assert [TABLE.next_log(s) for s in (24, 25, 26)] == [25, 26, 27]
  assert TABLE.evaluates(27) and TABLE.saves(27)


def test_a_change_comes_after_the_first_step_that_ends_at_or_after_its_epoch():
  assert [TABLE.changes(s) for s in (0, 4, 5, 10, 11, 25)] == [0, 0, 1, 1, 2, 2]


def test_every_change_ends_a_row_in_whatever_order_they_are_given():
  # The order of a config: drops, drops of conv1, its freeze, the end of colour
  # noise.
  changes = (0.3, 0.9, 0.5, 0.7, 0.5, math.inf)
  table = timetable.Timetable(1000, 100, 1.2, 100, 1.2, 100, changes)
  assert steps_where(table.logs, 12) == [3, 5, 7, 9, 12]
  assert table.changes(12) == 5


def test_a_change_at_the_start_ends_no_row():
  table = timetable.Timetable(1000, 100, 1.2, 100, 1.2, 100, (0.0,))
  assert table.changes(0) == 1
  assert table.next_log(0) == 12


def test_next_log_is_the_end_of_the_current_row():
  steps = [0]
  while steps[-1] < 12:
    steps.append(TABLE.next_log(steps[-1]))
  assert steps == [0, 5, 6, 8, 10, 11, 12]


@pytest.mark.parametrize('every', [0.1, 0.2, 0.3, 0.7, 1.1])
def test_evaluations_are_on_time_if_epochs_are_not_binary_fractions(every):
  table = timetable.Timetable(1000, 100, 100.0, 10, every, 10)
  period = round(every * 10)
  assert steps_where(table.evaluates, 900) == list(range(period, 901, period))


@pytest.mark.parametrize(
  ('examples', 'batch', 'epochs', 'steps'),
  [
    (1497, 16, 20.0, 1872),
    (1000, 100, 0.1, 1),
    (1000, 100, 0.101, 2),
    (100, 1, 0.07, 7),  # 0.07 * 100 is 7.000000000000001.
    (100, 10, 1.1, 11),
  ],
)
def test_total_steps_cover_the_epochs(examples, batch, epochs, steps):
  table = timetable.Timetable(examples, batch, epochs, 10, 1.0, 10)
  assert table.total_steps == steps


def test_epochs_that_are_not_whole_steps_are_counted_in_examples():
  table = timetable.Timetable(1497, 16, 0.25, 5, 0.1, 6, (0.17,))
  assert table.total_steps == 24
  assert steps_where(table.evaluates, 24) == [10, 19, 24]
  assert steps_where(table.logs, 24) == [5, 6, 10, 12, 15, 16, 18, 19, 20, 24]
  assert table.epoch(24) == pytest.approx(0.256513, abs=1e-6)
