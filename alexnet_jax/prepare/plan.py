"""The plan of a preparation: everything that determines its result.

It is stored before the first shard, so that an interrupted preparation
continues only with the same plan, and stays in the record of the complete data
set.
"""

from collections.abc import Mapping
import json
import logging
import pathlib
import zipfile

import numpy as np

from alexnet_jax import images
from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.prepare import folders
from alexnet_jax.runtime import files

log = logging.getLogger(__name__)

RECORD_FILE = 'preparation.json'  # The plan and the result, once complete.
# These two exist only while the preparation is incomplete.
PLAN_FILE = 'plan.json'
INDEX_FILE = 'index.npz'  # `Source.index`.


def begin(
  incomplete: pathlib.Path,
  settings: Mapping[str, object],
  source: examples_lib.Source,
) -> dict[str, object]:
  """Stores the plan, or checks that the stored one is the same.

  Args:
    incomplete: folder of the incomplete data set, created if necessary.
    settings: the arguments of the command that affect the result: 'source',
      'size', 'jpeg_quality', 'seed' and 'val_fraction'.
    source: the source that the settings name.

  Returns:
    The plan: the settings, the number of 'examples' by split, the 'sha256' of
    the examples and the 'encoder', on which the bytes of images depend.

  Raises:
    ValueError: if another plan was begun in this folder.
  """
  plan = {
    **settings,
    'examples': {split: len(e) for split, e in source.splits.items()},
    'sha256': source.digest,
    'encoder': images.ENCODER,
  }
  for file in (incomplete / PLAN_FILE, incomplete / RECORD_FILE):
    if file.exists():
      check_same(file, plan, 'repeat the command that began it')
      return plan
  incomplete.mkdir(exist_ok=True)
  if source.index is not None:
    np.savez(incomplete / INDEX_FILE, **source.index)
  files.write_json(incomplete / PLAN_FILE, plan)
  return plan


def check_same(
  file: pathlib.Path, values: Mapping[str, object], way_out: str
) -> None:
  """Raises ValueError if `file` does not hold these values.

  Args:
    file: a plan or a record.
    values: the values that it must hold; it may hold more.
    way_out: for the message: what to do instead of removing the data set.
  """
  try:
    # Earlier versions recorded no fraction.
    stored = {'val_fraction': 0.0, **json.loads(files.read_bytes(file))}
  except (FileNotFoundError, TypeError, ValueError) as error:
    raise ValueError(
      f'{file.parent} was not made by this command, or is damaged ({error});'
      f' remove it, or {way_out}'
    ) from error
  differences = [
    f'{key} is {stored.get(key)!r} there but {value!r} here'
    for key, value in values.items()
    if stored.get(key) != value
  ]
  if differences:
    raise ValueError(
      f'{file.parent} was made with other arguments or from other images'
      f' ({"; ".join(differences)}); remove it, or {way_out}'
    )


def read_index(incomplete: pathlib.Path) -> dict[str, np.ndarray] | None:
  """The `Source.index` stored by an interrupted preparation, if any."""
  try:
    with (
      files.open_regular(incomplete / INDEX_FILE) as file,
      np.load(file) as index,
    ):
      return dict(index)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    return None  # It does not exist, or was truncated by a kill.


def log_record(folder: pathlib.Path) -> None:
  """Logs what the record of a complete data set counts."""
  record = json.loads(files.read_bytes(folder / RECORD_FILE))
  for line in record['skipped']:
    log.warning('skipped %s', folders.printable(line))
  stored = ' + '.join(f'{n} {split}' for split, n in record['stored'].items())
  damaged, unused = record.get('damaged'), record.get('unused')
  more = f', {len(damaged)} damaged but used' if damaged else ''
  more += f', {len(unused)} other files or folders not used' if unused else ''
  log.info(
    '%s: %s examples, %d unreadable images skipped%s.',
    *(folder, stored, len(record['skipped']), more),
  )
