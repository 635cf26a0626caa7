"""Nets in files: round trips, and files that are damaged or not ours."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax import config as config_lib
from alexnet_jax import weights as weights_lib
from tests import narrow_nets


@pytest.fixture(scope='module')
def weights():
  return narrow_nets.weights(narrow_nets.variant())


@pytest.fixture
def path(weights, tmp_path):
  weights_lib.save(tmp_path / 'net.safetensors', weights)
  return tmp_path / 'net.safetensors'


def test_a_file_gives_back_all_that_was_written(weights, path):
  found = weights_lib.load(path)
  jax.tree.map(np.testing.assert_array_equal, found.params, weights.params)
  np.testing.assert_array_equal(found.mean_image, weights.mean_image)
  assert config_lib.flatten(found.config) == config_lib.flatten(weights.config)
  assert (found.class_names, found.about) == (
    weights.class_names,
    weights.about,
  )
  assert os.listdir(path.parent) == [path.name]


def test_others_read_the_tensors_by_name(weights, path):
  tensors = safetensors.numpy.load_file(path)
  kernel = weights.params['conv1']['kernel']
  np.testing.assert_array_equal(tensors['conv1/kernel'], kernel)
  assert len(tensors) == 2 * 8 + 1


def test_a_failed_write_leaves_the_old_file(weights, path, monkeypatch):
  before = path.read_bytes()

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(weights_lib.files, 'sync', fail)
  with pytest.raises(OSError, match='disk full'):
    weights_lib.save(path, weights)
  assert path.read_bytes() == before
  assert os.listdir(path.parent) == [path.name]


def test_others_may_read_the_file(path):
  (path.parent / 'plain').touch()
  assert path.stat().st_mode == (path.parent / 'plain').stat().st_mode


def _write(path, change_tensors=None, **metadata):
  """Writes the file again with other tensors or metadata (None: without)."""
  tensors = safetensors.numpy.load_file(path)
  (change_tensors or (lambda _: None))(tensors)
  with safetensors.safe_open(path, 'numpy') as file:
    found = {**file.metadata(), **metadata}
  found = {name: text for name, text in found.items() if text is not None}
  safetensors.numpy.save_file(tensors, path, found)


def _change(path, key, value):
  with safetensors.safe_open(path, 'numpy') as file:
    config = json.loads(file.metadata()['config'])
  _write(path, config=json.dumps(config | {key: value}))


def test_wrong_shapes_are_listed_on_both_sides(path):
  def change(tensors):
    tensors['conv1/kernel'] = np.zeros((11, 11, 3, 24), np.float32)
    del tensors['fc7/bias']
    tensors['conv9/bias'] = np.zeros(2, np.float32)

  _write(path, change)
  with pytest.raises(ValueError, match='does not hold') as error:
    weights_lib.load(path)
  lines = str(error.value).splitlines()
  assert len(lines) == 2
  assert lines[1] == (
    'conv1/kernel is (11, 11, 3, 24) there, but (11, 11, 3, 12) in the net;'
    ' conv9/bias is (2,) there, but not used in the net;'
    ' fc7/bias is missing there, but (16,) in the net'
  )


def test_many_wrong_shapes_are_counted(path):
  _change(path, 'model.num_towers', 1)
  _change(path, 'model.conv_features', [8, 8, 8, 8, 8])
  with pytest.raises(ValueError, match=r'; and \d more$') as error:
    weights_lib.load(path)
  assert len(str(error.value).splitlines()) == 2


def _unprintable(tensors):
  tensors['a\nb\nc'] = np.zeros(2, np.float32)


def _classless(path):
  _write(path, class_names='[]')
  _change(path, 'model.num_classes', 0)


def _nan(tensors):
  tensors['fc7/bias'][3] = np.nan


def _half(tensors):
  tensors['fc7/bias'] = tensors['fc7/bias'].astype(np.float16)


def _small_mean(tensors):
  tensors['mean_image'] = np.zeros((8, 8, 3), np.float32)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda path: path.write_bytes(b''), 'no whole .safetensors file'),
    (lambda path: path.write_bytes(b'\xff' * 64), 'no whole .safetensors file'),
    (
      lambda path: path.write_bytes(path.read_bytes()[:-1]),
      'no whole .safetensors file',
    ),
    (lambda path: _write(path, format=None), 'alexnet_jax.convert'),
    (lambda path: _write(path, config=None), 'KeyError'),
    (lambda path: _write(path, config='['), 'JSONDecodeError'),
    (lambda path: _write(path, config='[1]'), 'damaged or of another version'),
    (lambda path: _write(path, class_names='["a"]'), '1 class names for 10'),
    (lambda path: _write(path, class_names='7'), 'damaged'),
    (_classless, '0 class names for 0'),
    (lambda path: _change(path, 'model.num_classes', 10**30), 'damaged'),
    (lambda path: _change(path, 'model.conv1_kernel', 10**12), 'damaged'),
    (lambda path: _change(path, 'input.image_size', 30_000), 'over 4096'),
    (lambda path: _change(path, 'model.conv1_kernel', 11.5), 'damaged'),
    (
      lambda path: _change(path, 'model.num_classes', -1),
      'must not be negative',
    ),
    (lambda path: _change(path, 'model.conv_features', 'x'), 'damaged'),
    (lambda path: _change(path, 'input.image_size', 500), 'mean_image'),
    (lambda path: _write(path, _small_mean), 'lacks mean_image of shape'),
    (lambda path: _write(path, _unprintable), 'cannot be printed'),
    (lambda path: _write(path, _nan), 'fc7/bias must be finite'),
    (lambda path: _write(path, _half), 'fc7/bias must be finite float32'),
  ],
)
def test_damaged_and_hostile_files_are_one_error(path, change, message):
  change(path)
  with pytest.raises(ValueError, match=message) as error:
    weights_lib.load(path)
  assert len(str(error.value).splitlines()) <= 3
  assert str(path) in str(error.value)


def test_what_is_no_file_of_fitting_size_is_not_opened(path, monkeypatch):
  pipe = path.with_name('pipe.safetensors')
  os.mkfifo(pipe)
  with pytest.raises(ValueError, match='is not a file'):
    weights_lib.load(pipe)
  monkeypatch.setattr(weights_lib, 'MAX_BYTES', 1000)
  with pytest.raises(ValueError, match='more than the 1000'):
    weights_lib.load(path)


def test_the_shapes_of_the_paper_hold_60_million_parameters():
  from configs import paper

  shapes = weights_lib.shapes(paper.get_config())
  assert sum(map(np.prod, shapes.values())) == 60_965_224
  assert shapes['conv2/kernel'] == (5, 5, 48, 256)
