"""Words for WordNet ids, which are the class names of ILSVRC.

Those of its 1,000 classes are in ilsvrc_words.txt, from WordNet.
"""

import collections
from collections.abc import Sequence
import functools
import os
import pathlib
import re

from alexnet_jax.runtime import files

_LINE = re.compile(r'^(?:.*[ \t])?(n\d{8})[ \t,:]+(\S.*?)[ \t]*$', re.MULTILINE)


@functools.cache
def ilsvrc() -> dict[str, str]:
  """Words by WordNet id, for the classes of ILSVRC, in the order of labels."""
  file = pathlib.Path(__file__).with_name('ilsvrc_words.txt')
  return dict(_LINE.findall(file.read_text('utf-8')))


def read(path: str | os.PathLike | None) -> dict[str, str]:
  """Words by WordNet id, from a file with an id and words in each line.

  ImageNet's LOC_synset_mapping.txt and words.txt are such files.

  Args:
    path: the file; None or '' for the words of `ilsvrc`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if no line has them.
  """
  if not path:
    return ilsvrc()
  file = files.local_path(path, '--words')
  if not file.is_file():
    raise FileNotFoundError(f'--words={path}: there is no such file')
  found = dict(_LINE.findall(files.read_bytes(file).decode(errors='replace')))
  if not found:
    raise ValueError(
      f'--words={path} has no line such as: n01440764 tench, Tinca tinca'
    )
  return found


def distinct(names: Sequence[str]) -> tuple[str, ...]:
  """Class names, in which a word that ILSVRC has twice is told apart.

  The published lists of its 1,000 classes have crane, a bird and a machine, and
  maillot twice. Each is followed by its WordNet id: 'crane (n02012849)'.

  Args:
    names: one name per label. Other lists than ILSVRC's are not changed.
  """
  if len(names) != len(ilsvrc()):
    return tuple(names)
  counts = collections.Counter(names)
  return tuple(
    f'{name} ({wordnet_id})'
    if counts[name] > 1 and name.lower() in words.lower().split(', ')
    else name
    for name, (wordnet_id, words) in zip(names, ilsvrc().items(), strict=True)
  )
