"""Features of many images in one .npy file, and what describes it.

FILE.npy has a row per image. FILE.npy.json beside it has the layer, a digest of
the net, the names and the classes of the images, and where they are.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib

import jax
from jaxtyping import Shaped
import numpy as np

from alexnet_jax import image_files
from alexnet_jax import weights as weights_lib
from alexnet_jax.runtime import files

FORMAT = 'alexnet_jax features/1'
KEYS = {
  'format',
  'net',
  'net_path',
  'checkpoint',
  'layer',
  'data_dir',
  'folder',
  'names',
  'classes',
  'rows',
}


@dataclasses.dataclass(frozen=True)
class FeatureFile:
  """An opened file.

  Attributes:
    path: the .npy file.
    rows: one row per image, memory-mapped, flattened.
    about: what describes it: 'net' (digest), 'net_path', 'checkpoint', 'layer',
      'folder', from which names lead to files, and 'data_dir'; for each image
      'names', 'classes' ('' if there is none) and 'rows' (in the split of a
      data set; -1 for a file).
  """

  path: pathlib.Path
  rows: Shaped[np.ndarray, 'images features']
  about: Mapping[str, object]

  def image(self, row: int) -> str | np.ndarray:
    """The path, or the stored image, uint8 [size, size, 3], of a row.

    Raises:
      FileNotFoundError: if the data set is gone.
    """
    name, stored_row = (self.about[key][row] for key in ('names', 'rows'))
    if stored_row < 0:
      return os.path.join(self.about['folder'], name)
    word = '/'.join(name.split('/')[:2])
    return _split(word, self.about['data_dir'])[stored_row].image


@functools.lru_cache(maxsize=4)  # A sheet has many images of one data set.
def _split(word, data_dir):
  return image_files.Split(word, data_dir)


def digest(weights: weights_lib.Weights) -> str:
  """Identifies a net: its parameters and its mean image."""
  found = hashlib.sha256()
  for array in jax.tree.leaves((weights.params, weights.mean_image)):
    found.update(np.ascontiguousarray(array))
  return found.hexdigest()[:16]


def write(
  path: pathlib.Path,
  rows: Iterable[Shaped[np.ndarray, 'batch *features']],
  about: Mapping[str, object],
) -> int:
  """Writes both files, batch by batch, so that memory holds one batch.

  Args:
    path: the .npy file.
    rows: batches of features, all of one dtype and with rows of one shape.
    about: see `FeatureFile`; its lists may grow while `rows` is iterated.

  Returns:
    The number of rows.
  """
  count, header = 0, None
  about_path = _about_path(path)
  # Both are whole before either takes the place of an older one.
  with (
    files.replacing(about_path) as temporary_about,
    files.replacing(path) as temporary,
  ):
    with open(temporary, 'wb') as file:
      for batch in rows:
        header = header or {
          'descr': np.lib.format.dtype_to_descr(batch.dtype),
          'fortran_order': False,
          'shape': (0, *batch.shape[1:]),
        }
        if not count:
          np.lib.format.write_array_header_1_0(file, header)
          start = file.tell()
        file.write(np.ascontiguousarray(batch))
        count += len(batch)
      # NumPy leaves room in the header for a first dimension that grows.
      file.seek(0)
      header['shape'] = (count, *header['shape'][1:])
      np.lib.format.write_array_header_1_0(file, header)
      if file.tell() != start:
        raise RuntimeError('the header of the .npy file changed its length')
    content = json.dumps({'format': FORMAT, **about}, indent=1)
    temporary_about.write_text(f'{content}\n')
    about_path.unlink(missing_ok=True)  # It describes the old rows.
  return count


def _about_path(path):
  return path.with_name(f'{path.name}.json')


def read(path: str | os.PathLike, flag: str) -> FeatureFile:
  """Opens a file that `write` has written; nothing in it is run.

  Raises:
    FileNotFoundError: if one of the two files is missing.
    ValueError: if they are damaged, do not belong together, or are empty; or if
      the .npy file holds Python objects.
  """
  full = files.local_path(path, flag)
  for file in (full, _about_path(full)):
    if not file.is_file():
      raise FileNotFoundError(
        f'{flag}={path}: no file {file}; python -m alexnet_jax.retrieve --images'
        ' makes both'
      )
  again = 'make it again with --images'
  try:
    about = json.loads(files.read_bytes(_about_path(full)))
    lists = [about[key] for key in ('names', 'classes', 'rows')]
    if about['format'] != FORMAT or not KEYS <= about.keys():
      raise ValueError('another format')
    for entries, kind in zip(lists, (str, str, int), strict=True):
      if not all(type(entry) is kind for entry in entries):
        raise ValueError('an entry has another type')
    if len({*map(len, lists)}) > 1:
      raise ValueError('its lists differ in length')
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise ValueError(
      f'{flag}={path}: {_about_path(full)} does not describe features ({error});'
      f' {again}'
    ) from error
  try:
    # It refuses Python objects, which np.load would unpickle, and archives.
    rows = np.lib.format.open_memmap(full, mode='r')
  except (ValueError, EOFError) as error:
    raise ValueError(
      f'{flag}={path} is not a .npy file of numbers ({error}); {again}'
    ) from error
  if rows.dtype.kind != 'f' or rows.ndim < 2 or not rows.size:
    raise ValueError(
      f'{flag}={path} has dtype {rows.dtype} and shape {list(rows.shape)}, but'
      f' must have rows of features; {again}'
    )
  if len(rows) != len(about['names']):
    raise ValueError(
      f'{flag}={path} has {len(rows)} rows, but {_about_path(full)} describes'
      f' {len(about["names"])}; {again}'
    )
  return FeatureFile(
    full, rows.reshape(len(rows), math.prod(rows.shape[1:])), about
  )
