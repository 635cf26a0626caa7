"""Where examples come from: lists of encoded images, not yet read.

A source names every example of every split, so that preparation can order,
shard and restart without reading an image. `prepare.py` is its only user.
"""

from collections.abc import Callable
import dataclasses
import functools
import io
import pathlib

import numpy as np
from PIL import Image

FORMS = "'digits' or 'folder:DIR'"


@dataclasses.dataclass(frozen=True)
class Example:
  """One example; `read` returns its encoded image."""

  file_name: str
  label: int
  read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Source:
  """Examples by split, and what becomes the description of the data set."""

  class_names: tuple[str, ...]
  splits: dict[str, list[Example]]
  description: str


def open_source(spec: str) -> Source:
  """The source that `spec` names: 'digits' or 'folder:DIR'.

  Raises:
    ValueError: for another spec, or a folder without images in class folders.
    FileNotFoundError: if the folder, or its train/ or val/, does not exist.
  """
  kind, _, argument = spec.partition(':')
  if kind == 'digits' and not argument:
    return digits()
  if kind == 'folder' and argument:
    return folder(pathlib.Path(argument).expanduser())
  raise ValueError(f'--source={spec} is not a source; use {FORMS}')


def digits() -> Source:
  """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels.

  A part of the UCI data set "Optical Recognition of Handwritten Digits" that
  comes with scikit-learn. Every sixth image is a test image: 1,497 and 300.
  """
  import sklearn.datasets  # Over a second; only this source needs it.

  data = sklearn.datasets.load_digits()
  pixels = np.round(data.images * (255 / 16)).astype(np.uint8)  # 0..16 there.
  splits = {'train': [], 'test': []}
  for i, label in enumerate(data.target):
    read = functools.partial(_encode_png, pixels[i])
    split = 'train' if i % 6 else 'test'
    splits[split].append(Example(f'{i:04d}.png', int(label), read))
  return Source(
    class_names=tuple(str(name) for name in data.target_names),
    splits=splits,
    description=digits.__doc__,
  )


def folder(root: pathlib.Path) -> Source:
  """A folder with train/, val/ and perhaps test/, each with class folders.

  The classes are the folders of train/ in alphabetical order; the splits are
  called 'train', 'validation' and 'test'. Hidden files are passed over.
  """
  classes = _class_folders(root / 'train')
  labels = {name: label for label, name in enumerate(classes)}
  splits = {}
  for split, part in (
    ('train', 'train'),
    ('validation', 'val'),
    ('test', 'test'),
  ):
    if part == 'test' and not (root / part).exists():
      continue
    found = _class_folders(root / part)
    if unknown := sorted(set(found) - set(classes)):
      raise ValueError(
        f'{root / part} has class folders that {root / "train"} lacks:'
        f' {", ".join(unknown)}; the classes are the folders of train/'
      )
    splits[split] = [
      Example(
        f'{part}/{class_name}/{path.name}', labels[class_name], path.read_bytes
      )
      for class_name in found
      for path in _files(root / part / class_name)
    ]
  return Source(tuple(classes), splits, f'Images of {root.name}/.')


def _class_folders(root: pathlib.Path) -> list[str]:
  if not root.is_dir():
    raise FileNotFoundError(
      f'no folder {root}; --source=folder:DIR wants DIR/train/CLASS/*.jpg'
      ' and DIR/val/CLASS/*.jpg (any image format)'
    )
  names = sorted(
    p.name for p in root.iterdir() if p.is_dir() and p.name[0] != '.'
  )
  if not names:
    raise ValueError(
      f'{root} has no class folders; put the images of each class into a folder of its own'
    )
  return names


def _files(root: pathlib.Path) -> list[pathlib.Path]:
  files = sorted(p for p in root.iterdir() if p.is_file() and p.name[0] != '.')
  if not files:
    raise ValueError(f'class folder {root} is empty; add images or remove it')
  return files


def _encode_png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()
