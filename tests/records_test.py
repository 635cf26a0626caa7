"""Stored examples: records that cannot be used stop a run or are masked."""

import contextlib
import itertools

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import cache as cache_lib
from alexnet_jax import input_pipeline
from alexnet_jax import records
from benchmarks.faults import records as shards
from tests.dataset_test import prepare_painted

BAD = 5  # Row of the training split.


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return prepare_painted(tmp_path_factory.mktemp('painted'))


@pytest.fixture
def damage(dataset):
  """Function that changes the record `BAD`; undone after the test."""
  (shard,) = dataset.path.glob('painted-train.array_record*')
  before = shard.read_bytes()

  def change(edit):
    contents = shards.read_shard(shard)
    example = tf_example_pb2.Example.FromString(contents[BAD])
    content = edit(example.features.feature)
    contents[BAD] = content or example.SerializeToString(deterministic=True)
    shards.write_shard(shard, contents)

  yield change
  shard.write_bytes(before)


def set_label(label):
  def edit(feature):
    feature['label'].int64_list.value[0] = label

  return edit


def remove(name):
  return lambda feature: feature.pop(name) and None


def set_bytes(name, content):
  def edit(feature):
    feature[name].bytes_list.value[0] = content

  return edit


DAMAGES = {
  'negative': (set_label(-1), 'label -1 of train/.* is none of 3 classes'),
  'too large': (set_label(3), 'label 3 of train/.* is none of 3 classes'),
  'overflow': (set_label(2**31), 'label 2147483648 of train/'),
  'huge': (set_label(2**62), 'is none of 3 classes'),
  'no label': (remove('label'), 'has no image or no label'),
  'no image': (remove('image'), 'has no image or no label'),
  'no name': (remove('file_name'), 'has no file name'),
  'name': (set_bytes('file_name', b'\xff'), 'has no file name'),
  'noise': (lambda _: b'\xff' * 50, ''),
  'text': (set_bytes('image', b'%!PS-Adobe-3.0 EPSF-3.0\n'), 'cannot decode'),
}


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_record_that_cannot_be_used_is_one_line(dataset, damage, kind):
  edit, reason = DAMAGES[kind]
  damage(edit)
  out = np.ones(dataset.mean_image.shape, np.uint8)
  place = r'painted-train\.array_record-00000-of-00001, record 5: '
  with pytest.raises(ValueError, match=f'{place}.*{reason}') as error:
    records.Records(dataset, 'train').decode(BAD, out)
  if kind == 'noise':
    assert 'is damaged' in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  stored = records.Records(dataset, 'train', 1)
  assert stored.decode(BAD, out) == records.MASKED and not out.any()


def take(dataset, max_bad, cache=None):
  batches = input_pipeline.train_batches(
    dataset,
    'train',
    batch_size=6,
    seed=0,
    start_step=0,
    max_bad_records=max_bad,
    cache=cache,
  )
  with contextlib.closing(batches):
    return list(itertools.islice(batches, 8))  # Two epochs.


@pytest.mark.parametrize('cached', [False, True])
@pytest.mark.parametrize('kind', ['negative', 'too large', 'noise', 'text'])
def test_up_to_a_number_bad_records_are_masked_and_all_others_stay(
  dataset, damage, caplog, kind, cached
):
  expected = take(dataset, 0)
  damage(DAMAGES[kind][0])
  with pytest.raises(ValueError, match='record 5'):
    take(dataset, 0)
  cache = cache_lib.Cache(23, 8) if cached else None
  found = take(dataset, 1, cache)
  stack = lambda name, batches: np.concatenate([b[name] for b in batches])
  mask = stack('mask', found)
  orders = [np.random.default_rng((0, e)).permutation(23) for e in range(3)]
  np.testing.assert_array_equal(mask, np.concatenate(orders)[:48] != BAD)
  for name in ('image', 'label'):
    kept = stack(name, expected) * mask.reshape(
      -1, *[1] * (name == 'image') * 3
    )
    np.testing.assert_array_equal(stack(name, found), kept)
  assert [line.count('record 5') for line in caplog.messages] == [1]


def test_evaluation_counts_whole_records_and_names_keep_their_rows(
  dataset, damage
):
  damage(set_label(7))
  stored = records.Records(dataset, 'train')
  assert [*stored.rows(23)] == [*range(23)]
  assert stored.rows(22) == [row for row in range(23) if row != BAD]
