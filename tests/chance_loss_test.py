"""The warning of a loss that stays at ln(classes)."""

import pytest

from alexnet_jax import chance_loss
from configs import quickstart


@pytest.fixture
def config():
  return quickstart.get_config()


@pytest.mark.parametrize(
  ('rows', 'warned_after'),
  [
    ([(2.3, 4), (2.3, 4)], None),  # 8 steps of 10.
    ([(2.3, 5), (2.3, 5)], 2),
    ([(2.3, 12)], 1),
    ([(2.283, 5), (2.322, 5)], 2),  # ln(10) is 2.3026.
    ([(2.282, 10), (2.323, 10)], None),
    ([(2.3, 9), (2.2, 1), (2.3, 9)], None),  # Has left it: counts afresh.
    ([(2.3, 9), (2.2, 1), (2.3, 9), (2.3, 1)], 4),
    ([(2.3, 10), (2.3, 10), (2.0, 10), (2.3, 10)], 1),  # Once.
    ([(9.0, 50), (2.0, 50)], None),
  ],
)
def test_the_guard_warns_once_after_so_many_steps_at_the_plateau(
  config, caplog, rows, warned_after
):
  config.train.plateau_warning_steps = 10
  guard, warnings = chance_loss.ChanceLossWarning(config, 0), []
  for loss, steps in rows:
    guard.observe(loss, steps)
    warnings.append(len(caplog.records))
  first = len(rows) if warned_after is None else warned_after - 1
  assert warnings == [0] * first + [1] * (len(rows) - first)


@pytest.mark.parametrize(('before', 'warned'), [(5, 0), (6, 1), (10, 0)])
def test_the_guard_of_a_resumed_run_goes_on(config, caplog, before, warned):
  config.train.plateau_warning_steps = 10
  guard = chance_loss.ChanceLossWarning(config, before)
  guard.observe(2.3, 4)
  assert len(caplog.records) == warned  # At 10: the run before has warned.
  assert guard.stuck_steps == before + 4


def test_the_guards_plateau_is_that_of_the_number_of_classes(config, caplog):
  config.model.num_classes = 1000
  config.train.plateau_warning_steps = 10
  guard = chance_loss.ChanceLossWarning(config, 0)
  guard.observe(2.3026, 10)
  assert not caplog.records
  guard.observe(6.9078, 10)
  assert 'ln(1000) = 6.908' in caplog.text
