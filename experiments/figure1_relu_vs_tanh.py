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
| units | both units at the rate that was fastest there, with the other seeds |

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
from alexnet_jax.runtime import files
from experiments import cifar10_config
from experiments import cifar10_training
from experiments import curves
from experiments import summary
from experiments import sweep

TARGET = 0.25  # Training error, a fraction.
PAPER = 6.0  # Section 3.1.
RATES: Mapping[str, Sequence[float]] = {
  'relu': (0.0005, 0.001, 0.002, 0.004),
  'tanh': (0.00025, 0.0005, 0.001, 0.002),
}
RATIO_FILE, FIGURE = 'ratio.json', 'figure1.png'
METRIC = 'epochs_to_target'

FLAGS = flags.FLAGS


def name_of(unit: str, rate: float) -> str:
  """The name of the variant of a unit and a rate, such as 'relu_0.001'."""
  return f'{unit}_{rate:g}'


def overrides(unit: str, rate: float, epochs: float) -> dict[str, object]:
  """The overrides of a unit and a rate, for at most `epochs` epochs."""
  return {
    'model.activation': unit,
    'model.has_decay': False,
    'optimizer.stages': ((epochs, rate, 1.0),),
    'train.target_error': TARGET,
    'train.eval_every_epochs': 5,
  }


def measure(workdir: pathlib.Path) -> dict[str, float | None]:
  """The epochs that a finished run took to the target; None if it did not."""
  with open(workdir / metrics.CSV_FILE, newline='') as file:
    for row in csv.DictReader(file):
      if float(row['train/top1_error']) <= TARGET:
        return {METRIC: float(row['epoch'])}
  return {METRIC: None}


def fastest(rows: Sequence[Mapping], unit: str) -> float:
  """The rate of a unit that took the fewest epochs in the sweep of rates.

  Raises:
    sweep.InputError: if no rate reached the target.
  """
  found = {}
  for rate in RATES[unit]:
    for epochs in summary.values_of(rows, name_of(unit, rate), METRIC):
      found[rate] = epochs
  if not found:
    raise sweep.InputError(
      f'{unit} did not reach {TARGET:.0%} training error at any rate; allow more'
      ' --epochs, with a fresh --output'
    )
  return min(found, key=found.get)


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
    'paper': PAPER,
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


def draw(path: pathlib.Path, found: Mapping) -> pathlib.Path:
  """Draws the training errors of all seeds by epoch, as Figure 1 does."""
  figure = summary.new_figure(FIGURE, (5, 3.6))
  axes = figure.subplots()
  for unit, line in (('relu', '-'), ('tanh', '--')):
    variant = found['variants'][unit]
    runs = curves.read(path, variant, 'train_error')
    for i, (epochs, errors) in enumerate(runs):
      label = variant.replace('_', ', rate ') if i == 0 else None
      axes.plot(epochs, errors, line, color='k', linewidth=0.9, label=label)
  axes.axhline(TARGET, color='C0', linestyle=':', linewidth=0.8)
  axes.set(xlabel='epochs', ylabel='training error rate', ylim=(0, 0.8))
  axes.set_xlim(left=0)
  axes.legend()
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def run(
  config: ml_collections.ConfigDict, path: pathlib.Path, epochs: float
) -> dict:
  """Runs both sweeps; the contents of ratio.json."""
  train = lambda name, variants, seeds: sweep.run(
    config,
    variants,
    seeds,
    path / name,
    measure,
    program=cifar10_training.PROGRAM,
  )
  all_rates = {
    name_of(unit, rate): overrides(unit, rate, epochs)
    for unit, rates in RATES.items()
    for rate in rates
  }
  rows = train('rates', all_rates, 1)
  best = {unit: fastest(rows, unit) for unit in RATES}
  names = {unit: name_of(unit, rate) for unit, rate in best.items()}
  units = {name_of(u, r): overrides(u, r, epochs) for u, r in best.items()}
  found = ratio(train('units', units, FLAGS.seeds), names)
  files.write_json(path / RATIO_FILE, found)
  curves.write(path, [path / 'units'])
  return found


def main() -> None:
  config = cifar10_config.get_config(FLAGS.data_dir, FLAGS.quick)
  path = files.local_path(FLAGS.output, '--output')
  found = run(config, path, FLAGS.epochs)
  print(json.dumps(found, indent=1))
  print(draw(path, found))


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=3)
  flags.DEFINE_float('epochs', 60.0, 'Epochs of each run at most.')


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
