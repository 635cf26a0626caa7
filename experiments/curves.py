"""The training curves of several runs, in one csv file."""

from collections.abc import Iterable, Sequence
import csv
import pathlib

from alexnet_jax import metrics
from experiments import run_files
from experiments import summary

CURVES_FILE = 'curves.csv'
COLUMNS = ('variant', 'seed', 'epoch', 'train_error', 'test_error')


def write(output: pathlib.Path, sweeps: Iterable[pathlib.Path]) -> None:
  """Writes curves.csv into `output`, from metrics.csv of the runs of sweeps.

  The training error is the mean since the row before; the test error, on one
  view, is empty where the net was not evaluated. Errors are fractions. Runs that
  failed are left out.
  """
  rows = []
  for sweep in sweeps:
    for run in summary.read_runs(sweep):
      if run['failed']:
        continue
      workdir = sweep / 'runs' / run['variant'] / f'seed{run["seed"]}'
      columns = ('epoch', 'train/top1_error', 'eval/top1_error')
      for row in run_files.read_table(workdir / metrics.CSV_FILE, columns):
        cells = (run['variant'], run['seed'], *map(row.get, columns))
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
  summary.write_csv(output / CURVES_FILE, COLUMNS, rows)


def read(
  output: pathlib.Path, variant: str, column: str
) -> list[tuple[Sequence[float], Sequence[float]]]:
  """Epochs and errors (fractions) of each seed of a variant, from curves.csv."""
  with open(output / CURVES_FILE, newline='') as file:
    rows = [
      row
      for row in csv.DictReader(file)
      if row['variant'] == variant and row[column]
    ]
  result = []
  for seed in dict.fromkeys(row['seed'] for row in rows):
    own = [row for row in rows if row['seed'] == seed]
    epochs = [float(row['epoch']) for row in own]
    result.append((epochs, [float(row[column]) for row in own]))
  return result
