r"""How much faster ReLUs reach 25% training error than tanh: Figure 1.

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m experiments.figure1_relu_vs_tanh --output=DIR [--seeds=3]

The paper trains a four-layer convolutional net on CIFAR-10 without any
regularisation, with a learning rate for each unit that makes training as fast
as possible, and finds a factor of six (section 3.1). It does not say which net;
this is the author's 26% net (three convolutional layers, one fully connected
one and the softmax) without its weight decay, see `cuda_convnet`.

Both units are trained with seed 0 at each of `RATES`, the middle ones first and
none for longer than the fastest took; then with all seeds at the rate that was
fastest. A run ends at 25% error on the last 10,000 images that it was trained
on, or after --epochs; epochs count in fifths. The same command with more
--epochs continues the runs that ended without reaching it.

--output is a sweep, see `sweep`; figure.png shows all rates. ratio.json has the
factor and its spread over the seeds other than 0, which chose the rates, if
there are two of them. A run of tanh that did not reach the target counts with
the epochs that it took until then, and the factor is a lower bound. figure1.png
has the curves.
"""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
import statistics

from absl import flags
import ml_collections

from alexnet_jax import metrics
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from experiments import cifar10_config
from experiments import cifar10_training
from experiments import curves
from experiments import run_files
from experiments import summary
from experiments import sweep

TARGET = 0.25  # Training error, a fraction: section 3.1.
PAPER = 6.0  # Section 3.1.
UNITS = 'relu', 'tanh'
RATES = 0.00025, 0.0005, 0.001, 0.002, 0.004
MOST_EPOCHS = 1000.0
QUICK = 0.85, (0.001, 0.004)  # The target and the rates of --quick.
RATIO_FILE, FIGURE = 'ratio.json', 'figure1.png'
METRIC = 'epochs_to_target'

FLAGS = flags.FLAGS


def name_of(unit: str, rate: float) -> str:
  """The name of the variant of a unit and a rate, such as 'relu_0.001'."""
  return f'{unit}_{rate:g}'


def overrides(
  unit: str, rate: float, target: float, max_epochs: float
) -> dict[str, object]:
  """The overrides of a run.

  Args:
    unit: one of `UNITS`.
    rate: learning rate.
    target: training error that ends the run, a fraction.
    max_epochs: epochs of the run at most.
  """
  return {
    'model.activation': unit,
    'model.has_decay': False,
    'optimizer.stages': ((MOST_EPOCHS, rate, 1.0),),
    'train.target_error': target,
    'train.max_epochs': max_epochs,
    'train.eval_every_epochs': 5,
  }


def measure(workdir: pathlib.Path) -> dict[str, float | None]:
  """What `runs.csv` has of a finished run.

  Returns:
    The epochs that it took to its target, None if it did not reach it; its
    epochs; and its last training error, a fraction.
  """
  key, columns = 'train.target_error', ('epoch', 'train/top1_error')
  config = run_files.read(workdir / workdir_lib.CONFIG_FILE, (key,))
  last = run_files.read_table(workdir / metrics.CSV_FILE, columns)[-1]
  epochs, error = (float(last[column]) for column in columns)
  reached = error <= config[key]  # It ends a run.
  return {
    METRIC: epochs if reached else None,
    'epochs': epochs,
    'train_error': error,
  }


def from_the_middle(rates: Sequence[float]) -> list[float]:
  """Rates in the order in which they are tried."""
  middle = len(rates) // 2
  return sorted(rates, key=lambda rate: abs(rates.index(rate) - middle))


def fastest(rows: Sequence[Mapping], unit: str) -> tuple[float, str]:
  """Epochs to the target of the fastest run with seed 0, and its variant.

  If no run reached it, infinity and the variant of the lowest training error;
  if none has ended, or all failed, '' for the variant.
  """
  found = [
    (row[METRIC] or math.inf, row['train_error'], row['variant'])
    for row in rows
    if row['variant'].startswith(f'{unit}_') and row['seed'] == 0
    if not row['failed']
  ]
  epochs, _, variant = min(found, default=(math.inf, None, ''))
  return epochs, variant


def ratio(rows: Sequence[Mapping], names: Mapping[str, str]) -> dict:
  """The factor between the units, and its spread over the seeds.

  Args:
    rows: rows of runs.csv.
    names: the variant of each unit.

  Returns:
    A dictionary for ratio.json; without a ratio if ReLUs did not reach the
    target.
  """
  runs = {
    unit: {r['seed']: r for r in rows if r['variant'] == name}
    for unit, name in names.items()
  }
  seeds = sorted(runs['relu'].keys() & runs['tanh'].keys())
  later = [seed for seed in seeds if seed]  # Seed 0 chose the rates.
  seeds = later if len(later) >= 2 else seeds
  reached = {
    unit: {s: own[s][METRIC] for s in seeds if own[s].get(METRIC)}
    for unit, own in runs.items()
  }
  tanh = {s: runs['tanh'][s].get('epochs') for s in seeds}
  pairs = {s: tanh[s] / n for s, n in reached['relu'].items() if tanh[s]}
  bounded = not pairs.keys() <= reached['tanh'].keys()
  mean, error = summary.mean_and_standard_error(list(pairs.values()))
  return {
    'ratio': mean,
    'is_lower_bound': bounded,
    'standard_error': None if bounded else error,
    'n': len(pairs),
    'ratios': list(pairs.values()),
    'seeds': list(pairs),
    'reached': {u: f'{len(n)} of {len(seeds)}' for u, n in reached.items()},
    'variants': dict(names),
    'epochs': {
      unit: statistics.fmean(found.values()) if found else None
      for unit, found in reached.items()
    },
  }


def remarks(found: Mapping, epochs: float) -> list[str]:
  """What a reader of ratio.json must know, a line each."""
  lines = [
    f'{unit}: the best rate is at the edge of the rates tried'
    for unit in found['at_edge']
  ]
  for unit, reached in found['reached'].items():
    number, _, total = reached.partition(' of ')
    if number != total:
      line = f'{unit}: {reached} seeds reached the target in {epochs:g} epochs'
      if (more := min(2 * epochs, MOST_EPOCHS)) > epochs:
        line += f'; the same command with --epochs={more:g} continues'
      lines.append(line)
  return lines


def draw(path: pathlib.Path, found: Mapping, target: float) -> pathlib.Path:
  """Draws the training errors of all seeds by epoch, as Figure 1 does."""
  figure = summary.new_figure(FIGURE, (5, 3.6))
  axes = figure.subplots()
  for unit, line in (('relu', '-'), ('tanh', '--')):
    variant = found['variants'][unit]
    runs = curves.read(path, variant, 'train_error')
    for i, (epochs, errors) in enumerate(runs):
      label = variant.replace('_', ', rate ') if i == 0 else None
      axes.plot(epochs, errors, line, color='k', linewidth=0.9, label=label)
  axes.axhline(target, color='C0', linestyle=':', linewidth=0.8)
  axes.set(xlabel='epochs', ylabel='training error rate', ylim=(0, 1))
  axes.set_xlim(left=0)
  axes.legend()
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def train(
  config: ml_collections.ConfigDict,
  variants: Mapping[str, Mapping[str, object]],
  seeds: int,
  path: pathlib.Path,
) -> list[summary.Row]:
  """Trains as `sweep.run` does, also on from runs that had ended too early.

  These are runs that did not reach the target and have fewer epochs than their
  overrides allow now.
  """
  program = cifar10_training.PROGRAM
  for training in sweep.plan(config, variants, seeds, path, program):
    file = training.workdir / sweep.ROW_FILE
    if not file.exists():
      continue
    row, limit = summary.read_row(file), training.config.train.max_epochs
    if not row['failed'] and row[METRIC] is None and row['epochs'] < limit:
      (training.workdir / workdir_lib.RESULT_FILE).unlink(missing_ok=True)
      file.unlink()
  return sweep.run(config, variants, seeds, path, measure, program=program)


def run(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  seeds: int,
  target: float,
  rates: Sequence[float],
  epochs: float,
) -> dict:
  """Trains all runs; returns the contents of ratio.json.

  Args:
    config: a config as of `cifar10_config.get_config`, which names the data.
    path: folder of the results.
    seeds: number of seeds at the fastest rates; one if a unit did not reach the
      target at any rate.
    target: training error that ends a run, a fraction.
    rates: learning rates that are tried, ascending.
    epochs: epochs of a run at most.
  """
  exists = (path / summary.RUNS_FILE).exists()
  rows = summary.read_runs(path) if exists else []
  for rate in from_the_middle(rates):
    variants = {}
    for unit in UNITS:
      limit = min(epochs, fastest(rows, unit)[0])
      variants[name_of(unit, rate)] = overrides(unit, rate, target, limit)
    rows = train(config, variants, 1, path)
  best, at_edge, reached = {}, [], []
  for unit in UNITS:
    fewest, name = fastest(rows, unit)
    if not name:
      raise sweep.InputError(
        f'{unit} diverged at every rate, see {path / summary.RUNS_FILE}; add'
        ' lower ones to RATES'
      )
    best[name] = rate = float(name.partition('_')[2])
    at_edge += [unit] * (rate in (rates[0], rates[-1]))
    reached.append(math.isfinite(fewest))
  if all(reached):
    variants = {
      name: overrides(name.partition('_')[0], rate, target, epochs)
      for name, rate in best.items()
    }
    rows = train(config, variants, seeds, path)
  found = ratio(rows, dict(zip(UNITS, best, strict=True)))
  found |= {'at_edge': at_edge, 'paper': PAPER}
  files.write_json(path / RATIO_FILE, found)
  curves.write(path, [path])
  return found


def main() -> None:
  if not 0 < FLAGS.epochs <= MOST_EPOCHS:
    raise sweep.InputError(
      f'--epochs={FLAGS.epochs:g} must be above 0 and at most {MOST_EPOCHS:g}'
    )
  config = cifar10_config.get_config(FLAGS.data_dir, FLAGS.quick)
  path = files.local_path(FLAGS.output, '--output')
  target, rates = QUICK if FLAGS.quick else (TARGET, RATES)
  found = run(config, path, FLAGS.seeds, target, rates, FLAGS.epochs)
  print(json.dumps(found, indent=1))
  for line in remarks(found, FLAGS.epochs):
    print(line)
  print(summary.draw(path, {METRIC: f'epochs to {target:.0%} training error'}))
  print(draw(path, found, target))


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=3)
  flags.DEFINE_float('epochs', 120.0, 'Epochs of each run at most.')


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
