"""The trained nets that come with the package, by name."""

import os
import pathlib

FOLDER = pathlib.Path(__file__).with_name('nets')


def names() -> list[str]:
  """The names of the nets, such as 'cifar10'; nets/README.md describes them."""
  return sorted(file.stem for file in FOLDER.glob('*.safetensors'))


def find(path: str | os.PathLike) -> str | os.PathLike:
  """The path itself; or the file of the net of that name, if nothing is there.

  A file or work directory with the name of a net is preferred to the net.

  Raises:
    FileNotFoundError: if a folder of that name is no work directory.
  """
  if os.fspath(path) not in names():
    return path
  config = pathlib.Path(path).absolute() / 'config.json'
  if config.parent.is_dir() and not config.exists():
    raise FileNotFoundError(
      f'there is no {config}, and this folder hides the net of the package named'
      f' {path}; rename it, or run the command in another folder'
    )
  if os.path.lexists(path):
    return path
  return FOLDER / f'{os.fspath(path)}.safetensors'


def nor_a_net(path: str | os.PathLike) -> str:
  """What a message adds if nothing is at a path that may be meant as a name."""
  path = pathlib.Path(path).absolute()
  if path.parent != pathlib.Path.cwd() or path.suffix or os.path.lexists(path):
    return ''
  return f', nor a net of the package: {", ".join(names())}'
