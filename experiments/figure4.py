r"""Figure 4 of the paper for a trained net, with a number for its right part.

    python -m experiments.figure4 --workdir=RUN[,RUN...] --output=DIR

or --weights=FILE.safetensors[,...]. The paper shows for five test images that
their six nearest training images in the last hidden layer look like them. Here
each image of the evaluation split asks for its nearest images of the training
split (`nearest`: exact, Euclidean), by several layers. Precision at 6 is the
share of the six nearest that have the query's class; mean average precision
tells how early all of its class come in the order of the whole training split.

`conv5` is the output of pool5; `pixels` are the stored images; `chance` is the
share of the query's class in the training split. With several nets, seeds of
one config, the errors are over nets; pixels and chance need no net.

| in DIR | contents |
|---|---|
| left.png | eight evaluation images with their five most probable classes |
| right.png | five others with their six nearest training images, by fc7 |
| runs.csv | a row for each layer and net |
| summary.csv | mean, standard error and n over the nets |
| figure.png | a figure of runs.csv |

The images are the first of the split, whose order is random, and not chosen;
the sheets are of the first net. Features are kept in DIR while it runs, 2 bytes
a value.
"""

from collections.abc import Mapping, Sequence
import pathlib
import sys
import tempfile
import time

from absl import flags
import jax
import numpy as np

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import feature_file
from alexnet_jax import features as features_lib
from alexnet_jax import image_files
from alexnet_jax import nearest
from alexnet_jax import net as net_lib
from alexnet_jax import net_flags
from alexnet_jax import predict
from alexnet_jax import retrieve
from alexnet_jax import words as words_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import command
from experiments import summary
from experiments import sweep

LAYERS = (features_lib.PIXELS, 'conv5', 'fc6', 'fc7')
CHANCE = 'chance'
TOP, LEFT, RIGHT = 6, 8, 5  # Neighbours, images of both parts: as in the paper.
PRECISION, MEAN_AP = f'precision_at_{TOP}', 'mean_average_precision'
LABELS = {PRECISION: f'precision at {TOP}', MEAN_AP: 'mean average precision'}
RANKED = 64  # Queries for which the whole index is sorted at once.
QUICK = 100  # Queries, and images of the index, with --quick.


def measure(
  index: feature_file.FeatureFile, queries: feature_file.FeatureFile
) -> dict[str, float]:
  """Precision at `TOP` and mean average precision, 0 to 1, and counts."""
  classes = queries.about['classes']
  precision, count = nearest.precision(index, TOP, queries.rows, classes)
  return {
    PRECISION: precision,
    MEAN_AP: mean_average_precision(index, queries),
    'queries': count,
    'images': len(index.rows),
  }


def mean_average_precision(
  index: feature_file.FeatureFile, queries: feature_file.FeatureFile
) -> float:
  """The mean of the average precisions of the queries, 0 to 1.

  The average precision of a query is the mean, over the images of its class, of
  the share of its class among the images that are at least as near. Queries
  whose class the index does not have are left out.
  """
  index_classes, classes = (
    np.array(x.about['classes']) for x in (index, queries)
  )
  places = np.arange(1, len(index_classes) + 1)
  found = []
  for start in range(0, len(classes), RANKED):
    part = slice(start, start + RANKED)
    order = _order(index.rows, queries.rows[part])
    same = index_classes[order] == classes[part, None]
    share = np.cumsum(same, axis=1) / places
    found += [s[k].mean() for s, k in zip(share, same, strict=True) if k.any()]
  return float(np.mean(found))


def _order(rows, queries):
  """For each query the indices of all rows, the nearest first."""
  queries = queries.astype(np.float32)
  block = max(1, nearest.BLOCK_VALUES // rows.shape[1])
  keys = []
  for start in range(0, len(rows), block):
    part = rows[start : start + block].astype(np.float32)
    # |q - r|^2 less |q|^2, which is the same for all rows.
    keys.append(np.sum(part**2, axis=1) - 2 * queries @ part.T)
  return np.argsort(np.concatenate(keys, axis=1), axis=1)


def chance(
  index: feature_file.FeatureFile, queries: feature_file.FeatureFile
) -> dict[str, float]:
  """The expectation of `measure` if the order were random."""
  number = len(index.about['classes'])
  names, counts = np.unique(index.about['classes'], return_counts=True)
  own = dict(zip(names, counts, strict=True))
  count = np.array([own[c] for c in queries.about['classes'] if c in own])
  # An image of the class at place k has (count - 1) others spread over the
  # number - 1 other places, k - 1 of which are before it.
  first = np.mean(1 / np.arange(1, number + 1))
  average = first + (1 - first) * (count - 1) / (number - 1)
  return {
    PRECISION: float(np.mean(count / number)),
    MEAN_AP: float(np.mean(average)),
    'queries': len(count),
    'images': number,
  }


def table(rows: Sequence[summary.Row]) -> str:
  """The rows of runs.csv as a Markdown table, in %."""
  lines = [f'| layer | {" | ".join(LABELS.values())} |', '|---|---|---|']
  for layer in (*LAYERS, CHANCE):
    shown = []
    for metric in LABELS:
      values = summary.values_of(rows, layer, metric)
      mean, error = summary.mean_and_standard_error(values)
      spread = f' ± {100 * error:.1f}' if error is not None else ''
      shown.append('-' if mean is None else f'{100 * mean:.1f}{spread}')
    lines.append(f'| {layer} | {" | ".join(shown)} |')
  return '\n'.join(lines)


def split_words(net: net_lib.Net, queries: int, quick: bool) -> tuple[str, str]:
  """What `image_files.find` takes for the training images, and the queries."""
  inputs = net.config.input
  limit = f'[:{QUICK}]' if quick else ''
  count = min(queries, QUICK) if quick else queries
  return (
    f'{inputs.dataset}/{inputs.train_split}{limit}',
    f'{inputs.dataset}/{inputs.eval_split}[:{count}]',
  )


def draw_sheets(
  net: net_lib.Net,
  index: feature_file.FeatureFile,
  data_dir: str,
  output: pathlib.Path,
  words: Mapping[str, str],
) -> None:
  """Writes both parts of the figure; `index` has fc7 of the training images."""
  split = f'{net.config.input.dataset}/{net.config.input.eval_split}'
  find = lambda part: image_files.find([f'{split}[{part}]'], data_dir)
  pictures = predict.Pictures(words)
  predict.predict(net, find(f':{LEFT}'), 'one', lambda made: None, pictures)
  pictures.save_first(output / 'left.png')
  others = find(f'{LEFT}:{LEFT + RIGHT}')
  retrieve.ask(index, net, others, TOP, output / 'right.png', words)


def run(
  nets: Sequence[net_flags.Values],
  output: pathlib.Path,
  queries: int,
  quick: bool,
  words: Mapping[str, str],
) -> list[summary.Row]:
  """Measures the nets and writes the files of `output`.

  Args:
    nets: for each net the values of the flags of `net_flags.define`.
    output: folder, which exists.
    queries: number of evaluation images that ask; all if there are fewer.
    quick: whether to take only `QUICK` images of each split.
    words: of class names that are WordNet ids, see `words.read`.

  Returns:
    The rows of runs.csv.

  Raises:
    InputError: if the nets have different data sets, or equal seeds.
    ValueError, FileNotFoundError: as from `net_flags.open_net`.
  """
  opened = [net_flags.open_net(values) for values in nets]
  dataset = _common_dataset(nets, opened)
  rows = []
  for values, net in zip(nets, opened, strict=True):
    about = {
      'seed': net.config.seed,
      'failed': '',
      'commit': workdir_lib.current_commit(),
      'device': jax.devices()[0].device_kind,
      'dataset': dataset.fingerprint,
    }
    first = net is opened[0]
    for layer in LAYERS if first else LAYERS[1:]:  # Pixels need no net.
      began = time.time()
      with tempfile.TemporaryDirectory(dir=output) as folder:
        index, asked = (
          _features(values, net, word, layer, f'{folder}/{name}.npy')
          for name, word in zip(
            ('index', 'queries'), split_words(net, queries, quick), strict=True
          )
        )
        row = {'variant': layer, **about, **measure(index, asked)}
        rows.append(row | {'wall_seconds': round(time.time() - began, 1)})
        if first and layer == LAYERS[-1]:
          row = {'variant': CHANCE, **about, **chance(index, asked)}
          rows.append(row | {'wall_seconds': 0.0})
          draw_sheets(net, index, net_flags.data_dir(values), output, words)
      summary.write(output, rows)
  return rows


def _common_dataset(nets, opened) -> dataset_lib.Dataset:
  """The data set of all nets; raises InputError as `run` does."""
  fingerprints, seeds = {}, set()
  for values, net in zip(nets, opened, strict=True):
    dataset = dataset_lib.open_dataset(
      net_flags.data_dir(values), net.config.input.dataset
    )
    fingerprints[dataset.fingerprint] = dataset.path
    if net.config.seed in seeds or len(fingerprints) > 1:
      raise sweep.InputError(
        f'{net_flags.path(values)}: the nets must have different seeds (this one'
        f' has {net.config.seed}) and one data set'
        f' ({", ".join(map(str, fingerprints.values()))})'
      )
    seeds.add(net.config.seed)
  return dataset


def _features(values, net, word, layer, path):
  features_lib.write_with_flags(
    values, [word], layer, '--output', path, np.float16, net
  )
  return feature_file.read(path, '--output')


def main(_) -> None:
  with command.one_line_errors('repeat the command'):
    values = {flag.name: flag.value for flag in NET}
    net_flags.path(values)  # Names one kind of net.
    kind = 'workdir' if values['workdir'] else 'weights'
    nets = [values | {kind: path} for path in values[kind].split(',')]
    words = words_lib.read(WORDS.value)
    output = net_flags.check_output(
      f'{OUTPUT.value}/left.png', '--output', ('.png',)
    ).parent
    output.mkdir(parents=True, exist_ok=True)
    try:
      rows = run(nets, output, QUERIES.value, QUICKLY.value, words)
      print(table(rows))
      print(summary.draw(output, LABELS))
    except (sweep.InputError, ModuleNotFoundError) as error:
      sys.exit(f'{type(error).__name__}: {error}')
    print(f'{time.process_time() / 60:.1f} CPU-minutes')


if __name__ == '__main__':
  OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder to write.', required=True
  )
  QUERIES = flags.DEFINE_integer(
    'queries',
    10_000,
    'Number of evaluation images that ask, the first ones.',
    1,
  )
  QUICKLY = flags.DEFINE_bool(
    'quick', False, 'Few images, to try the command; the figures mean nothing.'
  )
  WORDS = net_flags.define_words()
  NET = net_flags.define()
  command.run(main)
