"""The stored examples of one split, read one at a time, in any order."""

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images


class Records:
  """The examples of one split of a prepared data set, by row; thread-safe."""

  def __init__(self, dataset: dataset_lib.Dataset, split: str):
    source = tfds.builder_from_directory(dataset.path).as_data_source(split)
    self._records = source.data_source  # Serialised examples.
    self._path = dataset.path

  def __len__(self) -> int:
    return len(self._records)

  def decode(self, row: int, out: np.ndarray) -> int:
    """Decodes the image of a row into `out`, uint8 [size, size, 3].

    Returns:
      The label of the example.

    Raises:
      ValueError: if the data set is damaged.
    """
    return self._decode(self._features(row), out)

  def decode_named(self, row: int, out: np.ndarray) -> tuple[int, str]:
    """As `decode`, with the file name, as its source had it: val/cat/7.jpg."""
    features = self._features(row)
    return self._decode(features, out), _file_name(features)

  def _decode(self, features, out):
    try:
      images.decode(features['image'].bytes_list.value[0], out)
    except images.ERRORS as error:
      name = _file_name(features)
      raise self._damaged(f'cannot decode {name} ({error})') from error
    return features['label'].int64_list.value[0]

  def name(self, row: int) -> str:
    """The file name of a row, as its source had it, such as val/cat/7.jpg.

    Raises:
      ValueError: if the data set is damaged.
    """
    return _file_name(self._features(row))

  def _features(self, row):
    # One record at a time: reading several in one call starts threads.
    try:
      record = self._records[row]
    except RuntimeError as error:
      raise self._damaged(error) from error
    return tf_example_pb2.Example.FromString(record).features.feature

  def _damaged(self, reason) -> ValueError:
    return ValueError(
      f'{self._path}: {reason}; the data set is damaged: remove it and prepare'
      ' it again'
    )


def _file_name(features):
  return features['file_name'].bytes_list.value[0].decode()
