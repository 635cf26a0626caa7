"""Damage to files, and a watch for programs that are started."""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import shutil
import sys

import numpy as np
import psutil

_STARTS = (
  *('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork'),
  *('os.forkpty', 'pickle.find_class'),
)
_watching: list[list[str]] = []
_is_installed = False


@contextlib.contextmanager
def nothing_is_run() -> Iterator[None]:
  """Raises RuntimeError at the end if a program or a pickle was run here."""
  global _is_installed
  if not _is_installed:
    _is_installed = True
    sys.addaudithook(_note)  # It cannot be removed.
  found = []
  _watching.append(found)
  try:
    yield
  finally:
    _watching.pop()
    if found:
      raise RuntimeError(f'it has run {", ".join(found)}')


def _note(event, arguments):
  if _watching and event in _STARTS:
    _watching[-1].append(f'{event} {str(arguments)[:200]}')


def flip_bit(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Flips one bit anywhere in a file that is not empty."""
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
  path.write_bytes(content)


def flip_middle(path: pathlib.Path) -> None:
  """Flips the lowest bit of the byte in the middle of a file."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def truncate(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Cuts the end of a file off."""
  os.truncate(path, rng.integers(path.stat().st_size + 1))


def zero_block(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Writes zeros over up to 4096 bytes, as a lost block of a disk has."""
  content = bytearray(path.read_bytes())
  start = rng.integers(len(content) + 1)
  content[start : start + 4096] = bytes(len(content[start : start + 4096]))
  path.write_bytes(content)


def overwrite(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Writes noise over some bytes."""
  content = bytearray(path.read_bytes())
  start, length = rng.integers(len(content) + 1), rng.integers(1, 200)
  length = len(content[start : start + length])
  content[start : start + length] = rng.bytes(length)
  path.write_bytes(content)


def replace(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Replaces a file by noise, or by text that parsers of JSON accept."""
  choices = (b'', b'null', b'[]', b'{}', b'0', b'[' * 100_000, rng.bytes(300))
  path.write_bytes(choices[rng.integers(len(choices))])


def remove(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Removes a file."""
  del rng
  path.unlink()


def make_pipe(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Puts a pipe that nobody writes to in the place of a file."""
  del rng
  path.unlink()
  os.mkfifo(path)


def make_folder(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Puts a folder in the place of a file."""
  del rng
  path.unlink()
  path.mkdir()


def make_endless(path: pathlib.Path, rng: np.random.Generator) -> None:
  """Puts a link to an endless device in the place of a file."""
  path.unlink()
  path.symlink_to(('/dev/zero', '/dev/urandom')[rng.integers(2)])


ALL: tuple[Callable, ...] = (
  *(flip_bit, truncate, zero_block, overwrite, replace, remove, make_pipe),
  *(make_folder, make_endless),
)


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """The regular files below a folder that are not empty, sorted."""
  found = (path for path in folder.rglob('*') if path.is_file())
  return sorted(path for path in found if path.stat().st_size)


def choose(items, rng: np.random.Generator):
  """One of some items."""
  return items[rng.integers(len(items))]


def hurt(folder: pathlib.Path, rng: np.random.Generator) -> str:
  """Damages one random file below a folder; returns the name of the damage."""
  path, kind = choose(files_of(folder), rng), choose(ALL, rng)
  kind(path, rng)
  return f'{kind.__name__} of {path.relative_to(folder)}'


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  """Copies a folder with all that is in it."""
  return shutil.copytree(source, target, symlinks=True)


def is_running(pid: int) -> bool:
  """Whether a process is alive and has not been stopped by a signal."""
  with contextlib.suppress(psutil.Error):
    status = psutil.Process(pid).status()
    return status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
  return False
