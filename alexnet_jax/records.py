"""The stored examples of one split, read one at a time, in any order."""

from collections.abc import Sequence
import contextlib
import itertools
import logging
import threading

from google.protobuf import message
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images

log = logging.getLogger(__name__)

MASKED = -1  # In place of the label of a record that cannot be used.


class Records:
  """The examples of one split of a prepared data set, by row; thread-safe."""

  def __init__(
    self, dataset: dataset_lib.Dataset, split: str, max_bad_records: int = 0
  ):
    """Opens the split; `max_bad_records` is for `decode`."""
    builder = tfds.builder_from_directory(dataset.path)
    # Serialised examples.
    self._records = builder.as_data_source(split).data_source
    self._split = builder.info.splits[split]
    self._num_classes = len(dataset.class_names)
    self._shape, self._max_bad = dataset.mean_image.shape, max_bad_records
    self._bad, self._lock = {}, threading.Lock()

  def __len__(self) -> int:
    return len(self._records)

  def decode(self, row: int, out: np.ndarray) -> int:
    """Decodes the image of a row into `out`, uint8 [size, size, 3].

    Up to `max_bad_records` records that cannot be used are logged, and their
    images are zeros.

    Returns:
      The label of the example; `MASKED` for such a record.

    Raises:
      ValueError: if there are more of them.
    """
    try:
      return self.decode_named(row, out)[0]
    except ValueError as error:
      with self._lock:
        is_new = row not in self._bad
        self._bad[row] = error
        if len(self._bad) > self._max_bad:
          raise
      if is_new:
        log.warning('left out (config.input.max_bad_records): %s', error)
      out[:] = 0
      return MASKED

  def decode_named(self, row: int, out: np.ndarray) -> tuple[int, str]:
    """The label, and the file name as its source had it: val/cat/7.jpg.

    Args:
      row: row of the example.
      out: where its image goes, uint8 [size, size, 3].

    Raises:
      ValueError: if the record cannot be used.
    """
    features = self._features(row)
    name = self._name(row, features)
    try:
      label = features['label'].int64_list.value[0]
      image = features['image'].bytes_list.value[0]
    except IndexError as error:
      raise self._damaged(row, f'{name} has no image or no label') from error
    if not 0 <= label < self._num_classes:
      raise self._damaged(
        row,
        f'the label {label} of {name} is none of {self._num_classes} classes',
      )
    try:
      images.decode(image, out)
    except MemoryError:
      raise
    except Exception as error:  # Pillow may raise anything for a damaged PNG.
      raise self._damaged(row, f'cannot decode {name} ({error})') from error
    return label, name

  def name(self, row: int) -> str:
    """The file name of a row, as its source had it, such as val/cat/7.jpg.

    Raises:
      ValueError: if the data set is damaged.
    """
    return self._name(row, self._features(row))

  def _name(self, row, features):
    try:
      return features['file_name'].bytes_list.value[0].decode()
    except (IndexError, UnicodeDecodeError) as error:
      raise self._damaged(row, f'it has no file name ({error})') from error

  def rows(self, count: int) -> Sequence[int]:
    """The rows of the `count` examples that an evaluation has used.

    These are all rows, or those whose records `decode_named` accepts.
    """
    if count == len(self):
      return range(count)
    out = np.empty(self._shape, np.uint8)
    found = []
    for row in range(len(self)):
      with contextlib.suppress(ValueError):
        self.decode_named(row, out)
        found.append(row)
    return found

  def _features(self, row):
    # One record at a time: reading several in one call starts threads.
    try:
      record = self._records[row]
      return tf_example_pb2.Example.FromString(record).features.feature
    except (RuntimeError, message.DecodeError) as error:
      raise self._damaged(row, error) from error

  def _damaged(self, row, reason) -> ValueError:
    starts = [0, *itertools.accumulate(self._split.shard_lengths)]
    shard = np.searchsorted(starts, row, 'right').item() - 1
    file = self._split.filename_template.sharded_filepath(
      shard_index=shard, num_shards=self._split.num_shards
    )
    return ValueError(
      f'{file}, record {row - starts[shard]}: {" ".join(str(reason).split())};'
      ' the data set is damaged: remove it and prepare it again, or leave such'
      ' records out: --config.input.max_bad_records=10'
    )
