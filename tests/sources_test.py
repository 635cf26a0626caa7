"""Sources of examples: temporary folders, and the digits of scikit-learn."""

import errno
import io
import os
import types
import unicodedata

import numpy as np
from PIL import Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax.prepare import examples
from alexnet_jax.prepare import folders
from alexnet_jax.prepare import prepare
from alexnet_jax.prepare import sources


def _touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(name))


def test_digits_match_scikit_learn_and_are_split_1497_to_300():
  data = sklearn.datasets.load_digits()
  source = sources.open_source('digits')
  assert source.class_names == tuple('0123456789')
  is_test = np.arange(1797) % 6 == 0
  for split, rows, count in (('train', ~is_test, 1497), ('test', is_test, 300)):
    examples = source.splits[split]
    assert len(examples) == count
    labels = [example.read()['label'] for example in examples]
    np.testing.assert_array_equal(labels, data.target[rows])
    for i in (0, count - 1):
      image = Image.open(io.BytesIO(examples[i].read()['image']))
      # The levels 0..16 are scaled to 0..255 and rounded, an error of at most
      # half of 16 / 255.
      pixels = np.asarray(image) * (16 / 255)
      np.testing.assert_allclose(pixels, data.images[rows][i], atol=8 / 255)
  assert set(source.splits) == {'train', 'test'}


def test_a_fraction_of_every_class_is_held_out_by_the_seed(tmp_path):
  sizes = {'cat': 40, 'dog': 10, 'train': 3}  # A class may be called train.
  _touch(
    tmp_path,
    'notes.txt',
    'dog/puppies/9.jpg',
    *(
      f'{c}/{i}.jpg' for c, n in sizes.items() for i in range(n - (c == 'dog'))
    ),
  )
  spec = f'folder:{tmp_path}'
  held_out = {}
  for seed in (0, 1):
    source = sources.open_source(spec, val_fraction=0.1, seed=seed)
    assert source.class_names == ('cat', 'dog', 'train')
    assert source.unused == ['notes.txt']
    found = {
      split: [(e.name, e.read()['label']) for e in source.splits[split]]
      for split in ('train', 'validation')
    }
    everything = sorted(found['train'] + found['validation'])
    assert len(everything) == len(set(everything)) == 53
    for name, label in everything:
      assert source.class_names[label] == name.split('/')[0]
    held_out[seed] = [name for name, _ in found['validation']]
    classes = [name.split('/')[0] for name in held_out[seed]]
    # A tenth of 40, 10 and 3, rounded; at least one.
    assert classes == ['cat'] * 4 + ['dog', 'train']
  assert held_out[0] != held_out[1]
  again = sources.open_source(spec, val_fraction=0.1)
  assert [e.name for e in again.splits['validation']] == held_out[0]
  assert again.digest != source.digest
  # Another image of one class moves no image of the others.
  _touch(tmp_path, 'cat/new.jpg')
  again = sources.open_source(spec, val_fraction=0.1)
  names = [e.name for e in again.splits['validation']]
  assert names[-2:] == held_out[0][-2:]
  # Nor does another class, which comes first.
  _touch(tmp_path, 'ant/1.jpg', 'ant/2.jpg')
  again = sources.open_source(spec, val_fraction=0.1)
  assert [e.name for e in again.splits['validation']][-2:] == names[-2:]


@pytest.mark.parametrize(
  ('names', 'fraction', 'message'),
  [
    (['train/a/1.jpg', 'val/a/2.jpg'], 0.1, 'has train/ already; leave out'),
    (['train/a/1.jpg'], 0.1, 'has train/ already; leave out'),
    (['train/a/1.jpg', 'test/a/2.jpg'], 0.1, 'has train/ already; leave out'),
    (
      ['a/1.jpg', 'a/2.jpg', 'b/1.jpg'],
      0.1,
      'no image of class b for training',
    ),
    (['a/1.jpg', 'a/2.jpg'], 0.9, 'no image of class a for training'),
    (['a.jpg'], 0.1, 'has no class folders'),
  ],
)
def test_a_folder_that_cannot_be_divided_is_refused(
  tmp_path, names, fraction, message
):
  _touch(tmp_path, *names)
  with pytest.raises(ValueError, match=message):
    sources.open_source(f'folder:{tmp_path}', val_fraction=fraction)


@pytest.mark.parametrize('spec', ['digits', 'imagenet:x', 'tfds:mnist'])
def test_other_sources_have_their_splits(spec):
  with pytest.raises(ValueError, match='0.2 belongs to --source=folder:DIR'):
    sources.open_source(spec, val_fraction=0.2)


def test_a_folder_has_the_classes_of_train_and_the_split_names_of_tfds(
  tmp_path,
):
  _touch(
    tmp_path,
    'train/dog/1.jpg',
    'train/cat/2.png',
    'train/cat/1.png',
    'val/dog/3.jpg',
    'test/cat/4.jpg',
  )
  source = sources.open_source(f'folder:{tmp_path}')
  assert source.class_names == ('cat', 'dog')
  found = {
    split: [
      (e.name, *(e.read()[key] for key in ('file_name', 'label', 'image')))
      for e in examples
    ]
    for split, examples in source.splits.items()
  }
  assert found == {
    split: [(name, name, label, name.encode()) for name, label in examples]
    for split, examples in {
      'train': [
        ('train/cat/1.png', 0),
        ('train/cat/2.png', 0),
        ('train/dog/1.jpg', 1),
      ],
      'validation': [('val/dog/3.jpg', 1)],
      'test': [('test/cat/4.jpg', 0)],
    }.items()
  }


def test_a_folder_without_test_has_no_test_split(tmp_path):
  _touch(tmp_path, 'train/cat/1.png', 'val/cat/2.png')
  source = sources.open_source(f'folder:{tmp_path}')
  assert set(source.splits) == {'train', 'validation'}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
  path = tmp_path / 'huge.jpg'
  with open(path, 'wb') as file:
    file.truncate(images.MAX_BYTES + 1)  # A sparse file.
  (whole,) = examples.Files(tmp_path, ['huge.jpg'], [0])
  part = examples.from_file_range(path, 0, images.MAX_BYTES + 1, 'huge', 0)
  for example in (whole, part):
    with pytest.raises(ValueError, match='1073741825 bytes are too many'):
      example.read()


def test_hidden_files_and_folders_are_ignored(tmp_path):
  _touch(
    tmp_path,
    'train/cat/1.png',
    'train/cat/.DS_Store',
    'train/.git/config',
    'train/README.txt',
    'val/cat/2.png',
    'val/.cache/3.png',
  )
  source = sources.open_source(f'folder:{tmp_path}')
  assert source.class_names == ('cat',)
  assert _names(source) == ['train/cat/1.png', 'val/cat/2.png']


def _names(source):
  return [e.name for split in source.splits.values() for e in split]


def test_images_in_subfolders_belong_to_the_class(tmp_path, caplog):
  _touch(
    tmp_path,
    'train/cat/images/b.jpg',  # As in Tiny-ImageNet.
    'train/cat/images/a/deep/1.jpg',
    'train/cat/z.jpg',
    'train/dog/1.jpg',
    'val/dog/2019/1.jpg',
  )
  source = sources.open_source(f'folder:{tmp_path}')
  assert _names(source) == [
    'train/cat/images/a/deep/1.jpg',
    'train/cat/images/b.jpg',
    'train/cat/z.jpg',
    'train/dog/1.jpg',
    'val/dog/2019/1.jpg',
  ]
  labels = [e.read()['label'] for e in source.splits['train']]
  assert labels == [0, 0, 0, 1]
  assert caplog.messages == [
    f'{tmp_path}: files in subfolders of class folders: {name}; their class is'
    ' the outermost folder.'
    for name in (
      '2, such as train/cat/images/a/deep/1.jpg',
      '1, such as val/dog/2019/1.jpg',
    )
  ]


def test_no_folder_is_read_twice_for_a_class(tmp_path):
  _touch(tmp_path, 'train/cat/z/1.jpg', 'train/dog/2.jpg', 'val/dog/3.jpg')
  _touch(tmp_path, 'store/4.jpg', 'store/inner/5.jpg')
  cat = tmp_path / 'train/cat'
  for link, target in (
    ('loop', '.'),
    ('up', '..'),  # Otherwise dogs would be cats.
    ('root', '/'),
    ('a', 'z'),  # Two names of one folder.
    ('z/back', '..'),
    ('elsewhere', tmp_path / 'store'),
    ('twice', tmp_path / 'store'),
  ):
    (cat / link).symlink_to(target)
  (tmp_path / 'store/inner/loop').symlink_to('..')
  source = sources.open_source(f'folder:{tmp_path}')
  read, refused = [], []
  for example in source.splits['train']:
    try:
      read.append(example.read()['file_name'])
    except ValueError as error:
      assert str(error) == 'a link to a folder that is read under another name'
      refused.append(example.name.removeprefix('train/cat/'))
  assert read == [
    'train/cat/elsewhere/4.jpg',
    'train/cat/elsewhere/inner/5.jpg',
    'train/cat/z/1.jpg',
    'train/dog/2.jpg',
  ]
  assert refused == [
    'a',
    'elsewhere/inner/loop',
    'loop',
    'root',
    'twice',
    'up',
    'z/back',
  ]


def test_a_link_into_a_forbidden_folder_is_counted(tmp_path, monkeypatch):
  _touch(tmp_path, 'train/cat/1.jpg', 'val/cat/1.jpg')
  (tmp_path / 'train/cat/2.jpg').symlink_to('1.jpg')
  scan = folders.scan

  def forbidden():
    raise PermissionError(errno.EACCES, 'Permission denied')

  def scan_with_forbidden_links(path):  # Root may follow every link.
    return [
      types.SimpleNamespace(
        name=entry.name,
        path=entry.path,
        is_symlink=entry.is_symlink,
        is_dir=forbidden if entry.is_symlink() else entry.is_dir,
        is_file=forbidden if entry.is_symlink() else entry.is_file,
      )
      for entry in scan(path)
    ]

  monkeypatch.setattr(folders, 'scan', scan_with_forbidden_links)
  train = sources.open_source(f'folder:{tmp_path}').splits['train']
  assert [e.name for e in train] == ['train/cat/1.jpg', 'train/cat/2.jpg']


def test_many_links_to_folders_take_no_exponential_time(tmp_path):
  _touch(tmp_path, 'train/cat/1.jpg', 'val/cat/1.jpg')
  for i in range(40):  # 2**40 paths.
    (tmp_path / f'{i}').mkdir()
    for name in 'ab':
      (tmp_path / f'{i}' / name).symlink_to(tmp_path / f'{i + 1}')
  _touch(tmp_path, '40/1.jpg')
  (tmp_path / 'train/cat/0').symlink_to(tmp_path / '0')
  train = sources.open_source(f'folder:{tmp_path}').splits['train']
  assert len(train) == 1 + 1 + 40


def test_linked_class_folders_and_images_are_used(tmp_path):
  _touch(tmp_path / 'store', 'cat/1.jpg', 'dog/2.jpg')
  _touch(tmp_path, 'train/dog/3.jpg')
  (tmp_path / 'train/cat').symlink_to(tmp_path / 'store/cat')
  (tmp_path / 'train/dog/4.jpg').symlink_to(tmp_path / 'store/dog/2.jpg')
  (tmp_path / 'val').symlink_to('train')
  source = sources.open_source(f'folder:{tmp_path}')
  found = [
    (e.name, e.read()['label']) for s in source.splits.values() for e in s
  ]
  assert found == [
    (f'{part}/{name}', label)
    for part in ('train', 'val')
    for name, label in (('cat/1.jpg', 0), ('dog/3.jpg', 1), ('dog/4.jpg', 1))
  ]


def test_a_split_that_links_to_the_whole_folder_has_its_classes(tmp_path):
  _touch(tmp_path, 'cat/1.jpg', 'dog/2.jpg')
  for part in ('train', 'val'):
    (tmp_path / part).symlink_to('.')
  source = sources.open_source(f'folder:{tmp_path}')
  assert source.class_names == ('cat', 'dog')
  assert _names(source)[:4] == [
    'train/cat/1.jpg',
    'train/dog/2.jpg',
    'train/train',
    'train/val',
  ]


JUNK = (
  *('@eaDir', '__MACOSX', '.AppleDouble', '#recycle', '@Recycle'),
  *('$RECYCLE.BIN', 'System Volume Information', 'lost+found', '._1.jpg'),
  *('Thumbs.db', 'desktop.ini', 'Icon\r', '1.jpg:Zone.Identifier'),
)


@pytest.mark.parametrize('place', ['', 'train/', 'train/cat/', 'train/cat/in/'])
@pytest.mark.parametrize('content', ['', '/1.jpg'], ids=['file', 'folder'])
def test_what_desktops_and_file_servers_leave_is_no_image(
  tmp_path, place, content
):
  _touch(tmp_path, 'train/cat/1.jpg', 'val/cat/1.jpg')
  expected = sources.open_source(f'folder:{tmp_path}')
  _touch(tmp_path, *(f'{place}{name}{content}' for name in JUNK))
  found = sources.open_source(f'folder:{tmp_path}')
  assert found.class_names == ('cat',)
  assert (
    _names(found) == _names(expected) == ['train/cat/1.jpg', 'val/cat/1.jpg']
  )
  assert found.digest == expected.digest
  assert list(found.unused) == []


NFC, NFD = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))


@pytest.mark.parametrize('place', ['train', 'val'])
@pytest.mark.parametrize(
  ('name', 'reason'),
  [
    ('cat\ndog', r"'cat\ndog' would be read back as 'cat' and 'dog'"),
    ('cat\rdog', r"'cat\rdog' would be read back as 'cat' and 'dog'"),
    (' ', "' ' would be read back as nothing"),
    ('\n', r"'\n' would be read back as nothing"),
    ('cat ', "'cat ' would be read back as 'cat'"),
    (' cat', "' cat' would be read back as 'cat'"),
    ('cat\t', r"'cat\t' would be read back as 'cat'"),
    ('cat\xa0', r"'cat\xa0' would be read back as 'cat'"),
    ('\u2028cat', r"'\u2028cat' would be read back as 'cat'"),
    ('caf\udce9', r"'caf\udce9' is not UTF-8, or the locale is not"),
  ],
)
def test_a_class_name_that_tfds_does_not_give_back_is_refused(
  tmp_path, name, reason, place
):
  _touch(tmp_path, 'train/cat/1.jpg', 'val/cat/1.jpg', f'{place}/{name}/1.jpg')
  with pytest.raises(ValueError) as error:
    sources.open_source(f'folder:{tmp_path}')
  message = str(error.value)
  start = f'{tmp_path}/{place}: the class name {reason}'
  assert message.startswith(start) and len(message.splitlines()) == 1


def test_class_names_that_tfds_gives_back_are_kept(tmp_path):
  names = sorted(
    ['a  b', '0', '-1', '#cat', '"cat"', "o'cat", 'a,b;c', '猫', NFC, 'é' * 99]
    + [
      'cat',
      'Cat',
      'a\x85b',
      'a\u2028b',
      '\ufeffcat',
      'cat\u200b',
      '🐈',
      '%2F',
    ]
  )
  for part in ('train', 'val'):
    _touch(tmp_path, *(f'{part}/{name}/1.png' for name in names))
  for path in tmp_path.glob('*/*/1.png'):
    Image.new('RGB', (4, 4)).save(path)
  prepared = prepare.prepare(
    f'folder:{tmp_path}', 'set', tmp_path / 'data', size=4
  )
  dataset = dataset_lib.open_dataset(tmp_path / 'data', 'set')
  assert dataset.class_names == tuple(names)
  data = tfds.builder_from_directory(prepared).as_data_source('train')
  assert {e['file_name'].decode().split('/')[1]: e['label'] for e in data} == {
    name: label for label, name in enumerate(names)
  }


@pytest.mark.parametrize('forms', [(NFC, NFD), (NFD, NFC)])
def test_the_two_unicode_forms_of_a_name_are_one_class(tmp_path, forms):
  one, other = forms
  _touch(
    tmp_path,
    *(f'train/{name}/1.jpg' for name in ('bar', one, 'zoo')),
    *(f'val/{name}/2.jpg' for name in ('bar', other, 'zoo')),
  )
  source = sources.open_source(f'folder:{tmp_path}')
  assert source.class_names == ('bar', one, 'zoo')
  found = [e.read() for e in source.splits['validation']]
  assert {e['file_name'].split('/')[1]: e['label'] for e in found} == {
    'bar': 0,
    other: 1,
    'zoo': 2,
  }


@pytest.mark.parametrize('place', ['train', 'val'])
def test_two_folders_whose_names_look_the_same_are_refused(tmp_path, place):
  _touch(tmp_path, f'train/{NFC}/1.jpg', f'val/{NFC}/1.jpg')
  _touch(tmp_path, f'{place}/{NFD}/2.jpg')
  with pytest.raises(ValueError) as error:
    sources.open_source(f'folder:{tmp_path}')
  assert str(error.value) == (
    f"{tmp_path}/{place}: the class names 'cafe\\u0301' and 'caf\\xe9' look the"
    " same; they differ in Unicode's normal forms NFC and NFD; move the images"
    ' into one folder'
  )


def test_an_unknown_class_is_named_with_its_invisible_characters(tmp_path):
  _touch(tmp_path, 'train/cat/1.jpg', 'val/cat\u200b/1.jpg')
  with pytest.raises(ValueError, match=r'/train lacks: cat\\u200b;'):
    sources.open_source(f'folder:{tmp_path}')


def test_a_folder_whose_own_name_is_not_utf8_can_be_prepared(tmp_path):
  root = tmp_path / 'caf\udce9\nx'
  for part in ('train', 'val'):
    (root / part / 'cat').mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(root / part / 'cat/1.png')
  path = prepare.prepare(f'folder:{root}', 'set', tmp_path / 'data', size=4)
  description = tfds.builder_from_directory(path).info.description
  assert description.startswith(r'Images of caf\udce9')


def test_a_test_folder_that_links_to_nothing_is_an_error(tmp_path):
  _touch(tmp_path, 'train/cat/1.jpg', 'val/cat/1.jpg')
  (tmp_path / 'test').symlink_to('nothing')
  with pytest.raises(FileNotFoundError, match='no folder .*/test;'):
    sources.open_source(f'folder:{tmp_path}')


def test_a_class_of_links_to_nothing_is_refused(tmp_path):
  _touch(tmp_path, 'train/cat/1.jpg', 'val/cat/1.jpg')
  (tmp_path / 'train/dog').mkdir()
  for i in range(9):
    (tmp_path / f'train/dog/{i}.jpg').symlink_to('nothing')
  with pytest.raises(ValueError) as error:
    sources.open_source(f'folder:{tmp_path}')
  assert str(error.value) == (
    f'class folder {tmp_path}/train/dog has no regular files, only links to'
    ' nothing, devices or the like: 0.jpg, 1.jpg, 2.jpg and 6 more; add images'
    ' or remove it'
  )


@pytest.mark.parametrize(
  ('files', 'error', 'message'),
  [
    ([], FileNotFoundError, 'no folder {}/train; --source=folder:DIR needs'),
    (
      ['train/cat/1.png'],
      FileNotFoundError,
      'no folder {}/val; --source=folder:DIR needs DIR/train/CLASS/*.jpg and'
      ' DIR/val/CLASS/*.jpg',
    ),
    (
      ['train/1.png', 'val/cat/1.png'],
      ValueError,
      '{}/train has no class folders; put the images of each class into',
    ),
    (
      ['train/cat/1.png', 'train/dog/.hidden', 'val/cat/1.png'],
      ValueError,
      'class folder {}/train/dog is empty; add images or remove it',
    ),
    (
      ['train/cat/1.png', 'val/emu/1.png', 'val/cat/1.png', 'val/ape/1.png'],
      ValueError,
      '{0}/val has class folders that {0}/train lacks: ape, emu;',
    ),
  ],
  ids=['no_folder', 'no_val', 'no_classes', 'empty_class', 'unknown_class'],
)
def test_the_error_names_the_invalid_folder(tmp_path, files, error, message):
  _touch(tmp_path, *files)
  with pytest.raises(error) as raised:
    sources.open_source(f'folder:{tmp_path}')
  assert str(raised.value).startswith(message.format(tmp_path))


@pytest.mark.parametrize(
  'spec', ['', 'folder', 'folder:', 'digits:8', 'zip:a', 'imagenet:', 'tfds']
)
def test_the_error_for_an_unknown_source_lists_the_known_ones(spec):
  with pytest.raises(ValueError) as error:
    sources.open_source(spec)
  assert str(error.value) == (
    f"--source={spec} is not a source; use 'digits', 'folder:DIR',"
    " 'imagenet:DIR' or 'tfds:NAME[:VERSION]'"
  )


@pytest.mark.parametrize(
  'spec', ['folder:gs://b', 'imagenet:s3:/b', 'gs://b', 'tfds:gs://b/x']
)
def test_an_address_is_no_source(spec):
  with pytest.raises(ValueError, match='^--source=(gs|s3):/+b.* is an address'):
    sources.absolute(spec)
  assert sources.absolute('folder:/a') == 'folder:/a'


def test_the_digest_depends_on_names_labels_and_splits(tmp_path):
  def digest(**splits):
    return examples.digest(
      {
        s: examples.Files(tmp_path, *zip(*e, strict=True))
        for s, e in splits.items()
      }
    )

  cat, dog = ('1.png', 0), ('2.png', 1)
  digests = [
    digest(train=[cat], validation=[dog]),
    digest(train=[dog], validation=[cat]),
    digest(train=[cat], test=[dog]),
    digest(train=[cat, dog]),
    digest(train=[('1.png', 1)], validation=[dog]),
    digest(train=[('3.png', 0)], validation=[dog]),
  ]
  assert len(set(digests)) == len(digests)
  assert digest(train=[cat], validation=[dog]) == digests[0]


@pytest.mark.parametrize(
  ('labels', 'shown'),
  [
    ([0, 1, 2, 1], None),
    ([0, 2, 0, -1], '1 of 3 classes, such as b:'),  # -1: no image, see Files.
    ([-1, -1, -1, -1], '3 of 3 classes, such as a, b, c:'),
  ],
)
def test_classes_without_a_training_example_are_named(
  tmp_path, caplog, labels, shown
):
  files = examples.Files(tmp_path, ['1.png', '2.png', '3.png', '4.png'], labels)
  source = examples.Source(('a', 'b', 'c'), {'train': files}, '', '')
  examples.warn_of_empty_classes(source)
  assert len(caplog.messages) == (shown is not None)
  assert all(shown in message for message in caplog.messages)
