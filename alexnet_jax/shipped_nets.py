"""The trained nets that come with the package, by name."""

import os
import pathlib

FOLDER = pathlib.Path(__file__).with_name('nets')


def names() -> list[str]:
  """The names of the nets, such as 'cifar10'; nets/README.md describes them."""
  return sorted(file.stem for file in FOLDER.glob('*.safetensors'))


def find(path: str | os.PathLike) -> str | os.PathLike:
  """The path itself; or the file of the net of that name, if nothing is there.

  A file or folder with the name of a net is preferred to the net.
  """
  if os.fspath(path) not in names() or os.path.lexists(path):
    return path
  return FOLDER / f'{os.fspath(path)}.safetensors'
