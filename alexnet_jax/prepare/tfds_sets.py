"""Data sets that tfds has prepared, as a source of images.

Any with an image feature 'image' and a class 'label', in ArrayRecord or
TFRecord. Where none is prepared, tfds's own builder downloads and prepares it,
once; that needs TensorFlow (`pip install -e '.[tensorflow]'`).
"""

from collections.abc import Sequence
import functools
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import struct

from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import message
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.prepare import examples as examples_lib

log = logging.getLogger(__name__)


def open_tfds(name: str) -> examples_lib.Source:
  """The data set `name`, such as 'cifar10' or 'imagenette/320px-v2:1.0.0'.

  It is looked for where tfds keeps its data sets: ~/tensorflow_datasets, or
  $TFDS_DATA_DIR. Splits without labels are left out.

  Raises:
    FileNotFoundError: if it is not there, and there is no TensorFlow to make it.
    ValueError: if it has no image, no label, or no split 'train', or is damaged.
  """
  info = _builder(name).info
  is_dict = isinstance(info.features, tfds.features.FeaturesDict)
  features = dict(info.features) if is_dict else {}
  if not (
    isinstance(features.get('image'), tfds.features.Image)
    and features['image'].np_dtype == np.uint8
    and isinstance(features.get('label'), tfds.features.ClassLabel)
  ):
    raise ValueError(
      f"--source=tfds:{name} needs an 8-bit image 'image' and a class 'label',"
      f' but has {", ".join(sorted(features)) or "other features"}'
    )
  num_classes = features['label'].num_classes
  splits, facts = {}, [info.full_name]
  for split, split_info in info.splits.items():
    shards = [pathlib.Path(path) for path in split_info.filepaths]
    if missing := [path for path in shards if not path.exists()]:
      raise ValueError(
        f'--source=tfds:{name} lacks {missing[0]}; prepare it again'
      )
    facts.append([split, [(p.name, p.stat().st_size) for p in shards]])
    records = _Records(split, shards, split_info.shard_lengths, num_classes)
    if len(records) and records.label_of_first() >= 0:
      splits[split] = records
    else:
      log.warning(
        '%s: split %s has no examples or no labels, and is left out.',
        name,
        split,
      )
  if 'train' not in splits:
    raise ValueError(
      f"--source=tfds:{name} has no split 'train' with labels, only"
      f' {", ".join(splits) or "none"}'
    )
  return examples_lib.Source(
    class_names=tuple(features['label'].names),
    splits=splits,
    description=info.description or f'{info.full_name} of tfds.',
    digest=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
  )


def _builder(name):
  try:
    return read_only_builder.builder_from_files(name)
  except ValueError:  # tfds's DatasetNotFoundError among them.
    if importlib.util.find_spec('tensorflow') is None:
      raise FileNotFoundError(
        f'--source=tfds:{name}: tfds has not prepared it in'
        f' {os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")} (see'
        ' $TFDS_DATA_DIR); prepare it where TensorFlow is: pip install -e'
        " '.[tensorflow]', then repeat this command"
      ) from None
  try:
    builder = tfds.builder(name, file_format='array_record')
    builder.download_and_prepare()
  except Exception as error:  # Of tfds and the network: anything.
    raise ValueError(
      f'--source=tfds:{name}: tfds cannot prepare it ({error})'
    ) from error
  return builder


class _Records(Sequence):
  """Examples in record files: their places, not a million objects."""

  def __init__(
    self,
    split: str,
    shards: list[pathlib.Path],
    lengths: list[int],
    num_classes: int,
  ):
    self._split, self._shards, self._num_classes = split, shards, num_classes
    self._shard = np.repeat(np.arange(len(shards)), lengths)
    if shards[0].name.find('.array_record') >= 0:
      self._read = _from_array_record
      places = [np.arange(length) for length in lengths]
    else:
      self._read = _from_tfrecord
      places = [_offsets(path) for path in shards]
    self._place = np.concatenate(places)
    if len(self._place) != len(self._shard):
      raise ValueError(
        f'{shards[0].parent}: split {split} has {len(self._place)} records, not'
        f' {len(self._shard)}; prepare it again'
      )

  def __len__(self) -> int:
    return len(self._place)

  def __getitem__(self, i: int) -> examples_lib.Example:
    name = f'{self._split}/{i:07d}'
    path, place = self._shards[self._shard[i]], int(self._place[i])
    read = functools.partial(
      _features, self._read, path, place, name, self._num_classes
    )
    return examples_lib.Example(name, read)

  def label_of_first(self) -> int:
    """-1 where the examples have none, as in the test split of ImageNet."""
    path = self._shards[self._shard[0]]
    feature = _parse(self._read, path, int(self._place[0]))
    return feature['label'].int64_list.value[0]


def _features(read_record, path, place, name, num_classes):
  feature = _parse(read_record, path, place)
  label = feature['label'].int64_list.value[0]
  if not 0 <= label < num_classes:
    raise ValueError(f'label {label} is none of {num_classes} classes')
  names = feature['file_name'].bytes_list.value
  return {
    'image': feature['image'].bytes_list.value[0],
    'label': label,
    'file_name': names[0].decode() if names else name,
  }


def _parse(read_record, path, place):
  """The features of a record, an image and a label among them."""
  try:
    example = tf_example_pb2.Example.FromString(read_record(path, place))
    feature = example.features.feature
    _ = (
      feature['image'].bytes_list.value[0],
      feature['label'].int64_list.value[0],
    )
  except (message.DecodeError, RuntimeError, IndexError) as error:
    raise ValueError(f'{path} has a damaged record ({error})') from error
  return feature


def _from_array_record(path, row):
  return _reader(path).read([row])[0]


@functools.lru_cache(maxsize=16)
def _reader(path):
  return ArrayRecordReader(str(path), 'index_storage_option:in_memory')


# A TFRecord file is a sequence of length (8 bytes), its checksum (4), data, and
# their checksum (4): https://www.tensorflow.org/tutorials/load_data/tfrecord.
# Checksums are not read: a damaged record shows when it is parsed or decoded,
# but for its label.
def _offsets(path):
  """Where the records of a TFRecord file begin."""
  found, offset, end = [], 0, path.stat().st_size
  with open(path, 'rb') as file:
    while offset < end:
      file.seek(offset)
      header = file.read(8)
      found.append(offset)
      length = struct.unpack('<Q', header)[0] if len(header) == 8 else end
      offset += 16 + length
  if offset != end:
    raise ValueError(f'{path} is cut short or damaged; prepare it again')
  return np.array(found, np.int64)


def _from_tfrecord(path, offset):
  with open(path, 'rb') as file:  # There may be more files than may be open.
    file.seek(offset)
    (length,) = struct.unpack('<Q', file.read(8))
    file.seek(4, os.SEEK_CUR)
    return file.read(length)
