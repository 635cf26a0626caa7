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


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('model.num_classes', 8, 'config.model.num_classes=8, but the digits have'),
    (
      'input.eval_split',
      'validation',
      'config.input.eval_split=validation: the',
    ),
    (
      'input.train_split',
      'all',
      'config.input.train_split=all: the digits have',
    ),
    ('input.crop_size', 99, 'config.input.crop_size=99 must not exceed'),
  ],
)
def test_a_command_that_is_refused_leaves_no_digits_behind(
  tmp_path, monkeypatch, key, value, message
):
  config = quickstart.get_config()
  config.input.data_dir = str(tmp_path)
  config.update_from_flattened_dict({key: value})
  monkeypatch.setattr(digits, '_prepare', None)
  with pytest.raises(ValueError) as error:
    digits.prepare_if_missing(config)
  assert str(error.value).startswith(message)
  assert '; ' in str(error.value) and '\n' not in str(error.value)


def test_digits_of_another_size_name_the_folder_to_remove(data_dir):
  found = dataset_lib.open_dataset(data_dir, 'digits')
  with pytest.raises(ValueError) as error:
    dataset_lib.check_dataset(found, image_size=80, num_classes=10, splits={})
  assert str(error.value) == (
    f'config.input.image_size=80, but {found.path} holds images of 76 pixels;'
    ' set it to 76, or remove that folder and repeat this command'
  )
