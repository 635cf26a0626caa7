"""The file of --config and its keys: found, checked, and mistakes in one line."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import difflib
import os
import pathlib
import re
import runpy
import sys
import traceback
from types import ModuleType

from absl import flags
import ml_collections
from ml_collections import config_flags

# The configs of this project: inside the installed package; beside it in a clone.
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
FOLDER = _PACKAGE / 'configs'
if not FOLDER.is_dir():
  FOLDER = _PACKAGE.parent / 'configs'


class _TupleParser(flags.ArgumentParser):
  """Parses a key that holds a tuple; given twice, the last value wins.

  ml_collections would concatenate the values; with any other key the last wins.
  """

  def parse(self, argument):
    return config_flags.tuple_parser.TupleParser().parse(argument)

  def flag_type(self):
    return 'tuple'


config_flags.register_flag_parser_for_type(tuple, _TupleParser())


@contextlib.contextmanager
def one_line_errors(
  argv: Sequence[str], renamed: Mapping[str, str] | None = None
) -> Iterator[None]:
  """Exits with one line if the file of --config, or one of its keys, is wrong.

  Args:
    argv: the command line; the message names the file in it.
    renamed: current names of keys by their old ones.
  """
  renamed = renamed or {}
  for old, new in renamed.items():
    if any(
      arg.lstrip('-').partition('=')[0] == f'config.{old}' for arg in argv
    ):
      sys.exit(f'--config.{old} is now --config.{new}')
  try:
    yield
  except Exception as error:  # The config file may raise anything.
    message = error
    while message.args and isinstance(message.args[0], Exception):
      message = message.args[0]  # ml_collections nests its errors.
    text = str(message)
    if isinstance(message, KeyError) and message.args:
      text = message.args[0]  # The str of a KeyError is a repr.
    given, path, argument = _given_config(argv)
    is_file = os.path.isfile(path)  # Raises nothing, as for long names.
    if isinstance(message, OSError) and not is_file:
      colon = ' (a colon ends its name)' if argument else ''
      sys.exit(f'--config={path} is not a file{colon}; {_other_configs(path)}')
    if is_file:
      exit_for_wrong_keys(argv)
    if isinstance(message, AttributeError) and 'get_config' in text:
      text = f'it does not define get_config(); see {FOLDER}/paper.py'
    for old, new in renamed.items():
      if f'"{old.rpartition(".")[2]}"' in text:
        text = f'config.{old} is now config.{new}'
    where = ' in ' + ' '.join(given) if given else ''
    frames = traceback.extract_tb(message.__traceback__ or error.__traceback__)
    inside = [f for f in frames if given and given[-1].endswith(f.filename)]
    if inside:
      text = f'line {inside[-1].lineno}: {type(message).__name__}: {text}'
    sys.exit(f'wrong config key or value{where}: {" ".join(text.split())}')


def _given_config(argv):
  """The word that names the config file, the path in it, and its argument."""
  given = [arg for arg in argv if arg.startswith('--config=')]
  if '--config' in argv[:-1]:
    given = [argv[argv.index('--config') + 1]]
  word = ''.join(given[-1:])
  # A colon separates the file from an argument of get_config.
  path, _, argument = word.removeprefix('--config=').partition(':')
  return given, path, argument


def find_configs(argv: Sequence[str]) -> list[str]:
  """Finds the config that --config names, and the configs that it imports.

  From now on `from configs import NAME` finds the modules of all folders
  `configs`: the one that the given file lies in, those in the working directory
  and in `sys.path`, and this project's.

  Args:
    argv: the command line.

  Returns:
    The command line, with `--config=NAME` as the path of the config of this
    project that has this name, unless a file has it.
  """
  # absl takes one hyphen as well.
  argv = [re.sub('^-config(?=$|=)', '--config', word) for word in argv]
  while '--config' in argv[:-1]:
    at = argv.index('--config')
    argv[at : at + 2] = [f'--config={argv[at + 1]}']
  given, path, _ = _given_config(argv)
  folder = pathlib.Path(path).absolute().parent
  if path in _names() and not os.path.isfile(path):
    found = given[-1].replace(f'={path}', f'={FOLDER / path}.py', 1)
    argv = [found if word == given[-1] else word for word in argv]
  configs = ModuleType('configs')
  configs.__path__ = [
    *([str(folder)] if folder.name == 'configs' else []),
    *(os.path.join(parent, 'configs') for parent in ('', *sys.path)),
    str(FOLDER),
  ]
  sys.modules['configs'] = configs
  return argv


def _names():
  """The names of this project's configs."""
  return sorted(p.stem for p in FOLDER.glob('[!_.]*.py'))


def check(config: object, renamed: Mapping[str, str] | None = None) -> None:
  """Raises an error if the value of --config is not a whole config.

  Args:
    config: the value.
    renamed: current names of keys by their old ones.
  """
  _ = config.items  # Raises the error of a file that could not be read.
  if type(config) is not ml_collections.ConfigDict:
    raise TypeError(type(config))
  unset = [key for key, value in items(config) if value is None]
  if unset:
    raise ValueError(f'{unset[0]}=None must have a value')
  renamed = renamed or {}
  for key in [key for key, _ in items(config) if key in renamed]:
    raise ValueError(f'config.{key} is now config.{renamed[key]}')


def _other_configs(path):
  """The config files that there are, the nearest first, and names of ours."""
  given = pathlib.Path(path)
  folder = given if os.path.isdir(path) else given.parent
  folders = [folder, pathlib.Path('configs')]
  for folder in folders if path else folders[1:]:
    files = [p for p in sorted(folder.glob('[!_.]*.py')) if os.path.isfile(p)]
    files = {p.stem: p for p in files if os.access(p, os.R_OK)}
    if any('def get_config' in p.read_text('latin-1') for p in files.values()):
      lists = [f'{folder} holds {", ".join(p.name for p in files.values())}']
      break
  else:
    files, lists = {}, []
  if not files or folder.resolve() != FOLDER:
    lists.append(f'the configs by name are {", ".join(_names())}')
  known = dict(zip(_names(), _names(), strict=True)) | files
  nearest = difflib.get_close_matches(given.stem, known, n=1)
  meant = [f'did you mean {known[name]}? ' for name in nearest]
  return f'{"".join(meant)}{"; ".join(lists)}'


def exit_for_wrong_keys(argv: Sequence[str]) -> None:
  """Exits with one line if the file lacks a key of `argv`, or has a None."""
  _, path, argument = _given_config(argv)
  given = [arg.lstrip('-').partition('=')[0] for arg in argv if arg[:1] == '-']
  given = [name.removeprefix('no') for name in given]
  given = [n.removeprefix('config.') for n in given if n.startswith('config.')]
  keys = []
  with contextlib.suppress(Exception):  # The config file may raise anything.
    arguments = [argument] if argument else []
    config = runpy.run_path(path)['get_config'](*arguments)
    kind = type(config)
    if kind is not ml_collections.ConfigDict:
      sys.exit(
        f'--config={path}: get_config returns a {kind.__name__}, but must return'
        ' an ml_collections.ConfigDict that can be changed; see'
        f' {FOLDER}/paper.py'
      )
    keys = [key for key, _ in items(config)]
    unset = [key for key, value in items(config) if value is None]
    if unset:
      sys.exit(f'--config={path}: {unset[0]} is None; set it in that file')
  sections = {key.rpartition('.')[0] for key in keys}
  for name in given if keys else ():
    if name not in keys and name not in sections:
      found = ' or '.join(f'--config.{key}' for key in nearest(name, keys))
      within = [key for key in keys if key.split('.')[0] == name.split('.')[0]]
      others = ', '.join(within or dict.fromkeys(k.split('.')[0] for k in keys))
      way_out = f'did you mean {found}?' if found else f'there are {others}'
      sys.exit(f'--config.{name} is not a key of {path}; {way_out}')


def items(config: ml_collections.ConfigDict) -> Iterator[tuple[str, object]]:
  """Yields the dotted keys of a config, with their values."""
  for key, value in config.items():
    if hasattr(value, 'items'):
      yield from ((f'{key}.{name}', x) for name, x in items(value))
    else:
      yield key, value


def nearest(name: str, keys: Sequence[str]) -> list[str]:
  """At most three of the dotted keys that `name` may stand for."""
  last = name.rpartition('.')[2]
  ends = {key: key.rpartition('.')[2] for key in keys}
  close = difflib.get_close_matches(last, ends.values(), n=3, cutoff=0.7)
  initials = lambda end: ''.join(word[:1] for word in end.split('_'))
  found = [
    *(key for key, end in ends.items() if end == last),
    *difflib.get_close_matches(name, keys, n=1, cutoff=0.8),
    *(key for key, end in ends.items() if end in close),
    *(key for key, end in ends.items() if initials(end) == last),
    *(key for key, end in ends.items() if len(last) > 2 and last in end),
  ]
  return [*dict.fromkeys(found)][:3]
