r"""Does dropout double the iterations that a net needs to converge?

    python -m experiments.dropout_convergence --output=DIR [--seeds=3]
        [--epochs=120]

The paper says that it does, roughly (section 4.2), not how that was measured.
The net and the images are those of `ablations`, with dropout 0.5 and without,
at a constant rate, because the paper lowered its own only when the error had
stopped improving.

The level of a net is the lowest mean of the test errors of a quarter of the
training in a row. The net counts as converged at the first evaluation at which
the mean of SMOOTHED evaluations around it is at most WITHIN above its level.
The factor is that of these epochs with dropout and without, seed by seed; its
mean is geometric, and the verdict is that on the logarithms. In simulated
falls with a factor of 2 it gives 1.6 to 1.9 (LOG.md): it errs towards 1.

If the first three quarters of its training alone would have a net converge in
less than STABLE of the epochs, it may not have converged, and the epochs are a
lower bound. With dropout, so is the factor then, and it may confirm the claim
but not contradict it. Without dropout the factor is an upper bound, which may be
noise or contradict the claim. Otherwise there is no verdict: train longer.

| in DIR, besides most files of `sweep` | contents |
|---|---|
| data/ | the images |
| convergence.csv | for each run: epochs to converge, its level |
| factor.json | the factor of each seed, their mean, the verdict |
| curves.csv, convergence.png | the errors by epoch |

A net takes about 11 CPU-minutes, so all six take 66.
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
from experiments import run_files
from experiments import summary
from experiments import sweep
from experiments import verdict

SMOOTHED = 5  # evaluations
LEVEL_SHARE = 0.25  # The share of the evaluations in a level.
WITHIN = 0.02  # Of test error, a fraction: two points.
STABLE = 0.8
PAPER = 2.0  # Section 4.2: "roughly doubles the number of iterations".
WITH, WITHOUT = 'dropout_0.5', 'dropout_0'
# The verdicts on a factor that is a bound, by the variant that is one.
ALLOWED = {WITH: ('reproduced',), WITHOUT: ('noise', 'contradicted')}
VARIANTS = {WITH: {}, WITHOUT: ablation_rows.ROWS['dropout_0'].overrides}
FILE, FIGURE = 'convergence.csv', 'convergence.png'
FACTOR_FILE = 'factor.json'
COLUMNS = ('variant', 'seed', 'epochs', 'level', 'is_lower_bound')

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Convergence:
  """When a net converged.

  Attributes:
    epochs: epochs until its error was near its level.
    level: the lowest mean test error of a quarter of the training, a fraction.
    is_lower_bound: whether a longer training may give more epochs.
  """

  epochs: float
  level: float
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


def _near_level(epochs, errors):
  """The epochs until an error is near its level, and the level."""
  length, around = max(1, round(LEVEL_SHARE * len(errors))), SMOOTHED // 2
  level = min(
    statistics.fmean(errors[i : i + length])
    for i in range(len(errors) - length + 1)
  )
  smooth = [
    statistics.fmean(errors[max(0, i - around) : i + around + 1])
    for i in range(len(errors))
  ]
  near = (e for e, s in zip(epochs, smooth, strict=True) if s <= level + WITHIN)
  return next(near, epochs[-1]), level  # The last, if evaluations are few.


def convergence(
  epochs: Sequence[float], errors: Sequence[float]
) -> Convergence:
  """When a net converged.

  Args:
    epochs: epochs of its evaluations, ascending.
    errors: their test errors, fractions.
  """
  near, level = _near_level(epochs, errors)
  number = max(1, round((1 - LEVEL_SHARE) * len(errors)))
  before, _ = _near_level(epochs[:number], errors[:number])
  return Convergence(near, level, before < STABLE * near)


def read_run(workdir: pathlib.Path) -> Convergence:
  """When the net of a work directory converged; see `convergence`."""
  columns = ('epoch', 'eval/top1_error')
  rows = run_files.read_table(workdir / metrics.CSV_FILE, columns)
  found = [[float(row[c]) for c in columns] for row in rows if row[columns[1]]]
  epochs, errors = zip(*found, strict=True)
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
  if bounded and (len(bounded) > 1 or words not in ALLOWED[bounded[0]]):
    words = 'not run yet'
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
  bounds = {(WITH,): 'at least ', (WITHOUT,): 'at most '}
  bound = bounds.get(tuple(found['bounded']), '')
  note = ''
  if found['bounded']:
    note = f' ({" and ".join(found["bounded"])} may not have converged: train'
    note += ' longer, with a higher --epochs and a fresh --output)'
  number = len(found['factors'])
  seeds = f'{number} seed{"s" * (number != 1)}'
  return (
    f'dropout multiplies the epochs to converge by {bound}{found["mean"]:.2f}'
    f'{spread} ({seeds}); the paper {PAPER:g};'
    f' {found["verdict"]}{note}'
  )


def draw(path: pathlib.Path) -> pathlib.Path:
  """Draws the test errors by epoch, a line for each seed.

  A dot marks where a net counts as converged; it is hollow if that is a lower
  bound.

  Args:
    path: folder of convergence.csv, curves.csv and of the figure.
  """
  with open(path / FILE, newline='') as file:
    rows = list(csv.DictReader(file))
  figure = summary.new_figure(FIGURE, (5, 3.6))
  axes = figure.subplots()
  for color, variant in enumerate(VARIANTS):
    ends = [row for row in rows if row['variant'] == variant]
    runs = curves.read(path, variant, 'test_error')
    for i, ((epochs, errors), end) in enumerate(zip(runs, ends, strict=True)):
      percent = [100 * error for error in errors]
      label = variant if i == 0 else None
      axes.plot(epochs, percent, color=f'C{color}', linewidth=0.9, label=label)
      at = epochs.index(float(end['epochs']))
      style = {'color': f'C{color}', 'markersize': 5}
      if end['is_lower_bound'] == str(True):
        style['markerfacecolor'] = 'white'
      axes.plot(epochs[at], percent[at], 'o', **style)
  axes.plot([], [], 'ko', markersize=5, label='converged (hollow: not sure)')
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
  rows = sweep.run(config, VARIANTS, seeds, path, keep_checkpoints=False)
  result = []
  for row in rows:
    variant, seed = row['variant'], row['seed']
    if variant in VARIANTS and not row['failed']:
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
  flags.DEFINE_float(
    'epochs', 120.0, 'Epochs of each training; not with --quick.'
  )


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
