"""Sheets: where pictures and bars are, their colours, and shortened names."""

import logging

import numpy as np
from PIL import Image
import pytest

from alexnet_jax import sheet

RED, BLUE = (0xF4, 0xA6, 0xA0), (0xB5, 0xCD, 0xEA)
SIDE, MARGIN = 240, 12


def solid(color, size=8):
  return np.full((size, size, 3), color, np.uint8)


def bar_length(drawn, color):
  """The longest run of a colour in any row of a picture."""
  return (np.asarray(drawn) == color).all(-1).sum(1).max()


def test_bars_are_as_long_as_probabilities_and_the_true_one_is_red():
  bars = [('cat', 0.75), ('dog', 0.25)]
  picture = sheet.Picture(solid((9, 9, 9)), 'dog', 'a.png', bars, 1)
  drawn = sheet.of_predictions([picture])
  assert drawn.size[0] == SIDE + 2 * MARGIN
  # The middle line of a bar has text; its first and last lines have none.
  assert bar_length(drawn, BLUE) == pytest.approx(0.75 * SIDE, abs=2)
  assert bar_length(drawn, RED) == pytest.approx(0.25 * SIDE, abs=2)
  assert bar_length(drawn, (9, 9, 9)) == SIDE


@pytest.mark.parametrize(('count', 'columns'), [(5, 5), (8, 4), (17, 6)])
def test_pictures_stand_in_full_rows_of_at_most_six(count, columns):
  pictures = [sheet.Picture(solid((10 + i, 0, 0))) for i in range(count)]
  drawn = np.asarray(sheet.of_predictions(pictures))
  rows, cell = -(-count // columns), SIDE + MARGIN
  assert drawn.shape[1] == columns * cell + MARGIN
  middle, height = MARGIN + SIDE // 2, (drawn.shape[0] - MARGIN) // rows
  found = drawn[middle::height, middle::cell, 0][:rows, :columns].ravel()
  empty = rows * columns - count
  assert found.tolist() == [*range(10, 10 + count), *[255] * empty]


@pytest.mark.parametrize(('size', 'smooth'), [(32, False), (76, True)])
def test_only_small_images_are_shown_with_their_pixels(size, smooth):
  halves = solid(0, size)
  halves[:, size // 2 :] = 255
  drawn = sheet.of_predictions([sheet.Picture(halves)])
  row = np.asarray(drawn)[MARGIN + SIDE // 2, MARGIN : MARGIN + SIDE, 0]
  assert ({*row.tolist()} > {0, 255}) == smooth


def test_neighbours_stand_right_of_their_query_and_a_missing_file_is_grey(
  tmp_path, caplog
):
  path = tmp_path / 'a.png'
  Image.fromarray(solid((7, 0, 0), 30)).save(path)
  with caplog.at_level(logging.WARNING):
    drawn = sheet.of_neighbours(
      [
        (
          sheet.Picture(str(path)),
          [sheet.Picture(f'{tmp_path}/gone.png'), sheet.Picture(solid(8))],
        )
      ]
    )
  row = np.asarray(drawn)[MARGIN + 5, :, 0].tolist()
  changes = [
    v for v, before in zip(row, [-1, *row], strict=False) if v != before
  ]
  assert changes == [255, 7, 255, 0xE0, 255, 8, 255]
  assert 'Not shown: ' in caplog.text and 'gone.png' in caplog.text


@pytest.mark.parametrize('size', [12, 15])
def test_a_long_name_is_shortened_to_its_room(size):
  name = 'a very long file name ' * 5 + '\n.jpg'
  fitted = sheet._fit(name, 200, size)
  font = sheet._font(size)
  assert font.getlength(fitted) <= 200 < font.getlength(fitted) + 3 * size
  assert fitted.endswith('…') and fitted[:-1] == name[: len(fitted) - 1]
  assert sheet._fit('new\nline', 200, size) == r'new\nline'


def test_a_long_title_without_a_caption_has_two_lines(monkeypatch):
  texts = []
  write = lambda draw, place, text, *_: texts.append(text)
  monkeypatch.setattr(sheet.ImageDraw.ImageDraw, 'text', write)
  name = 'abcdefghij' * 4
  for title, caption in ((name, ''), (name, 'val'), (name[:9], '')):
    sheet.of_predictions([sheet.Picture(solid(3), title, caption)])
  first, second = texts[:2]
  assert first + second == name and second
  assert texts[2:] == [f'{first}…', 'val', name[:9], '']


@pytest.mark.parametrize('suffix', ['.png', '.JPG'])
def test_a_sheet_is_a_file_of_its_suffix(tmp_path, suffix, capsys):
  path = tmp_path / f'new/sheet{suffix}'
  sheet.save(sheet.of_predictions([sheet.Picture(solid(3))]), path)
  with Image.open(path) as image:
    assert image.format == {'.png': 'PNG', '.JPG': 'JPEG'}[suffix]
  assert capsys.readouterr().err == f'wrote {path}\n'
  assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_confusion_matrix_has_its_names_in_order_on_both_sides():
  # The name of the first class alone has ink: it stands at the first row and
  # the first column.
  counts = np.array([[3, 0, 0], [1, 0, 0], [0, 0, 2]])
  drawn = np.asarray(sheet.of_confusion(counts, ['WWWW', '', '']))
  left, cell = drawn.shape[1] - 3 * sheet._CELL, sheet._CELL
  dark = (drawn < 100).all(-1)
  by_row = [dark[left + i * cell :][:cell, :left].sum() for i in range(3)]
  by_column = [dark[:left, left + i * cell :][:, :cell].sum() for i in range(3)]
  assert np.flatnonzero(by_row).tolist() == [0]
  assert np.flatnonzero(by_column).tolist() == [0]
  corner = lambda row, column: drawn[left + row * cell, left + column * cell]
  assert corner(0, 0).tolist() == list(sheet._RIGHT)
  assert corner(1, 0).tolist() == list(sheet._WRONG)
  assert corner(0, 1).tolist() == [255] * 3


def test_of_many_classes_those_are_shown_that_are_confused(monkeypatch):
  monkeypatch.setattr(sheet, 'MAX_CLASSES', 2)
  counts = np.diag([5, 5, 5, 5])
  counts[1, 3] = 2
  drawn = sheet.of_confusion(counts, ['a', 'b', 'c', 'd'])
  monkeypatch.setattr(sheet, 'MAX_CLASSES', 30)
  expected = sheet.of_confusion(np.array([[5, 2], [0, 5]]), ['b', 'd'])
  np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))
