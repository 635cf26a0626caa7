"""Files that no kill and no power loss spoils, folders that one process owns."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib


def write_json(path: pathlib.Path, values: object) -> None:
  """Writes the whole file, or leaves what was there."""
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(json.dumps(values, indent=1) + '\n')
  sync(temporary)
  os.replace(temporary, path)


def sync(path: pathlib.Path) -> None:
  """Returns when the bytes of a file are on the disk: to be renamed then."""
  with open(path, 'rb') as file:
    os.fsync(file.fileno())


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds `folder` for this process; the lock ends with it, however it ends.

  Raises:
    ValueError: if another process holds it.
  """
  with open(folder / 'lock', 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f'another process is at work in {folder}; wait for it, or use another'
        ' folder'
      ) from error
    yield
