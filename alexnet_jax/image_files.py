"""The images that a command is given: files, folders, prepared data sets.

A word of the command line is an image file; a folder, whose files are taken as
preparation takes those of a class folder; `-` for names on standard input, one
a line; or a split of a prepared data set, such as `cifar10/validation`, or a
part of it, such as `cifar10/validation[:100]`.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import logging
import os
import pathlib
import re
import sys

import numpy as np
import tqdm

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images as images_lib
from alexnet_jax import records
from alexnet_jax.prepare import folders
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

BATCH_SIZE = 32
AHEAD = 4 * BATCH_SIZE  # Images that are read ahead of the device.
_SPLIT = re.compile(r'([^/]+)/([^/\[]+)(?:\[(\d*):(\d*)\])?')


@dataclasses.dataclass(frozen=True)
class Item:
  """One image of a source.

  Attributes:
    name: its path, or its file name in a data set below the name of the split.
    class_name: its class; '' if it is not known.
    image: path of the file, or stored image, uint8 [size, size, 3].
    row: its row in the split of a data set; -1 for a file.
  """

  name: str
  class_name: str
  image: str | np.ndarray
  row: int = -1


class Files(Sequence):
  """Image files, which are read later."""

  def __init__(self, paths: Sequence[str], class_names: Iterable[str] = ()):
    """Folders whose names are in `class_names` give the classes."""
    self._paths, self._class_names = paths, frozenset(class_names)

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, i: int) -> Item:
    path = self._paths[i]
    inner_first = reversed(pathlib.PurePath(path).parts[:-1])
    found = (part for part in inner_first if part in self._class_names)
    return Item(path, next(found, ''), path)


class Split(Sequence):
  """A split of a prepared data set, or the part of it between two rows."""

  def __init__(self, word: str, data_dir: str | os.PathLike):
    """Opens the split, such as cifar10/validation, or a part of it.

    Raises:
      FileNotFoundError: if there is no such data set.
      ValueError: if it has no such split, or is damaged.
    """
    name, split, start, stop = _SPLIT.fullmatch(word).groups()
    self._prefix = f'{name}/{split}'
    self._dataset = dataset_lib.open_dataset(data_dir, name)
    numbers = self._dataset.num_examples
    if not numbers.get(split):
      splits = [key for key, number in numbers.items() if number]
      raise ValueError(
        f'{word}: {self._dataset.path} has no split {split}; it has'
        f' {", ".join(splits)}'
      )
    self._records = records.Records(self._dataset, split)
    self._rows = range(len(self._records))[
      int(start) if start else 0 : int(stop) if stop else None
    ]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> Item:
    row = self._rows[i]
    size = self._dataset.image_size
    pixels = np.empty((size, size, 3), np.uint8)
    label, name = self._records.decode_named(row, pixels)
    name = f'{self._prefix}/{name}'
    return Item(name, self._dataset.class_names[label], pixels, row)


def find(
  words: Iterable[str],
  data_dir: str | os.PathLike,
  class_names: Iterable[str] = (),
) -> list[Files | Split]:
  """The images that the words name, in their order; none is read yet.

  Args:
    words: files, folders, `-`, splits of data sets: see above.
    data_dir: folder of the prepared data sets.
    class_names: names of folders that are the classes of their images.

  Raises:
    FileNotFoundError: if a word names nothing.
    ValueError: if a folder has no files, or no word names an image.
  """
  found, class_names = [], frozenset(class_names)
  for word in words:
    if word == '-':
      lines = (
        os.fsdecode(line) for line in sys.stdin.buffer.read().split(b'\n')
      )
      names = [line.removesuffix('\r') for line in lines]
      paths = [p for name in names if name for p in _inside(name)]
      found.append(Files(paths, class_names))
    elif os.path.lexists(word):
      found.append(Files(_inside(word), class_names))
    elif _is_split(word, data_dir):
      found.append(Split(word, data_dir))
    else:
      raise FileNotFoundError(
        f'{folders.printable(word) or repr(word)} is neither a file, nor a'
        f' folder, nor a data set NAME/SPLIT under --data_dir={data_dir}'
      )
  if not any(map(len, found)):
    raise ValueError('no image is named; name files or folders')
  return found


def _inside(path):
  """The files in a folder; otherwise the path itself, even if it is missing."""
  if not os.path.isdir(path):
    return [path]
  names = folders.class_files(pathlib.Path(path))
  if not names:
    raise ValueError(f'{folders.printable(path)}: no files in this folder')
  return [os.path.join(path, name) for name in names]


def _is_split(word, data_dir):
  match = _SPLIT.fullmatch(word)
  return (
    match
    and dataset_lib.dataset_path(data_dir, match[1], '--data_dir').exists()
  )


def batches(
  sources: Sequence[Sequence[Item]],
  stored: Callable[[str | np.ndarray], np.ndarray],
) -> Iterator[tuple[list[Item], np.ndarray]]:
  """Reads images in threads, ahead of their use.

  An image that cannot be read is left out, and a line names it. A progress bar
  is shown on a terminal.

  Args:
    sources: from `find`.
    stored: prepares the image of an item, see `net.Net.stored`.

  Yields:
    The items of up to `BATCH_SIZE` images, and the images, uint8 [images, size,
    size, 3].

  Raises:
    ValueError: if no image could be read, or a data set is damaged.
  """

  def read(source, i):
    item = source[i]
    try:
      return item, stored(item.image)
    except images_lib.ERRORS as error:
      return item, error

  total = sum(map(len, sources))
  waiting = ((source, i) for source in sources for i in range(len(source)))
  ahead, batch, reason, any_read = collections.deque(), [], '', False
  # None disables the bar unless the output is a terminal.
  disable = None if total > BATCH_SIZE else True
  with (
    concurrent.futures.ThreadPoolExecutor(processes.available_cores()) as pool,
    tqdm.tqdm(total=total, unit='image', disable=disable) as bar,
  ):
    while True:
      for source, i in waiting:
        ahead.append(pool.submit(read, source, i))
        if len(ahead) >= AHEAD:
          break
      if not ahead:
        break
      item, image = ahead.popleft().result()
      bar.update()
      if isinstance(image, Exception):
        reason = described(item.name, image)
        log.warning('Skipped: %s', reason)
        continue
      batch.append((item, image))
      if len(batch) == BATCH_SIZE:
        any_read = True
        yield _stacked(batch)
        batch = []
  if batch:
    yield _stacked(batch)
  elif not any_read:
    raise ValueError(f'none of the {total} files is an image ({reason})')


def _stacked(batch):
  items, images = zip(*batch, strict=True)
  return list(items), np.stack(images)


def described(name: str, error: Exception) -> str:
  """One line that says why an image cannot be read."""
  if isinstance(error, OSError) and error.strerror:
    reason = error.strerror
  else:
    reason = str(error).removeprefix(name).lstrip(': ')
  return f'{folders.printable(name)} ({reason})'
