"""The tables and the figure of a sweep: its runs, their means, standard errors.

These functions know only rows and the files that `sweep` writes.
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
import os
import pathlib

import numpy as np

from experiments import run_files

RUNS_FILE, SUMMARY_FILE = 'runs.csv', 'summary.csv'
FIGURE_FILE = 'figure.png'
# The columns of runs.csv before and after those of the metrics.
FIRST_COLUMNS = ('variant', 'seed')
LAST_COLUMNS = ('wall_seconds', 'failed', 'commit', 'device', 'dataset')
SUMMARY_COLUMNS = ('variant', 'metric', 'mean', 'standard_error', 'n', 'failed')

# A row of runs.csv or summary.csv by column; None is an empty cell.
Row = dict[str, str | int | float | None]


def metric_names(rows: Iterable[Row]) -> list[str]:
  """The metrics of rows of runs.csv, in order of appearance."""
  names = dict.fromkeys(name for row in rows for name in row)
  return [n for n in names if n not in (*FIRST_COLUMNS, *LAST_COLUMNS)]


def values_of(rows: Iterable[Row], variant: str, metric: str) -> list[float]:
  """The values of a metric in the runs of a variant that have it."""
  own = (row.get(metric) for row in rows if row['variant'] == variant)
  return [value for value in own if value is not None]


def mean_and_standard_error(
  values: Sequence[float],
) -> tuple[float | None, float | None]:
  """The mean, and the standard error: sample standard deviation / sqrt(n).

  The mean of no values is None; so is the standard error of fewer than two.
  """
  mean = float(np.mean(values)) if values else None
  if len(values) < 2:
    return mean, None
  return mean, float(np.std(values, ddof=1) / np.sqrt(len(values)))


def summarize(rows: Sequence[Row]) -> list[Row]:
  """The rows of summary.csv, one for each variant and metric.

  n is the number of runs of the variant that have the metric, `failed` the
  number of runs that failed.
  """
  summary = []
  for variant in dict.fromkeys(row['variant'] for row in rows):
    own = [row for row in rows if row['variant'] == variant]
    failed = sum(bool(row['failed']) for row in own)
    for metric in metric_names(rows):
      values = values_of(own, variant, metric)
      found = (*mean_and_standard_error(values), len(values), failed)
      cells = zip(SUMMARY_COLUMNS, (variant, metric, *found), strict=True)
      summary.append(dict(cells))
  return summary


def write(output: pathlib.Path, rows: Sequence[Row]) -> None:
  """Writes runs.csv and summary.csv into the folder of a sweep."""
  columns = (*FIRST_COLUMNS, *metric_names(rows), *LAST_COLUMNS)
  write_csv(output / RUNS_FILE, columns, rows)
  write_csv(output / SUMMARY_FILE, SUMMARY_COLUMNS, summarize(rows))


def write_csv(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Row]
) -> None:
  """Writes rows with a header; None is an empty cell."""
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)


def read_row(file: pathlib.Path) -> Row:
  """The row of a run that has ended, from row.json in its work directory."""
  return run_files.read(
    file,
    (*FIRST_COLUMNS, *LAST_COLUMNS),
    f'remove {file}, and the command that made it measures the run again, or'
    ' trains it again if its checkpoints are gone',
  )


def read_runs(output: str | os.PathLike) -> list[Row]:
  """The rows of runs.csv; seeds are ints, metrics and seconds floats.

  A metric that a run does not have is None.
  """
  rows = run_files.read_table(
    pathlib.Path(output) / RUNS_FILE,
    (*FIRST_COLUMNS, *LAST_COLUMNS),
    may_be_empty=True,
    way_out='remove it, and the command that made it writes it again',
  )
  numbers = [*metric_names(rows), 'wall_seconds']
  return [
    row
    | {name: float(row[name]) if row[name] else None for name in numbers}
    | {'seed': int(row['seed'])}
    for row in rows
  ]


def new_figure(name: str, size: tuple[float, float]):
  """An empty matplotlib figure of a width and height in inches.

  Raises:
    ModuleNotFoundError: if matplotlib is not installed; it names `name`.
  """
  try:
    from matplotlib import figure as figure_lib
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'{name} needs matplotlib: pip install matplotlib; the same command then'
      ' draws it'
    ) from error
  return figure_lib.Figure(size, layout='constrained')


def draw(output: str | os.PathLike, labels: Mapping[str, str]) -> pathlib.Path:
  """Draws runs.csv as figure.png: a panel per metric, a line per variant.

  A dot is a run; a mark with a bar is the mean with its standard error. The
  label of a variant has the number of its runs, and how many did not fail.

  Args:
    output: folder of the sweep.
    labels: labels of the axes by metric, with units.

  Returns:
    The path of the figure.

  Raises:
    ModuleNotFoundError: if matplotlib is not installed.
  """
  rows = read_runs(output)
  variants = list(dict.fromkeys(row['variant'] for row in rows))
  size = (1.5 + 3.5 * len(labels), 1.5 + 0.4 * len(variants))
  figure = new_figure(FIGURE_FILE, size)
  panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
  for axes, (metric, label) in zip(panels, labels.items(), strict=True):
    for place, variant in enumerate(variants):
      values = values_of(rows, variant, metric)
      mean, error = mean_and_standard_error(values)
      axes.plot(values, [place] * len(values), 'o', color='C0', alpha=0.4)
      if values:
        axes.errorbar(mean, place, xerr=error, fmt='k|', capsize=4)
    axes.set_xlabel(label)
    axes.locator_params(axis='x', nbins=5)
  names = []
  for variant in variants:
    failed = [bool(r['failed']) for r in rows if r['variant'] == variant]
    number = f'{failed.count(False)} of ' * any(failed) + f'{len(failed)}'
    names.append(f'{variant} ({number})')
  panels[0].set_yticks(range(len(variants)), names)
  panels[0].set_ylim(len(variants) - 0.5, -0.5)
  path = pathlib.Path(output) / FIGURE_FILE
  figure.savefig(path, dpi=110)
  return path
