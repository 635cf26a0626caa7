r"""Trains AlexNet, or evaluates a trained net.

    python -m alexnet_jax.main --config=configs/quickstart.py --workdir=DIR
    python -m alexnet_jax.main --mode=evaluate --workdir=DIR

On several hosts, run the same command once on each; if JAX cannot detect the
cluster, add --coordinator_address, --num_processes and --process_id.
"""
# This module only handles flags and errors; see train.py and evaluate.py.

import sys

from alexnet_jax.runtime import command
from alexnet_jax.runtime import huge_pages
from alexnet_jax.runtime import utf8

if __name__ == '__main__':
  utf8.use_utf8()
  huge_pages.reexec_with_huge_pages()
  command.import_jax()

from absl import app
from absl import flags
from ml_collections import config_flags

from alexnet_jax import config as config_lib
from alexnet_jax import digits
from alexnet_jax import evaluate
from alexnet_jax import recorded_config
from alexnet_jax import run_summary
from alexnet_jax import train
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import config_file
from alexnet_jax.runtime import installation
from alexnet_jax.runtime import jax_settings
from alexnet_jax.runtime import processes
from alexnet_jax.runtime import signals

CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Configuration file, or the name of one of ours, such as quickstart.'
  ' Optional with --mode=evaluate, which reads config.json in --workdir by'
  ' default.',
  lock_config=True,
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for checkpoints, metrics and results.'
)
MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate'], 'Train, or evaluate a checkpoint.'
)
CACHE_DIR = flags.DEFINE_string('compilation_cache_dir', *compilation.CACHE_DIR)
COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'Address of process 0, as host:port.'
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes; 1 ignores a detected cluster.'
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Index of this process, starting at 0.'
)
START_SECONDS = flags.DEFINE_float(
  'start_seconds',
  processes.START_SECONDS,
  'How long processes wait to connect.',
)
HEARTBEAT_SECONDS = flags.DEFINE_float(
  'heartbeat_seconds',
  processes.HEARTBEAT_SECONDS,
  'A process that is silent for so long is lost; then the others end.',
)
EVALUATION = evaluate.define_evaluation_flags(views='both')
flags.adopt_module_key_flags(evaluate)  # --help lists them too.


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags; a wrong config exits with one line, not a traceback."""
  overrides = [arg for arg in argv if arg.startswith(('--config.', '-config.'))]
  names = {arg.partition('=')[0] for arg in argv}
  if overrides and not names & {'--config', '-config'}:
    sys.exit(
      f'{overrides[0]} needs --config=FILE; --mode=evaluate also takes'
      ' --checkpoint, --views, --split and --data_dir'
    )
  argv = config_file.find_configs(argv)
  renamed = recorded_config.RENAMED
  with config_file.one_line_errors(argv, renamed):
    rest = command.parse_flags(argv)
    if CONFIG.present:
      config_file.check(CONFIG.value, renamed)
  return rest


def _check_flags() -> None:
  """Raises ValueError for flags that --mode does not accept."""
  if MODE.value == 'evaluate':
    return
  if not WORKDIR.value:
    raise ValueError('--workdir= is missing or empty; name a folder')
  if CONFIG.value is None:
    raise ValueError(
      '--mode=train needs --config=FILE, for example --config=quickstart'
    )
  keys = {name: f'input.{name}' for name in ('data_dir', 'dataset')}
  keys |= {'split': 'input.eval_split', 'weights': 'train.init_from'}
  for flag in EVALUATION:
    if flag.present:
      hint = 'leave it out'
      if flag.name in keys:
        hint = f'with --mode=train use --config.{keys[flag.name]}'
      raise ValueError(f'--{flag.name} belongs to --mode=evaluate; {hint}')


def _check_installations() -> None:
  """Raises ValueError if code or command differ between processes."""
  mine, path = {f'--{f.name}': f.value for f in (MODE, *EVALUATION)}, None
  if CONFIG.present:
    flat = config_lib.flatten(CONFIG.value)
    mine |= {f'--config.{key}': value for key, value in flat.items()}
    path = config_flags.get_config_filename(flags.FLAGS['config'])
  installation.check({k: str(value) for k, value in mine.items()}, path)


def main(_) -> None:
  resume_hint = 'the same command continues from its checkpoint'
  with processes.abort_all_on_error(), command.one_line_errors(resume_hint):
    _check_flags()
    processes.initialize(
      *(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value),
      *(START_SECONDS.value, HEARTBEAT_SECONDS.value),
    )
    jax_settings.start()
    _check_installations()
    if MODE.value == 'train':
      workdir_lib.check_workdir(WORKDIR.value, CONFIG.value)
      compilation.enable_compilation_cache(CACHE_DIR.value)
      digits.prepare_if_missing(CONFIG.value)
      train.train_and_evaluate(CONFIG.value, WORKDIR.value, signals.received)
      if processes.is_first():
        print(*run_summary.lines(WORKDIR.value), sep='\n', flush=True)
    else:
      compilation.enable_compilation_cache(CACHE_DIR.value)
      workdirs = [] if WORKDIR.value is None else [WORKDIR.value]
      evaluate.evaluate_with_flags(workdirs, EVALUATION, CONFIG.value)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
