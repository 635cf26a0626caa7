r"""Does dropout double the iterations that a net needs to converge?

    python -m experiments.dropout_convergence --output=DIR [--seeds=3]

The paper says that it does, roughly (section 4.2), not how that was measured.
The net and the images are those of `ablations`, with dropout 0.5 and without,
at a constant rate: the paper lowered it when the error had stopped improving.
Test errors are smoothed: each is the mean of SMOOTHED evaluations, two epochs
apart (of fewer at both ends). A net counts as converged at the first evaluation
whose smoothed error is within WITHIN of the lowest. The factor is that of these
epochs with dropout 0.5 and without, seed by seed; its mean is geometric, and
the verdict is one on its logarithm.

A net that came so near only in the last part of the training, LATE of it, may
not have converged, so its epochs are a lower bound. If that is so with dropout,
the factor is one, too: it may confirm the claim but not be called smaller. If it
is so without dropout, there is no bound, and no verdict: train longer.

| in DIR, besides the files of `sweep` | contents |
|---|---|
| data/ | the images |
| convergence.csv | for each run: epochs to converge, its lowest error |
| factor.json | the factor of each seed, their mean, the verdict |
| curves.csv, convergence.png | the errors by epoch |

Forty epochs of a net take about 5 CPU-minutes, so all six take 90.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import math
import pathlib
import statistics

from absl import flags
import ml_collections

from alexnet_jax import metrics
from alexnet_jax.runtime import files
from experiments import ablation_rows
from experiments import curves
from experiments import summary
from experiments import sweep
from experiments import verdict

WITHIN = 0.01  # A fraction of the test error.
SMOOTHED = 5  # evaluations
LATE = 0.25  # Share of the training.
PAPER = 2.0  # Section 4.2: "roughly doubles the number of iterations".
WITH, WITHOUT = 'dropout_0.5', 'dropout_0'
VARIANTS = {WITH: {}, WITHOUT: ablation_rows.ROWS['dropout_0'].overrides}
FILE, FIGURE = 'convergence.csv', 'convergence.png'
FACTOR_FILE = 'factor.json'
COLUMNS = ('variant', 'seed', 'epochs', 'lowest_error', 'is_lower_bound')

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Convergence:
  """When a net converged.

  Attributes:
    epochs: epochs until its error was near the lowest.
    lowest_error: the lowest smoothed error, a fraction.
    is_lower_bound: whether that was late, so that the error may still fall.
  """

  epochs: float
  lowest_error: float
  is_lower_bound: bool


def get_config(
  output: pathlib.Path, data_dir: str, epochs: float, quick: bool = False
) -> ml_collections.ConfigDict:
  """The config of `ablation_rows`, at a constant rate; its other arguments.

  Args:
    output: folder of the sweep.
    data_dir: folder of the prepared data sets.
    epochs: length of the training; not used if `quick`.
    quick: whether to train on the digits for a moment.

  Raises:
    FileNotFoundError: as from `ablation_rows.get_config`.
  """
  config = ablation_rows.get_config(output, data_dir, quick)
  config.optimizer.drop_epochs = ()
  if not quick:
    config.train.epochs = epochs
  return config


def convergence(
  epochs: Sequence[float], errors: Sequence[float]
) -> Convergence:
  """When a net converged.

  Args:
    epochs: epochs of its evaluations, ascending.
    errors: their test errors, fractions.
  """
  around = SMOOTHED // 2
  smooth = [
    statistics.fmean(errors[max(0, i - around) : i + around + 1])
    for i in range(len(errors))
  ]
  lowest = min(smooth)
  near = next(i for i, error in enumerate(smooth) if error <= lowest + WITHIN)
  is_late = epochs[near] > (1 - LATE) * epochs[-1]
  return Convergence(epochs[near], lowest, is_late)


def read_run(workdir: pathlib.Path) -> Convergence:
  """When the net of a work directory converged; see `convergence`."""
  with open(workdir / metrics.CSV_FILE, newline='') as file:
    rows = [r for r in csv.DictReader(file) if r['eval/top1_error']]
  epochs = [float(row['epoch']) for row in rows]
  errors = [float(row['eval/top1_error']) for row in rows]
  return convergence(epochs, errors)


def factors(rows: Sequence[Mapping]) -> dict[str, object]:
  """The factor of each seed, its mean, and the verdict.

  Args:
    rows: the rows of convergence.csv.

  Returns:
    'factors' in order of the seeds; 'mean', the geometric one, and 'spread',
    the factor of one standard error, each None without enough seeds; 'bounded',
    the variants of which a run is a lower bound; and 'verdict'.
  """
  found = {
    variant: {r['seed']: r for r in rows if r['variant'] == variant}
    for variant in (WITH, WITHOUT)
  }
  dropped, without = found.values()
  seeds = sorted(dropped.keys() & without.keys())
  values = [dropped[s]['epochs'] / without[s]['epochs'] for s in seeds]
  logs = [math.log(value) for value in values]
  mean, error = summary.mean_and_standard_error(logs)
  bounded = [
    variant
    for variant, runs in found.items()
    if any(runs[seed]['is_lower_bound'] for seed in seeds)
  ]
  words = verdict.verdict(logs, math.log(PAPER))
  if WITHOUT in bounded:
    words = 'not run yet'
  elif bounded and words in ('same sign, smaller', 'contradicted'):
    words = 'noise'
  return {
    'factors': values,
    'mean': None if mean is None else math.exp(mean),
    'spread': None if error is None else math.exp(error),
    'bounded': bounded,
    'verdict': words,
  }


def line(found: Mapping) -> str:
  """What `factors` found, as a sentence."""
  if found['mean'] is None:
    return 'no seed has nets both with dropout and without; not run yet'
  spread = found['spread']
  spread = '' if spread is None else f' ×/÷ {spread:.2f}'
  bound, note = '', ''
  if WITHOUT in found['bounded']:
    note = ' (nets without dropout may not have converged: train longer)'
  elif found['bounded']:
    bound = 'at least '
  return (
    f'dropout multiplies the epochs to converge by {bound}{found["mean"]:.2f}'
    f'{spread} ({len(found["factors"])} seeds); the paper {PAPER:g};'
    f' {found["verdict"]}{note}'
  )


def draw(path: pathlib.Path) -> pathlib.Path:
  """Draws the test errors by epoch, a line for each seed.

  A dot marks where a net counts as converged.

  Args:
    path: folder of convergence.csv, curves.csv and of the figure.
  """
  with open(path / FILE, newline='') as file:
    rows = list(csv.DictReader(file))
  figure = summary.new_figure(FIGURE, (5, 3.6))
  axes = figure.subplots()
  for color, variant in enumerate(VARIANTS):
    ends = [float(r['epochs']) for r in rows if r['variant'] == variant]
    runs = curves.read(path, variant, 'test_error')
    for i, ((epochs, errors), end) in enumerate(zip(runs, ends, strict=True)):
      percent = [100 * error for error in errors]
      label = variant if i == 0 else None
      axes.plot(epochs, percent, color=f'C{color}', linewidth=0.9, label=label)
      at = epochs.index(end)
      axes.plot(end, percent[at], 'o', color=f'C{color}', markersize=4)
  axes.plot([], [], 'ko', markersize=4, label='converged')
  axes.set(xlabel='epoch', ylabel='test error (%)')
  axes.legend()
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def run(
  config: ml_collections.ConfigDict, seeds: int, path: pathlib.Path
) -> list[summary.Row]:
  """Trains the nets; writes the csv files and factor.json.

  Args:
    config: a config as of `get_config`.
    seeds: number of seeds.
    path: folder of the sweep.

  Returns:
    The rows of convergence.csv.
  """
  rows, result = sweep.run(config, VARIANTS, seeds, path), []
  for row in rows:
    variant, seed = row['variant'], row['seed']
    if not row['failed']:
      found = read_run(path / 'runs' / variant / f'seed{seed}')
      result.append(
        {'variant': variant, 'seed': seed, **dataclasses.asdict(found)}
      )
  summary.write_csv(path / FILE, COLUMNS, result)
  files.write_json(path / FACTOR_FILE, factors(result))
  curves.write(path, [path])
  return result


def main() -> None:
  if not 0 < FLAGS.epochs < math.inf:
    raise sweep.InputError(
      f'--epochs={FLAGS.epochs} must be finite and above 0'
    )
  path = files.local_path(FLAGS.output, '--output')
  config = get_config(path, FLAGS.data_dir, FLAGS.epochs, FLAGS.quick)
  rows = run(config, FLAGS.seeds, path)
  for row in rows:
    print(*(f'{key} {row[key]}' for key in COLUMNS), sep='  ')
  print(line(factors(rows)))
  print(draw(path))


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=3)
  flags.DEFINE_float('epochs', 120.0, 'Epochs of each training.')


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
