"""Host half of the input pipeline: from prepared data set to uint8 batches.

The element of the Grain data set is a *batch*: element t holds the numbers of
the examples of global batch t, a function of (seed, t) alone, so resuming at
step t is starting at element t. Loading it reads and decodes the records in
threads, straight into a reused buffer. Training's batches are endless: the last
batch of an epoch is filled from the next epoch's order. Evaluation's batches hold
every example once, the tail padded and masked.
"""

import collections
from collections.abc import Callable, Generator
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import mmap
import os
import pathlib
import weakref
import zipfile

import grain
from jaxtyping import Float, Int, PyTree
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import images
from alexnet_jax import processes

DATA_DIR = '~/alexnet_jax_data'
VERSION = '1.0.0'  # Of the layout that prepare.py writes.
STATISTICS_FILE = 'statistics.npz'
ENDLESS = 2**62  # Steps.

# {'image': uint8 [N, S, S, 3], 'label': int32 [N], 'mask': bool [N]}
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared data set: its facts, read before any image is.

  Attributes:
    path: its folder.
    class_names: one per label.
    num_examples: by split.
    image_size: side of the stored images in pixels.
    mean_image: of the training split, [size, size, 3], 0..255.
    rgb_covariance: of the training split's pixels, on the scale of 0..255.
    fingerprint: of the examples, their order and how they were stored.
  """

  path: pathlib.Path
  class_names: tuple[str, ...]
  num_examples: dict[str, int]
  image_size: int
  mean_image: Float[np.ndarray, 'size size 3']
  rgb_covariance: Float[np.ndarray, '3 3']
  fingerprint: str


def dataset_path(data_dir: str | os.PathLike, name: str) -> pathlib.Path:
  """Folder of the prepared data set `name`; it need not exist."""
  return pathlib.Path(data_dir).expanduser() / name / VERSION


def open_dataset(data_dir: str | os.PathLike, name: str) -> Dataset:
  """The facts of a prepared data set.

  Raises:
    FileNotFoundError: if there is none of that name.
    ValueError: if its statistics are damaged, or not those of its images.
  """
  path = dataset_path(data_dir, name)
  if not (path / STATISTICS_FILE).exists():
    kind = 'imagenet' if name == 'imagenet2012' else 'folder'
    raise FileNotFoundError(
      f'no prepared data set config.input.dataset={name} under'
      f' config.input.data_dir={data_dir}; prepare it: python -m'
      f' alexnet_jax.prepare --source={kind}:DIR --name={name}'
      f' --size=SIZE --data_dir={data_dir}, SIZE being config.input.image_size'
    )
  try:
    info = tfds.builder_from_directory(path).info
    image_shape = info.features['image'].shape
  except Exception as error:  # Of tfds and what it reads with: anything.
    raise ValueError(
      f'{path} is damaged ({error}); remove it and prepare it again'
    ) from error
  return Dataset(
    path=path,
    class_names=tuple(info.features['label'].names),
    num_examples={s: i.num_examples for s, i in info.splits.items()},
    image_size=image_shape[0],
    **_statistics(path / STATISTICS_FILE, image_shape),
  )


def _statistics(file, image_shape):
  """Mean image, RGB covariance and fingerprint, as `Dataset` has them."""
  try:
    with np.load(file) as stored:
      found = {
        'mean_image': stored['mean_image'],
        'rgb_covariance': stored['rgb_covariance'],
        'fingerprint': str(stored['fingerprint']),
      }
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{file} is damaged ({error}); remove the data set and prepare it again'
    ) from error
  mean, covariance = found['mean_image'], found['rgb_covariance']
  if mean.shape != image_shape or covariance.shape != (3, 3):
    raise ValueError(
      f'{file} has a mean image of {mean.shape} and a covariance of'
      f' {covariance.shape}, but the images are {image_shape}; remove the data'
      ' set and prepare it again'
    )
  if not (
    0 <= mean.min() and mean.max() <= 255 and np.isfinite(covariance).all()
  ):
    raise ValueError(
      f'{file} has values that no image of 0..255 gives; remove the data set and'
      ' prepare it again'
    )
  return found


def check_dataset(
  dataset: Dataset, *, image_size: int, num_classes: int, splits: dict[str, str]
) -> None:
  """Raises one ValueError with everything in which config and data differ.

  Args:
    dataset: the prepared data set.
    image_size: config.input.image_size.
    num_classes: config.model.num_classes.
    splits: the names of the splits to be read, by config key.
  """
  problems = []
  if dataset.image_size != image_size:
    problems.append(
      f'config.input.image_size={image_size}, but {dataset.path} holds images'
      f' of {dataset.image_size} pixels; set it, or remove that folder and'
      f' prepare the data set again with --size={image_size}'
    )
  if len(dataset.class_names) != num_classes:
    problems.append(
      f'config.model.num_classes={num_classes}, but {dataset.path} has'
      f' {len(dataset.class_names)} classes; set it to that'
    )
  for key, split in splits.items():
    if not dataset.num_examples.get(split):
      others = [name for name, n in dataset.num_examples.items() if n]
      problems.append(
        f'{key}={split} has no examples in {dataset.path}; use one of its'
        f' splits {", ".join(others)}'
      )
  if problems:
    raise ValueError('\n'.join(problems))


def train_batches(
  dataset: Dataset,
  split: str,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  rows: Int[np.ndarray, 'rows'] | None = None,
) -> Generator[Batch]:
  """Global batches start_step, start_step + 1, ...; endless.

  Each epoch is a new permutation of the whole split. `rows` are those of the
  global batch that are read, ascending; None for all.
  """
  numbers = functools.partial(
    _train_numbers, dataset.num_examples[split], seed, batch_size
  )
  steps = grain.MapDataset.range(start_step, ENDLESS)
  return _iterate(
    steps.map(numbers), _BatchLoader(dataset, split, batch_size, rows)
  )


def _train_numbers(num_examples, seed, batch_size, step):
  """The numbers of the examples of one batch."""
  places = np.arange(step * batch_size, (step + 1) * batch_size)
  epochs, places = np.divmod(places, num_examples)
  return np.concatenate(
    [
      _epoch_order(num_examples, seed, int(epoch))[places[epochs == epoch]]
      for epoch in np.unique(epochs)
    ]
  )


@functools.lru_cache(maxsize=2)  # A batch may have the end of one and a start.
def _epoch_order(num_examples, seed, epoch):
  # Grain's own shuffle takes 17 microseconds for each image.
  return np.random.default_rng((seed, epoch)).permutation(num_examples)


def eval_batches(
  dataset: Dataset,
  split: str,
  *,
  batch_size: int,
  rows: Int[np.ndarray, 'rows'] | None = None,
) -> Generator[Batch]:
  """Every example of the split once, in stored order; the tail is masked.

  `rows` as for `train_batches`.
  """
  batches = grain.MapDataset.range(dataset.num_examples[split]).batch(
    batch_size
  )
  return _iterate(batches, _BatchLoader(dataset, split, batch_size, rows))


def prefetch_to_device(
  batches: Generator[Batch], put: Callable[[Batch], PyTree], depth: int = 2
) -> Generator[PyTree]:
  """The batches on the device, `depth` of them ahead of the one in use.

  Args:
    batches: host batches.
    put: starts the copy of one batch to the device (`jax.device_put`).
    depth: batches on the device that no step has asked for yet.
  """
  with contextlib.closing(batches):
    ahead = collections.deque(put(b) for b in itertools.islice(batches, depth))
    while ahead:
      ready = ahead.popleft()
      ahead.extend(put(b) for b in itertools.islice(batches, 1))
      yield ready


def _iterate(
  batches: grain.MapDataset, load: '_BatchLoader'
) -> Generator[Batch]:
  # One thread reads ahead; the loader itself decodes in many.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  iterator = iter(batches.map(load).to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    iterator.close()
    load.close()


class _BatchLoader:
  """Reads and decodes some rows of one global batch."""

  def __init__(self, dataset: Dataset, split: str, batch_size: int, rows):
    self._rows = np.arange(batch_size) if rows is None else rows
    source = tfds.builder_from_directory(dataset.path).as_data_source(split)
    self._records = source.data_source  # Bytes, without what tfds does to them.
    self._path = dataset.path
    self._buffers = BufferPool((len(self._rows), *dataset.mean_image.shape))
    self._num_threads = processes.number_of_cores()
    self._threads = concurrent.futures.ThreadPoolExecutor(self._num_threads)

  def __call__(self, indices: np.ndarray) -> Batch:
    pixels = self._buffers.take()
    labels = np.zeros(len(pixels), np.int32)
    mask = self._rows < len(indices)
    indices = indices[self._rows[mask]].tolist()  # The padding is at the end.

    def load(start: int) -> None:
      for i in range(start, len(indices), self._num_threads):
        # Each by itself: reading many in one call starts threads for it.
        try:
          record = self._records[indices[i]]
        except RuntimeError as error:
          raise self._damaged(error) from error
        example = tf_example_pb2.Example.FromString(record)
        features = example.features.feature
        labels[i] = features['label'].int64_list.value[0]
        try:
          images.decode(features['image'].bytes_list.value[0], pixels[i])
        except images.ERRORS as error:
          name = features['file_name'].bytes_list.value[0].decode()
          raise self._damaged(f'cannot decode {name} ({error})') from error

    list(self._threads.map(load, range(self._num_threads)))
    pixels[len(indices) :] = 0
    return {'image': pixels, 'label': labels, 'mask': mask}

  def close(self) -> None:
    self._threads.shutdown()

  def _damaged(self, reason) -> ValueError:
    return ValueError(
      f'{self._path}: {reason}; the data set is damaged: remove it and prepare'
      ' it again'
    )


class BufferPool:
  """uint8 arrays of one shape whose memory is used again once they are free.

  Decoding into fresh memory costs half as much again as into warm memory. An
  array is free when nothing refers to it: on CPU `jax.device_put` aliases the
  page-aligned array for the life of the jax.Array, which keeps a reference, so
  a batch that a step may still read is never overwritten.
  """

  def __init__(self, shape: tuple[int, ...]):
    self._shape = shape
    self._free = collections.deque()

  def take(self) -> np.ndarray:
    """An array with undefined contents."""
    try:
      memory = self._free.pop()
    except IndexError:
      private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
      memory = mmap.mmap(-1, int(np.prod(self._shape)), private)
      if hasattr(mmap, 'MADV_HUGEPAGE'):  # Linux.
        with contextlib.suppress(OSError):  # Of a kernel without large pages.
          memory.madvise(mmap.MADV_HUGEPAGE)
    # NumPy shortens chains of views to their owner, but not past an mmap: any
    # view of this array refers to this array.
    array = np.frombuffer(memory, np.uint8).reshape(self._shape)
    owner = array
    while isinstance(owner.base, np.ndarray):
      owner = owner.base
    weakref.finalize(owner, self._free.append, memory)
    return array
