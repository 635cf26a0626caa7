"""Host half of the input pipeline: from prepared data set to uint8 batches.

An element of the Grain data set is a *batch*: element t holds the indices of
the examples of global batch t, a function of (seed, t) alone, so resuming at
step t means starting at element t. Threads read and decode its records into a
reused buffer, unless a cache has them; Grain contributes one thread that loads
batches ahead of time. Training batches are endless: the last batch of an epoch
is filled up from the next epoch. Evaluation batches hold every example once;
the last one is padded and masked.
"""

import collections
from collections.abc import Callable, Generator
import concurrent.futures
import contextlib
import functools
import itertools

import grain
from jaxtyping import Int, PyTree
import numpy as np

from alexnet_jax import buffer_pool
from alexnet_jax import cache as cache_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import records
from alexnet_jax.runtime import processes

ENDLESS = 2**62  # Steps.
# Starting a task keeps Python's lock, for which the threads compete, as long as
# reading an image does. So a batch has 16 tasks at most, unless it is large.
MANY_TASKS = 16
IMAGES_PER_TASK = 8  # On average, at least, where there are more tasks.

# {'image': uint8 [N, S, S, 3], 'label': int32 [N], 'mask': bool [N]}; or {'row':
# int [examples]}, indices into the split, once a cache is on the devices.
Batch = dict[str, np.ndarray]


def train_batches(
  dataset: dataset_lib.Dataset,
  split: str,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  batch_indices: Int[np.ndarray, 'local'] | None = None,
  cache: cache_lib.Cache | None = None,
  max_bad_records: int = 0,
) -> Generator[Batch]:
  """Global batches start_step, start_step + 1, ..., without end.

  Each epoch is a new permutation of the whole split.

  Args:
    dataset: data set to read.
    split: name of the split.
    batch_size: number of examples in a global batch.
    seed: seed of the permutations.
    start_step: index of the first batch.
    batch_indices: indices into the global batch of the examples to read,
      ascending; None for the whole batch.
    cache: holds what has been decoded before; None to decode every time.
    max_bad_records: number of records that may be masked since they cannot be
      used, see `records.Records.decode`.
  """
  indices = functools.partial(
    train_indices, dataset.num_examples[split], seed, batch_size
  )
  batches = grain.MapDataset.range(start_step, ENDLESS).map(indices)
  stored = records.Records(dataset, split, max_bad_records)
  loader = _BatchLoader(stored, dataset, batch_size, batch_indices, cache)
  return _iterate(batches, loader)


def train_indices(
  num_examples: int, seed: int, batch_size: int, step: int
) -> Int[np.ndarray, 'batch']:
  """Indices into the split of the examples of global batch `step`, from 0."""
  positions = np.arange(step * batch_size, (step + 1) * batch_size)
  epochs, positions = np.divmod(positions, num_examples)
  parts = [
    _epoch_order(num_examples, seed, int(epoch))[positions[epochs == epoch]]
    for epoch in np.unique(epochs)
  ]
  return np.concatenate(parts)


@functools.lru_cache(maxsize=2)  # A batch may span two epochs.
def _epoch_order(num_examples, seed, epoch):
  # Grain's own shuffle takes 17 microseconds per image.
  return np.random.default_rng((seed, epoch)).permutation(num_examples)


def eval_batches(
  dataset: dataset_lib.Dataset,
  split: str,
  *,
  batch_size: int,
  batch_indices: Int[np.ndarray, 'local'] | None = None,
  cache: cache_lib.Cache | None = None,
  max_bad_records: int = 0,
) -> Generator[Batch]:
  """Every example of the split once, in stored order; padding is masked.

  Takes the arguments of `train_batches`.
  """
  examples = grain.MapDataset.range(dataset.num_examples[split])
  stored = records.Records(dataset, split, max_bad_records)
  loader = _BatchLoader(stored, dataset, batch_size, batch_indices, cache)
  return _iterate(examples.batch(batch_size), loader)


def prefetch_to_device(
  batches: Generator[Batch], put: Callable[[Batch], PyTree], depth: int = 2
) -> Generator[PyTree]:
  """Yields the batches on the devices, copied ahead of their use.

  Args:
    batches: batches on the host.
    put: function that starts the copy of one batch (`jax.device_put`).
    depth: number of batches copied ahead of the step that will use them.
  """
  with contextlib.closing(batches):
    ahead = collections.deque(put(b) for b in itertools.islice(batches, depth))
    while ahead:
      ready = ahead.popleft()
      ahead.extend(put(b) for b in itertools.islice(batches, 1))
      yield ready


def _iterate(batches, load):
  # One thread loads ahead; the loader decodes each batch in many threads.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  iterator = iter(batches.map(load).to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    iterator.close()
    load.close()


class _BatchLoader:
  """Reads and decodes the examples of one global batch, or a part of them."""

  def __init__(self, stored, dataset, batch_size, batch_indices, cache):
    if batch_indices is None:
      batch_indices = np.arange(batch_size)
    self._batch_indices = batch_indices
    self._decode = stored.decode
    self._buffers = buffer_pool.BufferPool(
      (len(batch_indices), *dataset.mean_image.shape)
    )
    self._num_threads = processes.available_cores()
    self._threads = concurrent.futures.ThreadPoolExecutor(self._num_threads)
    self._cache, self._read = cache, self._decode
    if cache is not None:
      self._read = functools.partial(cache.read, self._decode)

  def __call__(self, indices: np.ndarray) -> Batch:
    if self._cache is None:
      return self._load(indices)
    return self._cache.load(indices, self._load, self._decode)

  def _load(self, indices):
    pixels = self._buffers.take()
    labels = np.zeros(len(pixels), np.int32)
    mask = self._batch_indices < len(indices)
    # Padding, if any, comes last.
    rows = indices[self._batch_indices[mask]].tolist()
    n = len(rows)
    pixels[n:] = 0

    num_tasks = min(self._num_threads, max(MANY_TASKS, n // IMAGES_PER_TASK))

    def load(start: int) -> None:
      for i in range(start, n, num_tasks):
        labels[i] = self._read(rows[i], pixels[i])

    if not (self._cache and self._cache.take(rows, pixels[:n], labels[:n])):
      list(self._threads.map(load, range(num_tasks)))
    mask &= labels != records.MASKED
    return {'image': pixels, 'label': labels * mask, 'mask': mask}

  def close(self) -> None:
    self._threads.shutdown()
