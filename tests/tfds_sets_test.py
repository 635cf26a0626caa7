"""Data sets of tfds as a source: both record formats, and damaged data sets."""

import importlib.util
import io
import struct
import types

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.prepare import sources
from alexnet_jax.prepare import tfds_sets

FEATURES = {
  'image': tfds.features.Image(shape=(None, None, 3)),
  'label': tfds.features.ClassLabel(names=['cat', 'dog', 'owl']),
}
NAMED = FEATURES | {'file_name': tfds.features.Text()}
LENGTHS = {'train': [3, 2], 'test': [2]}


@pytest.fixture(autouse=True)
def tfds_dir(tmp_path, monkeypatch):
  """The folder in which tfds stores its data sets."""
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  return tmp_path


def png(grey):
  buffer = io.BytesIO()
  Image.new('RGB', (5, 4), (grey, grey, grey)).save(buffer, 'PNG')
  return buffer.getvalue()


def record(number, features, label):
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature['image'].bytes_list.value.append(png(number))
  feature['label'].int64_list.value.append(label)
  if 'file_name' in features:
    feature['file_name'].bytes_list.value.append(f'{number}.png'.encode())
  return example.SerializeToString()


def write_records(path, records, file_format):
  if file_format == 'array_record':
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for content in records:
      writer.write(content)
    writer.close()
    return
  # Length, checksum of the length, data, checksum of the data. Checksums are
  # not verified, so they may be zero.
  path.write_bytes(
    b''.join(struct.pack('<QI', len(r), 0) + r + bytes(4) for r in records)
  )


def write_set(
  root,
  file_format,
  *,
  name='pets',
  version='1.0.0',
  features=FEATURES,
  lengths=LENGTHS,
  labels=lambda split, i: i % 3,
):
  """Writes a data set whose images have the grey values 0, 1, 2, ..."""
  folder = root / name / version
  folder.mkdir(parents=True)
  number, infos = 0, []
  for split, of_shards in lengths.items():
    for shard, length in enumerate(of_shards):
      records = [
        record(number + i, features, labels(split, number + i))
        for i in range(length)
      ]
      number += length
      file = f'{name}-{split}.{file_format}-{shard:05d}-of-{len(of_shards):05d}'
      write_records(folder / file, records, file_format)
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=of_shards,
        num_bytes=1,
        filename_template=tfds.core.ShardedFileTemplate(
          dataset_name=name,
          data_dir=folder,
          split=split,
          filetype_suffix=file_format,
        ),
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=tfds.features.FeaturesDict(features),
    split_infos=infos,
    version=version,
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
  )
  return folder


formats = pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])


def values(examples):
  """(grey value, label, file name) of every example."""
  read = [example.read() for example in examples]
  grey = lambda r: int(np.asarray(Image.open(io.BytesIO(r['image'])))[0, 0, 0])
  return [(grey(r), r['label'], r['file_name']) for r in read]


@formats
def test_every_example_is_read_in_order_across_shards(tfds_dir, file_format):
  write_set(tfds_dir, file_format)
  source = sources.open_source('tfds:pets')
  assert source.class_names == ('cat', 'dog', 'owl')
  assert {s: len(e) for s, e in source.splits.items()} == {
    'train': 5,
    'test': 2,
  }
  assert values(source.splits['train']) == [
    (i, i % 3, f'train/{i:07d}') for i in range(5)
  ]
  assert values(source.splits['test']) == [
    (5, 2, 'test/0000000'),
    (6, 0, 'test/0000001'),
  ]


@formats
def test_file_names_are_kept_if_there_are_any(tfds_dir, file_format):
  write_set(tfds_dir, file_format, features=NAMED)
  examples = sources.open_source('tfds:pets').splits['test']
  assert [name for _, _, name in values(examples)] == ['5.png', '6.png']


def test_the_version_can_be_chosen_and_defaults_to_the_newest(tfds_dir):
  write_set(tfds_dir, 'array_record', version='1.0.0')
  write_set(tfds_dir, 'array_record', version='2.0.0', lengths={'train': [4]})
  count = lambda spec: len(sources.open_source(spec).splits['train'])
  assert count('tfds:pets') == count('tfds:pets:2.0.0') == 4
  assert count('tfds:pets:1.0.0') == 5


def test_a_split_without_labels_is_left_out(tfds_dir, caplog):
  label = lambda split, i: -1 if split == 'test' else 0
  write_set(tfds_dir, 'array_record', labels=label)
  assert list(sources.open_source('tfds:pets').splits) == ['train']
  assert caplog.messages == [
    'pets: split test is left out, because it has no examples or no labels.'
  ]


def test_the_error_for_a_missing_data_set_says_how_to_prepare_it(
  tfds_dir, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(FileNotFoundError, match='tfds:nosuch: .*TensorFlow'):
    sources.open_source('tfds:nosuch')


def test_a_data_set_without_labels_is_refused(tfds_dir):
  features = {'image': FEATURES['image'], 'name': tfds.features.Text()}
  write_set(tfds_dir, 'array_record', features=features)
  with pytest.raises(ValueError, match="label 'label', but has image, name"):
    sources.open_source('tfds:pets')


def test_a_data_set_without_training_examples_is_refused(tfds_dir):
  write_set(tfds_dir, 'array_record', lengths={'test': [2]})
  with pytest.raises(
    ValueError, match="no split 'train' with labels; .* are: test"
  ):
    sources.open_source('tfds:pets')


@pytest.mark.parametrize('cut', [1, 20])
def test_the_error_names_a_truncated_tfrecord_file(tfds_dir, cut):
  folder = write_set(tfds_dir, 'tfrecord')
  file = folder / 'pets-train.tfrecord-00001-of-00002'
  file.write_bytes(file.read_bytes()[:-cut])
  with pytest.raises(ValueError, match=f'{file} is truncated'):
    sources.open_source('tfds:pets')


@formats
def test_the_error_names_a_file_with_a_damaged_record(tfds_dir, file_format):
  folder = write_set(tfds_dir, file_format)
  content = b'no example' * 20
  name = f'pets-train.{file_format}-00000-of-00002'
  write_records(folder / name, [content] * 3, file_format)
  with pytest.raises(ValueError, match=f'{name} has a damaged record'):
    sources.open_source('tfds:pets')


def test_an_invalid_label_is_an_error_when_the_example_is_read(tfds_dir):
  write_set(tfds_dir, 'array_record', labels=lambda split, i: [0, -1, 3][i % 3])
  train = sources.open_source('tfds:pets').splits['train']
  assert train[0].read()['label'] == 0
  for i, label in ((1, -1), (2, 3)):
    with pytest.raises(ValueError, match=f'label {label} is none of 3 classes'):
      train[i].read()


def test_the_error_names_a_missing_file(tfds_dir):
  folder = write_set(tfds_dir, 'array_record')
  (folder / 'pets-train.array_record-00001-of-00002').unlink()
  with pytest.raises(ValueError, match='lacks .*00001-of-00002; remove the'):
    sources.open_source('tfds:pets')


def test_the_digest_differs_between_data_sets(tfds_dir):
  write_set(tfds_dir, 'array_record')
  first = sources.open_source('tfds:pets').digest
  assert sources.open_source('tfds:pets').digest == first
  write_set(
    tfds_dir, 'array_record', version='1.0.1', lengths=LENGTHS | {'test': [3]}
  )
  assert sources.open_source('tfds:pets').digest != first


def test_a_missing_data_set_is_prepared_by_tfds(tfds_dir):
  """Needs TensorFlow: pip install -e '.[tensorflow]'."""
  pytest.importorskip('tensorflow')

  class FourSquares(tfds.core.GeneratorBasedBuilder):
    """Defining this class registers it with tfds as 'four_squares'."""

    VERSION = tfds.core.Version('2.1.0')
    pkg_dir_path = epath.Path(tfds_dir)  # The default needs a Python package.

    def _info(self):
      features = tfds.features.FeaturesDict(FEATURES)
      return self.dataset_info_from_configs(features=features)

    def _split_generators(self, _):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(4):
        yield i, {'image': io.BytesIO(png(60 * i)), 'label': i % 3}

  source = sources.open_source('tfds:four_squares')
  assert (tfds_dir / 'four_squares/2.1.0').is_dir()
  assert source.class_names == ('cat', 'dog', 'owl')
  found = [(grey, label) for grey, label, _ in values(source.splits['train'])]
  assert sorted(found) == [(0, 0), (60, 1), (120, 2), (180, 0)]


def test_16_bit_images_are_refused(tfds_dir):
  image = tfds.features.Image(
    shape=(None, None, 1), dtype=np.uint16, encoding_format='png'
  )
  write_set(tfds_dir, 'array_record', features=FEATURES | {'image': image})
  with pytest.raises(ValueError, match="needs an 8-bit image 'image'"):
    sources.open_source('tfds:pets')


def test_a_data_set_without_named_features_is_refused(tfds_dir, monkeypatch):
  write_set(tfds_dir, 'array_record')
  info = types.SimpleNamespace(features=tfds.features.Text())
  builder = types.SimpleNamespace(info=info)
  monkeypatch.setattr(tfds_sets, '_builder', lambda _: builder)
  with pytest.raises(ValueError, match='but has other features'):
    sources.open_source('tfds:pets')


def test_missing_records_are_noticed(tfds_dir):
  folder = write_set(tfds_dir, 'tfrecord')
  records = [record(0, FEATURES, 0)] * 2
  write_records(
    folder / 'pets-train.tfrecord-00000-of-00002', records, 'tfrecord'
  )
  with pytest.raises(
    ValueError, match='train has 4 records, but its metadata says 5'
  ):
    sources.open_source('tfds:pets')


def test_a_tfrecord_file_that_ends_within_a_length_is_refused(tfds_dir):
  folder = write_set(tfds_dir, 'tfrecord')
  file = folder / 'pets-train.tfrecord-00001-of-00002'
  file.write_bytes(file.read_bytes() + bytes(3))
  with pytest.raises(ValueError, match=f'{file} is truncated'):
    sources.open_source('tfds:pets')


def test_a_split_without_examples_is_left_out(tfds_dir):
  write_set(tfds_dir, 'tfrecord', lengths={'train': [2], 'test': [0]})
  assert list(sources.open_source('tfds:pets').splits) == ['train']


def test_the_error_names_a_damaged_array_record_file(tfds_dir):
  folder = write_set(tfds_dir, 'array_record')
  file = folder / 'pets-train.array_record-00000-of-00002'
  content = bytearray(file.read_bytes())
  content[:200] = bytes(200)
  file.write_bytes(content)
  with pytest.raises(ValueError, match=f'{file} has a damaged record'):
    sources.open_source('tfds:pets')


def test_the_digest_depends_on_the_sizes_of_the_files(tfds_dir):
  folder = write_set(tfds_dir, 'tfrecord')
  first = sources.open_source('tfds:pets').digest
  records = [
    record(i + 100, FEATURES, 0) + record(i, FEATURES, 1) for i in range(3)
  ]
  write_records(
    folder / 'pets-train.tfrecord-00000-of-00002', records, 'tfrecord'
  )
  assert sources.open_source('tfds:pets').digest != first


def test_the_description_defaults_to_the_name_of_the_data_set(tfds_dir):
  write_set(tfds_dir, 'array_record')
  assert sources.open_source('tfds:pets').description == 'pets/1.0.0 of tfds.'


def test_a_file_name_that_is_not_utf8_does_not_cost_the_image(tfds_dir):
  folder = write_set(tfds_dir, 'tfrecord', features=NAMED)
  (path,) = folder.glob('*-test.*')
  path.write_bytes(path.read_bytes().replace(b'5.png', b'5.pn\xe9'))
  test = sources.open_source('tfds:pets').splits['test']
  assert [name for _, _, name in values(test)] == [r'5.pn\xe9', '6.png']


def test_class_names_that_tfds_cannot_store_are_refused(monkeypatch, tfds_dir):
  write_set(tfds_dir, 'tfrecord')
  builder = tfds_sets._builder

  def with_other_names(name):
    info = builder(name).info
    info.features['label']._int2str = ['cat', 'dog\nowl', 'owl']
    return types.SimpleNamespace(info=info)

  monkeypatch.setattr(tfds_sets, '_builder', with_other_names)
  with pytest.raises(
    ValueError, match=r"tfds:pets: the class name 'dog\\nowl' "
  ):
    sources.open_source('tfds:pets')
