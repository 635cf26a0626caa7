"""The examples of a data set before preparation, not yet read.

A source knows the name of every example, so that preparation can shuffle them,
divide them into shards and resume without reading an image. An `Example` can
be pickled and sent to another process, which reads it there.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import errno
import functools
import hashlib
import logging
import os
import pathlib
import stat

from jaxtyping import Int
import numpy as np

from alexnet_jax import images
from alexnet_jax.runtime import files

log = logging.getLogger(__name__)

# Errors of a link that leads nowhere.
LINK_ERRORS = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
# What is refused without opening it. These reasons for skipping an image enter
# the fingerprint of the data set: rewording one changes the fingerprint.
_KINDS = {
  stat.S_IFDIR: 'a link to a folder that is read under another name',
  stat.S_IFIFO: 'a pipe, not a regular file',
  stat.S_IFSOCK: 'a socket, not a regular file',
  stat.S_IFCHR: 'a device, not a regular file',
  stat.S_IFBLK: 'a device, not a regular file',
}


@dataclasses.dataclass(frozen=True)
class Example:
  """One example: its name, and a function that reads it.

  Attributes:
    name: identifies the example in messages.
    read: returns the features of the example: 'image' (the encoded bytes, in
      any format), 'label' (int) and 'file_name' (str).
  """

  name: str
  read: Callable[[], dict[str, object]]


@dataclasses.dataclass(frozen=True)
class Source:
  """The examples of each split, and what is stored about the data set.

  Attributes:
    class_names: one name per label.
    splits: examples by split; one split is 'train'.
    description: text for people, stored in the metadata of the data set.
    digest: changes if the examples change.
    index: the result of opening the source, if that takes long: stored so that
      an interrupted preparation can open the source faster. None otherwise.
    unused: names of files and folders that lie beside the images but belong to
      no class or split.
  """

  class_names: tuple[str, ...]
  splits: Mapping[str, Sequence[Example]]
  description: str
  digest: str
  index: Mapping[str, np.ndarray] | None = None
  unused: Sequence[str] = ()


def warn_of_empty_classes(source: Source) -> None:
  """Logs one warning that names the classes without a training example."""
  labels = set(source.splits['train'].labels.tolist())
  names = [n for i, n in enumerate(source.class_names) if i not in labels]
  if names:
    log.warning(
      'No training example belongs to %d of %d classes, such as %s: a net cannot learn'
      ' them; add images to split train, or remove the classes.',
      *(len(names), len(source.class_names), ', '.join(names[:3])),
    )


class Files(Sequence):
  """Examples stored as one file each; `Example` objects are made on access."""

  def __init__(
    self, root: pathlib.Path, names: Sequence[str], labels: Sequence[int]
  ):
    """`names` are paths relative to `root`, in order, with their labels."""
    self._root, self._names = root, tuple(names)
    self.labels = np.array(labels, np.int32)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, i: int) -> Example:
    path = self._root / self._names[i]
    name = utf8(self._names[i])
    read = functools.partial(_read_file, path, name, int(self.labels[i]))
    return Example(name, read)


class Subset(Sequence):
  """The examples with the given indices, made on access."""

  def __init__(
    self, examples: Sequence[Example], indices: Int[np.ndarray, 'examples']
  ):
    self._examples, self._indices = examples, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> Example:
    return self._examples[int(self._indices[i])]


def digest(splits: Mapping[str, Sequence[Example]]) -> str:
  """SHA-256 of the names and labels of all examples, in order.

  Args:
    splits: examples by split. Each sequence has an attribute `labels` with one
      label per example, as `Files` has, so that no example has to be read.
  """
  result = hashlib.sha256()
  for split, examples in splits.items():
    for example, label in zip(examples, examples.labels, strict=True):
      result.update(f'{split}\0{example.name}\0{label}\n'.encode())
  return result.hexdigest()


def from_file_range(
  path: pathlib.Path, offset: int, size: int, name: str, label: int
) -> Example:
  """An example stored in the `size` bytes of a file that begin at `offset`."""
  read = functools.partial(_read_range, path, offset, size, name, label)
  return Example(name, read)


def _read_file(path, name, label):
  try:
    status = path.stat()
  except OSError as error:
    if error.errno in LINK_ERRORS and path.is_symlink():
      raise ValueError('a link to nothing') from error
    raise
  kind = stat.S_IFMT(status.st_mode)
  # Opening a pipe or a device could block, or have an effect.
  if kind != stat.S_IFREG:
    raise ValueError(_KINDS.get(kind, 'not a regular file'))
  _check_size(status.st_size)
  image = files.read_bytes(path, images.MAX_BYTES)
  return {'image': image, 'label': label, 'file_name': name}


def _read_range(path, offset, size, name, label):
  _check_size(size)
  image = os.pread(_file_descriptor(path), size, offset)
  return {'image': image, 'label': label, 'file_name': name}


def _check_size(num_bytes):
  if num_bytes > images.MAX_BYTES:
    # Reasons for skipping an image enter the fingerprint of the data set:
    # rewording one changes the fingerprint.
    raise ValueError(f'{num_bytes} bytes are too many for an image')


@functools.cache
def _file_descriptor(path):
  with files.open_regular(path) as file:
    return os.dup(file.fileno())  # Stays open until the process ends.


def utf8(name: str) -> str:
  """A file name in valid UTF-8; Linux allows any bytes in file names."""
  return name.encode(errors='backslashreplace').decode()
