"""Digests of files: recorded when a folder is complete, compared when it is read.

A flipped bit, and a file that was replaced, leave a file readable. The record
lies in the folder, so that it is moved and removed with it.
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import hashlib
import json
import os
import pathlib

from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

FILE = 'digests.json'
_DAMAGE = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


def sha256(path: pathlib.Path) -> str:
  """The SHA-256 of the content of a file, in hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write(folder: pathlib.Path, known: Mapping[str, str] | None = None) -> None:
  """Records size and digest of every file below `folder`, in `FILE` there.

  Args:
    folder: a folder that nobody writes to.
    known: digests by relative path, of files that need not be read again.
  """
  known = known or {}
  recorded = {}
  for name in _names(folder):
    path = folder / name
    recorded[name] = {
      'bytes': path.stat().st_size,
      'sha256': known.get(name) or sha256(path),
    }
  digest = _digest_of_record(recorded)
  files.write_json(folder / FILE, {'sha256': digest, 'files': recorded})


def read(folder: pathlib.Path) -> dict[str, dict] | None:
  """What `write` recorded: 'bytes' and 'sha256' by relative path.

  Returns:
    The record; None if there is none, as earlier versions wrote none.

  Raises:
    ValueError: if the record itself is damaged.
  """
  path = folder / FILE
  if not os.path.lexists(path):
    return None
  try:
    stored = json.loads(files.read_bytes(path))
    recorded = stored['files']
    if stored['sha256'] != _digest_of_record(recorded):
      raise ValueError('its own digest differs')
    for entry in recorded.values():
      int(entry['bytes']), str(entry['sha256'])
  except _DAMAGE as error:
    raise ValueError(f'{path} is damaged ({error})') from error
  return recorded


def problems(
  folder: pathlib.Path,
  recorded: Mapping[str, dict],
  is_read: Callable[[str], bool] = lambda name: True,
) -> list[str]:
  """One line for each recorded file that is missing, or not as recorded.

  Args:
    folder: the folder.
    recorded: the files to compare, from `read`.
    is_read: whether to read a file, by its relative path; of others only the
      size is compared.
  """

  def compare(name):
    path, expected = folder / name, recorded[name]
    if not path.is_file():  # Never opens a pipe, which might block.
      return f'{name} is {"not a file" if path.exists() else "missing"}'
    size = path.stat().st_size
    if size != expected['bytes']:
      return f'{name} has {size} bytes in place of {expected["bytes"]}'
    if is_read(name) and sha256(path) != expected['sha256']:
      return f'{name} has other content than was written'
    return ''

  # Hashing and reading release Python's lock.
  with concurrent.futures.ThreadPoolExecutor(
    processes.available_cores()
  ) as pool:
    return [line for line in pool.map(compare, recorded) if line]


def extra_files(
  folder: pathlib.Path, recorded: Mapping[str, dict]
) -> list[str]:
  """The relative paths of files below `folder` that are not recorded."""
  return [name for name in _names(folder) if name not in recorded]


def _names(folder):
  """Relative paths of the files below a folder, sorted, without `FILE`."""
  paths = (path for path in folder.rglob('*') if path.is_file())
  names = sorted(str(path.relative_to(folder)) for path in paths)
  return [name for name in names if name != FILE]


def _digest_of_record(recorded):
  return hashlib.sha256(
    json.dumps(recorded, sort_keys=True).encode()
  ).hexdigest()
