"""The digits are prepared when they are missing, once on each file system."""

import pytest

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import digits
from configs import quickstart


@pytest.mark.parametrize(
  ('is_first', 'shared', 'expected'),
  [
    (True, True, ['prepare', 'barrier', 'barrier']),
    (False, True, ['barrier', 'barrier']),
    (False, False, ['barrier', 'prepare', 'barrier']),
  ],
  ids=['first', 'same file system', 'own file system'],
)
def test_every_file_system_gets_one_copy(
  tmp_path, monkeypatch, is_first, shared, expected
):
  config = quickstart.get_config()
  config.input.data_dir = str(tmp_path)
  path = dataset_lib.dataset_path(tmp_path, 'digits')
  events = []

  def prepare(data_dir, size):
    assert (data_dir, size) == (str(tmp_path), 76)
    events.append('prepare')
    path.mkdir(parents=True)

  def barrier(_):
    events.append('barrier')
    if shared:  # Process 0 has prepared them by now.
      path.mkdir(parents=True, exist_ok=True)

  monkeypatch.setattr(digits, '_prepare', prepare)
  monkeypatch.setattr(digits.processes, 'barrier', barrier)
  monkeypatch.setattr(digits.processes, 'is_first', lambda: is_first)
  digits.prepare_if_missing(config)
  assert events == expected
  events.clear()
  digits.prepare_if_missing(config)  # Now they are there.
  assert events == ['barrier', 'barrier']


def test_other_data_sets_are_not_prepared(tmp_path, monkeypatch):
  config = quickstart.get_config()
  config.input.data_dir = str(tmp_path)
  config.input.dataset = 'photographs'
  monkeypatch.setattr(digits, '_prepare', None)
  monkeypatch.setattr(digits.processes, 'barrier', None)
  digits.prepare_if_missing(config)
  assert list(tmp_path.iterdir()) == []
