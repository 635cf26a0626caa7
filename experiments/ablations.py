r"""What each choice of the paper is worth, on a net that two cores afford.

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m experiments.ablations --output=DIR --pilot
    python -m experiments.ablations --output=DIR [--seeds=3] [--rows=no_lrn,...]

A narrow AlexNet (maps of 16, 7, 3 and 1 pixels; two towers, links, norms,
dropout, crops, reflections and colour noise as in configs/paper.py) is trained
on the first 1,000 CIFAR-10 images of each class for 40 epochs, and tested on
all 10,000 test images. Each row of ablations.csv changes one thing.

The difference is that of the top-1 error on one view between the changed net
and the base, seed by seed, in points: positive if the paper's choice is better
(of the training error where the claim is about training). All rows share the
nets of the base, and if no choice mattered, one verdict of 20 would not be
'noise' on average: confirm one whose `p_holm` is not below 0.05.

| in DIR | contents |
|---|---|
| data/ | the images |
| runs.csv, summary.csv, figure.png, runs/ | as of `sweep` |
| ablations.csv | a line for each row of the table |
| ablations.png | the differences and their intervals |

`table2_ensembles` uses these runs, too.

A run takes 2 to 5 CPU-minutes: 230 for all rows with three seeds, 32 for the
pilot, whose runs the sweep needs anyway.
"""

from collections.abc import Mapping, Sequence
import pathlib
import statistics

from absl import flags
import ml_collections

from alexnet_jax import metrics
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from experiments import ablation_rows
from experiments import ablation_table
from experiments import run_files
from experiments import summary
from experiments import sweep
from experiments import verdict

ROWS, ERROR = ablation_rows.ROWS, ablation_rows.ERROR
BASE = ablation_table.BASE
EPOCHS_COMPARED = 4.0  # The first, and the last, of the training errors.
PILOT, PILOT_SEEDS = 'no_lrn', 4
QUICK_ROWS = ('no_lrn', 'dropout_0')

FLAGS = flags.FLAGS


def mean_training_error(
  rows: Sequence[Mapping[str, str]], start: float, stop: float
) -> float:
  """The mean training error of the steps of some epochs, a fraction.

  Args:
    rows: the rows of metrics.csv.
    start: epoch after which they begin; rows that end after it count.
    stop: epoch of the last row.
  """
  total, steps, before = 0.0, 0, 0
  for row in rows:
    step, epoch = int(row['step']), float(row['epoch'])
    if start < epoch <= stop + 1e-6:
      total += float(row['train/top1_error']) * (step - before)
      steps += step - before
    before = step
  return total / steps


def measure(workdir: pathlib.Path) -> dict[str, float]:
  """The errors of a finished run, fractions.

  Those on one view and on many (ten; five without reflections) of the test
  images, and those of the first and the last training epochs.
  """
  flips = workdir_lib.read_config(workdir).augment.flip
  many = f'{metrics.many_view_prefix(flips)}/top1_error'
  result = run_files.read(workdir / workdir_lib.RESULT_FILE, (ERROR, many))
  columns = ('step', 'epoch', 'train/top1_error')
  rows = run_files.read_table(workdir / metrics.CSV_FILE, columns)
  end = float(rows[-1]['epoch'])
  early = min(EPOCHS_COMPARED, end / 2)
  return {
    ERROR: result[ERROR],
    'many_view_error': result[many],
    ablation_rows.EARLY: mean_training_error(rows, 0, early),
    ablation_rows.LAST: mean_training_error(rows, end - early, end),
  }


def pilot_lines(rows: Sequence[Mapping]) -> list[str]:
  """The seed spread of the pilot, and the seeds that each row then needs.

  With so many, a difference of its published size is told from noise with a
  chance of 80%. The spread is that of the row PILOT alone, and few seeds tell
  it within a factor of about 4: so its confidence interval, and what that means
  for the seeds, is printed too.
  """
  found = ablation_table.differences(rows, PILOT)
  deviation = statistics.stdev(found)
  interval = verdict.deviation_interval(deviation, len(found))
  errors = [100 * e for e in summary.values_of(rows, BASE, ERROR)]
  lines = [
    f'{BASE}: top-1 error {statistics.fmean(errors):.1f}%, standard deviation'
    f' over {len(errors)} seeds {statistics.stdev(errors):.2f} points; of the'
    f' difference to {PILOT}: {deviation:.2f} (at level {verdict.LEVEL}:'
    f' {interval[0]:.2f} to {interval[1]:.2f}); other rows may differ'
  ]
  if not deviation:
    return lines
  for name, row in ROWS.items():
    if row.paper is not None and row.metric == ERROR:
      best, low, high = (
        verdict.seeds_needed(value, row.paper) or f'over {verdict.MOST_SEEDS}'
        for value in (deviation, *interval)
      )
      lines.append(
        f'{name}: {best} seeds for {row.paper:g} points ({low} to {high})'
      )
  return lines


def run(
  config: ml_collections.ConfigDict,
  names: Sequence[str],
  seeds: int,
  path: pathlib.Path,
) -> list[summary.Row]:
  """Trains the base and rows; writes ablations.csv; the rows of runs.csv."""
  nets = dict.fromkeys(ROWS[name].same_net_as or name for name in names)
  variants = {name: ROWS[name].overrides for name in nets}
  sweep.run(config, {BASE: {}}, seeds, path, measure)
  rows = sweep.run(
    config, variants, seeds, path, measure, keep_checkpoints=False
  )
  found = ablation_table.table_rows(rows)
  summary.write_csv(path / ablation_table.FILE, ablation_table.COLUMNS, found)
  return rows


def main() -> None:
  unknown = set(FLAGS.rows) - ROWS.keys()
  if unknown:
    raise sweep.InputError(
      f'--rows={",".join(FLAGS.rows)}: use some of {",".join(ROWS)}'
    )
  path = files.local_path(FLAGS.output, '--output')
  config = ablation_rows.get_config(path, FLAGS.data_dir, FLAGS.quick)
  names, seeds = FLAGS.rows or list(ROWS), FLAGS.seeds
  if FLAGS.pilot:
    names, seeds = [PILOT], max(2, seeds if FLAGS.quick else PILOT_SEEDS)
  elif FLAGS.quick and not FLAGS.rows:
    names = QUICK_ROWS
  rows = run(config, names, seeds, path)
  found = ablation_table.table_rows(rows)
  print(ablation_table.table(found))
  print(ablation_table.chance_line(found))
  for line in pilot_lines(rows) if FLAGS.pilot else ():
    print(line)
  print(summary.draw(path, {ERROR: 'top-1 error, one view'}))
  print(ablation_table.draw(path))


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=3)
  flags.DEFINE_list('rows', [], 'Rows to train, by name; all by default.')
  flags.DEFINE_bool(
    'pilot',
    False,
    'Train only the base and one row; say how many seeds each row needs.',
  )


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
