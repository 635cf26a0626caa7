"""Small imitations of the files of ILSVRC-2012: 1,000 classes of two images."""

import io
import os
import pickle
import tarfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from alexnet_jax.prepare import imagenet
from alexnet_jax.prepare import prepare
from alexnet_jax.prepare import sources

# From the development kit: the labels of the first three validation images, as
# in the first lines of the list in tfds, and the first and the last class.
FIRST_LABELS = ('n01751748', 'n09193705', 'n02105855')
FIRST_CLASS, LAST_CLASS = 'n01440764', 'n15075141'
EXTRA = {}  # Contents of additional members, by name.
VALIDATION = [f'ILSVRC2012_val_{i:08d}.JPEG' for i in (1, 2, 3)]


def jpeg(value, **options):
  """Bytes of an image of 4x4 pixels with this grey value, to recognize it."""
  buffer = io.BytesIO()
  Image.new('RGB', (4, 4), (value, value, value)).save(
    buffer, 'JPEG', **options
  )
  return buffer.getvalue()


def saved(image, kind):
  buffer = io.BytesIO()
  image.save(buffer, kind)
  return buffer.getvalue()


def add(archive, name, content):
  member = tarfile.TarInfo(name)
  member.size = len(content)
  archive.addfile(member, io.BytesIO(content))


def inner_archive(class_name, number):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    for name, content in EXTRA.items():
      if name.startswith(class_name):
        add(archive, name, content)
    for i in range(number):
      add(archive, f'{class_name}_{i}.JPEG', jpeg(40 * i))
  return buffer.getvalue()


def write_archives(root, classes=None, per_class=2, validation=VALIDATION):
  root.mkdir(parents=True, exist_ok=True)
  # The real archive is not in alphabetical order, either.
  classes = list(classes or imagenet.class_names())[::-1]
  with tarfile.open(root / imagenet.TRAIN_TAR, 'w') as archive:
    for name in classes:
      add(archive, f'{name}.tar', inner_archive(name, per_class))
  with tarfile.open(root / imagenet.VALIDATION_TAR, 'w') as archive:
    for i, name in enumerate(validation):
      add(archive, name, jpeg(200 + i))
  return root


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
  return write_archives(tmp_path_factory.mktemp('imagenet'))


def test_cmyk_and_png_files_in_the_archive_keep_their_colours(
  tmp_path, monkeypatch
):
  # The builder of imagenet2012 in tfds lists these two as CMYK and PNG.
  cmyk, png = 'n01739381_1309.JPEG', 'n02105855_2933.JPEG'
  monkeypatch.setitem(
    EXTRA, cmyk, saved(Image.new('CMYK', (9, 8), (0, 255, 255, 0)), 'JPEG')
  )
  monkeypatch.setitem(
    EXTRA, png, saved(Image.new('RGB', (9, 8), (0, 200, 0)), 'PNG')
  )
  root = write_archives(tmp_path / 'archives', per_class=1)
  path = prepare.prepare(
    f'imagenet:{root}', 'imagenet2012', tmp_path, size=4, max_bad=0
  )
  source = tfds.builder_from_directory(path).as_data_source('train')
  assert len(source) == 1002
  found = {e['file_name'].decode(): e for e in source}
  names = imagenet.class_names()
  for name, colour in ((cmyk, (255, 0, 0)), (png, (0, 200, 0))):
    example = found[f'{name[:9]}/{name}']
    assert names[example['label']] == name[:9]
    # JPEG rounds a uniform colour to within a few levels.
    assert np.abs(example['image'].astype(int) - colour).max() <= 3


def value(example):
  """The grey value of an example's image."""
  image = Image.open(io.BytesIO(example.read()['image']))
  return np.asarray(image).mean()


def test_the_classes_are_1000_wordnet_ids_in_alphabetical_order():
  names = imagenet.class_names()
  assert len(set(names)) == 1000 and list(names) == sorted(names)
  assert (names[0], names[-1]) == (FIRST_CLASS, LAST_CLASS)


def test_images_are_read_from_the_archives_in_place(archives):
  source = sources.open_source(f'imagenet:{archives}')
  train, validation = source.splits['train'], source.splits['validation']
  assert (len(train), len(validation)) == (2000, 3)
  assert [train[i].name for i in (0, 1, 1999)] == [
    f'{FIRST_CLASS}/{FIRST_CLASS}_0.JPEG',
    f'{FIRST_CLASS}/{FIRST_CLASS}_1.JPEG',
    f'{LAST_CLASS}/{LAST_CLASS}_1.JPEG',
  ]
  assert [train[i].read()['label'] for i in (0, 1, 1999)] == [0, 0, 999]
  # JPEG keeps a uniform grey to about one level.
  assert [value(train[i]) for i in (0, 1, 1999)] == pytest.approx(
    [0, 40, 40], abs=1
  )
  labels = [source.class_names[e.read()['label']] for e in validation]
  assert tuple(labels) == FIRST_LABELS
  assert [value(e) for e in validation] == pytest.approx([200, 201, 202], abs=1)
  assert set(os.listdir(archives)) == {
    imagenet.TRAIN_TAR,
    imagenet.VALIDATION_TAR,
  }


def test_an_example_can_be_sent_to_another_process(archives):
  example = sources.open_source(f'imagenet:{archives}').splits['train'][7]
  sent = pickle.loads(pickle.dumps(example))
  assert sent.read() == example.read()
  assert len(pickle.dumps(example)) < 1000  # It does not contain the index.


def test_the_index_is_reused_until_an_archive_changes(tmp_path, monkeypatch):
  root = write_archives(tmp_path)
  first = sources.open_source(f'imagenet:{root}')

  def refuse(*_):
    raise AssertionError('indexed again')

  with monkeypatch.context() as patch:
    patch.setattr(imagenet, '_index', refuse)
    again = sources.open_source(f'imagenet:{root}', first.index)
    assert again.digest == first.digest
    assert again.splits['train'][5].read() == first.splits['train'][5].read()
    os.utime(root / imagenet.VALIDATION_TAR, ns=(1, 1))
    with pytest.raises(AssertionError, match='indexed again'):
      sources.open_source(f'imagenet:{root}', first.index)


def test_the_unpacked_folders_hold_the_same_examples(archives, tmp_path):
  for path, part in (
    (archives / imagenet.TRAIN_TAR, 'train'),
    (archives / imagenet.VALIDATION_TAR, 'val'),
  ):
    with tarfile.open(path) as archive:
      archive.extractall(tmp_path / part, filter='data')
  for inner in (tmp_path / 'train').glob('*.tar'):
    with tarfile.open(inner) as archive:
      archive.extractall(inner.with_suffix(''), filter='data')
    inner.unlink()
  tree = sources.open_source(f'imagenet:{tmp_path}')
  packed = sources.open_source(f'imagenet:{archives}')
  assert tree.digest == packed.digest
  for split in ('train', 'validation'):
    for one, other in zip(
      tree.splits[split], packed.splits[split], strict=True
    ):
      assert one.read() == other.read()
  # Some scripts move the validation images into class folders.
  for name, class_name in zip(VALIDATION, FIRST_LABELS, strict=True):
    (tmp_path / 'val' / class_name).mkdir()
    (tmp_path / 'val' / name).rename(tmp_path / 'val' / class_name / name)
  sorted_ = sources.open_source(f'imagenet:{tmp_path}').splits['validation']
  found = {e.name.split('/')[1]: e.read()['label'] for e in sorted_}
  assert found == {
    e.name: e.read()['label'] for e in packed.splits['validation']
  }


@pytest.mark.parametrize(
  'member',
  [
    {'name': '../outside.JPEG'},
    {'name': '/etc/passwd.JPEG'},
    {'name': '\udcff.JPEG'},  # No UTF-8.
    {'name': 'link.JPEG', 'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'},
    {'name': 'link.JPEG', 'type': tarfile.LNKTYPE, 'linkname': '../outside'},
    {'name': 'device.JPEG', 'type': tarfile.CHRTYPE},
    {'name': 'sparse.JPEG', 'type': tarfile.GNUTYPE_SPARSE},
  ],
)
@pytest.mark.parametrize('which', [imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR])
def test_a_member_that_is_not_a_regular_file_inside_is_refused(
  archives, tmp_path, member, which
):
  for name in (imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR):
    (tmp_path / name).write_bytes((archives / name).read_bytes())
  with tarfile.open(tmp_path / which, 'a') as archive:
    info = tarfile.TarInfo(member['name'])
    for key, setting in member.items():
      setattr(info, key, setting)
    archive.addfile(info)
  with pytest.raises(
    ValueError, match='not a regular file with a short'
  ) as error:
    sources.open_source(f'imagenet:{tmp_path}')
  assert repr(member['name']) in str(error.value)
  assert which in str(error.value)


@pytest.mark.parametrize('which', [imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR])
@pytest.mark.parametrize('share', [0.5, 0.999])
def test_the_error_names_a_truncated_archive(archives, tmp_path, which, share):
  for name in (imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR):
    content = (archives / name).read_bytes()
    size = len(content.rstrip(b'\0')) if name == which else len(content)
    kept = int(size * share) if name == which else size
    (tmp_path / name).write_bytes(content[:kept])
  with pytest.raises(ValueError, match='download it again') as error:
    sources.open_source(f'imagenet:{tmp_path}')
  assert which in str(error.value)


@pytest.mark.parametrize('which', [imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR])
@pytest.mark.parametrize('damage', ['boundary', 'header', 'bit'])
def test_a_damaged_header_is_not_taken_for_the_end(
  archives, tmp_path, which, damage
):
  for name in (imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR):
    (tmp_path / name).write_bytes((archives / name).read_bytes())
  with tarfile.open(archives / which) as archive:
    where = archive.getmembers()[2].offset
  content = bytearray((archives / which).read_bytes())
  if damage == 'bit':
    content[where + 100] ^= 1
  else:
    content = content[: where + (100 if damage == 'header' else 0)]
  (tmp_path / which).write_bytes(content)
  with pytest.raises(ValueError, match='download it again') as error:
    sources.open_source(f'imagenet:{tmp_path}')
  assert which in str(error.value)


def test_an_archive_that_lacks_classes_is_refused(tmp_path):
  write_archives(tmp_path, imagenet.class_names()[:-2], per_class=1)
  with pytest.raises(ValueError, match='lacks 2 of 1,000 classes') as error:
    sources.open_source(f'imagenet:{tmp_path}')
  assert imagenet.class_names()[-2] in str(error.value)


@pytest.mark.parametrize(
  'name',
  [
    'dog.JPEG',
    'ILSVRC2012_val_00000000.JPEG',
    'ILSVRC2012_val_00050001.JPEG',
    'ILSVRC2012_val_00000001.JPEG.png',
  ],
)
def test_the_error_names_a_foreign_validation_image(tmp_path, name):
  write_archives(tmp_path, per_class=1, validation=[name])
  with pytest.raises(ValueError, match=name):
    sources.open_source(f'imagenet:{tmp_path}')


def test_the_error_for_an_empty_folder_says_what_is_needed(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    sources.open_source(f'imagenet:{tmp_path}')
  assert imagenet.TRAIN_TAR in str(error.value)
  assert 'image-net.org' in str(error.value)


def test_an_incomplete_imagenet_is_logged(archives, caplog):
  sources.open_source(f'imagenet:{archives}')
  assert caplog.messages == [
    'train has 2000 images, but the complete ILSVRC-2012 has 1281167.',
    'validation has 3 images, but the complete ILSVRC-2012 has 50000.',
  ]


def test_a_complete_split_is_not_logged(archives, caplog, monkeypatch):
  monkeypatch.setitem(imagenet.NUM_IMAGES, 'validation', len(VALIDATION))
  sources.open_source(f'imagenet:{archives}')
  (message,) = caplog.messages
  assert message.startswith('train has 2000 images')


def test_an_archive_is_opened_only_once(archives):
  train = sources.open_source(f'imagenet:{archives}').splits['train']
  train[0].read()
  before = len(os.listdir('/dev/fd'))
  for i in range(20):
    train[i].read()
  assert len(os.listdir('/dev/fd')) == before


def _tree(root, names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b'')


ALL = [f'train/{name}/1.JPEG' for name in imagenet.class_names()]


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (ALL[:-1] + ['val/' + VALIDATION[0]], 'train lacks 1 of 1,000 classes'),
    (
      ALL + ['train/dog/1.JPEG', 'val/' + VALIDATION[0]],
      'train/dog is not a class of',
    ),
    (ALL + ['val/.hidden'], 'val contains no images'),
    (ALL + ['val/dog.JPEG'], 'dog.JPEG is not a validation image'),
  ],
  ids=['lacks_class', 'foreign_class', 'empty', 'foreign_image'],
)
def test_unpacked_folders_that_are_not_imagenet_are_refused(
  tmp_path, names, message
):
  _tree(tmp_path, names)
  with pytest.raises(ValueError, match=message):
    sources.open_source(f'imagenet:{tmp_path}')


def test_hidden_files_of_unpacked_folders_are_ignored(tmp_path):
  hidden = ['train/.git/x', f'train/{FIRST_CLASS}/.DS_Store', 'val/.DS_Store']
  _tree(tmp_path, ALL + hidden + ['val/' + VALIDATION[0]])
  splits = sources.open_source(f'imagenet:{tmp_path}').splits
  assert {split: len(e) for split, e in splits.items()} == {
    'train': 1000,
    'validation': 1,
  }


def test_unpacked_folders_as_people_have_them(tmp_path, caplog):
  _tree(tmp_path, ALL + ['val/' + VALIDATION[0]])
  plain = sources.open_source(f'imagenet:{tmp_path}')
  assert list(plain.unused) == []
  extra = [
    f'train/{FIRST_CLASS}/@eaDir/1.JPEG',
    f'train/{FIRST_CLASS}/Thumbs.db',
    'train/__MACOSX/1.JPEG',
    'val/@eaDir/1.JPEG',
    'val/Thumbs.db',
    'train/loose.JPEG',
    'test/1.JPEG',
  ]
  _tree(tmp_path, extra)
  junk = sources.open_source(f'imagenet:{tmp_path}')
  assert junk.digest == plain.digest
  assert list(junk.unused) == ['train/loose.JPEG', 'test']
  _tree(tmp_path, [f'train/{FIRST_CLASS}/images/2.JPEG'])
  os.mkfifo(tmp_path / f'train/{FIRST_CLASS}/pipe.JPEG')
  (tmp_path / f'train/{FIRST_CLASS}/loop').symlink_to('..')
  (tmp_path / 'train/n0').symlink_to('nothing')
  (tmp_path / 'val' / VALIDATION[1]).symlink_to('nothing')
  caplog.clear()
  odd = sources.open_source(f'imagenet:{tmp_path}')
  train, validation = odd.splits['train'], odd.splits['validation']
  assert [train[i].name for i in range(5)] == [
    'n0',
    f'{FIRST_CLASS}/1.JPEG',
    f'{FIRST_CLASS}/images/2.JPEG',
    f'{FIRST_CLASS}/loop',
    f'{FIRST_CLASS}/pipe.JPEG',
  ]
  assert train[2].read()['label'] == 0
  assert 'files in subfolders of class folders: 1, such' in caplog.messages[0]
  for example in (train[0], train[3], train[4], validation[1]):
    with pytest.raises(ValueError, match='a link to|a pipe'):
      example.read()


def test_an_empty_archive_is_refused(tmp_path):
  write_archives(tmp_path, per_class=1, validation=[])
  with pytest.raises(ValueError, match='img_val.tar contains no images'):
    sources.open_source(f'imagenet:{tmp_path}')


def test_an_unknown_class_is_refused(tmp_path):
  write_archives(tmp_path, [*imagenet.class_names(), 'n99999999'], per_class=1)
  with pytest.raises(ValueError, match='n99999999.tar, which is not a class'):
    sources.open_source(f'imagenet:{tmp_path}')


def test_a_name_too_long_for_the_index_is_refused_not_truncated(tmp_path):
  write_archives(
    tmp_path, per_class=1, validation=['a' * 4 + '/' + VALIDATION[0]]
  )
  with pytest.raises(ValueError, match='not the archive from image-net.org'):
    sources.open_source(f'imagenet:{tmp_path}')


def test_indexing_does_not_keep_an_object_for_each_member(archives):
  with tarfile.open(archives / imagenet.VALIDATION_TAR) as archive:
    for _ in imagenet._regular_files(archive):
      assert len(archive.members) <= 1


def test_a_member_that_is_there_twice_is_refused(tmp_path):
  write_archives(tmp_path, per_class=1)
  path = tmp_path / imagenet.VALIDATION_TAR
  with tarfile.open(path, 'a') as archive:
    add(archive, VALIDATION[0], jpeg(1))
  with pytest.raises(ValueError, match=f'{VALIDATION[0]} twice.*download it'):
    imagenet.open_imagenet(tmp_path)
