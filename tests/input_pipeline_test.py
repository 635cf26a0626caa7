"""The input pipeline: order of examples, batches, buffers and messages.

The data set is made up: image i is filled with the colour (i, i, 255 - i) and
has the label i % 3, so a batch shows which examples it has. Prepared data sets
are compared with what TensorFlow Datasets reads from them.
"""

import concurrent.futures
import contextlib
import itertools
import mmap
import threading
import unittest.mock

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest
import tensorflow_datasets as tfds

from alexnet_jax import buffer_pool
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax import records
from alexnet_jax.runtime import processes
from tests.buffer_pool_test import wait_until
from tests.dataset_test import NUM_TRAIN
from tests.dataset_test import NUM_VAL
from tests.dataset_test import SIZE
from tests.dataset_test import prepare_painted


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return prepare_painted(tmp_path_factory.mktemp('painted'))


def _take(
  dataset, count, *, batch_size=5, seed=0, start_step=0, batch_indices=None
):
  batches = input_pipeline.train_batches(
    dataset,
    'train',
    batch_size=batch_size,
    seed=seed,
    start_step=start_step,
    batch_indices=batch_indices,
  )
  with contextlib.closing(batches):
    return list(itertools.islice(batches, count))


def _numbers(batches):
  """The numbers of the examples in batches; checks all pixels and labels."""
  images = np.concatenate([batch['image'] for batch in batches])
  numbers = images[:, 0, 0, 0].astype(int)
  expected = np.stack([numbers, numbers, 255 - numbers], -1)[:, None, None]
  assert (images == expected).all()
  labels = np.concatenate([batch['label'] for batch in batches])
  np.testing.assert_array_equal(labels, numbers % 3)
  return numbers.tolist()


def test_each_epoch_is_another_permutation_of_all_examples(dataset):
  numbers = _numbers(_take(dataset, NUM_TRAIN))  # 5 epochs of 23 examples.
  epochs = np.reshape(numbers, (5, NUM_TRAIN))
  assert (np.sort(epochs, axis=1) == np.arange(NUM_TRAIN)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 5


def test_the_last_batch_of_an_epoch_is_filled_from_the_next_epoch(dataset):
  epochs = _take(dataset, 2, batch_size=NUM_TRAIN)
  batches = _take(dataset, 5)
  assert _numbers(batches[-1:]) == (
    _numbers(epochs[:1])[-3:] + _numbers(epochs[1:])[:2]
  )
  assert all(batch['mask'].all() for batch in batches)


def test_a_batch_may_span_epochs(dataset):
  (batch,) = _take(dataset, 1, batch_size=2 * NUM_TRAIN)
  counts = np.bincount(_numbers([batch]))
  np.testing.assert_array_equal(counts, np.full(NUM_TRAIN, 2))


def test_the_order_is_a_function_of_the_seed(dataset):
  orders = [_numbers(_take(dataset, 3, seed=seed)) for seed in (1, 1, 2)]
  assert orders[0] == orders[1] != orders[2]


def test_no_two_seeds_share_the_order_of_an_epoch(dataset):
  orders = [
    tuple(_numbers([batch]))
    for seed in range(3)
    for batch in _take(dataset, 3, batch_size=NUM_TRAIN, seed=seed)
  ]
  # All epochs of all seeds differ; two of 9 agree by chance in 1e-21.
  assert len(set(orders)) == 9


@pytest.mark.parametrize('start', [1, 4, 7])
def test_a_stream_started_at_a_step_equals_the_rest_of_the_whole_stream(
  dataset, start
):
  whole = _take(dataset, 10)
  resumed = _take(dataset, 10 - start, start_step=start)
  assert _numbers(resumed) == _numbers(whole[start:])


def test_batches_have_the_documented_names_shapes_and_types(dataset):
  (batch,) = _take(dataset, 1)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'image': ((5, SIZE, SIZE, 3), np.uint8),
    'label': ((5,), np.int32),
    'mask': ((5,), np.bool_),
  }


@pytest.mark.parametrize('batch_size', [4, 5, 16])
def test_evaluation_has_every_example_once_and_masks_the_padding(
  dataset, batch_size
):
  batches = list(
    input_pipeline.eval_batches(dataset, 'validation', batch_size=batch_size)
  )
  assert {len(batch['image']) for batch in batches} == {batch_size}
  mask = np.concatenate([batch['mask'] for batch in batches])
  assert (mask == (np.arange(len(mask)) < NUM_VAL)).all()
  assert len(mask) - NUM_VAL < batch_size
  real = {
    key: np.concatenate([batch[key] for batch in batches])[mask]
    for key in ('image', 'label')
  }
  assert sorted(_numbers([real])) == list(range(NUM_VAL))
  for key in ('image', 'label'):
    tail = np.concatenate([batch[key] for batch in batches])[~mask]
    assert not tail.any()


@pytest.fixture
def used_buffers(monkeypatch):
  """Makes every buffer look used: not zero when it is taken."""
  take = buffer_pool.BufferPool.take

  def take_used(pool):
    array = take(pool)
    array[:] = 7
    return array

  monkeypatch.setattr(buffer_pool.BufferPool, 'take', take_used)


def test_padding_is_zero_even_in_a_reused_buffer(dataset, used_buffers):
  batches = input_pipeline.eval_batches(dataset, 'validation', batch_size=16)
  (batch,) = batches
  assert not batch['image'][NUM_VAL:].any()


def _assert_part(found, whole, indices):
  for part, batch in zip(found, whole, strict=True):
    assert part.keys() == batch.keys()
    for key in part:
      expected = batch[key][indices]
      np.testing.assert_array_equal(part[key], expected, strict=True)


@pytest.mark.parametrize('indices', [[0, 1], [2, 3, 4], [1, 3], [4]], ids=str)
def test_some_indices_of_training_batches_equal_those_of_the_whole_batches(
  dataset, indices
):
  # Batches 4 and 9 span the ends of the first epochs, after 23 and 46 examples.
  whole = _take(dataset, 10)
  _assert_part(
    _take(dataset, 10, batch_indices=np.array(indices)), whole, indices
  )
  resumed = _take(dataset, 7, start_step=3, batch_indices=np.array(indices))
  _assert_part(resumed, whole[3:], indices)
  assert (
    _numbers(resumed)
    == np.ravel(np.reshape(_numbers(whole), (10, 5))[3:, indices]).tolist()
  )


@pytest.mark.parametrize(
  'batch_size, indices, kept',
  [
    (4, [0, 1], 6),
    (4, [1, 2], 5),  # In the last batch one example, one padding.
    (4, [2, 3], 4),  # In the last batch only padding.
    (4, [1, 3], 5),
    (16, [12, 13, 14, 15], 0),  # Only padding.
  ],
  ids=str,
)
def test_some_indices_of_evaluation_batches_equal_those_of_the_whole_ones(
  dataset, used_buffers, batch_size, indices, kept
):
  whole, found = (
    list(
      input_pipeline.eval_batches(
        dataset, 'validation', batch_size=batch_size, batch_indices=some
      )
    )
    for some in (None, np.array(indices))
  )
  _assert_part(found, whole, indices)
  assert sum(batch['mask'].sum() for batch in found) == kept


def test_only_the_requested_indices_are_read_and_decoded(dataset, monkeypatch):
  builder = tfds.builder_from_directory(dataset.path)
  source = type(builder.as_data_source('validation').data_source)
  read, decode = source.__getitem__, images.decode
  reads, decodes = [], []

  def count_read(self, number):
    reads.append(number)
    return read(self, number)

  def count_decode(encoded, out):
    decode(encoded, out)
    decodes.append(int(out[0, 0, 0]))

  monkeypatch.setattr(source, '__getitem__', count_read)
  monkeypatch.setattr(images, 'decode', count_decode)
  batches = input_pipeline.eval_batches(
    dataset, 'validation', batch_size=4, batch_indices=np.array([1, 3])
  )
  found = list(batches)
  assert sorted(reads) == [1, 3, 5, 7, 9]  # Half of 10 examples.
  real = np.concatenate([batch['image'][batch['mask']] for batch in found])
  assert sorted(decodes) == sorted(real[:, 0, 0, 0].tolist())
  reads.clear()
  decodes.clear()
  _take(dataset, 3, batch_indices=np.array([1, 3]))
  # Two examples of each of three batches, and of a few that were read ahead.
  assert 6 <= len(decodes) <= len(reads) <= 2 * (3 + 4)


@pytest.mark.parametrize(
  ('cores', 'batch_size', 'num_tasks'),
  [(2, 128, 2), (112, 5, 16), (112, 128, 16), (112, 240, 30), (20, 240, 20)],
)
def test_many_threads_read_a_batch_in_few_tasks(
  dataset, monkeypatch, cores, batch_size, num_tasks
):
  (expected,) = _take(dataset, 1, batch_size=batch_size)
  monkeypatch.setattr(processes, 'available_cores', lambda: cores)
  stored = records.Records(dataset, 'train')
  loader = input_pipeline._BatchLoader(stored, dataset, batch_size, None, None)
  submit = unittest.mock.Mock(side_effect=loader._threads.submit)
  monkeypatch.setattr(loader._threads, 'submit', submit)
  indices = input_pipeline.train_indices(NUM_TRAIN, 0, batch_size, 0)
  with contextlib.closing(loader):
    assert _numbers([loader(indices)]) == _numbers([expected])
  assert submit.call_count == num_tasks


def test_an_undecodable_record_is_named(tmp_path, monkeypatch):
  encode = images.encode

  def damage(encoded, *args):
    stored, pixels = encode(encoded, *args)
    return (stored[:40] if pixels[0, 0, 0] == 7 else stored), pixels

  monkeypatch.setattr(images, 'encode', damage)
  dataset = prepare_painted(tmp_path)
  with pytest.raises(
    ValueError,
    match=r'cannot decode train/class1/07\.png .*data set is damaged: remove',
  ):
    _take(dataset, 5)


def test_a_flipped_bit_in_a_shard_is_reported_as_damage(tmp_path):
  dataset = prepare_painted(tmp_path)
  (shard,) = dataset.path.glob('painted-train.array_record*')
  stored = bytearray(shard.read_bytes())
  stored[stored.index(b'IDAT') + 6] ^= 1
  shard.write_bytes(stored)
  with pytest.raises(ValueError, match='data set is damaged: remove it'):
    _take(dataset, 5)


@pytest.mark.parametrize('num_devices', [1, 4])
def test_batches_on_devices_stay_intact_while_buffers_are_reused(
  dataset, num_devices, monkeypatch
):
  mesh = jax.make_mesh(
    (num_devices,),
    ('data',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:num_devices],
  )

  def put(batch):
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec('data')))

  expected = _numbers(_take(dataset, 60, batch_size=8))
  batches = input_pipeline.train_batches(
    dataset, 'train', batch_size=8, seed=0, start_step=0
  )
  allocate = unittest.mock.Mock(side_effect=mmap.mmap)
  monkeypatch.setattr(mmap, 'mmap', allocate)
  stream = input_pipeline.prefetch_to_device(batches, put)
  kept = {}
  with contextlib.closing(stream):
    for i, batch in enumerate(itertools.islice(stream, 60)):
      if i % 4 == 0:
        kept[i] = batch
  # 15 batches are kept and a few are under way; other buffers were reused.
  assert 15 < allocate.call_count < 40
  for i, batch in kept.items():
    numbers = _numbers([jax.tree.map(np.asarray, batch)])
    assert numbers == expected[8 * i : 8 * i + 8]


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_prefetch_stays_depth_batches_ahead_and_keeps_the_order(depth):
  sent = []

  def put(batch):
    sent.append(batch['label'])
    return batch['label']

  batches = ({'label': np.array(i)} for i in range(6))
  for i, label in enumerate(
    input_pipeline.prefetch_to_device(batches, put, depth)
  ):
    assert label == i
    assert [int(s) for s in sent] == list(range(min(i + 1 + depth, 6)))
  assert i == 5


@pytest.fixture
def executors(monkeypatch):
  """Keeps every thread pool alive, so that only closing it ends its threads."""
  kept = []
  make = concurrent.futures.ThreadPoolExecutor

  def keep(*args, **kwargs):
    kept.append(make(*args, **kwargs))
    return kept[-1]

  monkeypatch.setattr(concurrent.futures, 'ThreadPoolExecutor', keep)
  return kept


def test_closing_the_stream_ends_its_threads(dataset, executors):
  before = set(threading.enumerate())
  batches = input_pipeline.train_batches(
    dataset, 'train', batch_size=5, seed=0, start_step=0
  )
  stream = input_pipeline.prefetch_to_device(batches, jax.device_put)
  next(stream)
  assert set(threading.enumerate()) - before
  stream.close()
  wait_until(lambda: not set(threading.enumerate()) - before)
  assert executors


def test_a_finished_evaluation_ends_its_threads(dataset, executors):
  before = set(threading.enumerate())
  for _ in input_pipeline.eval_batches(dataset, 'validation', batch_size=4):
    pass
  wait_until(lambda: not set(threading.enumerate()) - before)
  assert executors


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_a_prepared_dataset_is_an_ordinary_tfds_dataset(dataset, split):
  source = tfds.builder_from_directory(dataset.path).as_data_source(split)
  batches = input_pipeline.eval_batches(dataset, split, batch_size=1)
  for example, batch in zip(source, batches, strict=True):
    np.testing.assert_array_equal(example['image'], batch['image'][0])
    assert example['label'] == batch['label'][0]
    number = int(example['image'][0, 0, 0])
    part = 'train' if split == 'train' else 'val'
    name = f'{part}/class{number % 3}/{number:02d}.png'
    assert example['file_name'].decode() == name
