"""Reads metrics.csv when a run continues, also after a spreadsheet changed it.

A file that is not as `metrics.MetricsWriter` writes it is kept under another
name, so nothing in it is lost; the rows that can be read are continued.
"""

import codecs
from collections.abc import Sequence
import csv
import logging
import pathlib

from alexnet_jax.runtime import files

log = logging.getLogger(__name__)

DELIMITERS = ',;\t'


def rows_until(
  path: pathlib.Path, columns: Sequence[str], step: int
) -> list[dict[str, str]]:
  """The rows of a metrics.csv up to `step`, by column; none if it is 0.

  A file that another program has changed or damaged is renamed, and a line is
  logged. An incomplete last line, of an interrupted run, is dropped.

  Args:
    path: path of the file, which need not exist.
    columns: names of the columns, beginning with 'step'.
    step: number of completed steps.
  """
  if not path.exists():
    return []
  rows, change = [], ''
  try:
    content = files.read_bytes(path)
    text, change = _decode(content)
    rows, found = _parse(text, columns, step)
    change = change or found
  except (OSError, ValueError, csv.Error) as error:
    rows, change = [], f'it cannot be read: {" ".join(str(error).split())}'
  if change:
    kept = files.set_aside(path)
    begins = 'its rows are continued' if rows else 'a new one begins'
    log.warning(
      '%s is not as training wrote it (%s); kept as %s, %s after step %d.',
      path,
      change,
      kept.name,
      begins,
      step,
    )
  return rows if step else []


def _decode(content):
  """The text of the file, and how its encoding was changed, or ''."""
  for mark, encoding in (
    (codecs.BOM_UTF8, 'utf-8-sig'),
    (codecs.BOM_UTF16_LE, 'utf-16'),
    (codecs.BOM_UTF16_BE, 'utf-16'),
  ):
    if content.startswith(mark):
      return content.decode(encoding), f'its encoding is {encoding}'
  return content.decode(), ''


def _parse(text, columns, step):
  """The rows up to `step`, and what was changed, or ''.

  Raises:
    ValueError: if a row has no step, a value is no number, or the steps do not
      ascend.
    csv.Error: if the text is not csv.
  """
  header = text.partition('\n')[0]
  delimiter = max(DELIMITERS, key=header.count)
  changes = [] if delimiter == ',' else [f'its separator is {delimiter!r}']
  complete, incomplete = text, ''
  if '\r\n' in text or '\n' not in text:  # As training writes lines.
    end = text.rfind('\n') + 1
    complete, incomplete = text[:end], text[end:]
  reader = csv.DictReader(complete.splitlines(), delimiter=delimiter)
  names = reader.fieldnames or []
  if names and 'step' not in names:
    raise ValueError("it has no column 'step'")
  changes += [f'it has a column {n!r}' for n in names if n not in columns]
  rows = {}
  for row in reader:
    values = {c: _number(row.get(c), delimiter) for c in columns}
    if not any(values.values()):
      changes.append('it has an empty row')
      continue
    number = float(values['step'] or 'nan')
    if not number.is_integer() or number <= max(rows, default=0):
      raise ValueError(f'the step {row["step"]!r} is out of order')
    if values['step'] != f'{number:.0f}':
      changes.append(f'it has the step {row["step"]}')
    if None in row or None in row.values():
      changes.append(f'the row of step {number:.0f} has other columns')
    rows[int(number)] = {**values, 'step': f'{number:.0f}'}
  kept = {number: row for number, row in rows.items() if number <= step}
  # The row of a checkpoint's step is written before the checkpoint.
  if incomplete.strip() and step not in kept:
    changes.append('its last line is incomplete')
  return list(kept.values()), ''.join(changes[:1])


def _number(cell, delimiter):
  """A cell with a number; some languages write a decimal comma."""
  text = (cell or '').strip()
  if delimiter != ',' and '.' not in text:
    text = text.replace(',', '.')
  if text:
    float(text)  # Raises ValueError.
  return text
