r"""Sweeps: variants of a config with several seeds each, their means, a figure.

An experiment is a module with a base config and a table of overrides. If it
needs more than the metrics of result.json, it also measures finished runs:

    python -m experiments.NAME --output=DIR [--data_dir=DIR] [--seeds=N] [--quick]

| in DIR | contents |
|---|---|
| runs/VARIANT/seedN/ | the work directory of a run, as of `alexnet_jax.main` |
| runs.csv | a row for each run that ended: metrics, time, commit, device |
| summary.csv | mean, standard error and n of each metric of each variant |
| figure.png | a figure of runs.csv |

After a signal or a kill the same command continues the sweep: finished runs are
not trained again, and the interrupted one resumes from its checkpoint. Seeds
and variants can be added; the tables keep every run of the folder that ended.
A run whose loss is not finite has failed; remove its folder to try it again.
"""

from collections.abc import Callable, Mapping
import copy
import dataclasses
import os
import pathlib
import re
import shutil
import sys
import time

from absl import flags
import jax
import ml_collections
import tqdm

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import command
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import files
from alexnet_jax.runtime import huge_pages
from alexnet_jax.runtime import jax_settings
from alexnet_jax.runtime import signals
from experiments import program as program_lib
from experiments import run_files
from experiments import summary

# The file that `run` adds to the work directory of a finished or failed run.
ROW_FILE = 'row.json'


class InputError(ValueError):
  """A mistake in the input of a sweep; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Training:
  """One run of a sweep."""

  variant: str
  seed: int
  config: ml_collections.ConfigDict
  workdir: pathlib.Path


def last_metrics(workdir: pathlib.Path) -> dict[str, float]:
  """The last metrics of a finished run by tag, such as 'eval/loss'."""
  result = run_files.read(workdir / workdir_lib.RESULT_FILE)
  return {tag: value for tag, value in result.items() if '/' in tag}


def run(
  base: ml_collections.ConfigDict,
  variants: Mapping[str, Mapping[str, object]],
  seeds: int,
  output: str | os.PathLike,
  measure: Callable[[pathlib.Path], Mapping[str, float | None]] = last_metrics,
  keep_checkpoints: bool = True,
  program: program_lib.Program = program_lib.ALEXNET,
) -> list[summary.Row]:
  """Trains every variant with every seed, except runs that are finished.

  All variants are trained with one seed before the next seed begins.

  Args:
    base: the config that the variants override.
    variants: overrides by name of the variant; overrides are values by dotted
      key; '{seed}' in train.init_from stands for the seed.
    seeds: number of seeds; the seeds are 0, 1, ...
    output: folder of the sweep, see the docstring of this module.
    measure: maps the work directory of a finished run to numbers by metric,
      with None for a metric that the run does not have.
    keep_checkpoints: if False, the checkpoints of a run are removed after it
      has been measured.
    program: what trains the configs.

  Returns:
    The rows of runs.csv, as from `summary.read_runs`.

  Raises:
    ValueError: as from `plan`; if a data set does not fit its config or differs
      from that of an earlier run; or if another process works in `output`.
    FileNotFoundError: if a data set has not been prepared.
  """
  trainings = plan(base, variants, seeds, output, program)
  fingerprints = {
    t.variant: program.fingerprint(t.config) for t in trainings if t.seed == 0
  }
  path = files.local_path(output, '--output')
  path.mkdir(parents=True, exist_ok=True)
  with files.locked(path):
    rows = _recorded_rows(trainings, fingerprints)
    for file in sorted(path.glob(f'runs/*/seed*/{ROW_FILE}')):
      rows.setdefault(file.parent, summary.read_row(file))
    summary.write(path, list(rows.values()))
    for training in _unfinished(trainings, rows):
      signals.check()
      fingerprint = fingerprints[training.variant]
      row = _train(training, program, fingerprint, measure)
      files.write_json(training.workdir / ROW_FILE, row)
      rows[training.workdir] = row
      summary.write(path, list(rows.values()))
      if not keep_checkpoints:
        shutil.rmtree(training.workdir / checkpoint.FOLDER, ignore_errors=True)
  return summary.read_runs(path)


def plan(
  base: ml_collections.ConfigDict,
  variants: Mapping[str, Mapping[str, object]],
  seeds: int,
  output: str | os.PathLike,
  program: program_lib.Program = program_lib.ALEXNET,
) -> list[Training]:
  """The runs of a sweep, in order; takes the arguments of `run`.

  It reads no data set and writes nothing.

  Raises:
    ValueError: if an argument is wrong, or if `output` has a run of the same
      variant and seed with another config.
  """
  path = _checked_output(seeds, output)
  trainings = []
  for seed in range(seeds):
    for variant, overrides in variants.items():
      config = _config(base, variant, overrides, seed, program.check)
      workdir = path / 'runs' / variant / f'seed{seed}'
      _check_recorded_config(workdir, config, program.check_recorded)
      trainings.append(Training(variant, seed, config, workdir))
  return trainings


def _checked_output(seeds, output):
  """The absolute path of `output`; raises ValueError as `plan` does."""
  if seeds < 1:
    raise InputError(f'--seeds={seeds} must be at least 1')
  if not os.fspath(output):
    raise InputError('--output= is empty; name a folder')
  path = files.local_path(output, '--output')
  workdir_lib.check_writable(path, f'--output={output}')
  return path


def _config(base, variant, overrides, seed, check):
  """The checked config of one run."""
  if not re.fullmatch(r'\w[\w.+-]*', variant):
    raise InputError(f'variant {variant!r}: use only letters, digits and _.+-')
  known = config_lib.flatten(base).keys() - {'seed'}
  for key in overrides.keys() - known:
    raise InputError(
      f'variant {variant!r}: {key!r} is not a key that it can set'
    )
  config = copy.deepcopy(base)
  try:
    config.update_from_flattened_dict({**overrides, 'seed': seed})
    if init_from := config.train.get('init_from'):
      config.train.init_from = init_from.replace('{seed}', str(seed))
    check(config)
  except (TypeError, ValueError) as error:
    raise InputError(f'variant {variant!r}: {error}') from error
  return config


def _check_recorded_config(workdir, config, check_recorded):
  file = workdir / workdir_lib.CONFIG_FILE
  if not (workdir_lib.has_trained(workdir) or (workdir / ROW_FILE).exists()):
    return  # Nothing was saved, nor has the run failed.
  try:
    check_recorded(config, file)
  except ValueError as error:
    raise InputError(str(error).replace('--workdir', '--output')) from error


def _recorded_rows(trainings, fingerprints):
  """The rows of finished and failed runs, by work directory."""
  rows = {}
  for training in trainings:
    file = training.workdir / ROW_FILE
    if not file.exists():
      continue
    row = summary.read_row(file)
    if row['dataset'] != fingerprints[training.variant]:
      inputs = training.config.input
      now = dataset_lib.dataset_path(inputs.data_dir, inputs.dataset)
      raise InputError(
        f'{training.workdir} was made with other images than {now} now holds;'
        ' use a fresh --output'
      )
    rows[training.workdir] = row
  return rows


def _unfinished(trainings, rows):
  """Yields the runs that have no row, and shows the progress of the sweep."""
  began, total = time.time(), len(trainings)
  left = [t for t in trainings if t.workdir not in rows]
  done = total - len(left)
  # `disable=None` shows the bar only on a terminal.
  with tqdm.tqdm(initial=done, total=total, unit='run', disable=None) as bar:
    for here, training in enumerate(left):
      name = f'{training.variant}, seed {training.seed}'
      line = f'run {done + here + 1}/{total}: {name}'
      if here:
        seconds = (time.time() - began) / here * (len(left) - here)
        line += f'; remaining {tqdm.tqdm.format_interval(seconds)}'
      tqdm.tqdm.write(line)
      bar.set_description(name)
      yield training
      bar.update()


def _train(training, program, fingerprint, measure):
  """Trains a run to its end; returns its row."""
  began, measured, failed = time.time(), {}, ''
  try:
    program.train(training.config, training.workdir)
  except FloatingPointError as error:
    failed = str(error).partition('. ')[0]  # Without the advice.
    tqdm.tqdm.write(f'failed: {failed}')
    result = {
      'wall_seconds': round(time.time() - began, 1),
      'commit': workdir_lib.current_commit(),
      'devices': [device.device_kind for device in jax.devices()],
    }
  else:
    result = run_files.read(training.workdir / workdir_lib.RESULT_FILE)
    measured = measure(training.workdir)
  return {
    'variant': training.variant,
    'seed': training.seed,
    **measured,
    'wall_seconds': result['wall_seconds'],
    'failed': failed,
    'commit': result['commit'],
    'device': '{} x {}'.format(len(result['devices']), result['devices'][0]),
    'dataset': fingerprint,
  }


FLAGS = flags.FLAGS


def define_flags(seeds: int) -> None:
  """Defines the flags of every experiment; --seeds defaults to `seeds`."""
  flags.DEFINE_string('output', None, 'Folder of the sweep.', required=True)
  flags.DEFINE_string(
    'data_dir', dataset_lib.DATA_DIR, 'Folder of the prepared data sets.'
  )
  flags.DEFINE_integer('seeds', seeds, 'Seeds 0, 1, ...; one with --quick.')
  flags.DEFINE_bool(
    'quick', False, 'Small, to try the command; the figures mean nothing.'
  )
  flags.DEFINE_string('compilation_cache_dir', *compilation.CACHE_DIR)


def run_command(main: Callable[[], None]) -> None:
  """Parses the flags and runs an experiment; mistakes are one line.

  Call it first: it may restart the program, see `huge_pages`.
  """

  def guarded(_):
    with command.one_line_errors('the same command continues'):
      compilation.enable_compilation_cache(FLAGS.compilation_cache_dir)
      jax_settings.start()
      try:
        if FLAGS.quick and FLAGS['seeds'].using_default_value:
          FLAGS.seeds = 1
        _checked_output(FLAGS.seeds, FLAGS.output)  # Before `main` reads data.
        main()
      except (InputError, run_files.RunFileError, ModuleNotFoundError) as error:
        sys.exit(f'{type(error).__name__}: {error}')

  huge_pages.reexec_with_huge_pages()
  command.run(guarded)
