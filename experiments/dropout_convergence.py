r"""Does dropout double the iterations that a net needs to converge?

    python -m experiments.dropout_convergence --output=DIR [--seeds=3]

The paper says that it does, roughly (section 4.2), not how that was measured.
The nets are those of three rows of `ablations`, with dropout 0.5, 0.1 and 0; if
DIR is a folder of that command, only missing ones are trained. Test errors are
smoothed: each is the mean of three evaluations, two epochs apart (of two at
both ends). A net counts as converged at the first evaluation before the drop of
its learning rate whose smoothed error is within WITHIN of the lowest before the
drop. The factor is that of these epochs with dropout 0.5 and without, seed by
seed; its mean is geometric, and the verdict is one on its logarithm.

A net whose lowest error is among the last LAST evaluations before the drop may
not have converged, so its epochs are a lower bound. If that is so with dropout,
the factor is one, too: it may confirm the claim but not be called smaller. If it
is so without dropout, there is no bound, and no verdict.

| in DIR, besides the files of `ablations` | contents |
|---|---|
| convergence.csv | for each run: epochs to converge, its lowest error |
| convergence.png | the test errors by epoch |

It takes about 45 CPU-minutes, seconds after `ablations` with as many seeds.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import math
import pathlib
import statistics

import ml_collections

from alexnet_jax import metrics
from alexnet_jax.runtime import files
from experiments import ablation_rows
from experiments import ablations
from experiments import curves
from experiments import summary
from experiments import sweep
from experiments import verdict

WITHIN = 0.01  # A fraction of the test error.
LAST = 3  # evaluations
PAPER = 2.0  # Section 4.2: "roughly doubles the number of iterations".
WITHOUT = 'dropout_0'
VARIANTS = {
  ablations.BASE: {},
  'dropout_0.1': ablation_rows.ROWS['dropout_0.1'].overrides,
  WITHOUT: ablation_rows.ROWS[WITHOUT].overrides,
}
FILE, FIGURE = 'convergence.csv', 'convergence.png'
COLUMNS = ('variant', 'seed', 'epochs', 'lowest_error', 'is_lower_bound')


@dataclasses.dataclass(frozen=True)
class Convergence:
  """When a net converged.

  Attributes:
    epochs: epochs until its error was near the lowest.
    lowest_error: the lowest smoothed error before the drop, a fraction.
    is_lower_bound: whether that was near the end, so that it may still fall.
  """

  epochs: float
  lowest_error: float
  is_lower_bound: bool


def convergence(
  epochs: Sequence[float], errors: Sequence[float], drop: float
) -> Convergence:
  """When a net converged.

  Args:
    epochs: epochs of its evaluations, ascending.
    errors: their test errors, fractions.
    drop: epoch at which its learning rate was lowered.
  """
  number = sum(epoch <= drop + 1e-6 for epoch in epochs)
  before = errors[:number]
  smooth = [
    statistics.fmean(before[max(0, i - 1) : i + 2]) for i in range(number)
  ]
  lowest = min(smooth)
  near = next(i for i, error in enumerate(smooth) if error <= lowest + WITHIN)
  is_late = smooth.index(lowest) >= number - LAST
  return Convergence(epochs[near], lowest, is_late)


def read_run(workdir: pathlib.Path, drop: float) -> Convergence:
  """When the net of a work directory converged; see `convergence`."""
  with open(workdir / metrics.CSV_FILE, newline='') as file:
    rows = [r for r in csv.DictReader(file) if r['eval/top1_error']]
  epochs = [float(row['epoch']) for row in rows]
  errors = [float(row['eval/top1_error']) for row in rows]
  return convergence(epochs, errors, drop)


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
    for variant in (ablations.BASE, WITHOUT)
  }
  base, without = found.values()
  seeds = sorted(base.keys() & without.keys())
  values = [base[s]['epochs'] / without[s]['epochs'] for s in seeds]
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


def draw(path: pathlib.Path, drop: float) -> pathlib.Path:
  """Draws the test errors by epoch, a line for each seed."""
  figure = summary.new_figure(FIGURE, (5, 3.6))
  axes = figure.subplots()
  for color, variant in enumerate(VARIANTS):
    runs = curves.read(path, variant, 'test_error')
    for i, (epochs, errors) in enumerate(runs):
      label = variant.replace(ablations.BASE, 'dropout_0.5') if i == 0 else None
      percent = [100 * error for error in errors]
      axes.plot(epochs, percent, color=f'C{color}', linewidth=0.9, label=label)
  axes.axvline(drop, color='k', linestyle=':', linewidth=0.8)
  axes.set(xlabel='epoch', ylabel='test error (%)')
  axes.legend()
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def run(
  config: ml_collections.ConfigDict, seeds: int, path: pathlib.Path
) -> list[summary.Row]:
  """Trains the nets that are missing; writes the csv files.

  Args:
    config: the config of the base of `ablations`.
    seeds: number of seeds.
    path: folder of the sweep.

  Returns:
    The rows of convergence.csv.
  """
  rows = sweep.run(config, VARIANTS, seeds, path, ablations.measure)
  (drop,), result = config.optimizer.drop_epochs, []
  for row in rows:
    variant, seed = row['variant'], row['seed']
    if variant in VARIANTS and not row['failed']:
      workdir = path / 'runs' / variant / f'seed{seed}'
      found = dataclasses.asdict(read_run(workdir, drop))
      result.append({'variant': variant, 'seed': seed, **found})
  summary.write_csv(path / FILE, COLUMNS, result)
  curves.write(path, [path])
  return result


def main() -> None:
  flag = sweep.FLAGS
  path = files.local_path(flag.output, '--output')
  config = ablation_rows.get_config(path, flag.data_dir, flag.quick)
  rows = run(config, flag.seeds, path)
  for row in rows:
    print(*(f'{key} {row[key]}' for key in COLUMNS), sep='  ')
  print(line(factors(rows)))
  print(draw(path, *config.optimizer.drop_epochs))


if __name__ == '__main__':
  sweep.define_flags(seeds=3)
  sweep.run_command(main)
