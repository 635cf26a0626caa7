r"""The author's own CIFAR-10 nets, trained to their published errors.

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m experiments.cifar10_nets --output=DIR [--nets=26pct,18pct]

| sweep | nets | training |
|---|---|---|
| 26pct | layers-80sec | 8 epochs, 2 at a tenth of the rate |
| 18pct | layers-18pct | 120 epochs, 10 at a tenth, 10 at a hundredth |
| norm | the 13% net; the 11% net, with its norms and without | on crops of 24
  pixels and reflections: 100 epochs on four fifths of the images, 40 on all for
  the 13% net, 350 and 150 for the others; then 10 at a tenth of the rate, 10 at
  a hundredth; tested on ten views |

Layers, recipes and errors are those that cuda-convnet was released with; see
`cuda_convnet`. The released 13% and 11% nets differ in their schedules too, as
the methodology page of cuda-convnet tells; so only the 11% net and the one
without norms show what the norms do. The released parameters of `norm` have the
rate of the biases of the first stage to the end. For the other two nets the
files say only "learning rate(s)"; that it is lowered too is our reading.

--share=0.1 trains a tenth of every stage. Each sweep of --output is described
in `sweep`; nets.csv, curves.csv and curves.png hold all that --output has.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib

from absl import flags
import ml_collections

from alexnet_jax import metrics
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from experiments import cifar10_config
from experiments import cifar10_training
from experiments import curves
from experiments import run_files
from experiments import summary
from experiments import sweep

# The published test error of each net, a fraction; None if it is not one of the
# author's.
PUBLISHED: Mapping[str, float | None] = {
  '26pct': 0.26,
  '18pct': 0.18,
  '13pct': 0.13,
  '11pct': 0.11,
  '11pct_without_norm': None,
}
SWEEPS = {
  '26pct': ('26pct',),
  '18pct': ('18pct',),
  'norm': ('13pct', '11pct', '11pct_without_norm'),
}
_CROPPED = {
  'input.crop_size': 24,
  'augment.flip': True,
  'train.eval_every_epochs': 5,
  'optimizer.drop_bias_rate': False,
}


def _on_four_fifths(first: float, second: float):
  """Stages of epochs on four of the five batches, on all, at lower rates."""
  lowered = (10.0, 1e-4, 1.0), (10.0, 1e-5, 1.0)
  return (first, 1e-3, 0.8), (second, 1e-3, 1.0), *lowered


STAGES = {
  '26pct': ((8.0, 1e-3, 1.0), (2.0, 1e-4, 1.0)),
  '18pct': ((120.0, 1e-3, 1.0), (10.0, 1e-4, 1.0), (10.0, 1e-5, 1.0)),
  '13pct': _on_four_fifths(100.0, 40.0),
  '11pct': _on_four_fifths(350.0, 150.0),
  '11pct_without_norm': _on_four_fifths(350.0, 150.0),
}
# A share of --quick: one part of 10,000 images of each stage at most.
QUICK_SHARE = 1e-6
NETS_FILE, CURVES_FIGURE = 'nets.csv', 'curves.png'
MOST_COLUMNS = 3  # Panels beside each other in the figure.
NETS_COLUMNS = ('net', 'published', 'error', 'standard_error', 'n', 'epochs')

FLAGS = flags.FLAGS


def variants(name: str, share: float = 1.0) -> dict[str, dict[str, object]]:
  """The overrides of the nets of a sweep, by name.

  Args:
    name: a key of `SWEEPS`.
    share: share of every stage that is trained.
  """
  stages_of = lambda net: tuple(
    (epochs * share, *rest) for epochs, *rest in STAGES[net]
  )
  cropped = _CROPPED if name == 'norm' else {}
  return {
    net: {'model.net': net, 'optimizer.stages': stages_of(net), **cropped}
    for net in SWEEPS[name]
  }


def measure(workdir: pathlib.Path) -> dict[str, float]:
  """The epochs of a finished run, and its test error, a fraction.

  The error is on ten views if the net was trained on crops and reflections.
  """
  keys = ('eval/top1_error', 'epoch')
  result = run_files.read(workdir / workdir_lib.RESULT_FILE, keys)
  ten_views = f'{metrics.many_view_prefix(True)}/top1_error'
  error = result.get(ten_views, result['eval/top1_error'])
  return {'error': error, 'epochs': result['epoch']}


def net_rows(rows: Sequence[Mapping]) -> list[summary.Row]:
  """The rows of nets.csv, from the rows of the sweeps' runs.csv."""
  result = []
  for net in dict.fromkeys(row['variant'] for row in rows):
    errors = summary.values_of(rows, net, 'error')
    found = summary.mean_and_standard_error(errors)
    epochs = max(summary.values_of(rows, net, 'epochs'), default=None)
    cells = (net, PUBLISHED[net], *found, len(errors), epochs)
    result.append(dict(zip(NETS_COLUMNS, cells, strict=True)))
  return result


def table(rows: Sequence[Mapping]) -> str:
  """The rows of nets.csv as a Markdown table."""
  lines = [
    '| net | published | ours | seeds | epochs |',
    '|---|---|---|---|---|',
  ]
  percent = lambda value: '-' if value is None else f'{100 * float(value):.1f}'
  for row in rows:
    published = row['published']
    shown = '-' if published is None else f'{100 * published:.0f}'
    ours = percent(row['error'])
    if row['standard_error'] is not None:
      ours += f' ± {percent(row["standard_error"])}'
    cells = (
      row['net'],
      shown,
      ours,
      str(row['n']),
      f'{row["epochs"] or 0:.4g}',
    )
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def draw(path: pathlib.Path, rows: Sequence[Mapping]) -> pathlib.Path:
  """Draws curves.csv: the errors of each net by epoch, a line for each seed.

  Dots are the errors on ten views, which the published errors of those nets
  are.

  Args:
    path: folder of curves.csv and of the figure.
    rows: rows of the sweeps' runs.csv.
  """
  nets = list(dict.fromkeys(row['variant'] for row in rows))
  columns = min(MOST_COLUMNS, len(nets))
  lines = math.ceil(len(nets) / columns)
  figure = summary.new_figure(CURVES_FIGURE, (1 + 3.2 * columns, 3.2 * lines))
  panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
  for axes in panels.flat[len(nets) :]:
    axes.remove()
  for axes, net in zip(panels.flat, nets, strict=False):
    for column, color in (('train_error', 'C0'), ('test_error', 'C1')):
      for i, (epochs, errors) in enumerate(curves.read(path, net, column)):
        label = column.replace('_', ' ') if i == 0 else None
        percent = [100 * error for error in errors]
        axes.plot(epochs, percent, color=color, linewidth=0.8, label=label)
    if net in SWEEPS['norm']:
      ends = summary.values_of(rows, net, 'epochs')
      percent = [100 * e for e in summary.values_of(rows, net, 'error')]
      axes.plot(ends, percent, 'o', color='C1', label='test error, ten views')
    if PUBLISHED[net] is not None:
      level = 100 * PUBLISHED[net]
      axes.axhline(level, color='k', linestyle=':', label='published')
    axes.set(title=net, xlabel='epoch', ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.legend()
  for axes in panels[:, 0]:
    axes.set_ylabel('error (%)')
  figure.savefig(path / CURVES_FIGURE, dpi=110)
  return path / CURVES_FIGURE


def run(
  config: ml_collections.ConfigDict, names: Sequence[str], share: float
) -> list[summary.Row]:
  """Runs sweeps; writes nets.csv and curves.csv of all sweeps in --output.

  Args:
    config: a config as of `cifar10_config.get_config`, which names the data.
    names: keys of `SWEEPS`.
    share: share of every stage that is trained.

  Returns:
    The rows of runs.csv of all these sweeps.
  """
  path = files.local_path(FLAGS.output, '--output')
  for name in names:
    sweep.run(
      config,
      variants(name, share),
      FLAGS.seeds,
      path / name,
      measure,
      program=cifar10_training.PROGRAM,
    )
  return gather(path)


def gather(path: pathlib.Path) -> list[summary.Row]:
  """Writes nets.csv and curves.csv of all sweeps in a folder; their rows."""
  found = [path / name for name in SWEEPS]
  found = [p for p in found if (p / summary.RUNS_FILE).exists()]
  rows = [row for p in found for row in summary.read_runs(p)]
  summary.write_csv(path / NETS_FILE, NETS_COLUMNS, net_rows(rows))
  curves.write(path, found)
  return rows


def main() -> None:
  unknown = set(FLAGS.nets) - SWEEPS.keys()
  if unknown:
    raise sweep.InputError(
      f'--nets={",".join(FLAGS.nets)}: use some of {",".join(SWEEPS)}'
    )
  if not 0 < FLAGS.share <= 1:
    raise sweep.InputError(
      f'--share={FLAGS.share} must be above 0 and at most 1'
    )
  config = cifar10_config.get_config(FLAGS.data_dir, FLAGS.quick)
  share = QUICK_SHARE if FLAGS.quick else FLAGS.share
  rows = run(config, FLAGS.nets, share)
  print(table(net_rows(rows)))
  path = files.local_path(FLAGS.output, '--output')
  print(draw(path, rows))


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=3)
  flags.DEFINE_list('nets', list(SWEEPS), 'The sweeps to run.')
  flags.DEFINE_float('share', 1.0, 'Share of every stage that is trained.')


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
