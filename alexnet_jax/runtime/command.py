"""What the commands share: a user's mistake gives one line, not a traceback."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import functools
import itertools
import logging
import os
import re
import shlex
import sys
import textwrap

from absl import app
from absl import flags
from absl import logging as absl_logging

from alexnet_jax.runtime import config_file
from alexnet_jax.runtime import signals
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
# Their flags are those of the command; others belong to libraries.
FLAGS_OF = ('alexnet_jax', 'benchmarks', 'experiments')
HELP = {'-h', '-?', '-help', '--help', '--helpshort', '--helpfull'}
COLUMNS = 120  # A logged line has no more.
DASHES = '‐‑‒–—−'  # What word processors and web pages make of a hyphen.


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


def run(main: Callable, hint: str = '', takes_words: bool = False) -> None:
  """Parses the flags with `parse_flags` and runs the main function."""
  signals.install()
  utf8.use_utf8()
  app.run(main, flags_parser=lambda argv: parse_flags(argv, hint, takes_words))


def parse_flags(
  argv: Sequence[str], hint: str = '', takes_words: bool = False
) -> list[str]:
  """Parses the flags; a word that is no flag exits with one line.

  The flags of `HELP` print the help and exit.

  Args:
    argv: the command line.
    hint: way out for such a word; by default it depends on the word.
    takes_words: whether the command takes words, such as paths. Then only a
      word that is a flag without its hyphens, and not a path, is refused.

  Returns:
    The first element of `argv`, and the words if the command takes any.
  """
  if HELP & {*argv}:  # absl itself would exit with 1.
    print(_help(sys.modules['__main__'].__doc__ or ''))
    sys.exit()
  # Flags after such a word are parsed as well: otherwise a missing flag would
  # be reported, not the word.
  flags.FLAGS.set_gnu_getopt(True)
  try:
    first, *words = flags.FLAGS(list(argv))
  except flags.UnrecognizedFlagError as error:
    sys.exit(f'--{error.flagname} is not a flag; {_known(error.flagname)}')
  except flags.Error as error:
    config_file.exit_for_wrong_keys(argv)
    # ml_collections adds the traceback of an error in a config file.
    lines = [line.strip() for line in str(error).splitlines()]
    where = [line for line in lines if line.startswith('File ')][-1:]
    where = [line for line in where if 'ml_collections' not in line]
    message = ' '.join([lines[0], *where, *lines[1:][-1:]])
    sys.exit(f'{message.rstrip(".")}; --help lists the flags')
  if takes_words:
    refused = [w for w in words if _is_meant_as_flag(w)]
  else:
    refused = words
  if refused:
    way_out = hint or _way_out(list(argv), refused)
    sys.exit(f'{refused[0] or repr(refused[0])} is not a flag; {way_out}')
  return [first, *words]


def _help(purpose):
  """What the command is for, its own flags, and where the config keys stand."""
  paragraphs = map(_filled, purpose.strip().split('\n\n'))
  lines = ['\n\n'.join(paragraphs), '', 'flags:']
  for module, found in flags.FLAGS.flags_by_module_dict().items():
    if module == sys.argv[0] or module.partition('.')[0] in FLAGS_OF:
      lines += map(_described, found)
  if 'config' in flags.FLAGS:
    lines += [
      '  --config.KEY=VALUE: Any key of the config, such as'
      ' --config.train.epochs=10;',
      '    configs/paper.py has all of them, and what they mean.',
    ]
  return '\n'.join(lines)


def _filled(paragraph):
  """Prose in lines of 79 columns; tables, lists and commands as they are."""
  if re.search(r'^[ |*]', paragraph, re.MULTILINE):
    return paragraph
  return textwrap.fill(paragraph, 79, break_on_hyphens=False)


def _described(flag):
  """A flag with its values, what it is for, and its default."""
  name = f'[no]{flag.name}' if flag.boolean else flag.name
  purpose, repeated, _ = flag.help.partition(';\n    repeat this option')
  text = f'--{name}: {purpose}{" It may be repeated." if repeated else ""}'
  if flag.default not in (None, False, '', []):
    text += f' (default: {flag.serialize().partition("=")[2]})'
  return textwrap.fill(text, 79, initial_indent='  ', subsequent_indent='    ')


def _is_meant_as_flag(word):
  name = word.lstrip(DASHES + '-').partition('=')[0]
  return name in flags.FLAGS and not os.path.lexists(word)


def _known(name):
  """The flags and config keys that a misspelt flag may stand for."""
  known = [*flags.FLAGS]
  with contextlib.suppress(Exception):  # No config, or a wrong one.
    config = flags.FLAGS['config'].value
    known += [f'config.{key}' for key, _ in config_file.items(config)]
  found = config_file.nearest(name, known)
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


class _Lines(logging.Formatter):
  """The message, after its level unless that is INFO, in lines of `COLUMNS`."""

  def format(self, record: logging.LogRecord) -> str:
    level = record.levelname.capitalize()
    text = '' if level == 'Info' else f'{level}: '
    text += super().format(record)
    return '\n'.join(map(_wrapped, text.split('\n')))


_wrapped = functools.partial(  # A long path stays whole.
  textwrap.fill,
  width=COLUMNS,
  subsequent_indent='  ',
  break_long_words=False,
  break_on_hyphens=False,
  replace_whitespace=False,
)


def quiet_libraries() -> None:
  """Lets libraries log errors only, and JAX warnings, as of an unused GPU."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  # Orbax logs the traceback of a failed save, and raises the error as well.
  logging.getLogger('absl').addFilter(_without_traceback)
  logging.getLogger('jax').setLevel(logging.WARNING)


def _without_traceback(record):
  record.exc_info = record.exc_text = None
  return True


@contextlib.contextmanager
def one_line_errors(resume_hint: str) -> Iterator[None]:
  """Exits with one line for errors that this package raises, and for signals.

  It does the same where the system refuses to open or to write a file or folder,
  whoever raises the error. Other errors of libraries keep their traceback.

  Args:
    resume_hint: follows "interrupted by ...; " after a signal.
  """
  signals.resume_hint = resume_hint
  quiet_libraries()
  absl_logging.get_absl_handler().setFormatter(_Lines())
  logging.getLogger('alexnet_jax').setLevel(logging.INFO)
  try:
    yield
  except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
    if not (_raised_here(error) or refusal(error)):
      raise
    sys.exit(f'{type(error).__name__}: {error}{refusal(error)}')
  except KeyboardInterrupt as stopped:
    raise signals.ended(stopped) from stopped


def refusal(error: Exception) -> str:
  """The way out if the system refuses a file or folder; '' for other errors."""
  found = WAYS_OUT.get(error.errno) if isinstance(error, OSError) else None
  return f'; {found}' if found else ''


def _raised_here(error: Exception) -> bool:
  """Whether a module of this package raised the error itself."""
  frame = error.__traceback__
  while frame.tb_next:
    frame = frame.tb_next
  # `__spec__` has the module's name even if `python -m` runs it.
  spec = frame.tb_frame.f_globals.get('__spec__')
  return spec is not None and spec.name.startswith('alexnet_jax.')
