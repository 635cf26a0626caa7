r"""Pictures of the recorded figures: one PNG for each file of results it knows.

    python -m benchmarks.plots [--results=benchmarks/results]

Bars are medians, their black lines go from the least to the most of the rounds.
Nothing is measured here. Needs matplotlib.
"""

from collections.abc import Mapping, Sequence
import io
import json
import pathlib
import statistics
import sys
import textwrap

from absl import app
from absl import flags
from PIL import Image

try:
  from matplotlib import figure as figure_lib
except ImportError:  # Optional: `main` says so.
  figure_lib = None

COLORS = ('#1f5a92', '#d98324', '#7a7a7a', '#4f9d69', '#a23b4a', '#8e6bb0')
BAR_COLOR = '#b00020'
WIDTH, DPI = 9.0, 110  # Inches, dots per inch.
# Median, least and most.
Range = tuple[float, float, float]


def range_of(values: Sequence[float], factor: float = 1.0) -> Range:
  """Of the rounds, in another unit."""
  return tuple(factor * f(values) for f in (statistics.median, min, max))


def of_ratio(ratio: Mapping[str, float]) -> Range:
  """Of what `interleaved.ratio` returns."""
  return ratio['median'], ratio['least'], ratio['most']


def create_figure(title: str, panels: int, rows: int):
  """A figure for panels side by side with up to `rows` bars, and its axes."""
  figure = figure_lib.Figure((WIDTH, 1.5 + 0.27 * rows), layout='constrained')
  figure.suptitle(title, fontsize=12, x=0.01, ha='left')
  axes = figure.subplots(1, panels, squeeze=False)[0]
  for one in axes:
    one.spines[['top', 'right']].set_visible(False)
    one.tick_params(labelsize=9)
  return figure, axes


def draw_bars(
  axes,
  groups: Mapping[str, Mapping[str, Range]],
  label: str,
  bar: float | None = None,
) -> None:
  """Horizontal bars with their medians: a row for each label, from the top.

  Args:
    axes: to draw on.
    groups: by name in the legend, then by label of the row.
    label: of the values, with their unit.
    bar: where a line shows what is asked for.
  """
  rows = list(dict.fromkeys(row for group in groups.values() for row in group))
  height = 0.8 / len(groups)
  largest = max(most for g in groups.values() for _, _, most in g.values())
  for number, (name, group) in enumerate(groups.items()):
    for row, (median, least, most) in group.items():
      place = rows.index(row) - 0.4 + (number + 0.5) * height
      color = COLORS[number % len(COLORS)]
      axes.barh(place, median, 0.9 * height, color=color, label=name)
      axes.plot([least, most], [place] * 2, color='black', linewidth=1)
      axes.text(most + 0.01 * largest, place, f' {short(median)}', **VALUE)
  wrapped = [textwrap.fill(row, 24) for row in rows]
  axes.set_yticks(range(len(rows)), wrapped)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.set_xlim(0, 1.15 * max(largest, bar or 0))
  axes.set_xlabel(label, fontsize=9)
  if bar is not None:
    line = {'color': BAR_COLOR, 'linewidth': 1, 'linestyle': '--'}
    axes.axvline(bar, label=f'bar {bar:g}', **line)
  handles, names = axes.get_legend_handles_labels()
  once = dict(zip(names, handles, strict=True))
  if once:  # Matplotlib passes over a group with the name ''.
    axes.legend(once.values(), once, ncols=len(once), **LEGEND)


LEGEND = {
  'loc': 'lower left',
  'bbox_to_anchor': (0, 1),  # Above the axes, clear of the bars.
  'fontsize': 8,
  'frameon': False,
  'borderaxespad': 0.2,
  'columnspacing': 1.0,
  'handlelength': 1.2,
}
VALUE = {'fontsize': 8, 'va': 'center'}


def short(value: float) -> str:
  """Three figures, or all that come before the point."""
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def train_step(figures):
  """PyTorch's seconds over ours by batch; our layers, forward and backward."""
  ratios, layers = {}, []
  for dtype, of_dtype in figures.items():
    if not isinstance(of_dtype, dict) or 'batches' not in of_dtype:
      continue
    layers = layers or of_dtype.get('layers', [])
    for batch, result in of_dtype['batches'].items():
      group = {n: of_ratio(r) for n, r in result['ratios'].items()}
      ratios[f'{dtype} batch {batch}'] = group
  rows = sum(map(len, ratios.values()))
  panels = 2 if layers else 1
  figure, axes = create_figure(
    'The train step against PyTorch, and its parts', panels, max(rows, 18)
  )
  draw_bars(axes[0], ratios, 'images/s of ours over PyTorch’s', 1.0)
  if layers:
    both = {
      direction: {
        one['name']: (1e3 * one[f'{direction}_seconds'],) * 3 for one in layers
      }
      for direction in ('forward', 'backward')
    }
    draw_bars(axes[1], both, 'ms of each part, compiled alone')
  return figure


def input_pipeline(figures):
  """Images per CPU-second and per second of every loader, by cores.

  Less the rows of loaders that decode nothing, ten times as long as the others.
  """
  figures = {
    cores: {name: v for name, v in rates.items() if 'nothing' not in name}
    for cores, rates in figures.items()
  }
  units = ('images per CPU-second', 'images/s')
  rows = max(map(len, figures.values())) * max(len(figures), 2)
  figure, axes = create_figure('The host half of the pipeline', 2, rows)
  for which, (one, unit) in enumerate(zip(axes, units, strict=True)):
    groups = {
      f'{cores} core' + 's' * (cores != '1'): {
        name: range_of([rate[which] for rate in rates])
        for name, rates in by_name.items()
      }
      for cores, by_name in figures.items()
    }
    draw_bars(one, groups, unit)
  axes[1].set_yticklabels([])
  return figure


def end_to_end(figures):
  """Images/s of the real run, the synthetic one, and the host alone."""
  figure, axes = create_figure('A real run against its two halves', 1, 4)
  rates = {
    name: range_of([segment['images_per_second'] for segment in segments])
    for name, segments in figures['segments'].items()
  }
  draw_bars(axes[0], {'': rates}, 'images/s')
  return figure


def startup(figures):
  """Seconds to the first step, and of the parts of a cold start."""
  title = 'Quick start: from the command to the first step'
  figure, axes = create_figure(title, 2, 9)
  starts = {
    name: range_of([one['seconds'] for one in found])
    for name, found in figures['starts'].items()
  }
  parts = {name: (seconds,) * 3 for name, seconds in figures['parts'].items()}
  draw_bars(axes[0], {'': starts}, 'seconds', figures['bar'])
  draw_bars(axes[1], {'': parts}, 'seconds of the parts of a cold start')
  return figure


def scaling(figures):
  """Fixed cost of every layout; images/s of the model on paper."""
  fixed = {
    name: range_of(seconds, 1e3)
    for name, seconds in figures['fixed_seconds'].items()
  }
  figure, axes = create_figure('More devices', 2, max(len(fixed) + 3, 10))
  label = 'ms of a step of a tiny net: measured on virtual CPU devices'
  draw_bars(axes[0], {'': fixed}, label)
  rows = figures['on_paper_not_measured']['rows']
  groups = {
    row['layout']: {
      f'{other["devices"]} devices': (other['images_per_second'] / 1e3,) * 3
      for other in rows
      if other['layout'] == row['layout'] and other['devices'] > 1
    }
    for row in rows
    if row['devices'] > 1
  }
  alone = {'1 device': (rows[0]['images_per_second'] / 1e3,) * 3}
  groups = {'one device': alone, **groups}
  draw_bars(axes[1], groups, '1,000 images/s: model on paper, not measured')
  return figure


def communication(figures):
  """Megabytes that a device receives in a step, by layout and mesh."""
  groups = {}
  for one in figures:
    if one['received_bytes']:
      size = (one['received_bytes'] / 1e6,) * 3
      groups.setdefault(one['layout'], {})[f'{one["layout"]} {one["mesh"]}'] = (
        size
      )
  rows = {row: size for group in groups.values() for row, size in group.items()}
  figure, axes = create_figure(
    'Received by each device in a step', 1, len(rows)
  )
  label = 'MB, from the compiled program; rows: layout and mesh, data x tower'
  draw_bars(axes[0], {'': rows}, label)
  return figure


KNOWN = {
  function.__name__: function
  for function in (
    train_step,
    input_pipeline,
    end_to_end,
    startup,
    scaling,
    communication,
  )
}


def draw(path: pathlib.Path) -> str:
  """Draws the figures of a file beside it; what to say of it."""
  try:
    content = json.loads(path.read_text())
    where = content['environment']
    figure = KNOWN[path.stem](content['figures'])
    note = (
      f'{where["machine"]}, {where["cores"]} cores,'
      f' {", ".join(where["devices"])}, jax {where["jax"]}, commit'
      f' {where["commit"][:9]}'
    )
  except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
    return f'{path}: no figures that this can draw ({error!r})'
  figure.supxlabel(note, fontsize=8, color='#555555', x=0.01, ha='left')
  picture = path.with_suffix('.png')
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=DPI)
  # A palette: a third of the bytes.
  Image.open(buffer).convert('RGB').quantize(64).save(picture, optimize=True)
  return str(picture)


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_string('results', 'benchmarks/results', 'Folder of the figures.')


def main(_) -> None:
  if figure_lib is None:
    sys.exit('pictures need matplotlib: pip install matplotlib')
  folder = pathlib.Path(FLAGS.results)
  paths = [folder / f'{name}.json' for name in KNOWN]
  paths = [path for path in paths if path.exists()]
  if not paths:
    sys.exit(f'--results={folder} holds none of {", ".join(KNOWN)} (.json)')
  for path in paths:
    print(draw(path))


if __name__ == '__main__':
  define_flags()
  app.run(main)
