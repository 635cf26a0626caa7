"""Data sets prepared by TensorFlow Datasets (tfds), as a source of images.

The data set needs an image feature 'image' and a class label 'label', and is
stored as ArrayRecord or TFRecord files. If tfds has not prepared it yet, it is
downloaded and prepared by its builder, once; that needs TensorFlow
(`pip install -e '.[tensorflow]'`).
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

from alexnet_jax.prepare import class_names
from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.runtime import files

log = logging.getLogger(__name__)


def open_tfds(name: str) -> examples_lib.Source:
  """The data set `name`, such as 'cifar10' or 'imagenette/320px-v2:1.0.0'.

  It is searched where tfds stores its data sets: in $TFDS_DATA_DIR, by default
  ~/tensorflow_datasets. Splits without labels are left out.

  Raises:
    FileNotFoundError: if it has not been prepared and TensorFlow is missing.
    ValueError: if it has no 8-bit images, no labels, class names that tfds
      cannot store or no split 'train', if a file is missing or damaged, or if
      tfds cannot prepare it.
  """
  files.check_not_url(os.environ.get('TFDS_DATA_DIR', ''), 'TFDS_DATA_DIR')
  info = _builder(name).info
  names = _class_names(name, info)
  class_names.check(names, f'--source=tfds:{name}')
  num_classes = len(names)
  splits, facts = {}, [info.full_name]
  for split, split_info in info.splits.items():
    paths = [pathlib.Path(path) for path in split_info.filepaths]
    if missing := [path for path in paths if not path.exists()]:
      raise ValueError(
        f'--source=tfds:{name} lacks the file {missing[0]}; remove the data set'
        ' and prepare it again'
      )
    for path in paths:
      files.check_regular(path)
    facts.append([split, [(p.name, p.stat().st_size) for p in paths]])
    records = _Records(split, paths, split_info.shard_lengths, num_classes)
    if len(records) and records.first_label() >= 0:
      splits[split] = records
    else:
      log.warning(
        '%s: split %s is left out, because it has no examples or no labels.',
        name,
        split,
      )
  if 'train' not in splits:
    raise ValueError(
      f"--source=tfds:{name} has no split 'train' with labels; its splits with"
      f' labels are: {", ".join(splits) or "none"}'
    )
  return examples_lib.Source(
    class_names=names,
    splits=splits,
    description=info.description or f'{info.full_name} of tfds.',
    digest=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
  )


def _builder(name):
  """The builder of a prepared data set; prepares it first if necessary."""
  try:
    return read_only_builder.builder_from_files(name)
  except ValueError:  # Includes tfds's DatasetNotFoundError.
    if importlib.util.find_spec('tensorflow') is None:
      raise FileNotFoundError(
        f'--source=tfds:{name}: tfds has not prepared it in'
        f' {os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")} (set by'
        " $TFDS_DATA_DIR); install TensorFlow (pip install -e '.[tensorflow]')"
        ' and repeat this command'
      ) from None
  try:
    builder = tfds.builder(name, file_format='array_record')
    builder.download_and_prepare()
  except Exception as error:  # tfds and the network may raise anything.
    raise ValueError(
      f'--source=tfds:{name}: tfds cannot prepare it ({error})'
    ) from error
  return builder


def _class_names(name, info):
  """The class names; raises ValueError without 8-bit images and labels."""
  is_dict = isinstance(info.features, tfds.features.FeaturesDict)
  features = dict(info.features) if is_dict else {}
  if not (
    isinstance(features.get('image'), tfds.features.Image)
    and features['image'].np_dtype == np.uint8
    and isinstance(features.get('label'), tfds.features.ClassLabel)
  ):
    raise ValueError(
      f"--source=tfds:{name} needs an 8-bit image 'image' and a class label"
      f" 'label', but has {', '.join(sorted(features)) or 'other features'}"
    )
  return tuple(features['label'].names)


class _Records(Sequence):
  """Examples in record files.

  Their positions are stored as arrays; a million `Example` objects would take
  too much memory, so these are made on access.
  """

  def __init__(
    self,
    split: str,
    paths: list[pathlib.Path],
    lengths: list[int],
    num_classes: int,
  ):
    """`lengths` are the numbers of records of the files at `paths`."""
    self._split, self._paths, self._num_classes = split, paths, num_classes
    self._file_indices = np.repeat(np.arange(len(paths)), lengths)
    if '.array_record' in paths[0].name:
      self._read_record = _read_array_record
      positions = [np.arange(length) for length in lengths]
    else:
      self._read_record = _read_tfrecord
      positions = [_tfrecord_offsets(path) for path in paths]
    self._positions = np.concatenate(positions)
    if len(self._positions) != len(self._file_indices):
      raise ValueError(
        f'{paths[0].parent}: split {split} has {len(self._positions)} records,'
        f' but its metadata says {len(self._file_indices)}; remove the data set'
        ' and prepare it again'
      )

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, i: int) -> examples_lib.Example:
    name = f'{self._split}/{i:07d}'
    path = self._paths[self._file_indices[i]]
    position = int(self._positions[i])
    read = functools.partial(
      _read_example, self._read_record, path, position, name, self._num_classes
    )
    return examples_lib.Example(name, read)

  def first_label(self) -> int:
    """The first label; -1 if there are none, as in test splits of tfds."""
    path = self._paths[self._file_indices[0]]
    feature = _parse(self._read_record, path, int(self._positions[0]))
    return feature['label'].int64_list.value[0]


def _read_example(read_record, path, position, name, num_classes):
  feature = _parse(read_record, path, position)
  label = feature['label'].int64_list.value[0]
  if not 0 <= label < num_classes:
    # Reasons for skipping an image enter the fingerprint of the data set:
    # rewording one changes the fingerprint.
    raise ValueError(f'label {label} is none of {num_classes} classes')
  names = feature['file_name'].bytes_list.value
  return {
    'image': feature['image'].bytes_list.value[0],
    'label': label,
    # The name of an image may be any bytes.
    'file_name': names[0].decode(errors='backslashreplace') if names else name,
  }


def _parse(read_record, path, position):
  """The features of a record, which include an image and a label."""
  try:
    example = tf_example_pb2.Example.FromString(read_record(path, position))
    feature = example.features.feature
    _ = (
      feature['image'].bytes_list.value[0],
      feature['label'].int64_list.value[0],
    )
  except (message.DecodeError, RuntimeError, IndexError) as error:
    # See `_read_example` before rewording.
    raise ValueError(f'{path} has a damaged record ({error})') from error
  return feature


def _read_array_record(path, i):
  return _array_record_reader(path).read([i])[0]


@functools.lru_cache(maxsize=16)
def _array_record_reader(path):
  return ArrayRecordReader(str(path), 'index_storage_option:in_memory')


# In a TFRecord file each record consists of the length of its data (8 bytes), a
# checksum of the length (4), the data, and a checksum of the data (4):
# https://www.tensorflow.org/tutorials/load_data/tfrecord.
# The checksums are not verified: a damaged record is noticed when it is parsed
# or its image is decoded, unless only the label is damaged.
def _tfrecord_offsets(path):
  """Byte offsets of the records of a TFRecord file."""
  offsets, offset, end = [], 0, path.stat().st_size
  with open(path, 'rb') as file:
    while offset < end:
      file.seek(offset)
      header = file.read(8)
      offsets.append(offset)
      length = struct.unpack('<Q', header)[0] if len(header) == 8 else end
      offset += 16 + length
  if offset != end:
    raise ValueError(
      f'{path} is truncated or damaged; remove the data set and prepare it'
      ' again'
    )
  return np.array(offsets, np.int64)


def _read_tfrecord(path, offset):
  # Opened each time: there may be more files than a process may keep open.
  with open(path, 'rb') as file:
    file.seek(offset)
    (length,) = struct.unpack('<Q', file.read(8))
    file.seek(4, os.SEEK_CUR)  # Skips the checksum of the length.
    return file.read(length)
