"""Cached batches: the same to the bit in all modes; what fits where.

The data set is that of dataset_test.py: 23 training images, 10 for validation.
"""

import collections
import contextlib
import dataclasses
import itertools
import logging

import jax
import numpy as np
import pytest

from alexnet_jax import cache as cache_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import run as run_lib
from alexnet_jax.runtime import memory
from configs import quickstart
from tests.dataset_test import NUM_TRAIN
from tests.dataset_test import NUM_VAL
from tests.dataset_test import SIZE
from tests.dataset_test import prepare_painted

EPOCH = -(-NUM_TRAIN // 8)  # In steps of 8 images.
GIB = 2**30


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('painted')
  prepare_painted(folder)
  return folder


@pytest.fixture
def config(folder):
  config = quickstart.get_config()
  config.model.num_classes = 3
  config.model.conv1_kernel = 3
  config.model.conv1_stride = 1
  config.model.conv1_padding = 20
  config.mesh.layout = 'data'  # Three classes.
  config.input.dataset = 'painted'
  config.input.data_dir = str(folder)
  config.input.eval_split = 'validation'
  config.input.image_size = SIZE
  config.input.crop_size = 7
  config.input.batch_size = 8
  config.eval.batch_size = 4
  return config


@pytest.fixture
def decoded(monkeypatch):
  """The first byte of every image that is decoded from now on."""
  decode, found = images.decode, []

  def count(encoded, out):
    decode(encoded, out)
    found.append(int(out[0, 0, 0]))

  monkeypatch.setattr(images, 'decode', count)
  return found


def open_on(mesh, config, mode):
  """The run on a mesh, with caches for it."""
  config.input.cache = 'none'
  run = run_lib.open_run(config)
  splits = (config.input.train_split, config.input.eval_split)
  caches = cache_lib.open_caches(mode, run.dataset, splits, mesh)
  return dataclasses.replace(run, mesh=mesh, caches=caches)


def take(batches, count=None):
  """Batches with the sharding, type and shards of their arrays."""
  facts = lambda x: (
    x.sharding,
    x.dtype,
    x.committed,
    [(shard.device, np.asarray(shard.data)) for shard in x.addressable_shards],
  )
  with contextlib.closing(batches), jax.transfer_guard('disallow'):
    taken = list(itertools.islice(batches, count))
  return [{name: facts(x) for name, x in batch.items()} for batch in taken]


def assert_same(found, expected):
  for batch, right in zip(found, expected, strict=True):
    assert batch.keys() == right.keys()
    for name in batch:
      *facts, shards = batch[name]
      *right_facts, right_shards = right[name]
      assert facts == right_facts
      for (device, x), (right_device, y) in zip(
        shards, right_shards, strict=True
      ):
        assert device == right_device
        np.testing.assert_array_equal(x, y, strict=True)


LAYOUTS = [(1, 'data'), (2, 'towers'), (4, 'towers'), (4, 'data')]


@pytest.mark.parametrize(('number', 'layout'), LAYOUTS)
@pytest.mark.parametrize('mode', ['host', 'device'])
def test_batches_are_the_same_as_without_a_cache(
  config, decoded, mode, number, layout
):
  mesh = mesh_lib.create_mesh(layout, 'auto', jax.devices()[:number])
  without, cached = (open_on(mesh, config, m) for m in ('none', mode))
  steps = 4 * EPOCH
  expected = take(without.train_batches(2), steps)
  evaluation = take(without.eval_batches())
  decoded.clear()
  assert_same(take(cached.train_batches(2), steps), expected)
  for _ in range(3):
    assert_same(take(cached.eval_batches()), evaluation)
  # No image more than once, in training or in evaluation; but two threads may
  # meet at the images that a batch at the end of an epoch has twice.
  colours = [*range(NUM_TRAIN), *range(NUM_VAL)]
  twice = collections.Counter(decoded) - collections.Counter(colours)
  assert {*decoded} == {*colours}
  assert twice.total() < config.input.batch_size
  once = len(decoded)
  # A run that resumes in the same process decodes nothing again.
  assert_same(take(cached.train_batches(4), steps - 2), expected[2:])
  assert len(decoded) == once


@pytest.mark.parametrize('mode', ['host', 'device'])
def test_a_batch_larger_than_the_split_is_the_same(config, decoded, mode):
  config.input.batch_size = 2 * NUM_TRAIN + 2  # Rows occur twice.
  expected = take(run_lib.open_run(config).train_batches(0), 3)
  config.input.cache = mode
  assert_same(take(run_lib.open_run(config).train_batches(0), 3), expected)


@pytest.mark.parametrize('mode', ['host', 'device'])
def test_training_and_evaluation_share_what_they_both_read(
  config, decoded, mode
):
  config.input.eval_split, config.input.cache = 'train', mode
  run = run_lib.open_run(config)
  batches = run.train_batches(0)
  with contextlib.closing(batches):
    next(batches)
    first = take(run.eval_batches())
    second = take(run.eval_batches())
    for _ in range(EPOCH):
      next(batches)
  assert_same(first, second)
  assert {*decoded} == {*range(NUM_TRAIN)}
  # Two threads may decode an image that a batch has twice.
  assert len(decoded) < NUM_TRAIN + config.input.batch_size


# What fits where


@pytest.mark.parametrize(
  ('mode', 'needed', 'host', 'device', 'expected'),
  [
    ('auto', 4, 8, None, 'host'),  # A CPU, or a device that does not tell.
    ('auto', 5, 8, None, 'none'),
    ('auto', 4, 8, 8, 'device'),
    ('auto', 4, 8, 7, 'host'),
    ('auto', 4, 7, 8, 'none'),  # It would be filled on the host.
    ('host', 8, 8, 1, 'host'),
    ('device', 8, 8, 8, 'device'),
    ('device', 8, 8, None, 'device'),
  ],
)
def test_the_mode_depends_on_what_is_free(mode, needed, host, device, expected):
  free = [n and n * GIB for n in (needed, host, device)]
  assert cache_lib.choose(mode, *free) == expected


@pytest.fixture
def large(config, monkeypatch):
  """Gives the data set 150,000 photographs: 28,126 MiB."""
  opened = dataset_lib.open_dataset

  def open_large(*args):
    return dataclasses.replace(
      opened(*args),
      image_size=256,
      num_examples={'train': 100_000, 'validation': 50_000},
    )

  config.input.image_size = 256
  monkeypatch.setattr(dataset_lib, 'open_dataset', open_large)


def set_free(monkeypatch, host, device):
  """Sets what is free on the host and each device, in GiB."""
  device = device and device * GIB
  monkeypatch.setattr(memory, 'of_each_process', lambda: host * GIB)
  monkeypatch.setattr(memory, 'of_each_device', lambda: device)


@pytest.mark.parametrize(
  ('mode', 'host', 'device', 'where'),
  [
    ('host', 20, 99, 'the host for each process'),
    ('device', 20, 99, 'the host for each process'),
    ('device', 99, 20, 'each device'),
    ('device', 20, None, 'the host for each process'),
  ],
)
def test_a_set_that_does_not_fit_is_one_error(
  config, large, monkeypatch, mode, host, device, where
):
  set_free(monkeypatch, host, device)
  config.input.cache = mode
  with pytest.raises(ValueError) as error:
    run_lib.open_run(config)
  assert str(error.value) == (
    f'config.input.cache={mode}: the decoded images take 28,126 MiB, but of the'
    f" memory of {where} 20,480 MiB are free; use config.input.cache='auto',"
    ' which takes what fits'
  )
  config.input.cache = 'auto'  # The way out.
  run_lib.open_run(config)


@pytest.mark.parametrize(
  ('host', 'device', 'chosen', 'free'),
  [
    (
      60,
      80,
      'device',
      '61,440 MiB that are free on the host, and 81,920 MiB on a device',
    ),
    (60, None, 'host', '61,440 MiB that are free'),
    (
      40,
      80,
      'none',
      '40,960 MiB that are free on the host, and 81,920 MiB on a device',
    ),
  ],
)
def test_the_choice_is_logged_once_with_its_numbers(
  config, large, monkeypatch, caplog, host, device, chosen, free
):
  set_free(monkeypatch, host, device)
  with caplog.at_level(logging.INFO, 'alexnet_jax.cache'):
    caches = run_lib.open_run(config).caches
  assert list(caches) == ([] if chosen == 'none' else ['train', 'validation'])
  (line,) = [r.message for r in caplog.records if r.name == cache_lib.__name__]
  where = {'none': 'not cached', 'host': 'cached in host memory'}
  where = where.get(chosen, 'cached on the devices')
  assert line == (
    f'Decoded images of train and validation: {where} (config.input.cache=auto);'
    f' they take 28,126 MiB, of {free}.'
  )


def test_evaluation_alone_counts_only_its_split(
  config, large, monkeypatch, caplog
):
  set_free(monkeypatch, 20, None)  # 9,375 MiB of 20,480.
  assert list(run_lib.open_run(config, trains=False).caches) == ['validation']
