r"""Figure 4 of the paper for a trained net, with numbers for its right part.

    python -m experiments.figure4 --workdir=RUN[,RUN...] --output=DIR

or --weights=FILE.safetensors[,...]. The paper shows for five test images that
their six nearest training images in the last hidden layer look like them. Here
each image of the evaluation split asks for its nearest images of the training
split (`nearest`: exact, Euclidean), by several layers: `precision_at_6` is the
share of the six with the query's class, mean average precision tells how early
all of its class come, and `nearer_by_pixels` is the share of the training images
that are nearer by pixels than one of the six (median; random images have 1/2).

`conv5` is the output of pool5. Several nets are seeds of one config; the errors
are over nets. Images are the first of each split, whose order is random; the
sheets are of the first net. 1,000 queries of CIFAR-10 take 6 CPU-minutes.

| in DIR | contents |
|---|---|
| left.png | eight evaluation images with their five most probable classes |
| right.png | five others with their six nearest training images, by fc7 |
| runs.csv | a row for each layer and net |
| summary.csv, figure.png | mean, standard error and n over the nets; a figure |
"""

from collections.abc import Mapping, Sequence
import pathlib
import shutil
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
from experiments import ranking
from experiments import summary
from experiments import sweep

LAYERS = (features_lib.PIXELS, 'conv5', 'fc6', 'fc7')
CHANCE = 'chance'
TOP, LEFT, RIGHT = 6, 8, 5  # Neighbours, images of both parts: as in the paper.
PRECISION, MEAN_AP = f'precision_at_{TOP}', 'mean_average_precision'
NEARER = 'nearer_by_pixels'
MEASURED = (PRECISION, MEAN_AP, NEARER, 'queries', 'images')
LABELS = {
  PRECISION: f'precision at {TOP}',
  MEAN_AP: 'mean average precision',
  NEARER: f'nearer by pixels than the {TOP}',
}
QUICK = 100  # Queries, and images of the index, with --quick.


def measure(
  index: feature_file.FeatureFile,
  queries: feature_file.FeatureFile,
  pixels: tuple[feature_file.FeatureFile, feature_file.FeatureFile],
) -> dict[str, float]:
  """Precision at `TOP`, mean average precision and `NEARER`, 0 to 1; counts.

  Args:
    index: features of the training images.
    queries: features of the queries.
    pixels: the pixels of both.
  """
  classes = queries.about['classes']
  known = nearest.known_queries(index, classes)
  _, found = nearest.search(index.rows, queries.rows, TOP)
  shares = nearest.class_shares(index, found, classes)[known]
  average = ranking.mean_average_precision(index, queries)
  place = ranking.median_place(*pixels, found)
  values = (float(shares.mean()), average, place, len(known), len(index.rows))
  return dict(zip(MEASURED, values, strict=True))


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


def split_words(net: net_lib.Net, images: int, queries: int) -> tuple[str, str]:
  """What `image_files.find` takes for the training images, and the queries."""
  inputs = net.config.input
  return (
    f'{inputs.dataset}/{inputs.train_split}[:{images}]',
    f'{inputs.dataset}/{inputs.eval_split}[:{queries}]',
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
  images: int,
  queries: int,
  words: Mapping[str, str],
) -> list[summary.Row]:
  """Measures the nets and writes the files of `output`.

  Args:
    nets: for each net the values of the flags of `net_flags.define`.
    output: folder, which exists.
    images: number of training images to search; all if there are fewer.
    queries: number of evaluation images used as queries; likewise.
    words: of class names that are WordNet ids, see `words.read`.

  Returns:
    The rows of runs.csv.

  Raises:
    InputError: if the nets have different data sets, or equal seeds, or the
      disk has too little space.
    ValueError, FileNotFoundError: as from `net_flags.open_net`.
  """
  opened = [net_flags.open_net(values) for values in nets]
  dataset = _common_dataset(nets, opened)
  _check_space(dataset, opened[0].config.input.train_split, images, output)
  rows = []
  with tempfile.TemporaryDirectory(dir=output) as folder:
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
        index, asked = (
          _features(values, net, word, layer, f'{folder}/{layer}_{name}.npy')
          for name, word in zip(
            ('index', 'queries'), split_words(net, images, queries), strict=True
          )
        )
        if layer == features_lib.PIXELS:
          pixels = index, asked
        row = {'variant': layer, **about, **measure(index, asked, pixels)}
        rows.append(row | {'wall_seconds': round(time.time() - began, 1)})
        if first and layer == LAYERS[-1]:
          precision, average, count = ranking.chance(index, asked)
          found = precision, average, 0.5, count, len(index.rows)
          row = {'variant': CHANCE, **about}
          row |= dict(zip(MEASURED, found, strict=True))
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
    if len(fingerprints) > 1:
      raise sweep.InputError(
        f'{net_flags.path(values)}: the nets must have one data set, not'
        f' {" and ".join(map(str, fingerprints.values()))}'
      )
    if net.config.seed in seeds:
      raise sweep.InputError(
        f'{net_flags.path(values)}: an earlier net has the same seed,'
        f' {net.config.seed}; name nets that differ in their seeds alone'
      )
    seeds.add(net.config.seed)
  return dataset


def _check_space(dataset, split, images, output):
  """Raises InputError if the features of the images do not fit on the disk."""
  number = min(images, dataset.num_examples[split])
  needed = number * dataset.mean_image.size * np.float16().itemsize
  free = shutil.disk_usage(output).free
  if needed > free / 2:
    raise sweep.InputError(
      f'--images={images}: the pixels of {number:,} images need'
      f' {needed / 1e9:.0f} GB in --output, which has {free / 1e9:.0f} GB free;'
      ' lower it'
    )


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
      counts = IMAGES.value, QUERIES.value
      if QUICKLY.value:
        counts = [min(count, QUICK) for count in counts]
      rows = run(nets, output, *counts, words)
      print(table(rows))
      print(summary.draw(output, LABELS))
    except (sweep.InputError, ModuleNotFoundError) as error:
      sys.exit(f'{type(error).__name__}: {error}')
    print(f'{time.process_time() / 60:.1f} CPU-minutes')


if __name__ == '__main__':
  OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder to write.', required=True
  )
  IMAGES = flags.DEFINE_integer(
    'images',
    50_000,
    'Number of training images to search, the first ones; each of their pixels'
    ' takes 6 bytes in --output, which must have twice that free.',
    1,
  )
  QUERIES = flags.DEFINE_integer(
    'queries',
    10_000,
    'Number of evaluation images used as queries, the first ones.',
    1,
  )
  QUICKLY = flags.DEFINE_bool(
    'quick', False, 'Few images, to try the command; the figures mean nothing.'
  )
  WORDS = net_flags.define_words()
  NET = net_flags.define()
  command.run(main)
