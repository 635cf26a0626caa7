r"""Pictures of the recorded figures: one PNG for each record that has panels.

    python -m benchmarks.plots [--results=benchmarks/results]

A record NAME.json is drawn by the function `panels` of benchmarks/NAME.py, which
makes a title and a list of `Panel`s. Bars are medians, their black lines go from
the least to the most of the rounds. Needs matplotlib.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib
import importlib.util
import io
import json
import pathlib
import statistics
import sys
import textwrap

from absl import flags
from PIL import Image

from alexnet_jax.runtime import command

COLORS = ('#1f5a92', '#d98324', '#7a7a7a', '#4f9d69', '#a23b4a', '#8e6bb0')
WIDTH, DPI = 9.0, 110  # Inches, dots per inch.
LEGEND = {'loc': 'lower left', 'bbox_to_anchor': (0, 1), 'borderaxespad': 0.2}
LEGEND |= {'fontsize': 8, 'frameon': False, 'handlelength': 1.2}  # Above axes.
FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Panel:
  """Horizontal bars on axes of their own.

  `groups` are the values of each bar, by name in the legend ('' for none) and by
  label of the row: those of all rounds, or a median with its range.
  """

  label: str  # What the values are, with their unit.
  groups: Mapping[str, Mapping[str, Sequence[float]]]
  bar: float | None = None  # Where a line shows what is asked for.

  @property
  def rows(self) -> list[str]:
    """Labels of the rows, from the top."""
    return list(dict.fromkeys(row for g in self.groups.values() for row in g))


def draw_figure(title: str, panels: Sequence[Panel]):
  """A figure with the panels side by side."""
  from matplotlib import figure as figure_lib  # Optional; `main` says so.

  bars = max(sum(map(len, panel.groups.values())) for panel in panels)
  rows = max(len(panel.rows) for panel in panels)
  height = 1.5 + 0.27 * max(0.65 * bars, rows, 4)
  figure = figure_lib.Figure((WIDTH, height), layout='constrained')
  figure.suptitle(title, fontsize=12, x=0.01, ha='left')
  axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for i, panel in enumerate(panels):
    draw_panel(axes[i], panel)
    if i and panel.rows == panels[i - 1].rows:
      axes[i].set_yticklabels([])
  return figure


def draw_panel(axes, panel: Panel) -> None:
  """Draws the bars with their medians, a row for each label."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.tick_params(labelsize=9)
  rows, height = panel.rows, 0.8 / len(panel.groups)
  largest = max(max(v) for g in panel.groups.values() for v in g.values())
  for number, (name, group) in enumerate(panel.groups.items()):
    color = COLORS[number % len(COLORS)]
    for row, values in group.items():
      y = rows.index(row) - 0.4 + (number + 0.5) * height
      median, most = statistics.median(values), max(values)
      axes.barh(y, median, 0.9 * height, color=color, label=name)
      axes.plot([min(values), most], [y, y], color='black', linewidth=1)
      x = most + 0.01 * largest
      axes.text(x, y, f' {short(median)}', fontsize=8, va='center')
  axes.set_yticks(range(len(rows)), [textwrap.fill(row, 24) for row in rows])
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.set_xlim(0, 1.15 * max(largest, panel.bar or 0))
  axes.set_xlabel(panel.label, fontsize=9)
  if panel.bar is not None:
    label = f'bar {panel.bar:g}'
    axes.axvline(panel.bar, label=label, color='#b00020', ls='--', lw=1)
  handles, names = axes.get_legend_handles_labels()
  once = dict(zip(names, handles, strict=True))
  if once:  # Matplotlib passes over a group with the name ''.
    axes.legend(once.values(), once, ncols=len(once), **LEGEND)


def short(value: float) -> str:
  """Three significant figures, or all that come before the point."""
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def find_panels(name: str):
  """The function `panels` of the benchmark of a record; None without one."""
  if importlib.util.find_spec(f'benchmarks.{name}') is None:
    return None
  module = importlib.import_module(f'benchmarks.{name}')
  return getattr(module, 'panels', None)


def draw(path: pathlib.Path) -> str:
  """Draws a record into a PNG beside it; returns what to say about it."""
  try:
    content = json.loads(path.read_text())
    where = content['environment']
    figure = draw_figure(*find_panels(path.stem)(content['figures']))
    note = '{machine}, {cores} cores, {devices}, jax {jax}, commit {commit:.9}'
    note = note.format(**where | {'devices': ', '.join(where['devices'])})
  except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
    return f'{path}: no figures that this can draw ({error!r})'
  figure.supxlabel(note, fontsize=8, color='#555555', x=0.01, ha='left')
  picture, buffer = path.with_suffix('.png'), io.BytesIO()
  figure.savefig(buffer, dpi=DPI)
  # A palette: a third of the bytes.
  Image.open(buffer, formats=('PNG',)).convert('RGB').quantize(64).save(
    picture, optimize=True
  )
  return str(picture)


def main(_) -> None:
  if importlib.util.find_spec('matplotlib') is None:
    sys.exit('pictures need matplotlib: pip install matplotlib')
  paths = sorted(pathlib.Path(FLAGS.results).glob('*.json'))
  paths = [path for path in paths if find_panels(path.stem)]
  if not paths:
    sys.exit(f'--results={FLAGS.results} holds no record of a benchmark')
  for path in paths:
    print(draw(path))


if __name__ == '__main__':
  flags.DEFINE_string('results', 'benchmarks/results', 'Folder of the records.')
  command.run(main)
