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
  names = [e.name for split in source.splits.values() for e in split]
  assert names == ['train/cat/1.png', 'val/cat/2.png']


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
