r"""Classifies pictures with a trained net.

    python -m alexnet_jax.predict --workdir=RUN PATH...

PATH is a picture, a folder of them, `-` for names on standard input, or a part
of a prepared data set, such as cifar10/validation[:100]. The five most probable
classes of each are printed. Where folders have the names of classes, so are the
errors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import heapq
import itertools
import os
import pathlib
import sys

from alexnet_jax.runtime import command

if __name__ == '__main__':
  command.import_jax()

from absl import flags
import numpy as np

from alexnet_jax import image_files
from alexnet_jax import net as net_lib
from alexnet_jax import net_flags
from alexnet_jax import records
from alexnet_jax import report
from alexnet_jax import sheet
from alexnet_jax import trained_net
from alexnet_jax import words as words_lib


class Pictures:
  """What the sheets show: the first images, and the most confident errors."""

  def __init__(self, words: Mapping[str, str]):
    """`words` are those of class names, see `words.read`."""
    self._words, self._order = words, itertools.count()
    self._first, self._worst = [], []

  def add(self, prediction: report.Prediction) -> None:
    """Keeps a prediction if a sheet will show it."""
    shown = report.picture(prediction, self._words)
    if len(self._first) < sheet.MAX_PICTURES:
      self._first.append(shown)
    if prediction.item.class_name and prediction.rank():
      confidence = prediction.classes[0][1]
      heapq.heappush(self._worst, (confidence, next(self._order), shown))
      if len(self._worst) > sheet.MAX_PICTURES:
        heapq.heappop(self._worst)

  def save_first(self, path: pathlib.Path) -> None:
    """Writes the sheet of the first images."""
    sheet.save(sheet.of_predictions(self._first), path)

  def save_worst(self, path: pathlib.Path) -> None:
    """Writes the sheet of confident errors, if there are any."""
    ordered = [shown for _, _, shown in sorted(self._worst, reverse=True)]
    _save_errors(ordered, path)


def _save_errors(pictures, path):
  if pictures:
    sheet.save(sheet.of_predictions(pictures), path)
  else:
    print(
      f'--show_errors: no error among images of known class; {path} is not'
      ' written',
      file=sys.stderr,
    )


def worst_of_split(
  workdir: str | os.PathLike, which: str, views: str, data_dir: str | None
) -> Iterator[report.Prediction]:
  """The confidently wrong predictions for the evaluation split of a run.

  They are loaded from the work directory, or computed and saved there.

  Yields:
    Predictions, the most confident first.

  Raises:
    As `trained_net.open_net`.
  """
  net = trained_net.open_net(workdir, which, data_dir=data_dir)
  found = net.predict_split(views == 'many')
  order = np.argsort(-found.log_probs, axis=1, kind='stable')[:, : report.TOP]
  wrong = np.flatnonzero(order[:, 0] != found.labels)
  confidence = found.log_probs[wrong, order[wrong, 0]]
  dataset, split = net.run.dataset, net.config.input.eval_split
  stored = records.Records(dataset, split)
  rows = stored.rows(len(found.labels))
  for i in wrong[np.argsort(-confidence, kind='stable')].tolist():
    row, image = rows[i], np.empty(dataset.mean_image.shape, np.uint8)
    label, name = stored.decode_named(row, image)
    item = image_files.Item(name, net.class_names[label], image, row)
    probabilities = np.exp(found.log_probs[i, order[i]]).tolist()
    names = [net.class_names[label] for label in order[i]]
    yield report.Prediction(item, [*zip(names, probabilities, strict=True)])


def predict(
  net: net_lib.Net,
  sources: Sequence[Sequence[image_files.Item]],
  views: str,
  write: Callable[[report.Prediction], None],
  pictures: Pictures,
) -> tuple[int, report.Errors]:
  """Classifies images; gives each prediction to `write` and `pictures`.

  Returns:
    The number of images that could be read, and the errors.

  Raises:
    ValueError: if no image could be read.
  """
  known = {*net.class_names, ''}
  count, errors = 0, report.Errors(len(net.class_names))
  for items, images in image_files.batches(sources, net.stored):
    found = net.predict(images, views=views, top=report.TOP)
    for item, classes in zip(items, found, strict=True):
      if item.class_name not in known:  # The net could not be right.
        item = dataclasses.replace(item, class_name='')
      made = report.Prediction(item, classes)
      write(made)
      errors.add(made)
      pictures.add(made)
    count += len(items)
  return count, errors


def main(argv) -> int:
  with command.one_line_errors('repeat the command'):
    outputs = {
      flag.name: flag.value
      and net_flags.check_output(flag.value, f'--{flag.name}', ends)
      for flag, ends in (
        (OUTPUT, ('.csv',)),
        (SHEET, sheet.SUFFIXES),
        (SHOW_ERRORS, sheet.SUFFIXES),
      )
    }
    words = words_lib.read(WORDS.value)
    values = {flag.name: flag.value for flag in NET}
    path = net_flags.path(values)
    if JSON.value and OUTPUT.value:
      raise ValueError(
        '--json prints and --output=FILE.csv writes; name one of the two'
      )
    if not argv[1:]:
      others = SHEET.value or OUTPUT.value or JSON.value
      if others or not (SHOW_ERRORS.value and values['workdir']):
        raise ValueError('name a PATH: a picture, a folder, or - for a list')
      net_flags.start(values)
      worst = worst_of_split(
        path, values['checkpoint'], VIEW.value, values['data_dir']
      )
      shown = itertools.islice(worst, sheet.MAX_PICTURES)
      pictures = [report.picture(made, words) for made in shown]
      _save_errors(pictures, outputs['show_errors'])
      return 0
    net = net_flags.open_net(values)
    sources = image_files.find(
      argv[1:], net_flags.data_dir(values), net.class_names
    )
    pictures = Pictures(words)
    with report.writer(outputs['output'], JSON.value, words) as write:
      count, errors = predict(net, sources, VIEW.value, write, pictures)
    if errors.count:
      print(errors, file=sys.stderr if JSON.value else sys.stdout)
    if SHEET.value:
      pictures.save_first(outputs['sheet'])
    if SHOW_ERRORS.value:
      pictures.save_worst(outputs['show_errors'])
    return int(count < sum(map(len, sources)))


if __name__ == '__main__':
  VIEW = flags.DEFINE_enum(
    'views',
    'one',
    net_lib.VIEWS,
    'Views to average: the centre, or many (ten; five if the config does not'
    ' flip).',
  )
  JSON = flags.DEFINE_bool('json', False, 'Print a JSON object for each image.')
  OUTPUT = flags.DEFINE_string('output', None, 'Write FILE.csv, do not print.')
  SHEET = flags.DEFINE_string(
    'sheet', None, 'Picture of the first images to write, FILE.png.'
  )
  SHOW_ERRORS = flags.DEFINE_string(
    'show_errors',
    None,
    'Picture of the most confident errors to write, FILE.png; without PATH'
    ' those on the evaluation split of --workdir.',
  )
  WORDS = net_flags.define_words()
  NET = net_flags.define()
  command.run(main, takes_words=True)
