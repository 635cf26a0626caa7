"""ILSVRC-2012 as image-net.org hands it out, read in place.

Either the two archives, whose members are indexed once and never unpacked, or
the tree that unpacking them makes. The classes are the 1,000 WordNet ids in
alphabetical order, the labels of the validation images those of the development
kit, both as tfds has them in its own metadata.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import logging
import os
import pathlib
import re
import tarfile

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.prepare import examples as examples_lib

log = logging.getLogger(__name__)

TRAIN_TAR = 'ILSVRC2012_img_train.tar'
VALIDATION_TAR = 'ILSVRC2012_img_val.tar'
# Of the data set's own documentation.
NUM_IMAGES = {'train': 1_281_167, 'validation': 50_000}
_MAX_NAME = 64  # Bytes; the longest of image-net.org has 30.
# One member of an archive: a row of the index.
_MEMBER = np.dtype(
  [
    ('file_name', f'S{_MAX_NAME}'),
    ('label', np.int32),
    ('offset', np.int64),
    ('size', np.int64),
  ]
)
_VALIDATION_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')


def open_imagenet(
  root: pathlib.Path, index: Mapping[str, np.ndarray] | None = None
) -> examples_lib.Source:
  """The images under `root`: the two archives, or folders train/ and val/.

  Args:
    root: with both archives, or with train/WNID/*.JPEG and either
      val/WNID/*.JPEG or val/ILSVRC2012_val_*.JPEG.
    index: `Source.index` of an earlier call, to save reading the archives.

  Raises:
    FileNotFoundError: if neither is there.
    ValueError: if an archive is cut short, has members that are not plain
      files with plain names, or if a class has no image.
  """
  archives = (root / TRAIN_TAR, root / VALIDATION_TAR)
  if all(path.is_file() for path in archives):
    if index is None or not _is_of(index, archives):
      log.info('Indexing %s and %s.', *archives)
      index = _index(archives)
    splits = {
      split: _Members(path, index, split)
      for split, path in zip(NUM_IMAGES, archives, strict=True)
    }
  elif (root / 'train').is_dir() and (root / 'val').is_dir():
    index, splits = None, _tree(root)
  else:
    raise FileNotFoundError(
      f'--source=imagenet:{root} has neither {TRAIN_TAR} and {VALIDATION_TAR}'
      ' nor the folders train/ and val/; download the archives from'
      ' https://image-net.org (free, after registration)'
    )
  for split, examples in splits.items():
    if len(examples) != NUM_IMAGES[split]:
      log.warning(
        '%s has %d images; the whole of ILSVRC-2012 has %d.',
        split,
        len(examples),
        NUM_IMAGES[split],
      )
  return examples_lib.Source(
    class_names=class_names(),
    splits=splits,
    description='ImageNet, the training and validation images of ILSVRC-2012.',
    digest=examples_lib.digest(splits),
    index=index,
  )


@functools.cache
def class_names() -> tuple[str, ...]:
  """The 1,000 WordNet ids, in the order of their labels."""
  return tuple(_metadata('labels.txt'))


@functools.cache
def _validation_labels() -> list[str]:
  """WordNet ids of the validation images, by their number less one."""
  return _metadata('validation_labels.txt')


def _metadata(name):
  path = tfds.core.tfds_path(f'datasets/imagenet2012/{name}')
  return path.read_text().split()


class _Members(Sequence):
  """Examples in an archive: arrays of offsets, not a million objects."""

  def __init__(self, path: pathlib.Path, index, split: str):
    column = lambda name: index[f'{split}/{name}']
    self._path, self._offsets, self._sizes = (
      path,
      column('offset'),
      column('size'),
    )
    self._names, self.labels = column('file_name'), column('label')

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, i: int) -> examples_lib.Example:
    return examples_lib.in_file(
      self._path,
      int(self._offsets[i]),
      int(self._sizes[i]),
      self._names[i].decode(),
      int(self.labels[i]),
    )


def _index(archives):
  """Columns of all members by 'SPLIT/COLUMN', and what they are of."""
  index = {'archives': _signature(archives)}
  for split, path, members in zip(
    NUM_IMAGES, archives, (_train_members, _validation_members), strict=True
  ):
    found = _checked(path, members)
    index |= {f'{split}/{name}': found[name].copy() for name in _MEMBER.names}
  _check_classes(archives[0], index['train/label'])
  return index


def _signature(archives):
  stats = [path.stat() for path in archives]
  return np.array([(s.st_size, s.st_mtime_ns) for s in stats])


def _is_of(index, archives):
  return np.array_equal(index.get('archives'), _signature(archives))


def _checked(path, members: Callable) -> np.ndarray:
  """All members of an archive by name, as `_MEMBER`."""
  try:
    with tarfile.open(path, 'r:') as archive:
      found = np.fromiter(members(archive), _MEMBER)
  except (tarfile.TarError, EOFError) as error:
    raise ValueError(
      f'{path} is damaged or cut short ({error}); download it again'
    ) from error
  if not len(found):
    raise ValueError(f'{path} holds no image; download it again')
  return found[np.argsort(found['file_name'], kind='stable')]


def _train_members(archive):
  """An archive of one archive for each class."""
  labels = {name: label for label, name in enumerate(class_names())}
  for outer in _plain_files(archive):
    class_name = pathlib.PurePath(outer.name).stem
    if class_name not in labels:
      raise ValueError(
        f'{archive.name} holds {outer.name}, which is no class of ILSVRC-2012'
      )
    with tarfile.open(fileobj=archive.extractfile(outer), mode='r:') as inner:
      for member in _plain_files(inner, archive.name):
        offset = outer.offset_data + member.offset_data
        name = f'{class_name}/{member.name}'.encode()
        yield name, labels[class_name], offset, member.size


def _validation_members(archive):
  for member in _plain_files(archive):
    label = _validation_label(pathlib.PurePath(member.name).name)
    yield member.name.encode(), label, member.offset_data, member.size


def _plain_files(archive, where=None):
  """The members that are files; links and names that lead out are refused."""
  for member in archive:
    name = pathlib.PurePosixPath(member.name)
    if (
      name.is_absolute()
      or '..' in name.parts
      or len(member.name.encode()) > _MAX_NAME // 2
      or not (member.isreg() or member.isdir())
      or member.issparse()
    ):
      raise ValueError(
        f'{where or archive.name} holds {member.name!r}, which is no plain file'
        ' inside it with a short name; this is not the archive of image-net.org'
      )
    if member.isreg():
      yield member
    archive.members.clear()  # Else tarfile keeps an object for each.
  # tarfile takes a damaged header for the end, which is a block of zeros.
  archive.fileobj.seek(archive.offset)
  if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
    raise tarfile.ReadError(f'no header and no end at byte {archive.offset}')


def _validation_label(name):
  match = _VALIDATION_NAME.fullmatch(name)
  labels = _validation_labels()
  if not match or not 1 <= int(match[1]) <= len(labels):
    raise ValueError(
      f'{name} is no validation image of ILSVRC-2012; these are'
      f' ILSVRC2012_val_00000001.JPEG to {len(labels):08d}'
    )
  return class_names().index(labels[int(match[1]) - 1])


def _check_classes(where, labels):
  missing = sorted(set(range(len(class_names()))) - set(labels.tolist()))
  if missing:
    first = ', '.join(class_names()[label] for label in missing[:3])
    raise ValueError(
      f'{where} lacks {len(missing)} of 1,000 classes, such as {first};'
      ' get them as well, or use --source=folder: for other classes'
    )


def _tree(root):
  labels = {name: label for label, name in enumerate(class_names())}
  splits = {}
  for split, part in (('train', 'train'), ('validation', 'val')):
    found = []
    with os.scandir(root / part) as entries:
      for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.name.startswith('.'):
          continue
        if entry.is_dir():
          if entry.name not in labels:
            raise ValueError(
              f'{entry.path} is no class of ILSVRC-2012; for other classes use'
              f' --source=folder:{root}'
            )
          found += [
            (f'{entry.name}/{name}', labels[entry.name])
            for name in sorted(os.listdir(entry.path))
            if not name.startswith('.')
          ]
        elif split == 'validation':
          found.append((entry.name, _validation_label(entry.name)))
    if not found:
      raise ValueError(f'{root / part} holds no image')
    splits[split] = examples_lib.Files(root / part, *zip(*found, strict=True))
  _check_classes(root / 'train', splits['train'].labels)
  return splits
