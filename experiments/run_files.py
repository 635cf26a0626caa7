"""Reads the files in the work directories of a sweep, and says which are lost."""

from collections.abc import Collection
import csv
import pathlib

from alexnet_jax.runtime import files


class RunFileError(ValueError):
  """A file of a run is missing or damaged; the message is for the user."""


def lost(file: pathlib.Path, way_out: str = '') -> RunFileError:
  """What to raise for a file that is missing or damaged.

  Args:
    file: a file or folder in the work directory of a run.
    way_out: what to do; by default, to train the run again.
  """
  again = f'remove {file.parent}, and the command that made it trains anew'
  return RunFileError(f'{file} is missing or damaged; {way_out or again}')


def read(
  file: pathlib.Path, keys: Collection[str] = (), way_out: str = ''
) -> dict[str, object]:
  """The object in a JSON file, such as result.json.

  Args:
    file: a file in the work directory of a run.
    keys: keys that it must have.
    way_out: as of `lost`.

  Raises:
    RunFileError: if the file is missing or holds no such object.
  """
  try:
    found = files.read_object(file)
  except (FileNotFoundError, ValueError) as error:
    raise lost(file, way_out) from error
  if {*keys} - found.keys():
    raise lost(file, way_out)
  return found


def read_table(
  file: pathlib.Path,
  columns: Collection[str],
  may_be_empty: bool = False,
  way_out: str = '',
) -> list[dict[str, str]]:
  """The rows of a csv file, such as metrics.csv.

  Args:
    file: a file in the work directory of a run, or with a `way_out`.
    columns: columns that it must have.
    may_be_empty: whether it may have no rows.
    way_out: as of `lost`.

  Raises:
    RunFileError: if the file is missing, lacks a column, or has a row that does.
  """
  try:
    with open(file, newline='') as stream:
      reader = csv.DictReader(stream)
      rows, names = list(reader), reader.fieldnames or ()
  except (FileNotFoundError, ValueError, csv.Error) as error:
    raise lost(file, way_out) from error
  # A row that was cut off has None in the columns that it lacks.
  is_cut_off = any(row[name] is None for row in rows for name in names)
  if {*columns} - {*names} or is_cut_off or not (rows or may_be_empty):
    raise lost(file, way_out)
  return rows
