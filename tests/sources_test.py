"""Sources of examples: temporary folders, and the digits of scikit-learn."""

import io

import numpy as np
from PIL import Image
import pytest
import sklearn.datasets

from alexnet_jax.prepare import examples
from alexnet_jax.prepare import sources


def _touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())


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
    file.truncate(examples.MAX_BYTES + 1)  # A sparse file.
  (whole,) = examples.Files(tmp_path, ['huge.jpg'], [0])
  part = examples.from_file_range(path, 0, examples.MAX_BYTES + 1, 'huge', 0)
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
