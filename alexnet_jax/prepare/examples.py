"""What a source of images is: examples by split, not yet read.

A source names every example, so that preparation can order, shard and restart
without reading an image. Examples can be sent to another process.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
import pathlib

from jaxtyping import Int
import numpy as np

MAX_BYTES = 2**30  # Of an encoded image; a larger file is not read.


@dataclasses.dataclass(frozen=True)
class Example:
  """One example, of which only its name is known before it is read.

  Attributes:
    name: for messages.
    read: returns its features: 'image' (encoded, in any format), 'label',
      'file_name'.
  """

  name: str
  read: Callable[[], dict[str, object]]


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples by split, and what becomes the description of the data set.

  Attributes:
    class_names: one per label.
    splits: examples by split; one is called 'train'.
    description: for people.
    digest: of the examples: another one means other images.
    index: what opening the source has found out, to be kept for the next time;
      None where that costs nothing.
  """

  class_names: tuple[str, ...]
  splits: Mapping[str, Sequence[Example]]
  description: str
  digest: str
  index: Mapping[str, np.ndarray] | None = None


class Files(Sequence):
  """Examples that are files, each an object only when it is asked for."""

  def __init__(
    self, root: pathlib.Path, names: Sequence[str], labels: Sequence[int]
  ):
    """`names` are the paths below `root`, in order."""
    self._root, self._names = root, tuple(names)
    self.labels = np.array(labels, np.int32)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, i: int) -> Example:
    path = self._root / self._names[i]
    name = _printable(self._names[i])
    read = functools.partial(_read_file, path, name, int(self.labels[i]))
    return Example(name, read)


class Part(Sequence):
  """Some examples of a split, each an object only when it is asked for."""

  def __init__(
    self, examples: Sequence[Example], numbers: Int[np.ndarray, 'examples']
  ):
    self._examples, self._numbers = examples, numbers

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> Example:
    return self._examples[int(self._numbers[i])]


def digest(splits: Mapping[str, Sequence[Example]]) -> str:
  """A digest of the names and `labels` of the examples by split, in order."""
  result = hashlib.sha256()
  for split, examples in splits.items():
    for example, label in zip(examples, examples.labels, strict=True):
      result.update(f'{split}\0{example.name}\0{label}\n'.encode())
  return result.hexdigest()


def _printable(name):
  """A file name as UTF-8 can hold it; Linux takes any bytes."""
  return name.encode(errors='backslashreplace').decode()


def _read_file(path, name, label):
  _check_bytes(path.stat().st_size)
  return {'image': path.read_bytes(), 'label': label, 'file_name': name}


def _check_bytes(size):
  if size > MAX_BYTES:
    raise ValueError(f'{size} bytes are too many for an image')


def in_file(
  path: pathlib.Path, offset: int, size: int, name: str, label: int
) -> Example:
  """An example that is a part of a file, `size` bytes from `offset` on."""
  read = functools.partial(_read_part, path, offset, size, name, label)
  return Example(name, read)


def _read_part(path, offset, size, name, label):
  _check_bytes(size)
  image = os.pread(_descriptor(path), size, offset)
  return {'image': image, 'label': label, 'file_name': name}


@functools.cache
def _descriptor(path):
  return os.open(path, os.O_RDONLY)  # For the life of the process.
