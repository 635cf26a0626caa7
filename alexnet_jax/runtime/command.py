"""What the commands share: a user's mistake gives one line, not a traceback."""

from collections.abc import Iterator, Sequence
import contextlib
import logging
import sys
import traceback

from absl import logging as absl_logging


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
