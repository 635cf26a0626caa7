r"""Trains or evaluates AlexNet.

    python -m alexnet_jax.main --config=configs/quickstart.py --workdir=DIR

Only flags and error messages are here; see train.py.
"""

import logging
import sys

from absl import app
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from alexnet_jax import evaluate
from alexnet_jax import train

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File with the configuration, see configs/.', lock_config=True
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of checkpoints, metrics and results.', required=True
)
MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate'], 'Train, or evaluate a checkpoint.'
)
CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'latest'], 'Which to evaluate.'
)
flags.mark_flag_as_required('config')


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with one line in place of a traceback for a wrong config."""
  try:
    rest = app.parse_flags_with_usage(argv)
    _ = CONFIG.value.seed  # The file's own errors may wait for the first use.
  except Exception as error:  # Of the config file: anything.
    message = error
    while message.args and isinstance(message.args[0], Exception):
      message = message.args[0]  # ml_collections nests them.
    if isinstance(message, KeyError):
      message = message.args[0]  # Its str is a repr.
    words = dict(zip(argv, [*argv[1:], ''], strict=True))
    given = [arg for arg in argv if arg.startswith('--config=')]
    sys.exit(
      f'wrong config key or value in {" ".join(given) or words.get("--config", "")}:'
      f' {" ".join(str(message).split())}'
    )
  if len(rest) > 1:
    sys.exit(f'{rest[1]} is not a flag; flags have the form --name=value')
  return rest


def main(_) -> None:
  absl_logging.set_verbosity(absl_logging.ERROR)  # Of the libraries.
  logging.getLogger('alexnet_jax').setLevel(logging.INFO)
  try:
    if MODE.value == 'train':
      train.train_and_evaluate(CONFIG.value, WORKDIR.value)
    else:
      evaluate.evaluate_checkpoint(
        CONFIG.value, WORKDIR.value, CHECKPOINT.value
      )
  except (ValueError, FileNotFoundError, FloatingPointError) as error:
    if not _raised_here(error):
      raise
    sys.exit(f'{type(error).__name__}: {error}')
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command continues at the last checkpoint')


def _raised_here(error: Exception) -> bool:
  """Whether this package raised it, for the user: others keep a traceback."""
  frame = error.__traceback__
  while frame.tb_next:
    frame = frame.tb_next
  return frame.tb_frame.f_globals['__name__'].startswith('alexnet_jax.')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
