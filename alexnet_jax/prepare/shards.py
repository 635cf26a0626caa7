"""One shard of a prepared data set, written completely or not at all.

A shard is the unit of preparation: its bytes do not depend on when or in which
process it is written. The sums over its pixels are stored in a second file
until all shards are complete.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
import warnings

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import images
from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.prepare import folders
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import files

log = logging.getLogger(__name__)

SUMS = '*.sums.npz'  # The files of the sums, beside the shards.


@dataclasses.dataclass(frozen=True)
class Shard:
  """The examples of a shard, and where and how to store them.

  Attributes:
    split: name of the split that the shard belongs to.
    path: file to write.
    examples: in the order in which they are stored.
    size: height and width of the stored images in pixels.
    quality: JPEG quality, 1 to 100, of the images stored as JPEG.
  """

  split: str
  path: pathlib.Path
  examples: Sequence[examples_lib.Example]
  size: int
  quality: int

  @property
  def sums_path(self) -> pathlib.Path:
    """File of the counts and sums that `write` returns."""
    return self.path.with_name(f'{self.path.name}{SUMS[1:]}')


def write(
  shard: Shard, max_skipped: int, progress: Callable[[], object]
) -> dict[str, np.ndarray]:
  """Writes a shard, unless it is complete already.

  Args:
    shard: the shard to write.
    max_skipped: number of unreadable images to skip. After one more, the
      function stops early and leaves no shard.
    progress: called after every image, whether stored or skipped.

  Returns:
    'count' of the stored examples, their 'num_bytes', 'pixel_sum' (sum over the
    examples, [size, size, 3]) and 'product_sum' (sums over all pixels of the
    products of R, G, B with R, G, B, [3, 3]), all exact integers; 'skipped', a
    line for each skipped image with its name and the reason; 'damaged', the same
    of those that were stored although `images.reported_damage` has a word.
  """
  if shard.path.exists():
    return read_sums(shard)
  # Sums of up to 2**24 images fit in uint32.
  pixel_sum = np.zeros((shard.size, shard.size, 3), np.uint32)
  product_sum = np.zeros((3, 3), np.int64)
  num_bytes, count, skipped, damaged = 0, 0, [], []
  # A worker whose parent was killed may still be writing the same shard.
  temporary = shard.path.with_name(f'{shard.path.name}.{os.getpid()}.tmp')
  # The images are compressed already; a group of one is read by itself.
  writer = ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
  for example in shard.examples:
    try:
      record, pixels, products, damage = _read(example, shard)
      pixel_sum += pixels
    except Exception as error:  # Pillow may raise anything for a damaged file.
      if _is_transient(error):
        raise _named(error, example.name) from error
      skipped.append(f'{example.name}: {type(error).__name__}: {error}')
      progress()
      if len(skipped) > max_skipped:
        break
      continue
    writer.write(record)
    count += 1
    num_bytes += len(record)
    product_sum += products
    damaged += [f'{example.name}: {damage}'] if damage else []
    progress()
  writer.close()
  sums = {
    'count': np.array(count),
    'num_bytes': np.array(num_bytes),
    'pixel_sum': pixel_sum,
    'product_sum': product_sum,
    'skipped': np.array(skipped, dtype=np.str_),
    'damaged': np.array(damaged, dtype=np.str_),
  }
  if len(skipped) <= max_skipped:
    _commit(shard, temporary, sums)
  return sums


def _read(example, shard):
  """The record, pixels, products of channels and damage of one example."""
  features = example.read()
  with _warnings_logged(example.name):
    encoded, pixels = images.encode(
      features['image'], shard.size, shard.quality
    )
  damage = images.reported_damage(features['image'])
  record = _serialize(features | {'image': encoded})
  return record, pixels, _channel_products(pixels), damage


def read_sums(shard: Shard) -> dict[str, np.ndarray]:
  """What `write` returned for a complete shard."""
  with files.open_regular(shard.sums_path) as file, np.load(file) as sums:
    return {'damaged': np.array([], np.str_), **sums}  # New in this version.


def read_digests(folder: pathlib.Path) -> dict[str, str]:
  """The SHA-256 of each complete shard in `folder`, by name.

  Those that an earlier version has written are left out.
  """
  found = {}
  for path in folder.glob(SUMS):
    with np.load(path) as sums:
      if 'sha256' in sums:
        found[path.name.removesuffix(SUMS[1:])] = str(sums['sha256'])
  return found


def _commit(shard, temporary, sums):
  """Gives the shard its name, once both of its files are on the disk."""
  np.savez(shard.sums_path, **sums, sha256=digests.sha256(temporary))
  files.sync(shard.sums_path)
  files.sync(temporary)
  os.replace(temporary, shard.path)


@contextlib.contextmanager
def _warnings_logged(name: str) -> Iterator[None]:
  """Logs the warnings of Pillow on one line, with the name of the image."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      yield
    finally:
      if texts := {' '.join(str(w.message).split()): None for w in caught}:
        log.warning('%s: %s', folders.printable(name), '; '.join(texts))


def _is_transient(error):
  """Whether the machine is at fault, so that another attempt may succeed."""
  transient = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
  return isinstance(error, MemoryError) or (
    isinstance(error, OSError) and error.errno in transient
  )


def _named(error, name):
  """The same error, with the name of the image."""
  if isinstance(error, MemoryError):
    return MemoryError(
      f'{folders.printable(name)}: not enough memory to read it'
    )
  return OSError(error.errno, error.strerror, folders.printable(name))


def _channel_products(pixels):
  """Sums over the pixels of the products of R, G, B with R, G, B; exact.

  NumPy computes them row by row, which is too little work for BLAS to start
  threads.
  """
  channels = np.moveaxis(pixels, -1, 0).astype(np.float64, order='C')
  return np.vecdot(channels[:, None], channels).sum(-1).astype(np.int64)


def _serialize(features):
  """The features of an example as a tf.train.Example, which tfds reads."""
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature['image'].bytes_list.value.append(features['image'])
  feature['label'].int64_list.value.append(features['label'])
  feature['file_name'].bytes_list.value.append(features['file_name'].encode())
  # Without this the order of the features differs between processes.
  return example.SerializeToString(deterministic=True)
