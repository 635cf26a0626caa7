"""The warning about a training loss that rises away, and steady checkpoints."""

import pytest

from alexnet_jax import rising_loss
from configs import quickstart


@pytest.mark.parametrize(
  ('losses', 'warned_after'),
  [
    ([2.3, 4.6], None),  # Twice ln(10) is 4.605.
    ([2.3, 4.62], 2),
    ([2.3, 0.1, 2.3], None),  # Back at chance level.
    ([2.3, 0.1, 4.62, 9.0], 3),  # Warns only once.
    ([50.0, 40.0, 60.0], None),  # Bad initial values, but it falls.
    ([50.0, 40.0, 81.0], 3),
    ([2.3, 2.3, float('inf')], 3),
  ],
)
def test_it_warns_once_if_the_loss_is_twice_the_lowest_and_twice_chance(
  caplog, losses, warned_after
):
  config = quickstart.get_config()
  config.optimizer.learning_rate = 0.02
  warning, counts = rising_loss.RisingLossWarning(config, float('inf'), 0), []
  for step, loss in enumerate(losses):
    found = warning.observe(loss, step)
    counts.append(len(caplog.records))
  first = len(losses) if warned_after is None else warned_after - 1
  assert counts == [0] * first + [1] * (len(losses) - first)
  assert found['lowest_loss'] == min(losses)
  if warned_after:
    assert 'config.optimizer.learning_rate (now 0.02) to 0.002' in caplog.text


def test_a_resumed_run_knows_the_lowest_loss_of_the_run_before(caplog):
  warning = rising_loss.RisingLossWarning(quickstart.get_config(), 0.5, 30)
  found = [warning.observe(loss, 40) for loss in (4.7, 4.6)]
  lowest = {'lowest_loss': 0.5}
  assert found == [lowest | {'steady_step': 30}, lowest | {'steady_step': 40}]
  assert 'rises away' in caplog.text


RECORD = {
  'config': {'model.num_classes': 10},
  'metrics': {'train/loss': 4.7},
  'lowest_loss': 0.5,
  'unfinished': {},
}


@pytest.mark.parametrize(
  ('changes', 'is_steady'),
  [
    ({}, False),
    ({'lowest_loss': 3.0}, True),
    ({'unfinished': {'loss': 8.0, 'count': 4.0}}, True),
    ({'unfinished': {'loss': 20.0, 'count': 4.0}}, False),
    ({'metrics': {}}, True),  # Saved before the first row.
    ({'metrics': {'train/loss': float('nan')}}, False),
    ({'config': {}}, True),  # Of an experiment with other keys.
  ],
)
def test_a_checkpoint_is_steady_by_its_record(changes, is_steady):
  assert rising_loss.is_steady(RECORD | changes) == is_steady


def test_a_record_of_an_earlier_version_is_compared_with_chance_alone():
  record = {k: RECORD[k] for k in ('config', 'metrics')}
  assert not rising_loss.is_steady(record)
  assert rising_loss.is_steady(record | {'metrics': {'train/loss': 4.6}})
