"""What the commands share: a user's mistake gives one line, not a traceback."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import itertools
import logging
import shlex
import sys
import traceback

from absl import app
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

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


def run(main: Callable, hint: str = '') -> None:
  """Parses the flags with `parse_flags` and runs the main function."""
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
  first, *words = app.parse_flags_with_usage(list(argv))
  if words:
    way_out = hint or _way_out(list(argv), words)
    sys.exit(f'{words[0] or repr(words[0])} is not a flag; {way_out}')
  return [first]


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

  Errors that a library raises keep their traceback.

  Args:
    resume_hint: follows "interrupted; " after Ctrl-C.
  """
  quiet_libraries()
  logging.getLogger('alexnet_jax').setLevel(logging.INFO)
  try:
    yield
  except (ValueError, FileNotFoundError, FloatingPointError) as error:
    if not _raised_here(error):
      raise
    sys.exit(f'{type(error).__name__}: {error}')
  except KeyboardInterrupt:
    sys.exit(f'interrupted; {resume_hint}')


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
    given = [arg for arg in argv if arg.startswith('--config=')]
    if '--config' in argv[:-1]:
      given = [argv[argv.index('--config') + 1]]
    where = ' in ' + ' '.join(given) if given else ''
    frames = traceback.extract_tb(message.__traceback__ or error.__traceback__)
    inside = [f for f in frames if given and given[-1].endswith(f.filename)]
    if inside:
      text = f'line {inside[-1].lineno}: {type(message).__name__}: {text}'
    sys.exit(f'wrong config key or value{where}: {" ".join(text.split())}')


def _raised_here(error: Exception) -> bool:
  """Whether a module of this package raised the error itself."""
  frame = error.__traceback__
  while frame.tb_next:
    frame = frame.tb_next
  # `__spec__` has the module's name even if `python -m` runs it.
  spec = frame.tb_frame.f_globals.get('__spec__')
  return spec is not None and spec.name.startswith('alexnet_jax.')
