"""Paths that users name, atomic writes, and locks of folders."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import re
import stat
from typing import BinaryIO
import urllib.parse

from alexnet_jax.runtime import signals

log = logging.getLogger(__name__)

# No text or JSON file of a run comes near it; `read_bytes` refuses larger ones.
MAX_BYTES = 2**30

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the kernel or the file system says if it has no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def local_path(path: str | os.PathLike, name: str) -> pathlib.Path:
  """The absolute form of a path that a user has named.

  `~` stands for the home directory. A path in /gs, /s3, /az or /hf, which etils
  would take for a storage service, begins with two slashes.

  Args:
    path: the path.
    name: flag or config key that holds it, for the messages.

  Raises:
    ValueError: if it is a URL, is not valid UTF-8, is longer than Linux allows,
      or as from `expand_home`.
  """
  check_not_url(path, name)
  absolute = expand_home(path, name).absolute()
  try:
    str(absolute).encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{name}={path}: the path {absolute} is not valid UTF-8; rename the folder'
    ) from error
  if len(os.fsencode(absolute)) > 4095 or any(
    len(os.fsencode(part)) > 255 for part in absolute.parts
  ):
    raise ValueError(
      f'{name}={path}: names have at most 255 bytes, paths 4,095; name a shorter'
      ' path'
    )
  if absolute.parts[1:2] and absolute.parts[1] in ('gs', 's3', 'az', 'hf'):
    return pathlib.Path(f'//{str(absolute).lstrip("/")}')
  return absolute


def expand_home(path: str | os.PathLike, name: str) -> pathlib.Path:
  """A path that a user has named, with the home directory in place of `~`.

  Args:
    path: the path.
    name: flag or config key that holds it, for the message.

  Raises:
    ValueError: if `~` or `~user` has no home directory, as in a container whose
      user has no account.
  """
  text = os.path.expanduser(os.fspath(path))
  if text.startswith('~'):
    home = text.partition('/')[0]
    way_out = (
      'set HOME' if home == '~' else f'./{text} is a folder of that name'
    )
    raise ValueError(
      f'{name}={path}: {home} has no home directory here; {way_out}, or write'
      ' the whole path'
    )
  return pathlib.Path(text)


def check_not_url(path: str | os.PathLike, name: str) -> None:
  """Raises ValueError for an address such as gs://bucket, or host:/folder.

  Args:
    path: a path that a user has named.
    name: flag or config key that holds it, for the message.
  """
  scheme = re.match(
    r'\s*([a-z][a-z0-9+.-]*):/+', os.fspath(path), re.IGNORECASE
  )
  if not scheme:
    return
  way_out = (
    'mount it, for example with gcsfuse, s3fs or sshfs, and name a folder there'
  )
  parts = urllib.parse.urlsplit(os.fspath(path).strip())
  if parts.scheme == 'file' and parts.netloc in ('', 'localhost'):
    way_out = f'write the path alone: {urllib.parse.unquote(parts.path)}'
  raise ValueError(f'{name}={path} is an address, not a path; {way_out}')


def read_object(file: pathlib.Path) -> dict[str, object]:
  """The JSON object in a file.

  Raises:
    ValueError: if it holds none.
  """
  found = json.loads(read_bytes(file))
  if not isinstance(found, dict):
    raise ValueError('it holds no JSON object')
  return found


def write_json(path: pathlib.Path, values: object) -> None:
  """Writes a JSON file atomically, see `write_bytes`."""
  write_bytes(path, (json.dumps(values, indent=1) + '\n').encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a file atomically: whole, or not at all.

  The previous content survives an error, a kill, and a power failure.
  """
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def check_regular(path: str | os.PathLike) -> None:
  """Raises ValueError for a pipe, a device or a socket, without opening it.

  For files that a library opens; `open_regular` is for others. A folder and a
  missing file are accepted.

  Raises:
    OSError: if the path cannot be looked up.
  """
  with contextlib.suppress(FileNotFoundError):
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
      raise _not_regular(path)


def open_regular(path: str | os.PathLike) -> BinaryIO:
  """Opens a regular file to read its bytes; never waits for a writer.

  Raises:
    ValueError: if it is a pipe, a device, a socket or a folder.
    OSError: if it cannot be opened.
  """
  check_regular(path)  # Opening a device may have an effect.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise _not_regular(path)
  return open(descriptor, 'rb')


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
  """The content of a regular file, as from `open_regular`.

  Raises:
    ValueError: if it is none, or has more than `max_bytes` bytes.
    OSError: if it cannot be read.
  """
  with open_regular(path) as file:
    if (size := os.fstat(file.fileno()).st_size) > max_bytes:
      raise ValueError(f'{path} has {size} bytes, over the limit {max_bytes}')
    return file.read(size)


def _not_regular(path):
  return ValueError(
    f'{path} is not a regular file (but a pipe, device, socket or folder), so it'
    ' is not read; remove it or name another'
  )


def sync(path: pathlib.Path) -> None:
  """Returns when the content of a file is on disk; call it before a rename."""
  with open(path, 'rb') as file:
    os.fsync(file.fileno())


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Renames a damaged file to NAME.damaged, or NAME.damaged.2 and so on."""
  for number in range(1, 10**6):
    end = 'damaged' if number == 1 else f'damaged.{number}'
    kept = path.with_name(f'{path.name}.{end}')
    if not os.path.lexists(kept):
      break
  path.rename(kept)
  return kept


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a file beside `path`, which becomes `path` when the block ends.

  Missing folders are created. After an error `path` is as it was before.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  signals.temporary_files.add(temporary)
  try:
    with full_disk_named(path, lambda: 'it is as it was before'):
      yield temporary
      sync(temporary)
      os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
    signals.temporary_files.discard(temporary)


@contextlib.contextmanager
def full_disk_named(
  path: pathlib.Path, kept: Callable[[], str]
) -> Iterator[None]:
  """Turns the errors of a full disk into one with a path and what is kept.

  Args:
    path: a file or folder on that disk.
    kept: called after an error; what is not lost, for the message.
  """
  try:
    yield
  except Exception as error:
    if not _is_disk_full(error):
      raise
    words = f'disk full at {path}; {kept()}'
    raise OSError(errno.ENOSPC, words) from error


def _is_disk_full(error):
  while error is not None:
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
      return True
    # TensorStore and ArrayRecord raise other errors, with the system's words.
    if any(os.strerror(number) in str(error) for number in _DISK_FULL):
      return True
    error = error.__cause__ or error.__context__
  return False


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[bool]:
  """Locks `folder` for this process; the lock ends when the process does.

  Yields whether it is locked: some file systems have no locks.

  Raises:
    ValueError: if another process has locked it, or its lock is a pipe.
  """
  check_regular(folder / 'lock')
  with open(folder / 'lock', 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f'another process is at work in {folder}; wait until it ends, or use'
        ' another folder'
      ) from error
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      log.warning(
        '%s: this file system has no locks (%s); let no other process write'
        ' there.',
        folder,
        error.strerror,
      )
      is_locked = False
    else:
      is_locked = True
    yield is_locked
