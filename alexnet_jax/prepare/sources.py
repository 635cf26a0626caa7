"""Sources of examples: what the flag --source can name."""

from collections.abc import Mapping, Sequence
import functools
import io
import os
import pathlib

import numpy as np
from PIL import Image

from alexnet_jax.prepare import class_names
from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.prepare import folders
from alexnet_jax.prepare import imagenet
from alexnet_jax.prepare import tfds_sets
from alexnet_jax.runtime import files

# The folder of each split.
_SUBFOLDERS = {'train': 'train', 'validation': 'val', 'test': 'test'}
FORMS = "'digits', 'folder:DIR', 'imagenet:DIR' or 'tfds:NAME[:VERSION]'"
# Descriptions are stored in the data set: rewording them changes its files.
_DIGITS_DESCRIPTION = """\
scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels.

  A part of the UCI data set "Optical Recognition of Handwritten Digits" that
  comes with scikit-learn. Every sixth image is a test image: 1,497 and 300.
  """


def open_source(
  spec: str,
  index: Mapping[str, np.ndarray] | None = None,
  val_fraction: float = 0.0,
  seed: int = 0,
) -> examples_lib.Source:
  """The source that `spec` names.

  Args:
    spec: in one of the `FORMS`, such as 'folder:photographs'.
    index: `Source.index` of an earlier call with the same spec.
    val_fraction: part of every class that becomes the split 'validation', for
      a folder of class folders; 0 for a source that has its splits.
    seed: seed of the choice of these images.

  Raises:
    ValueError: if the spec has none of the `FORMS`, or the source is damaged
      or not in the expected layout.
    FileNotFoundError: if the source does not exist.
  """
  kind, _, argument = spec.partition(':')
  if val_fraction and kind != 'folder':
    raise ValueError(
      f'--val_fraction={val_fraction} belongs to --source=folder:DIR; leave it'
      f' out, {spec} has its splits'
    )
  if kind == 'digits' and not argument:
    return digits()
  if kind == 'folder' and argument:
    root = files.expand_home(argument, '--source')
    return (
      flat_folder(root, val_fraction, seed) if val_fraction else folder(root)
    )
  if kind == 'imagenet' and argument:
    return imagenet.open_imagenet(
      files.expand_home(argument, '--source'), index
    )
  if kind == 'tfds' and argument:
    return tfds_sets.open_tfds(argument)
  raise ValueError(f'--source={spec} is not a source; use {FORMS}')


def absolute(spec: str) -> str:
  """The spec with its folder, if it has one, as an absolute path.

  Raises:
    ValueError: if it is a URL.
  """
  kind, _, argument = spec.partition(':')
  has_kind = kind in ('folder', 'imagenet', 'tfds')
  files.check_not_url(argument if has_kind else spec, '--source')
  if kind in ('folder', 'imagenet') and argument:
    return f'{kind}:{files.expand_home(argument, "--source").absolute()}'
  return spec


def digits() -> examples_lib.Source:
  """The handwritten digits that come with scikit-learn.

  1,797 grey images of 8x8 pixels, a part of the UCI data set "Optical
  Recognition of Handwritten Digits". Every sixth image is a test image: 1,497
  training images and 300 test images.
  """
  import sklearn.datasets  # Takes over a second; only this source needs it.

  data = sklearn.datasets.load_digits()
  pixels = np.round(data.images * (255 / 16)).astype(np.uint8)  # From 0..16.
  indices = np.arange(len(pixels))
  splits = {
    split: _Digits(pixels, data.target, indices[(indices % 6 > 0) == is_train])
    for split, is_train in (('train', True), ('test', False))
  }
  return examples_lib.Source(
    class_names=tuple(str(name) for name in data.target_names),
    splits=splits,
    description=_DIGITS_DESCRIPTION,
    digest=examples_lib.digest(splits),
  )


class _Digits(Sequence):
  """The digits with the given indices, encoded as PNG when they are read."""

  def __init__(self, pixels, labels, indices):
    self._pixels, self._indices = pixels[indices], indices
    self.labels = labels[indices]

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> examples_lib.Example:
    name, label = f'{self._indices[i]:04d}.png', int(self.labels[i])
    read = functools.partial(_encode_digit, self._pixels[i], name, label)
    return examples_lib.Example(name, read)


def _encode_digit(pixels, name, label):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return {'image': buffer.getvalue(), 'label': label, 'file_name': name}


def folder(root: pathlib.Path) -> examples_lib.Source:
  """A folder with train/, val/ and optionally test/, each with class folders.

  The classes are the folders of train/ in alphabetical order; the splits are
  'train', 'validation' and 'test'. Images in subfolders of a class folder
  belong to that class. Hidden files and folders, and those that
  `folders.is_junk` knows, are ignored; what lies beside the class folders is
  listed as unused.

  Raises:
    FileNotFoundError: if train/ or val/ is missing.
    ValueError: if there are no class folders, if one has no files or a name
      that tfds cannot store, if two names differ only in their Unicode normal
      form, or if val/ or test/ has a class folder that train/ lacks.
  """
  classes, splits, unused = [], {}, []
  for split, subfolder in _SUBFOLDERS.items():
    if subfolder == 'test' and not os.path.lexists(root / subfolder):
      continue
    found, loose, unreadable = _class_folders(root / subfolder)
    class_names.check(found, root / subfolder)
    class_names.check_distinct(found, root / subfolder)
    if split == 'train':
      classes = found
    # By normal form: an archive made elsewhere may spell the names differently.
    normalized = class_names.normalized
    labels = {normalized(name): label for label, name in enumerate(classes)}
    if unknown := [name for name in found if normalized(name) not in labels]:
      raise ValueError(
        f'{root / subfolder} has class folders that {root / "train"} lacks:'
        f' {folders.described(unknown)}; the classes are the folders of train/'
      )
    unused += [f'{subfolder}/{name}' for name in loose]
    names_and_labels = [
      (f'{subfolder}/{class_name}/{name}', labels[normalized(class_name)])
      for class_name in found
      for name in _files(root / subfolder / class_name)
    ]
    folders.warn_of_subfolders(root, [n for n, _ in names_and_labels], depth=3)
    # Unreadable, so their label is never used.
    names_and_labels += [(f'{subfolder}/{name}', -1) for name in unreadable]
    splits[split] = examples_lib.Files(
      root, *zip(*names_and_labels, strict=True)
    )
  unused += [
    entry.name
    for entry in folders.scan(root)
    if entry.name not in _SUBFOLDERS.values()
  ]
  return _source(root, classes, splits, unused)


def flat_folder(
  root: pathlib.Path, val_fraction: float, seed: int
) -> examples_lib.Source:
  """A folder of class folders, of which a part of every class is held out.

  Like `folder`, but for the splits: 'train' and 'validation'. Every class has
  `val_fraction` of its images in 'validation', rounded, and at least one.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: as from `folder`; if the folder has train/ and val/; or if a
      class would have no image left for training.
  """
  classes, loose, unreadable = _class_folders(root)
  others = {'val', 'valid', 'validation', 'test'}
  if 'train' in classes and (len(classes) == 1 or others & {*classes}):
    raise ValueError(
      f'{root} has train/ already; leave out --val_fraction, or name a folder of'
      f' class folders, as {root}/train'
    )
  class_names.check(classes, root)
  class_names.check_distinct(classes, root)
  found = {'train': [], 'validation': []}
  for label, class_name in enumerate(classes):
    names = _files(root / class_name)
    held_out = max(1, round(val_fraction * len(names)))
    if held_out == len(names):
      raise ValueError(
        f'--val_fraction={val_fraction} leaves no image of class {class_name}'
        f' for training: {root / class_name} has {len(names)}; add images'
        f'{", or use a smaller fraction" * (len(names) > 1)}'
      )
    # By class: images or classes that are added do not move those of others.
    key = (seed, *os.fsencode(class_name))
    order = np.random.default_rng(key).permutation(len(names))
    for i, name in enumerate(names):
      split = 'validation' if order[i] < held_out else 'train'
      found[split].append((f'{class_name}/{name}', label))
  folders.warn_of_subfolders(
    root, [name for pairs in found.values() for name, _ in pairs], depth=2
  )
  # Unreadable, so their label is never used.
  found['train'] += [(name, -1) for name in unreadable]
  splits = {
    split: examples_lib.Files(root, *zip(*pairs, strict=True))
    for split, pairs in found.items()
  }
  return _source(root, classes, splits, loose)


def _source(root, classes, splits, unused):
  return examples_lib.Source(
    class_names=tuple(classes),
    splits=splits,
    # An invalid name could not be stored.
    description=f'Images of {examples_lib.utf8(root.name)}/.',
    digest=examples_lib.digest(splits),
    unused=[examples_lib.utf8(name) for name in unused],
  )


def _class_folders(root: pathlib.Path) -> tuple[list[str], ...]:
  """What `folders.split_entries` returns, if there are class folders."""
  if not root.is_dir():
    raise FileNotFoundError(
      f'no folder {root}; --source=folder:DIR needs DIR/train/CLASS/*.jpg'
      ' and DIR/val/CLASS/*.jpg (any image format), or, with'
      ' --val_fraction=0.1, DIR/CLASS/*.jpg'
    )
  entries = folders.split_entries(root)
  if not entries[0]:
    raise ValueError(
      f'{root} has no class folders; put the images of each class into a folder'
      ' of its own'
    )
  return entries


def _files(root: pathlib.Path) -> list[str]:
  names = folders.class_files(root)
  if not names:
    raise ValueError(f'class folder {root} is empty; add images or remove it')
  if not any((root / name).is_file() for name in names):
    raise ValueError(
      f'class folder {root} has no regular files, only links to nothing,'
      f' devices or the like: {folders.described(names)}; add images or remove'
      ' it'
    )
  return names
