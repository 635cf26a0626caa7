r"""What averaging the predictions of one to five nets gains, as in Table 2.

    python -m experiments.table2_ensembles --output=DIR [--seeds=5]

The nets are those of the base of `ablations`, one for each seed; if DIR is a
folder of that command, only those seeds are trained that it lacks. For every
set of these nets the softmax outputs are averaged, on one view of each test
image and on ten. The gain is the mean error of one net less that of all
together. There is one such ensemble, so the spread of its error is not seen
directly; the jackknife estimates it from the ensembles that lack one net. The
paper's size is one of five nets, and there is a verdict for five alone.

| in DIR, besides the files of `ablations` | contents |
|---|---|
| ensembles.csv | the errors of every set of nets |
| gains.csv | the gain of all nets together, and of ten views, for each net |
| ensembles.png | the errors by number of nets |

It takes about 16 CPU-minutes, 7 after `ablations` with three seeds.
"""

from collections.abc import Mapping, Sequence
import csv
import itertools
import pathlib
import statistics

import ml_collections

from alexnet_jax import checkpoint
from alexnet_jax import predictions as predictions_lib
from alexnet_jax import trained_net
from alexnet_jax.runtime import files
from experiments import ablation_rows
from experiments import ablations
from experiments import run_files
from experiments import summary
from experiments import sweep
from experiments import verdict

VIEWS = {'one': False, 'ten': True}  # Whether each averages many views.
# Points of top-1 error: 40.7 to 38.1 in Table 2 (the latter from memory), on
# ten views; 39.0 to 37.5 in footnote 5 and Table 1.
PAPER, NETS = {'averaging': 2.6, 'ten views': 1.5}, 5
FILE, GAINS_FILE = 'ensembles.csv', 'gains.csv'
FIGURE = 'ensembles.png'
COLUMNS = ('nets', 'views', 'members', 'top1_error', 'top5_error')
GAINS_COLUMNS = ('variant', 'seed', 'top1_error')


def ensembles(
  members: Mapping[int, predictions_lib.Predictions], views: str
) -> list[summary.Row]:
  """The rows of ensembles.csv for every set of nets.

  Args:
    members: the predictions of each net, by seed.
    views: their views, a key of `VIEWS`.
  """
  rows = []
  for number in range(1, len(members) + 1):
    for chosen in itertools.combinations(members, number):
      together = predictions_lib.ensemble(members[seed] for seed in chosen)
      errors = together.errors()
      names = '+'.join(map(str, chosen))
      cells = number, views, names, errors['top1_error'], errors['top5_error']
      rows.append(dict(zip(COLUMNS, cells, strict=True)))
  return rows


def gains(rows: Sequence[Mapping]) -> list[summary.Row]:
  """The rows of gains.csv: for each net its error, and what it is compared to.

  The variants are 'one_net' on ten views; 'one_view' of one net; and 'all_nets'
  together on ten views, as a value for each net (jackknife pseudo-values around
  the error of the ensemble): their mean is that error, and one_net - all_nets
  has the jackknife's standard error of the gain.
  """
  error = {(r['views'], r['members']): r['top1_error'] for r in rows}
  all_nets = max((r['members'] for r in rows), key=lambda m: m.count('+'))
  seeds = all_nets.split('+')
  together = dict.fromkeys(seeds, error['ten', all_nets])
  if len(seeds) > 1:
    lacking = {
      seed: error['ten', '+'.join(s for s in seeds if s != seed)]
      for seed in seeds
    }
    mean = statistics.fmean(lacking.values())
    for seed in seeds:
      together[seed] += (len(seeds) - 1) * (mean - lacking[seed])
  result = []
  for seed in seeds:
    for variant, value in {
      'one_net': error['ten', seed],
      'all_nets': together[seed],
      'one_view': error['one', seed],
    }.items():
      found = (variant, int(seed), value)
      result.append(dict(zip(GAINS_COLUMNS, found, strict=True)))
  return result


def gain_lines(rows: Sequence[summary.Row]) -> list[str]:
  """The gains and their verdicts, from the rows of gains.csv."""
  points = lambda variant: [
    100 * error for error in summary.values_of(rows, variant, 'top1_error')
  ]
  lines = []
  for what, worse, better in (
    ('averaging', 'one_net', 'all_nets'),
    ('ten views', 'one_view', 'one_net'),
  ):
    pairs = zip(points(worse), points(better), strict=True)
    found = [a - b for a, b in pairs]
    words, of_nets = verdict.verdict(found, PAPER[what]), ''
    if what == 'averaging':
      of_nets = f' with {NETS}'
      words = words if len(found) == NETS else 'not run yet'
    mean, error = summary.mean_and_standard_error(found)
    spread = '' if error is None else f' ± {error:.2f}'
    lines.append(
      f'{what}: {mean:.2f}{spread} points with {len(found)} nets; the paper'
      f' {PAPER[what]}{of_nets}; {words}'
    )
  return lines


def table(rows: Sequence[Mapping]) -> str:
  """The rows of ensembles.csv as a Markdown table: top-1 / top-5 in %."""
  lines = ['| nets | sets | one view | ten views |', '|---|---|---|---|']
  for number in dict.fromkeys(r['nets'] for r in rows):
    shown = []
    for views in VIEWS:
      own = [r for r in rows if (r['nets'], r['views']) == (number, views)]
      means = (
        100 * statistics.fmean(r[key] for r in own) for key in COLUMNS[3:]
      )
      shown.append(' / '.join(f'{mean:.2f}' for mean in means))
    lines.append(f'| {number} | {len(own)} | {" | ".join(shown)} |')
  return '\n'.join(lines)


def draw(path: pathlib.Path) -> pathlib.Path:
  """Draws ensembles.csv: a dot for each set of nets, a line for the means."""
  with open(path / FILE, newline='') as file:
    rows = list(csv.DictReader(file))
  figure = summary.new_figure(FIGURE, (5, 3.6))
  axes = figure.subplots()
  for color, views in enumerate(VIEWS):
    own = [r for r in rows if r['views'] == views]
    errors = {}
    for row in own:
      percent = 100 * float(row['top1_error'])
      errors.setdefault(int(row['nets']), []).append(percent)
    for number, found in errors.items():
      places = [number] * len(found)
      axes.plot(places, found, 'o', color=f'C{color}', alpha=0.3, markersize=4)
    means = [statistics.fmean(found) for found in errors.values()]
    label = 'one view' if views == 'one' else f'{views} views'
    axes.plot([*errors], means, color=f'C{color}', label=label)
  axes.set(xlabel='nets averaged', ylabel='top-1 error (%)')
  axes.locator_params(axis='x', integer=True)
  axes.legend()
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def run(
  config: ml_collections.ConfigDict, seeds: int, path: pathlib.Path
) -> list[summary.Row]:
  """Trains the nets that are missing; writes both csv files.

  Args:
    config: the config of the base of `ablations`.
    seeds: number of nets.
    path: folder of the sweep.

  Returns:
    The rows of ensembles.csv.
  """
  sweep.run(config, {ablations.BASE: {}}, seeds, path, ablations.measure)
  rows = []
  for views, many in VIEWS.items():
    members = {}
    for seed in range(seeds):
      workdir = path / 'runs' / ablations.BASE / f'seed{seed}'
      try:
        net = trained_net.open_net(workdir, 'latest')
        members[seed] = net.predict_split(many)
      except (FileNotFoundError, ValueError) as error:
        raise run_files.lost(workdir / checkpoint.FOLDER) from error
    rows += ensembles(members, views)
  summary.write_csv(path / FILE, COLUMNS, rows)
  summary.write_csv(path / GAINS_FILE, GAINS_COLUMNS, gains(rows))
  return rows


def main() -> None:
  flag = sweep.FLAGS
  path = files.local_path(flag.output, '--output')
  config = ablation_rows.get_config(path, flag.data_dir, flag.quick)
  rows = run(config, flag.seeds, path)
  print(table(rows))
  for line in gain_lines(gains(rows)):
    print(line)
  print(draw(path))


if __name__ == '__main__':
  sweep.define_flags(seeds=5)
  sweep.run_command(main)
