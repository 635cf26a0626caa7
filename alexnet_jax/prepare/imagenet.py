"""ILSVRC-2012 as downloaded from image-net.org, read in place.

The source is either the two archives, which are indexed once and never
unpacked, or the folders that unpacking them creates. The classes are the 1,000
WordNet ids in alphabetical order; the labels of the validation images are those
of the development kit. Both lists come with tfds.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import logging
import pathlib
import re
import tarfile

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.prepare import folders

log = logging.getLogger(__name__)

TRAIN_TAR = 'ILSVRC2012_img_train.tar'
VALIDATION_TAR = 'ILSVRC2012_img_val.tar'
# From the documentation of ILSVRC-2012.
NUM_IMAGES = {'train': 1_281_167, 'validation': 50_000}
MAX_NAME = 32  # Bytes of a member's name; the longest has 30.
# A row of the index, which describes one image in an archive.
_MEMBER = np.dtype(
  [
    ('file_name', f'S{2 * MAX_NAME}'),
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
    root: folder that holds both archives, or train/WNID/*.JPEG and either
      val/WNID/*.JPEG or val/ILSVRC2012_val_*.JPEG.
    index: `Source.index` of an earlier call, which saves reading the archives
      again if they have not changed.

  Raises:
    FileNotFoundError: if `root` holds neither.
    ValueError: if an archive is truncated or has members that are not regular
      files with plain names, if an image does not belong to ILSVRC-2012, or if
      a class has no images.
  """
  archives = (root / TRAIN_TAR, root / VALIDATION_TAR)
  unused = ()
  if all(path.is_file() for path in archives):
    if index is None or not _is_current(index, archives):
      log.info('Indexing %s and %s.', *archives)
      index = _index(archives)
    splits = {
      split: _Members(path, index, split)
      for split, path in zip(NUM_IMAGES, archives, strict=True)
    }
  elif (root / 'train').is_dir() and (root / 'val').is_dir():
    index = None
    splits, unused = _unpacked_splits(root)
  else:
    raise FileNotFoundError(
      f'--source=imagenet:{root} has neither {TRAIN_TAR} and {VALIDATION_TAR}'
      ' nor the folders train/ and val/; download the archives from'
      ' https://image-net.org (free, after registration)'
    )
  for split, examples in splits.items():
    if len(examples) != NUM_IMAGES[split]:
      log.warning(
        '%s has %d images, but the complete ILSVRC-2012 has %d.',
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
    unused=[examples_lib.utf8(name) for name in unused],
  )


@functools.cache
def class_names() -> tuple[str, ...]:
  """The 1,000 WordNet ids, in the order of their labels."""
  return tuple(_read_tfds_list('labels.txt'))


@functools.cache
def _validation_wordnet_ids() -> list[str]:
  """WordNet ids of the validation images; image number n is at n - 1."""
  return _read_tfds_list('validation_labels.txt')


def _read_tfds_list(name):
  path = tfds.core.tfds_path(f'datasets/imagenet2012/{name}')
  return path.read_text().split()


class _Members(Sequence):
  """Examples in an archive.

  They are stored as arrays; a million `Example` objects would take too much
  memory, so these are made on access.
  """

  def __init__(self, path: pathlib.Path, index, split: str):
    self._path = path
    self._offsets = index[f'{split}/offset']
    self._sizes = index[f'{split}/size']
    self._names = index[f'{split}/file_name']
    self.labels = index[f'{split}/label']

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, i: int) -> examples_lib.Example:
    return examples_lib.from_file_range(
      self._path,
      int(self._offsets[i]),
      int(self._sizes[i]),
      self._names[i].decode(),
      int(self.labels[i]),
    )


def _index(archives):
  """The columns of all members by 'SPLIT/COLUMN', and 'archives'.

  The entry 'archives' holds the sizes and modification times of the archives,
  by which `_is_current` recognizes them.
  """
  index = {'archives': _stat(archives)}
  for split, path, members in zip(
    NUM_IMAGES, archives, (_train_members, _validation_members), strict=True
  ):
    found = _read_members(path, members)
    index |= {f'{split}/{name}': found[name].copy() for name in _MEMBER.names}
  _check_classes(archives[0], index['train/label'])
  return index


def _stat(archives):
  stats = [path.stat() for path in archives]
  return np.array([(s.st_size, s.st_mtime_ns) for s in stats])


def _is_current(index, archives):
  return np.array_equal(index.get('archives'), _stat(archives))


def _read_members(path, members: Callable) -> np.ndarray:
  """All members of an archive as an array of `_MEMBER`, sorted by name."""
  try:
    with tarfile.open(path, 'r:') as archive:
      found = np.fromiter(members(archive), _MEMBER)
  except (tarfile.TarError, EOFError) as error:
    raise ValueError(
      f'{path} is damaged or truncated ({error}); download it again'
    ) from error
  if not len(found):
    raise ValueError(f'{path} contains no images; download it again')
  found = found[np.argsort(found['file_name'], kind='stable')]
  names = found['file_name']
  if len(twice := names[1:][names[1:] == names[:-1]]):
    raise ValueError(
      f'{path} contains {twice[0].decode()} twice, as {len(twice)} in all; this'
      ' is not the archive from image-net.org: download it again'
    )
  return found


def _train_members(archive):
  """Rows of the training archive, which holds one archive per class."""
  labels = {name: label for label, name in enumerate(class_names())}
  for outer in _regular_files(archive):
    class_name = pathlib.PurePath(outer.name).stem
    if class_name not in labels:
      raise ValueError(
        f'{archive.name} contains {outer.name}, which is not a class of'
        ' ILSVRC-2012'
      )
    with tarfile.open(fileobj=archive.extractfile(outer), mode='r:') as inner:
      for member in _regular_files(inner, archive.name):
        offset = outer.offset_data + member.offset_data
        name = f'{class_name}/{member.name}'.encode()
        yield name, labels[class_name], offset, member.size


def _validation_members(archive):
  for member in _regular_files(archive):
    label = _validation_label(pathlib.PurePath(member.name).name)
    yield member.name.encode(), label, member.offset_data, member.size


def _regular_files(archive, path=None):
  """Iterates over the members that are regular files.

  Raises:
    ValueError: for a link, a device, a sparse file, or a name that is too long,
      is not ASCII, or leads out of the archive; it names `path`, or else the
      archive's own path.
    tarfile.ReadError: if the archive is truncated or damaged.
  """
  for member in archive:
    name = pathlib.PurePosixPath(member.name)
    if (
      name.is_absolute()
      or '..' in name.parts
      or not member.name.isascii()
      or len(member.name) > MAX_NAME
      or not (member.isreg() or member.isdir())
      or member.issparse()
    ):
      raise ValueError(
        f'{path or archive.name} contains {member.name!r}, which is not a'
        ' regular file with a short relative name; this is not the archive from'
        ' image-net.org'
      )
    if member.isreg():
      yield member
    archive.members.clear()  # tarfile would keep an object for each member.
  # tarfile takes a damaged header for the end; the real end is a zero block.
  archive.fileobj.seek(archive.offset)
  if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
    raise tarfile.ReadError(
      f'neither a header nor the end of the archive at byte {archive.offset}'
    )


def _validation_label(name):
  match = _VALIDATION_NAME.fullmatch(name)
  wordnet_ids = _validation_wordnet_ids()
  if not match or not 1 <= int(match[1]) <= len(wordnet_ids):
    raise ValueError(
      f'{name} is not a validation image of ILSVRC-2012; these are'
      f' ILSVRC2012_val_00000001.JPEG to {len(wordnet_ids):08d}'
    )
  return class_names().index(wordnet_ids[int(match[1]) - 1])


def _check_classes(path, labels):
  missing = sorted(set(range(len(class_names()))) - set(labels.tolist()))
  if missing:
    first = ', '.join(class_names()[label] for label in missing[:3])
    raise ValueError(
      f'{path} lacks {len(missing)} of 1,000 classes, such as {first}; add'
      ' them, or use --source=folder:DIR for other classes'
    )


def _unpacked_splits(root):
  """The examples of the folders train/ and val/ by split, and unused names."""
  labels = {name: label for label, name in enumerate(class_names())}
  splits, unused = {}, []
  for split, subfolder in (('train', 'train'), ('validation', 'val')):
    classes, files, unreadable = folders.split_entries(root / subfolder)
    found = []
    for name in classes:
      if name not in labels:
        raise ValueError(
          f'{root / subfolder / name} is not a class of ILSVRC-2012; for other'
          f' classes use --source=folder:{root}'
        )
      found += [
        (f'{name}/{inner}', labels[name])
        for inner in folders.class_files(root / subfolder / name)
      ]
    folders.warn_of_subfolders(
      root / subfolder, [name for name, _ in found], depth=2
    )
    if split == 'train':
      unused = [f'{subfolder}/{name}' for name in files]
    else:
      found += [(name, _validation_label(name)) for name in files]
    if not found:
      raise ValueError(f'{root / subfolder} contains no images')
    found += [(name, -1) for name in unreadable]
    # In the order of earlier versions, on which the fingerprint depends.
    found.sort(key=lambda item: item[0].split('/')[0])
    splits[split] = examples_lib.Files(
      root / subfolder, *zip(*found, strict=True)
    )
  _check_classes(root / 'train', splits['train'].labels)
  others = [entry.name for entry in folders.scan(root)]
  return splits, unused + [n for n in others if n not in ('train', 'val')]
