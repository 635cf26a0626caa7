r"""Do the two towers split into grey and coloured kernels, as in Figure 3?

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m experiments.figure3_kernels --output=DIR [--seeds=5]

The paper: the kernels of GPU 1 are colour-agnostic, those of GPU 2
colour-specific, "during every run", whatever the initial weights (section
6.1). Here 64 kernels of 7x7 pixels with stride 2, 32 per tower, are trained on
CIFAR-10 for four epochs, with the paper's pattern of links:

| variant | towers | seeds |
|---|---|---|
| two_towers | they meet at conv3, fc6, fc7 and fc8 | --seeds |
| one_tower | every layer reads all maps; its halves are a control | --seeds |
| unlinked | they meet at fc8 alone | --seeds |
| source_preset, caffe_preset | two, see `figure3_nets` | up to 3 |

`colour_split` has the rules of the two verdicts: do towers split, and do they in
every run? 'unlinked' shows how often p is small although nothing lets the towers
divide the work before fc8.

| in DIR | contents |
|---|---|
| runs.csv, summary.csv, runs/ | as of `sweep` |
| kernels.csv | both indices of every kernel at the end |
| split.csv | the split at every step at which kernels were kept |
| figure3.png | kernels, split by step, indices by tower |

A run takes about 3 CPU-minutes, all 21 take 65.
"""

from collections.abc import Mapping, Sequence
import pathlib

from absl import flags
import ml_collections
import numpy as np

from alexnet_jax import digits
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from experiments import colour_split
from experiments import conv1_training
from experiments import figure3_drawing
from experiments import figure3_nets
from experiments import run_files
from experiments import summary
from experiments import sweep

PRESET_SEEDS = 3  # The most seeds of a preset.
KERNELS_COLUMNS = (
  *('variant', 'seed', 'tower', 'kernel'),
  *('weights_index', 'response_index', 'kept_share'),
)
SPLIT_COLUMNS = ('variant', 'seed', 'step', 'auc', 'coloured', 'p')

FLAGS = flags.FLAGS


def measure(workdir: pathlib.Path) -> dict[str, float | None]:
  """What runs.csv has of a finished run, see `colour_split`.

  Returns:
    'auc' and 'p': the split between the towers by weights, with its permutation
    p-value (half of all assignments of kernels to towers have an auc above
    about 0.55); 'auc_responses': that of the responses, below 1/2 if they call
    the other tower the more coloured one; 'split_step': the step from which on
    p stays below 0.05; 'agreement': how far both indices agree (Spearman);
    'kept_share': the median, over the kernels, of the share of their energy at
    the end that is left of the start. For one tower, 'singular_vector': the rank
    correlation of the colour index with the first singular vector of the summed
    absolute weights from conv1 to conv2; 'centred_singular_vector': that with
    the vector of the centred ones, whose sign is free: chance alone gives 64
    kernels 0.10 on average, so 'p_centred' is its permutation p-value.
  """
  error = 'eval/top1_error'
  result = run_files.read(workdir / workdir_lib.RESULT_FILE, (error,))
  steps, kept = zip(*conv1_training.read_kernels(workdir), strict=True)
  conv1 = kept[-1]['conv1']
  splits = [
    colour_split.split(colour_split.weights_index(k['conv1'])) for k in kept
  ]
  by_weights = colour_split.weights_index(conv1)
  by_responses = colour_split.response_index(conv1)
  end, responses = splits[-1], colour_split.split(by_responses)
  is_same = responses.coloured == end.coloured
  towers = np.split(by_weights, 2)
  found = {
    'auc': end.auc,
    'p': end.p,
    'coloured': end.coloured,
    'split_step': colour_split.split_step(steps, splits),
    'mean_index_coloured': float(towers[end.coloured].mean()),
    'mean_index_grey': float(towers[1 - end.coloured].mean()),
    'auc_responses': responses.auc if is_same else 1 - responses.auc,
    'p_responses': responses.p,
    'agreement': colour_split.rank_correlation(by_weights, by_responses),
    'kept_share': float(
      np.median(colour_split.kept_share(kept[0]['conv1'], conv1))
    ),
    'singular_vector': None,
    'centred_singular_vector': None,
    'p_centred': None,
    'test_error': result[error],
  }
  if workdir_lib.read_config(workdir).model.num_towers == 1:
    plain, centred = (
      colour_split.first_singular_vector(kept[-1]['conv2'], centred=centred)
      for centred in (False, True)
    )
    correlation = colour_split.rank_correlation(centred, by_weights)
    found |= {
      'singular_vector': colour_split.rank_correlation(plain, by_weights),
      'centred_singular_vector': abs(correlation),  # Its sign is free.
      'p_centred': colour_split.correlation_p(centred, by_weights),
    }
  return found


def measure_again(path: pathlib.Path) -> list[summary.Row]:
  """Writes runs.csv and summary.csv anew from the kernels of all runs.

  So the tables are those of this code, also if runs were finished by older
  code; nothing is trained.
  """
  rows = []
  for row in summary.read_runs(path):
    workdir = path / 'runs' / row['variant'] / f'seed{row["seed"]}'
    measured = {} if row['failed'] else measure(workdir)
    own = (*summary.FIRST_COLUMNS, *summary.LAST_COLUMNS)
    rows.append({name: row[name] for name in own} | measured)
  summary.write(path, rows)
  return summary.read_runs(path)


def gather(path: pathlib.Path) -> None:
  """Writes kernels.csv and split.csv, from the kernels of all finished runs."""
  kernels, splits = [], []
  for run in summary.read_runs(path):
    if run['failed']:
      continue
    name = run['variant'], run['seed']
    workdir = path / 'runs' / name[0] / f'seed{name[1]}'
    steps, kept = zip(*conv1_training.read_kernels(workdir), strict=True)
    for step, found in zip(steps, kept, strict=True):
      index = colour_split.weights_index(found['conv1'])
      one = colour_split.split(index)
      cells = (*name, step, one.auc, one.coloured, one.p)
      splits.append(dict(zip(SPLIT_COLUMNS, cells, strict=True)))
    start, end = kept[0]['conv1'], kept[-1]['conv1']
    half = end.shape[-1] // 2
    columns = (
      index,
      colour_split.response_index(end),
      colour_split.kept_share(start, end),
    )
    for i, values in enumerate(zip(*columns, strict=True)):
      cells = (*name, i // half, i, *map(float, values))
      kernels.append(dict(zip(KERNELS_COLUMNS, cells, strict=True)))
  summary.write_csv(
    path / figure3_drawing.KERNELS_FILE, KERNELS_COLUMNS, kernels
  )
  summary.write_csv(path / figure3_drawing.SPLIT_FILE, SPLIT_COLUMNS, splits)


def table(rows: Sequence[Mapping]) -> str:
  """The rows of runs.csv as a Markdown table, a line for each variant."""
  lines = [
    '| net | auc | p < 0.05 | p of all runs | split from step | agreement |'
    ' singular vector; centred, p of all runs |',
    '|---|---|---|---|---|---|---|',
  ]
  for variant in figure3_nets.VARIANTS:
    own = lambda metric, v=variant: summary.values_of(rows, v, metric)
    if not own('auc'):
      continue
    split = sum(p < colour_split.SIGNIFICANT for p in own('p'))
    steps = [f'{step:.0f}' for step in own('split_step')]
    vectors = '-'
    if p_centred := own('p_centred'):
      combined = colour_split.combined_p(p_centred)
      vectors = f'{_shown(own("singular_vector"))};'
      vectors += f' {_shown(own("centred_singular_vector"))}, {combined:.1e}'
    cells = (
      variant,
      _shown(own('auc')),
      f'{split} of {len(own("p"))}',
      f'{colour_split.combined_p(own("p")):.1e}',
      ', '.join(steps) or '-',
      _shown(own('agreement')),
      vectors,
    )
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def _shown(values):
  mean, error = summary.mean_and_standard_error(values)
  spread = '' if error is None else f' ± {error:.2f}'
  return '-' if mean is None else f'{mean:.2f}{spread}'


def run(
  config: ml_collections.ConfigDict, seeds: int, path: pathlib.Path
) -> list[summary.Row]:
  """Trains all variants; writes the csv files; returns the rows of runs.csv."""
  presets = figure3_nets.PRESETS
  links = {n: v for n, v in figure3_nets.VARIANTS.items() if n not in presets}
  for variants, number in ((links, seeds), (presets, min(seeds, PRESET_SEEDS))):
    sweep.run(
      config,
      variants,
      number,
      path,
      measure,
      keep_checkpoints=False,
      program=conv1_training.PROGRAM,
    )
  gather(path)
  return measure_again(path)


def main() -> None:
  config = figure3_nets.get_config(
    FLAGS.data_dir, quick=FLAGS.quick, full=FLAGS.full
  )
  digits.prepare_if_missing(config)
  path = files.local_path(FLAGS.output, '--output')
  rows = run(config, FLAGS.seeds, path)
  print(table(rows))
  auc, p = (summary.values_of(rows, 'two_towers', m) for m in ('auc', 'p'))
  for line in colour_split.verdict_lines(auc, p):
    print(line)
  labels = {'auc': 'split of the towers (auc)', 'agreement': 'rank correlation'}
  print(summary.draw(path, labels))
  print(figure3_drawing.draw(path))


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=5)
  text = "The paper's widths and geometry on photographs, for a GPU."
  flags.DEFINE_bool('full', False, text)


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
