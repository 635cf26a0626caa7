"""One shard of a prepared data set: written whole or not at all.

The unit of preparation: whoever writes a shard, and whenever, it holds the same
bytes. The sums of its pixels lie beside it until all shards are there.
"""

from collections.abc import Callable, Sequence
import dataclasses
import errno
import os
import pathlib

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import images
from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.runtime import files


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard to be written.

  Attributes:
    split: that it is a part of.
    path: of its file.
    examples: in the order in which they are stored.
    size: side of the stored images in pixels.
    quality: of those stored as JPEG.
  """

  split: str
  path: pathlib.Path
  examples: Sequence[examples_lib.Example]
  size: int
  quality: int

  @property
  def sums_path(self) -> pathlib.Path:
    """File of the counts and sums of the shard, as `write` returns them."""
    return self.path.with_name(f'{self.path.name}.sums.npz')


def write(
  shard: Shard, may_skip: int, progress: Callable[[], object]
) -> dict[str, np.ndarray]:
  """Writes a shard, or finds it written.

  Args:
    shard: to write.
    may_skip: unreadable images, before it is given up.
    progress: is called after every image.

  Returns:
    'count' of its examples, their 'num_bytes', 'pixel_sum' (by pixel and
    channel) and 'product_sum' (of R, G, B with R, G, B), all exact, and what was
    'skipped', with the reason. With more than `may_skip` of these there is no
    file.
  """
  if shard.path.exists():
    return read_sums(shard)
  # Below 2 ** 32 for sixteen million images.
  pixel_sum = np.zeros((shard.size, shard.size, 3), np.uint32)
  product_sum = np.zeros((3, 3), np.int64)
  num_bytes, count, skipped = 0, 0, []
  # Another process may still be at it, whose parent has been killed.
  temporary = shard.path.with_name(f'{shard.path.name}.{os.getpid()}.tmp')
  # Encoded images do not get smaller.
  writer = ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
  for example in shard.examples:
    try:
      values = example.read()
      encoded, pixels = images.encode(
        values['image'], shard.size, shard.quality
      )
    except Exception as error:  # Of a damaged file: Pillow raises anything.
      if isinstance(error, MemoryError) or _is_of_the_machine(error):
        raise
      skipped.append(f'{example.name}: {type(error).__name__}: {error}')
      progress()
      if len(skipped) > may_skip:
        break
      continue
    record = _record(values | {'image': encoded})
    writer.write(record)
    count += 1
    num_bytes += len(record)
    pixel_sum += pixels
    product_sum += _products(pixels)
    progress()
  writer.close()
  result = {
    'count': np.array(count),
    'num_bytes': np.array(num_bytes),
    'pixel_sum': pixel_sum,
    'product_sum': product_sum,
    'skipped': np.array(skipped, dtype=np.str_),
  }
  if len(skipped) <= may_skip:  # The name says that both are whole.
    np.savez(shard.sums_path, **result)
    files.sync(shard.sums_path)
    files.sync(temporary)
    os.replace(temporary, shard.path)
  return result


def _is_of_the_machine(error):
  """Whether the same image may be read another time."""
  transient = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
  return isinstance(error, OSError) and error.errno in transient


def _products(pixels):
  """Sums of R, G, B times R, G, B, exact; row by row, too little for threads."""
  planes = np.moveaxis(pixels, -1, 0).astype(np.float64, order='C')
  return np.vecdot(planes[:, None], planes).sum(-1).astype(np.int64)


def _record(values):
  """An example as tfds reads it."""
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature['image'].bytes_list.value.append(values['image'])
  feature['label'].int64_list.value.append(values['label'])
  feature['file_name'].bytes_list.value.append(values['file_name'].encode())
  # Else the order of the features is another one in every process.
  return example.SerializeToString(deterministic=True)


def read_sums(shard: Shard) -> dict[str, np.ndarray]:
  """What `write` returned."""
  return dict(np.load(shard.sums_path))
