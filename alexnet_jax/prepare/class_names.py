"""Names of classes: which ones tfds stores, and which ones are the same.

tfds stores the names in a text file with one line per class. A name that this
file does not give back unchanged would shift all names after it, so it is
refused before any image is read.
"""

from collections.abc import Sequence
import pathlib
import tempfile
import unicodedata

import tensorflow_datasets as tfds

_FEATURE = 'label'


def check(names: Sequence[str], place: object) -> None:
  """Checks that tfds can store the names.

  Args:
    names: the class names, each once.
    place: where they come from, for the message.

  Raises:
    ValueError: if a name is not UTF-8, or if tfds changes it.
  """
  if _stored_and_loaded(names) == [*names]:
    return
  for name in names:
    loaded = _stored_and_loaded([name])
    if loaded == [name]:
      continue
    if loaded is None:
      reason = 'is not UTF-8, or the locale is not (LC_ALL=C.UTF-8 is)'
    else:
      lines = ' and '.join(map(repr, loaded))
      reason = f'would be read back as {lines or "nothing"}'
    raise ValueError(
      f'{place}: the class name {name!r} {reason}; rename it: one line of text,'
      ' without white space at its ends'
    )


def normalized(name: str) -> str:
  """The name in Unicode's form NFC; equal names look the same.

  macOS writes an accented letter as two characters (NFD), other systems write
  it as one (NFC).
  """
  return unicodedata.normalize('NFC', name)


def check_distinct(names: Sequence[str], place: object) -> None:
  """Raises ValueError if two names of `place` look the same."""
  seen = {}
  for name in names:
    other = seen.setdefault(normalized(name), name)
    if other != name:
      raise ValueError(
        f'{place}: the class names {ascii(other)} and {ascii(name)} look the'
        " same; they differ in Unicode's normal forms NFC and NFD; move the"
        ' images into one folder'
      )


def _stored_and_loaded(names):
  """The names after tfds has written and read them; None if it cannot."""
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    loaded = tfds.features.ClassLabel()
    try:
      tfds.features.ClassLabel(names=[*names]).save_metadata(folder, _FEATURE)
      loaded.load_metadata(folder, _FEATURE)
    except ValueError:  # Includes UnicodeError; two names became the same.
      return None
    return loaded.names
