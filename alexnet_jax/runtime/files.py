"""Home folders, atomic writes, and folders that one process may lock."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib


def expand_home(path: str | os.PathLike) -> pathlib.Path:
  """The path, in which a leading `~` or `~user` becomes that home folder.

  Raises:
    ValueError: if there is none, as in a container whose user has no account.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    home = pathlib.Path(path).parts[0]
    raise ValueError(
      f'{path}: {home} has no home folder here; set HOME, or give the path'
      f' without {home}'
    ) from error


def write_json(path: pathlib.Path, values: object) -> None:
  """Writes a JSON file atomically: whole, or not at all.

  The previous content survives an error, a kill, and a power failure.
  """
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(json.dumps(values, indent=1) + '\n')
  sync(temporary)
  os.replace(temporary, path)


def sync(path: pathlib.Path) -> None:
  """Returns when the content of a file is on disk; call it before a rename."""
  with open(path, 'rb') as file:
    os.fsync(file.fileno())


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Locks `folder` for this process; the lock ends when the process does.

  Raises:
    ValueError: if another process has locked it.
  """
  with open(folder / 'lock', 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f'another process is at work in {folder}; wait until it ends, or use'
        ' another folder'
      ) from error
    yield
