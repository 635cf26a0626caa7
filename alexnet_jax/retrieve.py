r"""Finds the images whose features are nearest, as in Figure 4 of the paper.

    python -m alexnet_jax.retrieve --workdir=RUN --index=FILE.npy --images=DIR
    python -m alexnet_jax.retrieve --index=FILE.npy --query=IMAGE

The first command makes an index of a folder or a prepared data set, the second
asks it. The distance is the Euclidean distance of the activations of a layer;
every row of the index is compared. With --precision the share of neighbours of
the query's class is printed, not the neighbours.
"""

from collections.abc import Iterator

from alexnet_jax.runtime import command

if __name__ == '__main__':
  command.import_jax()

from absl import flags
import numpy as np

from alexnet_jax import feature_file
from alexnet_jax import features as features_lib
from alexnet_jax import image_files
from alexnet_jax import nearest
from alexnet_jax import net_flags
from alexnet_jax import report
from alexnet_jax import sheet
from alexnet_jax import words as words_lib
from alexnet_jax.prepare import folders


def ask(index, net, sources, top, sheet_path, words) -> int:
  """Prints the nearest images of each query, and draws them if asked to.

  Args:
    index: opened index.
    net: the net that made it.
    sources: queries, from `image_files.find`.
    top: number of neighbours.
    sheet_path: picture to write; None for none.
    words: of class names that are WordNet ids, see `words.read`.

  Returns:
    The number of queries that could be read.
  """
  pictures, count = [], 0
  for items, queries in _queries(index, net, sources):
    found = nearest.search(index.rows, queries, top)
    found = (array.tolist() for array in found)
    for item, *neighbours in zip(items, *found, strict=True):
      count += 1
      print(folders.printable(item.name))
      for distance, row in zip(*neighbours, strict=True):
        name = folders.printable(index.about['names'][row])
        print(f'  {distance:#10.4g}  {name}')
      if sheet_path and len(pictures) < sheet.MAX_QUERIES:
        lines = report.lines(item.name, item.class_name, words)
        shown = [*_pictures(index, *neighbours, words)]
        pictures.append((sheet.Picture(item.image, *lines), shown))
  if sheet_path:
    sheet.save(sheet.of_neighbours(pictures), sheet_path)
  return count


def _pictures(index, distances, rows, words) -> Iterator[sheet.Picture]:
  for distance, row in zip(distances, rows, strict=True):
    name, class_name = (index.about[key][row] for key in ('names', 'classes'))
    title, _ = report.lines(name, class_name, words)
    yield sheet.Picture(index.image(row), title, f'distance {distance:#.4g}')


def check_net(index, net) -> None:
  """Raises ValueError if the index was made with another net."""
  found = feature_file.digest(net.weights)
  if found != index.about['net']:
    raise ValueError(
      f'--index={index.path} was made with another net, or before this one was'
      f' trained on (digest {index.about["net"]}, from'
      f' {index.about["net_path"]}; now {found}); name that net, or make the'
      ' index again with --images'
    )


def main(_) -> int:
  with command.one_line_errors('repeat the command'):
    if bool(IMAGES.value) == bool(QUERY.value or PRECISION.value):
      raise ValueError(
        'name either --images=DIR, to make an index, or --query=IMAGE or'
        ' --precision, to ask one'
      )
    if SHEET.value and (PRECISION.value or not QUERY.value):
      raise ValueError(
        '--sheet shows the neighbours of a --query=IMAGE; omit --images and'
        ' --precision'
      )
    if SHEET.value and TOP.value > sheet.MAX_PICTURES:
      raise ValueError(
        f'--sheet shows at most {sheet.MAX_PICTURES} neighbours;'
        f' --top={TOP.value} asks for more'
      )
    if TOP.value < 1:
      raise ValueError(f'--top={TOP.value} must be positive')
    values = {flag.name: flag.value for flag in NET}
    if IMAGES.value:
      return features_lib.write_with_flags(
        values,
        IMAGES.value,
        LAYER.value or 'fc7',
        '--index',
        INDEX.value,
        np.float16,
      )
    index = feature_file.read(INDEX.value, '--index')
    if LAYER.value not in (None, index.about['layer']):
      raise ValueError(
        f'--layer={LAYER.value}, but --index={INDEX.value} has layer'
        f' {index.about["layer"]}; omit --layer, or make another index'
      )
    words = words_lib.read(WORDS.value)
    sheet_path = SHEET.value and net_flags.check_output(
      SHEET.value, '--sheet', sheet.SUFFIXES
    )
    if not QUERY.value:
      _print_precision(index, TOP.value)
      return 0
    if not (values['workdir'] or values['weights']):
      values['workdir'] = index.about['net_path']
      values['checkpoint'] = index.about['checkpoint']
      values['data_dir'] = values['data_dir'] or index.about['data_dir']
    net = net_flags.open_net(values)
    check_net(index, net)
    sources = image_files.find(
      QUERY.value, net_flags.data_dir(values), net.class_names
    )
    if PRECISION.value:
      found = _print_precision_of(index, net, sources, TOP.value)
    else:
      found = ask(index, net, sources, TOP.value, sheet_path, words)
    return int(found < sum(map(len, sources)))


def _queries(index, net, sources) -> Iterator:
  """Yields items and their features, as many as one search compares at once."""
  waiting, found = [], []
  for items, images in image_files.batches(sources, net.stored):
    features = features_lib.compute(net, images, index.about['layer'])
    if len(waiting) + len(items) > nearest.QUERIES:
      yield waiting, np.concatenate(found)
      waiting, found = [], []
    waiting += items
    found.append(features.reshape(len(items), -1))  # As the index has them.
  if waiting:
    yield waiting, np.concatenate(found)


def _print_precision_of(index, net, sources, top):
  """Prints the precision of queries; returns how many could be read."""
  parts, classes = [], []
  for items, queries in _queries(index, net, sources):
    parts.append(queries)
    classes += map(features_lib.class_of, items)
  _print_precision(index, top, np.concatenate(parts), classes)
  return len(classes)


def _print_precision(index, top, *queries):
  share, count = nearest.precision(index, top, *queries)
  print(f'precision at {top}: {share:.2%} ({count:,} queries)')


if __name__ == '__main__':
  INDEX = flags.DEFINE_string(
    'index',
    None,
    'The index, FILE.npy; FILE.npy.json is beside it.',
    required=True,
  )
  IMAGES = flags.DEFINE_multi_string(
    'images', [], 'Folder or data set NAME/SPLIT to make the index of.'
  )
  QUERY = flags.DEFINE_multi_string(
    'query', [], 'Image, folder or part of a data set to look for.'
  )
  LAYER = flags.DEFINE_string(
    'layer', None, 'Layer of the features; by default fc7.'
  )
  TOP = flags.DEFINE_integer('top', 6, 'Number of neighbours.')
  SHEET = flags.DEFINE_string(
    'sheet', None, 'Picture of queries and neighbours to write, FILE.png.'
  )
  PRECISION = flags.DEFINE_bool(
    'precision', False, 'Print the share of neighbours of the same class.'
  )
  WORDS = net_flags.define_words()
  NET = net_flags.define()
  command.run(main)
