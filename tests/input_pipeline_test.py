"""The host half: order, decoding, buffers and messages.

The oracle is a data set whose image number i is filled with the colour (i, i,
255 - i) and has the label i % 3, so that a batch tells what it holds; decoding
is compared with Pillow, the stored data set with plain tfds.
"""

import concurrent.futures
import contextlib
import gc
import itertools
import mmap
import shutil
import threading
import time
import unittest.mock

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax.prepare import prepare

NUM_TRAIN, NUM_VAL, SIZE = 23, 10, 8


def _prepare(folder, name='painted'):
  for part, count in (('train', NUM_TRAIN), ('val', NUM_VAL)):
    for i in range(count):
      path = folder / 'images' / part / f'class{i % 3}' / f'{i:02d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (SIZE, SIZE), (i, i, 255 - i)).save(path)
  prepare.prepare(f'folder:{folder / "images"}', name, folder, size=SIZE)
  return dataset_lib.open_dataset(folder, name)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return _prepare(tmp_path_factory.mktemp('painted'))


def _take(dataset, count, *, batch_size=5, seed=0, start_step=0, rows=None):
  batches = input_pipeline.train_batches(
    dataset,
    'train',
    batch_size=batch_size,
    seed=seed,
    start_step=start_step,
    rows=rows,
  )
  with contextlib.closing(batches):
    return list(itertools.islice(batches, count))


def _numbers(batches):
  """The numbers of the examples, checked against pixels and labels."""
  images = np.concatenate([batch['image'] for batch in batches])
  numbers = images[:, 0, 0, 0].astype(int)
  expected = np.stack([numbers, numbers, 255 - numbers], -1)[:, None, None]
  assert (images == expected).all()
  labels = np.concatenate([batch['label'] for batch in batches])
  np.testing.assert_array_equal(labels, numbers % 3)
  return numbers.tolist()


def _wait_until(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    gc.collect()
    time.sleep(0.01)


def test_each_epoch_is_another_permutation_of_all_examples(dataset):
  numbers = _numbers(_take(dataset, NUM_TRAIN))  # 5 epochs of 23 examples.
  epochs = np.reshape(numbers, (5, NUM_TRAIN))
  assert (np.sort(epochs, axis=1) == np.arange(NUM_TRAIN)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 5


def test_the_last_batch_is_filled_from_the_next_epochs_order(dataset):
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
  # Not even of different epochs: chance lets two of 9 agree in 1e-21.
  assert len(set(orders)) == 9


@pytest.mark.parametrize('start', [1, 4, 7])
def test_a_stream_started_at_a_step_goes_on_like_the_uninterrupted_one(
  dataset, start
):
  whole = _take(dataset, 10)
  resumed = _take(dataset, 10 - start, start_step=start)
  assert _numbers(resumed) == _numbers(whole[start:])


def test_batches_have_the_shared_names_shapes_and_types(dataset):
  (batch,) = _take(dataset, 1)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'image': ((5, SIZE, SIZE, 3), np.uint8),
    'label': ((5,), np.int32),
    'mask': ((5,), np.bool_),
  }


@pytest.mark.parametrize('batch_size', [4, 5, 16])
def test_evaluation_holds_every_example_once_and_masks_the_tail(
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
  """No buffer is zero when it is taken."""
  take = input_pipeline.BufferPool.take

  def take_used(pool):
    array = take(pool)
    array[:] = 7
    return array

  monkeypatch.setattr(input_pipeline.BufferPool, 'take', take_used)


def test_the_tail_is_zero_also_in_a_used_buffer(dataset, used_buffers):
  batches = input_pipeline.eval_batches(dataset, 'validation', batch_size=16)
  (batch,) = batches
  assert not batch['image'][NUM_VAL:].any()


def _assert_rows(found, whole, rows):
  for part, batch in zip(found, whole, strict=True):
    assert part.keys() == batch.keys()
    for key in part:
      expected = batch[key][rows]
      np.testing.assert_array_equal(part[key], expected, strict=True)


@pytest.mark.parametrize('rows', [[0, 1], [2, 3, 4], [1, 3], [4]], ids=str)
def test_some_rows_of_training_are_those_of_the_whole_batches(dataset, rows):
  # Batches 4 and 9 span the ends of the first epochs, after 23 and 46 examples.
  whole = _take(dataset, 10)
  _assert_rows(_take(dataset, 10, rows=np.array(rows)), whole, rows)
  resumed = _take(dataset, 7, start_step=3, rows=np.array(rows))
  _assert_rows(resumed, whole[3:], rows)
  assert (
    _numbers(resumed)
    == np.ravel(np.reshape(_numbers(whole), (10, 5))[3:, rows]).tolist()
  )


@pytest.mark.parametrize(
  'batch_size, rows, kept',
  [
    (4, [0, 1], 6),
    (4, [1, 2], 5),  # The last batch: one example, one padding.
    (4, [2, 3], 4),  # The last batch: padding alone.
    (4, [1, 3], 5),
    (16, [12, 13, 14, 15], 0),  # Nothing but padding.
  ],
  ids=str,
)
def test_some_rows_of_evaluation_are_those_of_the_whole_batches(
  dataset, used_buffers, batch_size, rows, kept
):
  whole, found = (
    list(
      input_pipeline.eval_batches(
        dataset, 'validation', batch_size=batch_size, rows=some
      )
    )
    for some in (None, np.array(rows))
  )
  _assert_rows(found, whole, rows)
  assert sum(batch['mask'].sum() for batch in found) == kept


def test_only_the_rows_asked_for_are_read_and_decoded(dataset, monkeypatch):
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
    dataset, 'validation', batch_size=4, rows=np.array([1, 3])
  )
  found = list(batches)
  assert sorted(reads) == [1, 3, 5, 7, 9]  # Of 10.
  real = np.concatenate([batch['image'][batch['mask']] for batch in found])
  assert sorted(decodes) == sorted(real[:, 0, 0, 0].tolist())
  reads.clear()
  decodes.clear()
  _take(dataset, 3, rows=np.array([1, 3]))
  # Three batches and the few that were read ahead, half of their rows.
  assert 6 <= len(decodes) <= len(reads) <= 2 * (3 + 4)


def test_open_dataset_reads_the_facts(dataset):
  assert dataset.class_names == ('class0', 'class1', 'class2')
  assert dataset.num_examples == {'train': NUM_TRAIN, 'validation': NUM_VAL}
  assert dataset.image_size == SIZE
  np.testing.assert_array_equal(
    dataset.mean_image, np.full((SIZE, SIZE, 3), [11, 11, 244], np.float32)
  )
  # The variance of 0, ..., 22 is (23 ** 2 - 1) / 12 = 44; exact in float64 up
  # to the rounding of E[x^2] - E[x]^2, 1e-16 * 244 ** 2.
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
    f' --size=SIZE --data_dir={tmp_path}, SIZE being config.input.image_size'
  )


FACTS = {
  'mean_image': np.zeros((SIZE, SIZE, 3)),
  'rgb_covariance': np.eye(3),
  'fingerprint': 'f',
}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'mean_image': np.zeros((9, 9, 3))}, r'mean image of \(9, 9, 3\)'),
    ({'rgb_covariance': np.eye(2)}, r'covariance of \(2, 2\)'),
    ({'mean_image': FACTS['mean_image'] - 1}, 'no image of 0..255'),
    ({'mean_image': FACTS['mean_image'] + 256}, 'no image of 0..255'),
    ({'mean_image': FACTS['mean_image'] * np.nan}, 'no image of 0..255'),
    ({'rgb_covariance': np.full((3, 3), np.inf)}, 'no image of 0..255'),
    ({'fingerprint': None}, 'damaged .*fingerprint'),
    ({'mean_image': None}, 'damaged .*mean_image'),
  ],
)
def test_statistics_that_do_not_fit_the_images_are_named(
  dataset, tmp_path, change, message
):
  path = tmp_path / dataset.path.parent.name / dataset.path.name
  shutil.copytree(dataset.path, path)
  file = path / dataset_lib.STATISTICS_FILE
  facts = {k: v for k, v in (FACTS | change).items() if v is not None}
  np.savez(file, **facts)
  with pytest.raises(ValueError, match=f'{file} .*{message}') as error:
    dataset_lib.open_dataset(tmp_path, path.parent.name)
  assert 'prepare it again' in str(error.value)


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
    'c.split=holdout',
  ]
  assert 'of 8 pixels' in lines[0] and '--size=256' in lines[0]
  assert 'has 3 classes' in lines[1]
  assert lines[2].endswith('one of its splits train, validation')
  assert all(str(dataset.path) in line for line in lines)


def test_an_undecodable_record_is_named(tmp_path, monkeypatch):
  encode = images.encode

  def damage(encoded, *args):
    stored, pixels = encode(encoded, *args)
    return (stored[:40] if pixels[0, 0, 0] == 7 else stored), pixels

  monkeypatch.setattr(images, 'encode', damage)
  dataset = _prepare(tmp_path)
  with pytest.raises(
    ValueError,
    match=r'cannot decode train/class1/07\.png .*data set is damaged: remove',
  ):
    _take(dataset, 5)


def test_a_flipped_bit_in_a_shard_is_reported_as_damage(tmp_path):
  dataset = _prepare(tmp_path)
  (shard,) = dataset.path.glob('painted-train.array_record*')
  stored = bytearray(shard.read_bytes())
  stored[stored.index(b'IDAT') + 6] ^= 1
  shard.write_bytes(stored)
  with pytest.raises(ValueError, match='data set is damaged: remove it'):
    _take(dataset, 5)


# Memory that comes back is known by its contents: the system gives fresh
# memory the same address again, but zeroed.
def test_the_pool_reuses_memory_once_it_is_free():
  pool = input_pipeline.BufferPool((4, 8, 8, 3))
  array = pool.take()
  array[:] = 1
  del array
  assert (pool.take() == 1).all()


def test_the_pool_keeps_memory_while_a_view_of_a_view_lives():
  pool = input_pipeline.BufferPool((4, 8, 8, 3))
  array = pool.take()
  array[:] = 1
  view = array[1:].reshape(3, -1)[:, ::2]
  del array
  pool.take()[:] = 2
  assert (view == 1).all()
  del view
  assert (pool.take() == 1).all()


def test_device_put_aliases_a_buffer_and_the_pool_waits_for_the_array():
  pool = input_pipeline.BufferPool((4, 8, 8, 3))
  array = pool.take()
  address = array.ctypes.data
  assert address % 64 == 0
  array[:] = 1
  on_device = jax.device_put(array, jax.devices()[0]).block_until_ready()
  # Without the alias this test would not see the trap.
  assert on_device.unsafe_buffer_pointer() == address
  del array
  gc.collect()
  other = pool.take()
  assert other.ctypes.data != address
  other[:] = 2
  assert (np.asarray(on_device) == 1).all()
  del on_device, other
  _wait_until(lambda: any((a == 1).all() for a in (pool.take(), pool.take())))


@pytest.mark.parametrize('num_devices', [1, 4])
def test_kept_device_batches_stay_right_while_buffers_are_reused(
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
  monkeypatch.setattr(input_pipeline.mmap, 'mmap', allocate)
  stream = input_pipeline.prefetch_to_device(batches, put)
  kept = {}
  with contextlib.closing(stream):
    for i, batch in enumerate(itertools.islice(stream, 60)):
      if i % 4 == 0:
        kept[i] = batch
  # 15 are kept, and a few under way; the others were reused.
  assert 15 < allocate.call_count < 40
  for i, batch in kept.items():
    numbers = _numbers([jax.tree.map(np.asarray, batch)])
    assert numbers == expected[8 * i : 8 * i + 8]


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_prefetch_keeps_the_order_and_depth_batches_ahead(depth):
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
  _wait_until(lambda: not set(threading.enumerate()) - before)
  assert executors


def test_a_finished_evaluation_ends_its_threads(dataset, executors):
  before = set(threading.enumerate())
  for _ in input_pipeline.eval_batches(dataset, 'validation', batch_size=4):
    pass
  _wait_until(lambda: not set(threading.enumerate()) - before)
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
