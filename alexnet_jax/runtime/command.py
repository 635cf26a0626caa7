"""What the commands share: a user's mistake gives one line, not a traceback."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import difflib
import errno
import itertools
import logging
import pathlib
import runpy
import shlex
import sys
import traceback

from absl import app
from absl import flags
from absl import logging as absl_logging
import ml_collections
from ml_collections import config_flags

from alexnet_jax.runtime import utf8

# What to do if the system refuses a file or folder.
WAYS_OUT = dict.fromkeys(
  (errno.EACCES, errno.EPERM, errno.EROFS),
  'give your user the permission, or name another path',
)
WAYS_OUT[errno.ENAMETOOLONG] = (
  'names have at most 255 bytes, paths 4,095: name a shorter path'
)
WAYS_OUT |= dict.fromkeys(
  (errno.ENOSPC, errno.EDQUOT), 'make space; the same command continues'
)
DASHES = '‐‑‒–—−'  # What word processors and web pages make of a hyphen.


class _TupleParser(flags.ArgumentParser):
  """Parses a key that holds a tuple; given twice, the last value wins.

  ml_collections would concatenate the values; with any other key the last wins.
  """

  def parse(self, argument):
    return config_flags.tuple_parser.TupleParser().parse(argument)

  def flag_type(self):
    return 'tuple'


config_flags.register_flag_parser_for_type(tuple, _TupleParser())


def import_jax() -> None:
  """Imports JAX; exits with one line for environment variables that it refuses.

  Call it before other modules import JAX.
  """
  try:
    import jax  # noqa: F401
  except ValueError as error:
    sys.exit(
      f'ValueError: JAX refuses an environment variable ({error}); correct or'
      ' unset it'
    )


def run(main: Callable, hint: str = '') -> None:
  """Parses the flags with `parse_flags` and runs the main function."""
  utf8.use_utf8()
  app.run(main, flags_parser=lambda argv: parse_flags(argv, hint))


def parse_flags(argv: Sequence[str], hint: str = '') -> list[str]:
  """Parses the flags; a word that is no flag exits with one line.

  Args:
    argv: the command line.
    hint: way out for such a word; by default it depends on the word.

  Returns:
    The first element of `argv`.
  """
  # Flags after such a word are parsed as well: otherwise a missing flag would
  # be reported, not the word.
  flags.FLAGS.set_gnu_getopt(True)
  try:
    first, *words = flags.FLAGS(list(argv))
  except flags.UnrecognizedFlagError as error:
    sys.exit(f'--{error.flagname} is not a flag; {_known(error.flagname)}')
  except flags.Error as error:
    # ml_collections adds the traceback of an error in a config file.
    lines = [line.strip() for line in str(error).splitlines()]
    where = [line for line in lines if line.startswith('File ')][-1:]
    where = [line for line in where if 'ml_collections' not in line]
    message = ' '.join([lines[0], *where, *lines[1:][-1:]])
    sys.exit(f'{message.rstrip(".")}; --help lists the flags')
  if words:
    way_out = hint or _way_out(list(argv), words)
    sys.exit(f'{words[0] or repr(words[0])} is not a flag; {way_out}')
  return [first]


def _known(name):
  """The flags and config keys that a misspelt flag may stand for."""
  known = [*flags.FLAGS]
  with contextlib.suppress(Exception):  # No config, or a wrong one.
    config = flags.FLAGS['config'].value
    known += [f'config.{key}' for key, _ in _items(config)]
  found = _nearest(name, known)
  same_end = [key for key in found if key.rpartition('.')[2] == name]
  meant = ' or '.join(f'--{key}' for key in same_end or found)
  return f'did you mean {meant}?' if meant else '--help lists the flags'


def _way_out(argv, words):
  """What the user probably meant by words that are no flags."""
  word = words[0]
  name = word.lstrip(DASHES).partition('=')[0]
  if name.lstrip('-') in flags.FLAGS:
    return f'write --{word.lstrip(DASHES + "-")}'
  before = argv[argv.index(word) - 1]
  flag, equals, value = before.partition('=')
  if before.startswith('-') and before != '--' and not equals:
    return f'write {before}={word}'
  if before.startswith('-') and equals and word.strip(DASHES + '-'):
    after = argv[argv.index(word) :]
    more = itertools.takewhile(lambda w: not w.startswith('-'), after)
    quoted = shlex.quote(' '.join([value, *more]))
    return f'quote a value that has spaces: {flag}={quoted}'
  return 'flags have the form --name=value'


def quiet_libraries() -> None:
  """Lets libraries log errors only, and JAX warnings, as of an unused GPU."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger('jax').setLevel(logging.WARNING)


@contextlib.contextmanager
def one_line_errors(resume_hint: str) -> Iterator[None]:
  """Exits with one line for errors that this package raises, and for Ctrl-C.

  It does the same where the system refuses to open or to write a file or folder,
  whoever raises the error. Other errors of libraries keep their traceback.

  Args:
    resume_hint: follows "interrupted; " after Ctrl-C.
  """
  quiet_libraries()
  logging.getLogger('alexnet_jax').setLevel(logging.INFO)
  try:
    yield
  except (ValueError, OSError, FloatingPointError) as error:
    if not (_raised_here(error) or refusal(error)):
      raise
    sys.exit(f'{type(error).__name__}: {error}{refusal(error)}')
  except KeyboardInterrupt:
    sys.exit(f'interrupted; {resume_hint}')


def refusal(error: Exception) -> str:
  """The way out if the system refuses a file or folder; '' for other errors."""
  found = WAYS_OUT.get(error.errno) if isinstance(error, OSError) else None
  return f'; {found}' if found else ''


@contextlib.contextmanager
def one_line_config_errors(argv: Sequence[str]) -> Iterator[None]:
  """Exits with one line if the file of --config, or one of its keys, is wrong.

  Args:
    argv: the command line; the message names the file in it.
  """
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
    if isinstance(message, OSError) and not pathlib.Path(path).is_file():
      colon = ' (a colon ends its name)' if argument else ''
      sys.exit(f'--config={path} is not a file{colon}; {_other_configs(path)}')
    if pathlib.Path(path).is_file():
      _exit_for_unknown_keys(argv, path, argument)
    if isinstance(message, AttributeError) and 'get_config' in text:
      text = 'it does not define get_config(); see configs/paper.py'
    if isinstance(message, ImportError) and 'configs' in text:
      text += (
        '; run the command in the folder that holds configs/ of this project'
      )
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


def find_configs(argv: Sequence[str]) -> None:
  """Lets a config import this project's `configs` from any working directory.

  Args:
    argv: the command line; a file in a folder `configs` imports from that one.
  """
  _, path, _ = _given_config(argv)
  folder = pathlib.Path(path).absolute().parent
  if folder.name == 'configs':
    sys.path.insert(1, str(folder.parent))
  sys.path.append(str(pathlib.Path(__file__).parents[2]))


def check_config(config: object) -> None:
  """Raises an error if the value of --config is not a whole config."""
  _ = config.items  # Raises the error of a file that could not be read.
  if type(config) is not ml_collections.ConfigDict:
    raise TypeError(type(config))
  unset = [key for key, value in _items(config) if value is None]
  if unset:
    raise ValueError(f'{unset[0]}=None must have a value')


def _other_configs(path):
  """The config files that there are, the nearest first."""
  given = pathlib.Path(path)
  here = pathlib.Path('configs')
  installed = pathlib.Path(__file__).parents[2] / 'configs'
  folders = [given if given.is_dir() else given.parent, here, installed]
  for folder in folders if path else folders[1:]:
    files = {p.stem: p for p in sorted(folder.glob('[!_]*.py'))}
    if any('def get_config' in p.read_text('latin-1') for p in files.values()):
      break
  nearest = difflib.get_close_matches(given.stem, files, n=1)
  meant = [f'did you mean {files[name]}? ' for name in nearest]
  names = ', '.join(p.name for p in files.values()) or 'no config'
  return f'{"".join(meant)}{folder} holds {names}'


def _exit_for_unknown_keys(argv, path, argument):
  """Exits with one line if the file does not have a key of the command line."""
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
        ' an ml_collections.ConfigDict that can be changed; see configs/paper.py'
      )
    keys = [key for key, _ in _items(config)]
  sections = {key.rpartition('.')[0] for key in keys}
  for name in given if keys else ():
    if name not in keys and name not in sections:
      found = ' or '.join(f'--config.{key}' for key in _nearest(name, keys))
      within = [key for key in keys if key.split('.')[0] == name.split('.')[0]]
      others = ', '.join(within or dict.fromkeys(k.split('.')[0] for k in keys))
      way_out = f'did you mean {found}?' if found else f'there are {others}'
      sys.exit(f'--config.{name} is not a key of {path}; {way_out}')


def _items(config):
  """Yields the dotted keys of a config, with their values."""
  for key, value in config.items():
    if hasattr(value, 'items'):
      yield from ((f'{key}.{name}', x) for name, x in _items(value))
    else:
      yield key, value


def _nearest(name, keys):
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


def _raised_here(error: Exception) -> bool:
  """Whether a module of this package raised the error itself."""
  frame = error.__traceback__
  while frame.tb_next:
    frame = frame.tb_next
  # `__spec__` has the module's name even if `python -m` runs it.
  spec = frame.tb_frame.f_globals.get('__spec__')
  return spec is not None and spec.name.startswith('alexnet_jax.')
