r"""Trains or evaluates AlexNet.

    python -m alexnet_jax.main --config=configs/quickstart.py --workdir=DIR

On several hosts the same command runs once on each: where JAX does not know the
cluster, with --coordinator_address, --num_processes and --process_id.

Only flags and error messages are here; see train.py.
"""

import sys

from alexnet_jax import large_pages

if __name__ == '__main__':
  large_pages.restart_with()

from absl import app
from absl import flags
from ml_collections import config_flags

from alexnet_jax import command
from alexnet_jax import compilation
from alexnet_jax import evaluate
from alexnet_jax import processes
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
CACHE_DIR = flags.DEFINE_string('compilation_cache_dir', *compilation.CACHE_DIR)
CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'latest'], 'Which to evaluate.'
)
COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'host:port of process 0, with many processes.'
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Processes of the run; 1 to stay alone on a cluster.'
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Of this process, from 0.'
)
flags.mark_flag_as_required('config')


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with one line in place of a traceback for a wrong config."""
  with command.one_line_config_errors(argv):
    rest = app.parse_flags_with_usage(argv)
    _ = CONFIG.value.seed  # The file's own errors may wait for the first use.
  if len(rest) > 1:
    sys.exit(f'{rest[1]} is not a flag; flags have the form --name=value')
  return rest


def main(_) -> None:
  again = 'the same command continues at its checkpoint'
  with processes.end_together(), command.one_line_errors(again):
    compilation.keep(CACHE_DIR.value)
    processes.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    processes.check_same(
      {'--mode': MODE.value, '--checkpoint': CHECKPOINT.value}
    )
    if MODE.value == 'train':
      train.train_and_evaluate(CONFIG.value, WORKDIR.value)
    else:
      evaluate.evaluate_checkpoint(
        CONFIG.value, WORKDIR.value, CHECKPOINT.value
      )


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
