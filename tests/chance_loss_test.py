"""The warning about a training loss that stays at ln(classes)."""

import pytest

from alexnet_jax import chance_loss
from configs import quickstart


@pytest.fixture
def config():
  return quickstart.get_config()


@pytest.mark.parametrize(
  ('losses', 'warned_after'),
  [
    ([(2.3, 4), (2.3, 4)], None),  # Only 8 of 10 steps.
    ([(2.3, 5), (2.3, 5)], 2),
    ([(2.3, 12)], 1),
    ([(2.283, 5), (2.322, 5)], 2),  # ln(10) is 2.3026.
    ([(2.282, 10), (2.323, 10)], None),
    ([(2.3, 9), (2.2, 1), (2.3, 9)], None),  # Left in between: counts anew.
    ([(2.3, 9), (2.2, 1), (2.3, 9), (2.3, 1)], 4),
    ([(2.3, 10), (2.3, 10), (2.0, 10), (2.3, 10)], 1),  # Warns only once.
    ([(9.0, 50), (2.0, 50)], None),
  ],
)
def test_it_warns_once_if_the_loss_stays_near_ln_classes_for_long_enough(
  config, caplog, losses, warned_after
):
  config.train.plateau_warning_steps = 10
  warning, counts = chance_loss.ChanceLossWarning(config, 0), []
  for loss, steps in losses:
    warning.observe(loss, steps)
    counts.append(len(caplog.records))
  first = len(losses) if warned_after is None else warned_after - 1
  assert counts == [0] * first + [1] * (len(losses) - first)


@pytest.mark.parametrize(('before', 'warned'), [(5, 0), (6, 1), (10, 0)])
def test_a_resumed_run_continues_the_count_and_does_not_warn_again(
  config, caplog, before, warned
):
  config.train.plateau_warning_steps = 10
  warning = chance_loss.ChanceLossWarning(config, before)
  warning.observe(2.3, 4)
  assert len(caplog.records) == warned  # At 10 the earlier run has warned.
  assert warning.stuck_steps == before + 4


def test_the_loss_of_chance_depends_on_the_number_of_classes(config, caplog):
  config.model.num_classes = 1000
  config.train.plateau_warning_steps = 10
  warning = chance_loss.ChanceLossWarning(config, 0)
  warning.observe(2.3026, 10)
  assert not caplog.records
  warning.observe(6.9078, 10)
  assert 'ln(1000) = 6.908' in caplog.text


def test_one_class_has_no_loss_of_chance(config, caplog):
  config.model.num_classes = 1
  warning = chance_loss.ChanceLossWarning(config, 0)
  warning.observe(0.0, 10_000)
  assert caplog.records == [] and warning.stuck_steps == 0
