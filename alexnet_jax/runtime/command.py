"""What the commands share: a user's mistake is one line, not a traceback."""

from collections.abc import Iterator, Sequence
import contextlib
import logging
import sys
import traceback

from absl import logging as absl_logging


def quiet_libraries() -> None:
  """Libraries log errors only; JAX also warnings, as of an unused GPU."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger('jax').setLevel(logging.WARNING)


@contextlib.contextmanager
def one_line_errors(interrupted: str) -> Iterator[None]:
  """Ends the process with one line for errors that this package raises.

  Those of the libraries keep their traceback.

  Args:
    interrupted: what to say after Ctrl-C.
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
    sys.exit(f'interrupted; {interrupted}')


@contextlib.contextmanager
def one_line_config_errors(argv: Sequence[str]) -> Iterator[None]:
  """Ends the process with one line where the file of --config, or a key, is wrong."""
  try:
    yield
  except Exception as error:  # Of the config file: anything.
    message = error
    while message.args and isinstance(message.args[0], Exception):
      message = message.args[0]  # ml_collections nests them.
    text = str(message)
    if isinstance(message, KeyError) and message.args:
      text = message.args[0]  # Its str is a repr.
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
  """Whether this package raised it, for the user."""
  frame = error.__traceback__
  while frame.tb_next:
    frame = frame.tb_next
  spec = frame.tb_frame.f_globals.get('__spec__')  # Also of what `-m` runs.
  return spec is not None and spec.name.startswith('alexnet_jax.')
