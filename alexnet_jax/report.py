"""The prediction for one image: its error; as text, JSON, csv and picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
import dataclasses
import itertools
import json
import pathlib
import sys

import tqdm

from alexnet_jax import error_table
from alexnet_jax import image_files
from alexnet_jax import metrics
from alexnet_jax import sheet
from alexnet_jax.prepare import folders
from alexnet_jax.runtime import files

TOP = 5  # Classes per image.


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The most probable classes of one image.

  Attributes:
    item: the image; its `class_name` is the true class, '' if not known.
    classes: (class name, probability in 0..1), best first.
  """

  item: image_files.Item
  classes: Sequence[tuple[str, float]]

  def rank(self) -> int:
    """Place of the true class from 0; the number of `classes` if not there."""
    names = [name for name, _ in self.classes]
    true = self.item.class_name
    return names.index(true) if true in names else len(names)


class Errors:
  """Top-1 and top-5 errors of the images whose class is known.

  The text has no top-5 error of five classes or fewer.
  """

  def __init__(self, num_classes: int):
    self._num_classes = num_classes
    self.count = self._top1 = self._top5 = 0

  def add(self, prediction: Prediction) -> None:
    if prediction.item.class_name:
      self.count += 1
      self._top1 += prediction.rank() > 0
      self._top5 += prediction.rank() >= TOP

  def __str__(self) -> str:
    images = 'image' if self.count == 1 else 'images'
    numbers = {'all/top1_error': self._top1, 'all/top5_error': self._top5}
    errors = {tag: number / self.count for tag, number in numbers.items()}
    shown = ', '.join(
      f'{error_table.COLUMNS[tag.partition("/")[2]].lower()} error {error:.2%}'
      for tag, error in metrics.informative(errors, self._num_classes).items()
    )
    return f'{self.count:,} {images} of known class: {shown}'


def picture(prediction: Prediction, words: Mapping[str, str]) -> sheet.Picture:
  """An image with its predictions, for a sheet."""
  item = prediction.item
  title, caption = lines(item.name, item.class_name, words)
  bars = [(words.get(name, name), share) for name, share in prediction.classes]
  # Classes of their own may have the same words.
  return sheet.Picture(item.image, title, caption, bars, prediction.rank())


def lines(
  name: str, class_name: str, words: Mapping[str, str]
) -> tuple[str, str]:
  """The two lines below a picture: its class, if known, and its file name."""
  file = pathlib.PurePath(name).name
  return (words.get(class_name, class_name), file) if class_name else (file, '')


@contextlib.contextmanager
def writer(
  csv_path: pathlib.Path | None, as_json: bool, words: Mapping[str, str]
) -> Iterator[Callable[[Prediction], None]]:
  """Yields the function that writes a prediction.

  Args:
    csv_path: file to write, whole or not at all; None to print.
    as_json: whether to print a JSON object in a line, not text.
    words: see `words.read`.
  """
  if csv_path:
    with (
      files.replacing(csv_path) as temporary,
      open(temporary, 'w', newline='', errors='backslashreplace') as file,
    ):
      table = csv.writer(file)
      places = [(f'class_{n}', f'probability_{n}') for n in range(1, TOP + 1)]
      table.writerow(['path', 'true_class', *itertools.chain(*places)])
      yield lambda made: table.writerow(_csv_row(made))
  elif as_json:
    yield lambda made: _print(_json_line(made, words))
  else:
    yield lambda made: _print(_text(made, words))


def _print(text):
  tqdm.tqdm.write(text, file=sys.stdout)  # Not into the progress bar.


def _csv_row(made):
  return [
    made.item.name,
    made.item.class_name,
    *(x for name, share in made.classes for x in (name, f'{share:.6g}')),
  ]


def _json_line(made, words):
  predictions = [
    {'class': name, 'probability': share}
    | ({'words': words[name]} if name in words else {})
    for name, share in made.classes
  ]
  true = made.item.class_name
  return json.dumps(
    {
      'path': made.item.name,
      'predictions': predictions,
      **({'true_class': true} if true else {}),
    }
  )


def _text(made, words):
  rows = [folders.printable(made.item.name)]
  for name, share in made.classes:
    more = f'  {words[name]}' if name in words else ''
    rows.append(f'  {share:7.2%}  {folders.printable(name)}{more}')
  return '\n'.join(rows)
