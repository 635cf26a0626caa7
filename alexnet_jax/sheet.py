"""Sheets of pictures as in Figure 4: predictions as bars, nearest neighbours."""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import logging
import pathlib
import sys

from jaxtyping import Int, UInt8
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from alexnet_jax import images
from alexnet_jax.prepare import folders
from alexnet_jax.runtime import files

log = logging.getLogger(__name__)

# Larger sheets are hard to look at.
MAX_PICTURES, MAX_QUERIES, MAX_CLASSES = 36, 24, 30
SUFFIXES = ('.png', '.jpg', '.jpeg')

_COLUMNS = 6  # At most, of pictures with predictions.
_CELL, _MAX_NAME = 36, 160  # A cell of a confusion matrix; the longest name.
_RIGHT, _WRONG = (37, 99, 175), (200, 40, 30)  # Its colours.
_MARGIN, _LINE = 12, 22  # Between pictures; height of a line of text.
_SIDE, _SMALL_SIDE = 240, 160  # Of a picture with bars, of a neighbour.
_INK, _GREY, _MISSING = '#202020', '#606060', '#e0e0e0'
_TRUE, _OTHER = '#f4a6a0', '#b5cdea'  # Bars of the true class and others.


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image with what is written below it.

  Attributes:
    image: path, or uint8 [height, width, 3].
    title: first line, such as its class.
    caption: second line, in grey; if it is empty, a long title goes on there.
    bars: (class name, probability in 0..1), best first.
    true_bar: index of the bar that is red; none if there is no such bar.
  """

  image: str | UInt8[np.ndarray, 'height width 3']
  title: str = ''
  caption: str = ''
  bars: Sequence[tuple[str, float]] = ()
  true_bar: int = -1


def of_predictions(
  pictures: Sequence[Picture], side: int = _SIDE, columns: int = _COLUMNS
) -> Image.Image:
  """Pictures side by side, in rows, each with its predictions below it.

  Args:
    pictures: the pictures.
    side: side of a picture in pixels.
    columns: the most pictures in a row.
  """
  num_bars = max(len(picture.bars) for picture in pictures)
  rows = -(-len(pictures) // columns)
  columns = -(-len(pictures) // rows)  # Eight are two rows of four.
  cell = side + _MARGIN, side + _LINE * (2 + num_bars) + _MARGIN + 4
  sheet = Image.new(
    'RGB', (columns * cell[0] + _MARGIN, rows * cell[1] + _MARGIN), 'white'
  )
  for i, picture in enumerate(pictures):
    x, y = (
      _MARGIN + place * length
      for place, length in zip((i % columns, i // columns), cell, strict=True)
    )
    _draw(sheet, picture, x, y, side)
    for n, (name, probability) in enumerate(picture.bars):
      top = y + side + _LINE * (2 + n)
      color = _TRUE if n == picture.true_bar else _OTHER
      _bar(ImageDraw.Draw(sheet), x, top, side, name, probability, color)
  return sheet


def of_neighbours(
  rows: Sequence[tuple[Picture, Sequence[Picture]]],
) -> Image.Image:
  """In each row a query, a gap, and its neighbours, the nearest first."""
  gap = 2 * _MARGIN
  cell = _SMALL_SIDE + _MARGIN, _SMALL_SIDE + 2 * _LINE + _MARGIN
  columns = 1 + max(len(neighbours) for _, neighbours in rows)
  sheet = Image.new(
    'RGB',
    (_MARGIN + columns * cell[0] + gap, len(rows) * cell[1] + _MARGIN),
    'white',
  )
  for i, (query, neighbours) in enumerate(rows):
    y = _MARGIN + i * cell[1]
    _draw(sheet, query, _MARGIN, y, _SMALL_SIDE)
    for n, picture in enumerate(neighbours):
      x = _MARGIN + gap + (1 + n) * cell[0]
      _draw(sheet, picture, x, y, _SMALL_SIDE)
  return sheet


def of_confusion(
  counts: Int[np.ndarray, 'classes classes'], names: Sequence[str]
) -> Image.Image:
  """The confusion matrix: a row per class, a column per prediction.

  A cell is the darker the larger its share of the row; errors are red. Of more
  than `MAX_CLASSES` classes those are shown that are confused most often.

  Args:
    counts: number of examples by class and prediction.
    names: names of the classes.
  """
  wrong = counts - np.diag(np.diag(counts))
  most = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind='stable')
  shown = np.sort(most[:MAX_CLASSES])
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  texts = [_fit(names[i], _MAX_NAME, 16) for i in shown]
  left = 2 * _MARGIN + round(max(map(_font(16).getlength, texts)))
  side = len(shown) * _CELL
  of_rows, of_columns = (
    Image.new('RGB', (left, side), 'white') for _ in range(2)
  )
  picture = Image.new('RGB', (left + side, left + side + _LINE + 8), 'white')
  draw = ImageDraw.Draw(picture)
  for i, text in enumerate(texts):
    y = i * _CELL + _CELL // 2
    for image, x, anchor in (
      (of_rows, left - _MARGIN, 'rm'),
      (of_columns, _MARGIN, 'lm'),  # Read from below.
    ):
      ImageDraw.Draw(image).text((x, y), text, _INK, _font(16), anchor=anchor)
  picture.paste(of_rows, (0, left))
  picture.paste(of_columns.transpose(Image.Transpose.ROTATE_90), (left, 0))
  for (y, row), (x, column) in itertools.product(enumerate(shown), repeat=2):
    corner = left + x * _CELL, left + y * _CELL
    end = corner[0] + _CELL - 2, corner[1] + _CELL - 2
    base = _RIGHT if row == column else _WRONG
    strength = shares[row, column] ** 0.5  # Few errors shall be seen, too.
    color = tuple(round(255 + strength * (c - 255)) for c in base)
    draw.rectangle((*corner, *end), color)
    if counts[row, column]:
      ink = 'white' if strength > 0.6 else _INK
      center = corner[0] + _CELL // 2, corner[1] + _CELL // 2
      number = f'{counts[row, column]}'
      draw.text(center, number, ink, _font(14), anchor='mm')
  note = 'row: class, column: prediction'
  draw.text((_MARGIN, left + side + 4), note, _GREY, _font(15))
  return picture


def thumbnail(
  image: UInt8[np.ndarray, 'height width 3'], side: int
) -> UInt8[np.ndarray, 'side side 3']:
  """The whole image in a square of `side` pixels."""
  return np.asarray(_resized(image, side))


def save(sheet: Image.Image, path: pathlib.Path) -> None:
  """Writes the picture, whole or not at all, and says so on standard error.

  The suffix of the path gives the format, JPEG or PNG.
  """
  with files.replacing(path) as temporary:
    sheet.save(temporary, 'PNG' if path.suffix.lower() == '.png' else 'JPEG')
  print(f'wrote {path}', file=sys.stderr)


def _draw(sheet, picture, x, y, side):
  """Draws the image and its two lines; (x, y) is its upper left corner."""
  draw = ImageDraw.Draw(sheet)
  try:
    sheet.paste(_resized(_pixels(picture.image, side), side), (x, y))
  except images.ERRORS as error:  # The file is gone.
    log.warning('Not shown: %s', error)
    draw.rectangle((x, y, x + side - 1, y + side - 1), _MISSING)
  title = folders.printable(picture.title)
  shown, caption = _fit(title, side, 15), picture.caption
  if not caption and shown != title:
    shown = shown[:-1]
    caption = title[len(shown) :]
  top = y + side + 2
  draw.text((x, top), shown, _INK, _font(15))
  top += _LINE - 2
  draw.text((x, top), _fit(caption, side, 12), _GREY, _font(12))


def _pixels(image, side):
  """The central square: in its own size, or in `side` if it is larger."""
  if isinstance(image, np.ndarray):
    return image
  side = min(images.shorter_side(image), side)
  return images.read_pixels(image, side)


def _resized(image, side):
  scaled = Image.fromarray(image)
  factor = side / max(scaled.size)
  # Single pixels of small images are shown as they are.
  way = Image.Resampling.NEAREST if factor > 4 else Image.Resampling.LANCZOS
  size = [max(1, round(factor * length)) for length in scaled.size]
  square = Image.new('RGB', (side, side), 'white')
  square.paste(
    scaled.resize(size, way), ((side - size[0]) // 2, (side - size[1]) // 2)
  )
  return square


def _bar(draw, x, top, side, name, probability, color):
  bottom = top + _LINE - 4
  draw.rectangle((x, top, x + side - 1, bottom), '#f4f4f4')
  length = round((side - 1) * min(max(probability, 0), 1))
  draw.rectangle((x, top, x + length, bottom), color)
  percent = f'{probability:.1%}'
  font = _font(13)
  width = draw.textlength(percent, font)
  draw.text((x + side - width - 4, top + 1), percent, _INK, font)
  room = side - width - 14
  draw.text((x + 4, top + 1), _fit(name, room, 13), _INK, font)


def _fit(text, width, size):
  """The text, shortened until it is at most `width` pixels wide."""
  text, font = folders.printable(text), _font(size)
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(f'{text}…') > width:
    text = text[:-1]
  return f'{text.rstrip()}…'


@functools.cache
def _font(size):
  try:
    return ImageFont.truetype('DejaVuSans.ttf', size)  # Has most alphabets.
  except OSError:
    return ImageFont.load_default(size)
