"""Figure 3, drawn from the tables and the kernels of `figure3_kernels`."""

import csv
import pathlib

from alexnet_jax import pictures
from experiments import conv1_training
from experiments import summary

KERNELS_FILE, SPLIT_FILE, FIGURE = 'kernels.csv', 'split.csv', 'figure3.png'


def _read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def draw(path: pathlib.Path) -> pathlib.Path:
  """Draws figure3.png from split.csv, kernels.csv and the first run's kernels."""
  figure = summary.new_figure(FIGURE, (10, 6))
  axes = figure.subplot_mosaic(
    [['kernels', 'kernels'], ['step', 'tower']], height_ratios=(1, 2)
  )
  workdir = path / 'runs' / 'two_towers' / 'seed0'
  *_, (_, kernels) = conv1_training.read_kernels(workdir)
  grid = pictures.kernel_grid(kernels['conv1'])
  axes['kernels'].imshow(grid, interpolation='nearest')
  axes['kernels'].set_axis_off()
  axes['kernels'].set_title('two_towers, seed 0: tower 0 above tower 1')
  _draw_steps(axes['step'], _read(path / SPLIT_FILE))
  _draw_towers(axes['tower'], _read(path / KERNELS_FILE))
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def _draw_steps(axes, rows):
  """A line for each run; below 1/2 if the towers change places until the end."""
  colors = {}
  for run in dict.fromkeys((r['variant'], r['seed']) for r in rows):
    own = [r for r in rows if (r['variant'], r['seed']) == run]
    label = None if run[0] in colors else run[0]
    color = colors.setdefault(run[0], f'C{len(colors)}')
    split = [
      abs(float(r['auc']) - (r['coloured'] != own[-1]['coloured'])) for r in own
    ]
    steps = [int(r['step']) for r in own]
    axes.plot(steps, split, color=color, label=label, linewidth=0.9)
  axes.axhline(0.5, color='k', linestyle=':', linewidth=0.8)
  axes.set_xscale('symlog', linthresh=conv1_training.FIRST_STEP)
  axes.set(xlabel='step', ylabel='split of the towers (auc)', ylim=(0, 1))
  axes.set_xlim(left=0)
  axes.legend()


def _draw_towers(axes, rows):
  for tower, marker in (('0', 'o'), ('1', '^')):
    own = [
      (int(r['seed']) + 0.3 * (int(tower) - 0.5), float(r['weights_index']))
      for r in rows
      if (r['variant'], r['tower']) == ('two_towers', tower)
    ]
    places, label = zip(*own, strict=True), f'tower {tower}'
    axes.plot(*places, marker, alpha=0.4, markersize=4, label=label)
  axes.set(xlabel='seed of two_towers', ylabel='colour index of a kernel')
  axes.set_ylim(0, 1)
  axes.locator_params(axis='x', integer=True)
  axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2)
