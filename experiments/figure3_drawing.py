"""Figure 3, drawn from the tables and the kernels of `figure3_kernels`."""

import csv
import pathlib

import numpy as np

from alexnet_jax import pictures
from experiments import conv1_training
from experiments import summary

KERNELS_FILE, SPLIT_FILE, FIGURE = 'kernels.csv', 'split.csv', 'figure3.png'


def _read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def draw(path: pathlib.Path) -> pathlib.Path:
  """Draws figure3.png from split.csv, kernels.csv and the kept kernels."""
  rows, splits = _read(path / KERNELS_FILE), _read(path / SPLIT_FILE)
  own = [row for row in rows if row['variant'] == 'two_towers']
  figure = summary.new_figure(FIGURE, (10, 5 + 0.8 * len(_seeds(own))))
  axes = figure.subplot_mosaic(
    [['kernels', 'kernels'], ['step', 'tower']],
    height_ratios=(0.8 * len(_seeds(own)), 4),
  )
  _draw_kernels(axes['kernels'], path, own, splits)
  _draw_steps(axes['step'], splits)
  _draw_towers(axes['tower'], own)
  figure.savefig(path / FIGURE, dpi=110)
  return path / FIGURE


def _seeds(rows):
  return list(dict.fromkeys(row['seed'] for row in rows))


def _draw_kernels(axes, path, rows, splits):
  """Those of each net with two towers, the more coloured ones on the right."""
  grids, labels = [], []
  for seed in _seeds(rows):
    workdir = path / 'runs' / 'two_towers' / f'seed{seed}'
    *_, (_, kernels) = conv1_training.read_kernels(workdir)
    order = sorted(
      (int(r['tower']), float(r['weights_index']), int(r['kernel']))
      for r in rows
      if r['seed'] == seed
    )
    places = [kernel for _, _, kernel in order]
    grid = pictures.kernel_grid(kernels['conv1'][..., places], columns=32)
    grids += [grid, np.full_like(grid[: len(grid) // 5], 255)]
    end = [
      r for r in splits if (r['variant'], r['seed']) == ('two_towers', seed)
    ][-1]
    labels.append(f'seed {seed}, auc {float(end["auc"]):.2f}')
  axes.imshow(np.concatenate(grids[:-1]), interpolation='nearest')
  period = len(grids[0]) + len(grids[1])
  axes.set_yticks(
    [len(grids[0]) / 2 + i * period for i in range(len(labels))], labels
  )
  axes.set_xticks([])
  axes.tick_params(length=0)
  axes.set_frame_on(False)
  axes.set_title('kernels by colour index, tower 0 above tower 1')


def _draw_steps(axes, rows):
  """A thin line for each run, a thick one for the mean of a variant.

  A run is below 1/2 where its towers change places until the end.
  """
  for i, variant in enumerate(dict.fromkeys(r['variant'] for r in rows)):
    runs = []
    for seed in _seeds([r for r in rows if r['variant'] == variant]):
      own = [r for r in rows if (r['variant'], r['seed']) == (variant, seed)]
      end = own[-1]['coloured']
      split = [abs(float(r['auc']) - (r['coloured'] != end)) for r in own]
      steps = [int(r['step']) for r in own]  # The same for all runs.
      axes.plot(steps, split, color=f'C{i}', linewidth=0.5, alpha=0.6)
      runs.append(split)
    mean = np.mean(runs, axis=0)
    axes.plot(steps, mean, color=f'C{i}', label=variant, linewidth=2)
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
      if r['tower'] == tower
    ]
    places, label = zip(*own, strict=True), f'tower {tower}'
    axes.plot(*places, marker, alpha=0.4, markersize=4, label=label)
  axes.set(xlabel='seed of two_towers', ylabel='colour index of a kernel')
  axes.set_ylim(0, 1)
  axes.locator_params(axis='x', integer=True)
  axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2)
