"""Opening a prepared data set, and checking it against a config."""

import dataclasses
import os
import pathlib
import shlex
import shutil

import numpy as np
from PIL import Image
import pytest

from alexnet_jax import dataset as dataset_lib
from alexnet_jax.prepare import prepare
from alexnet_jax.prepare import verify
from alexnet_jax.runtime import digests
from benchmarks.faults import damage

NUM_TRAIN, NUM_VAL, SIZE = 23, 10, 8


def prepare_painted(folder, name='painted'):
  for part, count in (('train', NUM_TRAIN), ('val', NUM_VAL)):
    for i in range(count):
      path = folder / 'images' / part / f'class{i % 3}' / f'{i:02d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (SIZE, SIZE), (i, i, 255 - i)).save(path)
  prepare.prepare(f'folder:{folder / "images"}', name, folder, size=SIZE)
  return dataset_lib.open_dataset(folder, name)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return prepare_painted(tmp_path_factory.mktemp('painted'))


def test_open_dataset_reads_what_preparation_wrote(dataset):
  assert dataset.class_names == ('class0', 'class1', 'class2')
  assert dataset.num_examples == {'train': NUM_TRAIN, 'validation': NUM_VAL}
  assert dataset.image_size == SIZE
  np.testing.assert_array_equal(
    dataset.mean_image, np.full((SIZE, SIZE, 3), [11, 11, 244], np.float32)
  )
  # The variance of 0, ..., 22 is (23 ** 2 - 1) / 12 = 44. float64 rounds
  # E[x^2] - E[x]^2 by 1e-16 * 244 ** 2.
  sign = np.array([1, 1, -1])
  np.testing.assert_allclose(
    dataset.rgb_covariance, 44 * np.outer(sign, sign), rtol=1e-10
  )


def test_opening_a_missing_dataset_says_how_to_prepare_it(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    dataset_lib.open_dataset(tmp_path, 'flowers')
  assert str(error.value) == (
    'no prepared data set config.input.dataset=flowers under'
    f' config.input.data_dir={tmp_path}; prepare it: python -m'
    ' alexnet_jax.prepare --source=folder:DIR --name=flowers'
    f' --size=256 --data_dir={tmp_path}, DIR being the folder of its images'
  )


def test_the_hint_for_a_missing_dataset_can_be_followed_as_printed(tmp_path):
  data_dir = tmp_path / "it's my data"
  prepare_painted(data_dir, 'flowers')
  with pytest.raises(FileNotFoundError) as error:
    dataset_lib.open_dataset(data_dir, 'digits', 76)
  message = str(error.value)
  assert f'data_dir={data_dir} (it holds flowers); prepare it: ' in message
  _, flag, *words = shlex.split(message.partition('prepare it: python ')[2])
  assert (flag, words) == (
    'alexnet_jax.prepare',
    ['--source=digits', '--name=digits', '--size=76', f'--data_dir={data_dir}'],
  )


@pytest.mark.parametrize('name', ['imagenet2012', 'flowers', 'digits'])
def test_no_placeholder_in_a_hint_is_left_unexplained(tmp_path, name):
  with pytest.raises(FileNotFoundError) as error:
    dataset_lib.open_dataset(tmp_path, name, 64)
  message = str(error.value).replace(str(tmp_path), '')
  assert '--size=64 ' in message and 'SIZE' not in message
  explained = ', DIR being the folder of its images'
  assert (
    (':DIR' in message) == message.endswith(explained) == (name != 'digits')
  )


FACTS = {
  'mean_image': np.zeros((SIZE, SIZE, 3)),
  'rgb_covariance': np.eye(3),
  'fingerprint': 'f',
}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'mean_image': np.zeros((9, 9, 3))}, r'mean image of shape \(9, 9, 3\)'),
    ({'rgb_covariance': np.eye(2)}, r'covariance of shape \(2, 2\)'),
    ({'mean_image': FACTS['mean_image'] - 1}, 'images of 0..255 cannot give'),
    ({'mean_image': FACTS['mean_image'] + 256}, 'images of 0..255 cannot give'),
    (
      {'mean_image': FACTS['mean_image'] * np.nan},
      'images of 0..255 cannot give',
    ),
    (
      {'rgb_covariance': np.full((3, 3), np.inf)},
      'images of 0..255 cannot give',
    ),
    ({'fingerprint': None}, 'damaged .*fingerprint'),
    ({'mean_image': None}, 'damaged .*mean_image'),
  ],
)
def test_statistics_that_do_not_fit_the_images_are_named(
  dataset, tmp_path, change, message
):
  path = tmp_path / dataset.path.parent.name / dataset.path.name
  shutil.copytree(dataset.path, path)
  (path / digests.FILE).unlink()  # Earlier versions wrote none.
  file = path / dataset_lib.STATISTICS_FILE
  facts = {k: v for k, v in (FACTS | change).items() if v is not None}
  np.savez(file, **facts)
  with pytest.raises(ValueError, match=f'{file} .*{message}') as error:
    dataset_lib.open_dataset(tmp_path, path.parent.name)
  assert 'prepare it again' in str(error.value)


@pytest.fixture
def copy(dataset, tmp_path):
  """The folder of a copy of the data set 'painted', prepared in `tmp_path`."""
  return shutil.copytree(dataset.path, tmp_path / 'painted/1.0.0')


SHARD = 'painted-train.array_record-00000-of-00001'
RECORD = 'preparation.json'


@pytest.mark.parametrize(
  ('name', 'change', 'problem'),
  [
    (
      'statistics.npz',
      damage.flip_middle,
      'has other content than was written',
    ),
    (
      'label.labels.txt',
      damage.flip_middle,
      'has other content than was written',
    ),
    (
      'dataset_info.json',
      damage.flip_middle,
      'has other content than was written',
    ),
    ('digests.json', damage.flip_middle, 'is damaged'),
    (SHARD, pathlib.Path.unlink, 'is missing'),
    (SHARD, lambda file: file.write_bytes(b''), 'has 0 bytes in place of '),
  ],
)
def test_what_is_not_as_it_was_prepared_is_refused_when_opened(
  copy, tmp_path, name, change, problem
):
  change(copy / name)
  with pytest.raises(ValueError, match=f'{name} {problem}.*copy, or') as error:
    dataset_lib.open_dataset(tmp_path, 'painted')
  assert '\n' not in str(error.value)


def test_a_data_set_that_is_opened_again_is_not_digested_again(
  copy, tmp_path, monkeypatch
):
  dataset_lib.open_dataset(tmp_path, 'painted')
  read, sha256 = [], digests.sha256
  monkeypatch.setattr(
    digests, 'sha256', lambda path: read.append(path.name) or sha256(path)
  )
  dataset_lib.open_dataset(tmp_path, 'painted')
  assert read == []
  (copy / 'note').touch()
  dataset_lib.open_dataset(tmp_path, 'painted')
  assert 'statistics.npz' in read and SHARD not in read


def test_opening_reads_no_shard_and_verifying_names_every_file(
  copy, tmp_path, capsys
):
  assert verify.verify('painted', tmp_path) == []
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f'{copy}: 7 files, 0.3 MB, read in ')
  assert line.endswith(' s; no problems')
  damage.flip_middle(copy / SHARD)
  dataset_lib.open_dataset(tmp_path, 'painted')
  (copy / RECORD).unlink()
  (copy / 'note').touch()
  problems = verify.verify('painted', tmp_path)
  assert problems == [
    f'{SHARD} has other content than was written',
    f'{RECORD} is missing',
    'note is extra',
  ]
  lines = capsys.readouterr().out.splitlines()
  assert lines[:3] == [f'{copy}: {problem}' for problem in problems]
  assert lines[3].endswith('; 3 problems')


def test_a_data_set_of_an_earlier_version_opens_but_cannot_be_verified(
  copy, tmp_path
):
  (copy / digests.FILE).unlink()
  damage.flip_middle(copy / RECORD)
  dataset_lib.open_dataset(tmp_path, 'painted')
  with pytest.raises(ValueError, match='nothing|no digests.json .*prepare it'):
    verify.verify('painted', tmp_path)
  with pytest.raises(FileNotFoundError, match='no prepared data set --name=x'):
    verify.verify('x', tmp_path)


def test_every_flipped_bit_of_a_data_set_is_found(copy, tmp_path):
  rng = np.random.default_rng(0)
  names = [path for path in copy.iterdir() if path.stat().st_size]
  for i in range(48):
    file = names[i % len(names)]
    before = file.read_bytes()
    damage.flip_bit(file, rng)
    try:
      found = verify.verify('painted', tmp_path)
    except ValueError as error:
      found = [str(error)]
    assert any(file.name in line for line in found)
    file.write_bytes(before)


def test_check_dataset_accepts_what_fits(dataset):
  dataset_lib.check_dataset(
    dataset,
    image_size=SIZE,
    num_classes=3,
    splits={'config.input.train_split': 'train'},
  )


def test_check_dataset_reports_all_mismatches_at_once(dataset):
  with pytest.raises(ValueError) as error:
    dataset_lib.check_dataset(
      dataset,
      image_size=256,
      num_classes=1000,
      splits={'a.split': 'test', 'b.split': 'train', 'c.split': 'holdout'},
    )
  lines = str(error.value).splitlines()
  assert [line.split(',')[0].split(' ')[0] for line in lines] == [
    'config.input.image_size=256',
    'config.model.num_classes=1000',
    'a.split=test',
  ]
  assert 'of 8 pixels' in lines[0] and '--size=256' in lines[0]
  assert 'has 3 classes' in lines[1]
  assert lines[2].startswith('a.split=test and c.split=holdout: no examples')
  assert lines[2].endswith('one of its splits train, validation')
  assert all(str(dataset.path) in line for line in lines)


@pytest.mark.parametrize(
  ('names', 'train_batch', 'eval_batch', 'expected'),
  [
    (('a', 'b'), 40, 39, []),
    (
      ('a', 'b'),
      41,
      39,
      ['config.input.batch_size=41 exceeds the 40 examples'],
    ),
    (('a', 'b'), 4, 40, ['config.eval.batch_size=40 is far above the 20 exam']),
    (('a',), 4, 4, ['has one class: with config.model.num_classes=1 the loss']),
    (
      ('a',),
      500,
      900,
      ['one class', 'config.input.batch', 'config.eval.batch'],
    ),
  ],
)
def test_each_size_that_makes_little_sense_is_one_warning(
  dataset, caplog, names, train_batch, eval_batch, expected
):
  small = dataclasses.replace(
    dataset, class_names=names, num_examples={'train': 40, 'validation': 20}
  )
  dataset_lib.warn_of_sizes(
    small,
    train_split='train',
    train_batch_size=train_batch,
    eval_split='validation',
    eval_batch_size=eval_batch,
  )
  found = [record.getMessage() for record in caplog.records]
  assert len(found) == len(expected)
  for message, words in zip(found, expected, strict=True):
    assert words in message and '; ' in message and '\n' not in message


def test_a_closed_file_is_named_and_not_taken_for_a_missing_one(
  dataset, monkeypatch
):
  closed = dataset.path / 'label.labels.txt'
  may = lambda path, _: path != closed  # For root nothing is closed.
  monkeypatch.setattr(os, 'access', may)
  data_dir = dataset.path.parents[1]
  with pytest.raises(PermissionError, match=f"Permission denied: '{closed}'"):
    dataset_lib.open_dataset(data_dir, dataset.path.parent.name)
