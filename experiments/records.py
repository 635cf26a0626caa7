"""JSON files in the work directories of a sweep: row.json, result.json, ..."""

import pathlib

from alexnet_jax.runtime import files


class RecordError(ValueError):
  """A file of a run is missing or damaged; the message is for the user."""


def lost(file: pathlib.Path) -> RecordError:
  """What to raise for a file of a run that is missing or damaged."""
  way_out = f'remove {file.parent}, and the same command trains that run again'
  return RecordError(f'{file} is missing or damaged; {way_out}')


def read(file: pathlib.Path) -> dict[str, object]:
  """The object in a JSON file in the work directory of a run.

  Raises:
    RecordError: if the file is missing or holds no JSON object.
  """
  try:
    return files.read_object(file)
  except (OSError, ValueError) as error:
    raise lost(file) from error
