"""The table of `ablations`, from its runs, and the figure of it."""

from collections.abc import Mapping, Sequence
import csv
import pathlib

from experiments import ablation_rows
from experiments import summary
from experiments import verdict

ROWS = ablation_rows.ROWS
BASE = 'base'
# The verdicts of rows of which the paper claims nothing.
UNCLAIMED = {'reproduced': 'better', 'contradicted': 'worse'}
FILE, FIGURE = 'ablations.csv', 'ablations.png'


def differences(rows: Sequence[Mapping], name: str) -> list[float]:
  """Row minus base, in points, of each seed that both have."""
  metric, nets = ROWS[name].metric, ROWS[name].same_net_as or name
  found = {
    variant: {
      row['seed']: 100 * row[metric]
      for row in rows
      if row['variant'] == variant and row.get(metric) is not None
    }
    for variant in (nets, BASE)
  }
  seeds = sorted(found[nets].keys() & found[BASE].keys())
  return [found[nets][seed] - found[BASE][seed] for seed in seeds]


COLUMNS = (
  *('row', 'what', 'paper', 'log', 'mishkin'),
  *('difference', 'standard_error', 'n', 'failed', 'low', 'high'),
  *('p', 'p_holm', 'verdict'),
)


def table_rows(rows: Sequence[Mapping]) -> list[summary.Row]:
  """The rows of ablations.csv, from those of runs.csv.

  A row whose nets have been trained is there even if all of them failed. `low`
  and `high` are the ends of the confidence interval. `p` is corrected by Holm's
  method in `p_holm`, for the number of `ROWS`, trained or not: otherwise it would
  depend on the order of the work.
  """
  result = []
  for name, row in ROWS.items():
    own = [r for r in rows if r['variant'] == (row.same_net_as or name)]
    if not own:
      continue
    found = differences(rows, name)
    words = verdict.verdict(
      found, row.paper if row.paper is not None else row.log
    )
    if not row.is_claimed:
      words = UNCLAIMED.get(words, words)
    cells = (
      *(name, row.what, row.paper, row.log, row.mishkin),
      *summary.mean_and_standard_error(found),
      *(len(found), sum(bool(r['failed']) for r in own)),
      *(verdict.interval(found) or (None, None)),
      *(verdict.p_value(found), None, words),
    )
    result.append(dict(zip(COLUMNS, cells, strict=True)))
  tested = [row for row in result if row['p'] is not None]
  corrected = verdict.holm([row['p'] for row in tested], len(ROWS))
  for row, p in zip(tested, corrected, strict=True):
    row['p_holm'] = p
  return result


def table(rows: Sequence[Mapping]) -> str:
  """The rows of ablations.csv as a Markdown table, in points."""
  lines = [
    '| choice; instead | paper | log | Mishkin | ours ± se (n) | interval |'
    ' p, by Holm | verdict |',
    '|---|---|---|---|---|---|---|---|',
  ]
  shown = lambda value: '-' if value is None else f'{value:.2f}'
  for row in rows:
    ours = f'{shown(row["difference"])} ± {shown(row["standard_error"])}'
    failed = f'; {row["failed"]} failed' if row['failed'] else ''
    ours += f' ({row["n"]}{failed})'
    claims = [shown(row[key]) for key in ('paper', 'log', 'mishkin')]
    interval = p_values = '-'
    if row['p'] is not None:
      interval = f'{row["low"]:.1f} to {row["high"]:.1f}'
      p_values = f'{row["p"]:.3f}, {row["p_holm"]:.3f}'
    cells = (row['what'], *claims, ours, interval, p_values, row['verdict'])
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def chance_line(rows: Sequence[Mapping]) -> str:
  """How many verdicts other than noise chance alone would give."""
  number = sum(row['p'] is not None for row in rows)
  return (
    f'{number} verdicts share the nets of {BASE}; if no choice mattered,'
    f' {number * (1 - verdict.LEVEL):.1f} of them would not be noise on average'
  )


def draw(path: pathlib.Path) -> pathlib.Path:
  """Draws ablations.csv: each difference with its confidence interval."""
  with open(path / FILE, newline='') as file:
    rows = [row for row in csv.DictReader(file) if row['difference']]
  figure = summary.new_figure(FIGURE, (10, 1 + 0.3 * len(rows)))
  axes = figure.subplots()
  marks = (
    ('paper', {'fmt': 'k*', 'label': 'paper'}),
    ('mishkin', {'fmt': 'C1x', 'label': 'Mishkin, one run'}),
  )
  for place, row in enumerate(rows):
    mean, xerr = float(row['difference']), None
    if row['low']:
      xerr = [[mean - float(row['low'])], [float(row['high']) - mean]]
    is_error = ROWS[row['row']].metric == ablation_rows.ERROR
    label, color = (
      ('test error', 'C0') if is_error else ('training error', 'C2')
    )
    axes.errorbar(
      mean, place, xerr=xerr, fmt='o', color=color, capsize=3, label=label
    )
    for key, style in marks:
      if row[key]:
        axes.errorbar(float(row[key]), place, **style)
  axes.axvline(0, color='k', linewidth=0.8)
  axes.set_yticks(range(len(rows)), [row['what'] for row in rows])
  axes.invert_yaxis()
  axes.set_xlabel("points of error by which the paper's choice is better")
  handles, labels = axes.get_legend_handles_labels()
  by_label = dict(zip(labels, handles, strict=True))
  axes.legend(by_label.values(), by_label.keys())
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE
