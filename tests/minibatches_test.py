"""The order of cuda-convnet's minibatches, worked out by hand."""

import numpy as np
import pytest

from alexnet_jax import dataset as dataset_lib
from experiments import minibatches


def test_parts_of_stages():
  stages = ((2.0, 0.001, 0.8), (1.0, 0.0001, 1.0))
  parts = minibatches.parts(stages, 25_000)
  # Four fifths are 20,000 images: two batches of 78 minibatches and one of 16
  # images. The whole split has a third batch, of 39 minibatches and 8 images.
  assert [(p.start, p.stop) for p in parts] == [
    (0, 10_000),
    (10_000, 20_000),
    (0, 10_000),
    (10_000, 20_000),
    (0, 10_000),
    (10_000, 20_000),
    (20_000, 25_000),
  ]
  assert [p.steps for p in parts] == [79] * 6 + [40]
  assert [p.step for p in parts] == [79 * i for i in range(1, 7)] + [514]
  assert [p.epoch for p in parts] == pytest.approx(
    [0.5, 1.0, 1.5, 2.0, 2 + 1 / 3, 2 + 2 / 3, 3.0]
  )
  assert [p.rate for p in parts] == [0.001] * 4 + [0.0001] * 3


def test_a_stage_has_at_least_one_part():
  parts = minibatches.parts(((1e-6, 0.1, 1.0), (1e-6, 0.2, 1.0)), 500)
  assert [(p.start, p.stop, p.rate) for p in parts] == [
    (0, 500, 0.1),
    (0, 500, 0.2),
  ]


def test_a_last_minibatch_is_padded_and_masked():
  pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
  pixels = np.broadcast_to(pixels, (10, 1, 1, 3))
  images = minibatches.Images(pixels, np.arange(10, dtype=np.int32))
  batches = [*images.minibatches(4, 1, 8)]
  assert [b['label'].tolist() for b in batches] == [[1, 2, 3, 4], [5, 6, 7, 0]]
  assert [b['mask'].tolist() for b in batches] == [
    [True] * 4,
    [True, True, True, False],
  ]
  assert batches[1]['image'][:, 0, 0, 0].tolist() == [5, 6, 7, 0]
  assert batches[1]['image'].dtype == np.uint8


def test_a_split_is_read_in_stored_order(data_dir):
  dataset = dataset_lib.open_dataset(data_dir, 'digits')
  images = minibatches.read(dataset, 'test')
  assert images.images.shape == (dataset.num_examples['test'], 76, 76, 3)
  # The mean of either split is near that of the other.
  mean = images.images.mean(0)
  assert abs(mean - dataset.mean_image).mean() < 5
  assert sorted({*images.labels.tolist()}) == [*range(10)]
  assert minibatches.read(dataset, 'test') is images
