r"""How much faster ReLUs reach 25% training error than tanh: Figure 1.

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m experiments.figure1_relu_vs_tanh --output=DIR [--seeds=3]

The paper trains a four-layer convolutional net on CIFAR-10 without any
regularisation, with a learning rate for each unit that makes training as fast
as possible, and finds a factor of six (section 3.1). It does not say which net;
this is the author's 26% net (three convolutional layers, one fully connected
one and the softmax) without its weight decay, see `cuda_convnet`.

| sweep | runs |
|---|---|
| rates | seed 0 of both units at each of `RATES` |
| units | all seeds of both units at the rate that was fastest there |

A run ends at 25% error on the last 10,000 images that it was trained on, or
after --epochs; epochs count in fifths. ratio.json has the factor and its
spread over the seeds, figure1.png the curves.
"""

from collections.abc import Mapping, Sequence
import csv
import json
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
from experiments import summary
from experiments import sweep

TARGET = 0.25  # Training error, a fraction: section 3.1.
PAPER = 6.0  # Section 3.1.
RATES: Mapping[str, Sequence[float]] = {
  'relu': (0.0005, 0.001, 0.002, 0.004),
  'tanh': (0.00025, 0.0005, 0.001, 0.002),
}
# The target, the rates and the epochs of --quick.
QUICK = 0.85, {'relu': (0.001, 0.004), 'tanh': (0.001, 0.004)}, 30.0
RATIO_FILE, FIGURE = 'ratio.json', 'figure1.png'
METRIC = 'epochs_to_target'

FLAGS = flags.FLAGS


def name_of(unit: str, rate: float) -> str:
  """The name of the variant of a unit and a rate, such as 'relu_0.001'."""
  return f'{unit}_{rate:g}'


def variants(
  rates: Mapping[str, Sequence[float]], target: float, epochs: float
) -> dict[str, dict[str, object]]:
  """The overrides by variant, of each unit and each of its rates.

  Args:
    rates: learning rates by unit.
    target: training error that ends a run, a fraction.
    epochs: epochs of a run at most.
  """
  common = {
    'model.has_decay': False,
    'train.target_error': target,
    'train.eval_every_epochs': 5,
  }
  return {
    name_of(unit, rate): {
      'model.activation': unit,
      'optimizer.stages': ((epochs, rate, 1.0),),
      **common,
    }
    for unit, values in rates.items()
    for rate in values
  }


def measure(workdir: pathlib.Path) -> dict[str, float | None]:
  """The epochs that a finished run took to its target; None if it did not."""
  config = json.loads((workdir / workdir_lib.CONFIG_FILE).read_text())
  target = config['train.target_error']
  with open(workdir / metrics.CSV_FILE, newline='') as file:
    for row in csv.DictReader(file):
      if float(row['train/top1_error']) <= target:
        return {METRIC: float(row['epoch'])}
  return {METRIC: None}


def fastest(rows: Sequence[Mapping], unit: str) -> float:
  """The rate of a unit that took the fewest epochs in the sweep of rates.

  Raises:
    sweep.InputError: if no rate reached the target.
  """
  reached = [
    (row[METRIC], float(row['variant'].partition('_')[2]))
    for row in rows
    if row['variant'].startswith(f'{unit}_') and row[METRIC] is not None
  ]
  if not reached:
    raise sweep.InputError(
      f'{unit} did not reach the training error at any rate; allow more --epochs,'
      ' with a fresh --output'
    )
  return min(reached)[1]


def ratio(rows: Sequence[Mapping], names: Mapping[str, str]) -> dict:
  """The factor between the units, and its spread over the seeds.

  Args:
    rows: rows of runs.csv.
    names: the variant of each unit.
  """
  epochs = {
    unit: {r['seed']: r[METRIC] for r in rows if r['variant'] == name}
    for unit, name in names.items()
  }
  seeds = [s for s in epochs['relu'] if epochs['relu'][s] and epochs['tanh'][s]]
  ratios = [epochs['tanh'][s] / epochs['relu'][s] for s in seeds]
  mean, error = summary.mean_and_standard_error(ratios)
  return {
    'ratio': mean,
    'standard_error': error,
    'n': len(ratios),
    'ratios': ratios,
    'variants': dict(names),
    'epochs': {
      unit: statistics.fmean(epochs[unit][s] for s in seeds) if seeds else None
      for unit in names
    },
  }


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
  axes.set(xlabel='epochs', ylabel='training error rate', ylim=(0, 0.8))
  axes.set_xlim(left=0)
  axes.legend()
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def run(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  seeds: int,
  target: float,
  rates: Mapping[str, Sequence[float]],
  epochs: float,
) -> dict:
  """Runs both sweeps; the contents of ratio.json.

  Args:
    config: a config as of `cifar10_config.get_config`, which names the data.
    path: folder of the results.
    seeds: number of seeds at the fastest rates.
    target: see `variants`; so are `rates` and `epochs`.
  """
  train = lambda name, rates, seeds: sweep.run(
    config,
    variants(rates, target, epochs),
    seeds,
    path / name,
    measure,
    program=cifar10_training.PROGRAM,
  )
  rows = train('rates', rates, 1)
  best = {unit: fastest(rows, unit) for unit in rates}
  rows = train('units', {u: (rate,) for u, rate in best.items()}, seeds)
  found = ratio(rows, {u: name_of(u, rate) for u, rate in best.items()})
  found['paper'] = PAPER
  files.write_json(path / RATIO_FILE, found)
  curves.write(path, [path / 'units'])
  return found


def main() -> None:
  config = cifar10_config.get_config(FLAGS.data_dir, FLAGS.quick)
  path = files.local_path(FLAGS.output, '--output')
  target, rates, epochs = (
    QUICK if FLAGS.quick else (TARGET, RATES, FLAGS.epochs)
  )
  found = run(config, path, FLAGS.seeds, target, rates, epochs)
  print(json.dumps(found, indent=1))
  print(draw(path, found, target))


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=3)
  flags.DEFINE_float('epochs', 60.0, 'Epochs of each run at most.')


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
