"""Metrics against NumPy loops; their files as TensorBoard and csv read them."""

import contextlib
import csv
import errno
import functools
import logging
import math
import os
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from alexnet_jax import metrics
from alexnet_jax import progress as progress_lib


def batch_sums(log_probs, labels, mask):
  losses = metrics.cross_entropy(log_probs, labels)
  return metrics.batch_sums(log_probs, losses, mask)


def read_rows(workdir):
  with open(workdir / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def read_events(workdir):
  guidance = {'scalars': 0, 'images': 0}  # 0: keep all.
  events = event_accumulator.EventAccumulator(str(workdir), guidance)
  return events.Reload()


def scalar_points(workdir, tag):
  return [(e.step, e.value) for e in read_events(workdir).Scalars(tag)]


def train_row(step):
  """A row without evaluation: every tag is step / 8, exact in float32."""
  return dict.fromkeys(metrics.TRAIN_TAGS, step / 8)


def write_run(workdir, start, stop):
  """Writes the rows of the steps after `start` to `stop`."""
  writer = metrics.MetricsWriter(workdir, True, start)
  for step in range(start + 1, stop + 1):
    writer.scalars(step, step / 2, train_row(step))
  writer.close()


def expected_sums(log_probs, labels, mask):
  """By the definition, one example at a time, in float64."""
  sums = dict.fromkeys(('loss', 'top1_error', 'top5_error', 'count'), 0.0)
  for row, label, kept in zip(
    log_probs.astype(np.float64), labels, mask, strict=True
  ):
    if not kept:
      continue
    others = [row[c] for c in range(len(row)) if c != label]
    beaten_by = sum(not other < row[label] for other in others)
    sums['loss'] -= row[label]
    sums['top1_error'] += beaten_by >= 1
    sums['top5_error'] += beaten_by >= 5
    sums['count'] += 1
  return sums


@pytest.mark.parametrize('classes', [12, 5, 3])
def test_batch_sums_equal_a_loop_over_the_examples_that_the_mask_keeps(classes):
  rng = np.random.default_rng(classes)
  # Quarters: many ties, and sums that are exact in float32.
  log_probs = -rng.integers(0, 12, (64, classes)).astype(np.float32) / 4
  labels = rng.integers(0, classes, 64).astype(np.int32)
  mask = rng.random(64) < 0.7
  sums = batch_sums(*map(jnp.asarray, (log_probs, labels, mask)))
  expected = expected_sums(log_probs, labels, mask)
  assert {k: float(v) for k, v in sums.items()} == expected
  assert (expected['top5_error'] > 0) == (classes >= 6)


def test_cross_entropy_is_the_negative_log_probability_of_the_label():
  log_probs = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]))
  found = metrics.cross_entropy(
    jnp.asarray(log_probs, jnp.float32), jnp.array([1, 0])
  )
  # float32; in nats: log 4 and log 8.
  np.testing.assert_allclose(found, np.log([4.0, 8.0]), rtol=1e-6)


def test_ties_count_against_the_net():
  uniform = jnp.full((2, 10), -math.log(10))
  sums = batch_sums(uniform, jnp.array([0, 9]), jnp.array([True, True]))
  assert (sums['top1_error'], sums['top5_error']) == (2, 2)


@pytest.mark.parametrize('nan_at', [slice(None), 1], ids=['all', 'label'])
def test_nan_counts_as_an_error(nan_at):
  log_probs = np.log(np.array([[0.05, 0.9, 0.05]], np.float32))
  log_probs[0, nan_at] = np.nan
  sums = batch_sums(jnp.asarray(log_probs), jnp.array([1]), jnp.array([True]))
  assert (sums['top1_error'], sums['top5_error']) == (1, 1)
  assert np.isnan(sums['loss'])


def test_masked_nan_leaves_the_sums_finite():
  log_probs = jnp.array([[-1.0, -2.0], [jnp.nan, jnp.nan]])
  sums = batch_sums(log_probs, jnp.array([0, 0]), jnp.array([True, False]))
  assert {k: float(v) for k, v in sums.items()} == {
    'loss': 1,
    'top1_error': 0,
    'top5_error': 0,
    'count': 1,
  }


def test_totals_are_means_over_examples_not_over_batches():
  totals = metrics.Totals()
  for loss, error, count in ((9.0, 3.0, 3.0), (1.0, 0.0, 1.0)):
    sums = {'loss': loss, 'top1_error': error, 'count': count}
    totals.add({name: np.array(value) for name, value in sums.items()})
  assert totals.count == 4
  assert totals.means(('loss', 'top1_error')) == {
    'loss': 2.5,
    'top1_error': 0.75,
  }


def test_totals_add_in_double_precision():
  totals = metrics.Totals()
  for loss in (2.0**24, 1.0, 1.0):  # In float32, 2 ** 24 + 1 is 2 ** 24.
    totals.add({'loss': np.array(loss, 'float32'), 'count': np.ones(())})
  assert totals.sums['loss'] == 2**24 + 2


def test_csv_has_a_row_per_step_and_blanks_for_what_was_not_measured(tmp_path):
  write_run(tmp_path, 0, 2)
  measured = lambda value: dict.fromkeys(metrics.TRAIN_TAGS, value)
  blanks = dict.fromkeys(metrics.eval_tags(True), '')
  assert read_rows(tmp_path) == [
    {'step': '1', 'epoch': '0.5000', **measured('0.125'), **blanks},
    {'step': '2', 'epoch': '1.0000', **measured('0.25'), **blanks},
  ]


def test_rows_and_points_are_in_the_files_before_the_writer_is_closed(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, True, 0)
  writer.scalars(1, 0.5, train_row(1))
  assert [row['step'] for row in read_rows(tmp_path)] == ['1']
  assert scalar_points(tmp_path, 'train/loss') == [(1, 0.125)]
  writer.close()


def test_every_step_is_there_once_after_a_rewind(tmp_path):
  write_run(tmp_path, 0, 6)
  write_run(tmp_path, 4, 8)
  write_run(tmp_path, 7, 9)
  expected = [(step, step / 8) for step in range(1, 10)]
  rows = [(int(r['step']), float(r['train/loss'])) for r in read_rows(tmp_path)]
  assert rows == expected
  assert scalar_points(tmp_path, 'train/loss') == expected


def test_step_0_starts_anew(tmp_path):
  write_run(tmp_path, 0, 6)
  write_run(tmp_path, 0, 2)
  assert [row['step'] for row in read_rows(tmp_path)] == ['1', '2']
  assert scalar_points(tmp_path, 'train/loss') == [(1, 0.125), (2, 0.25)]


@pytest.mark.parametrize('cut', [1, 3, 8])
def test_half_a_csv_line_is_dropped(tmp_path, cut):
  write_run(tmp_path, 0, 3)
  path = tmp_path / 'metrics.csv'
  path.write_bytes(path.read_bytes()[:-cut])
  write_run(tmp_path, 5, 6)
  assert [row['step'] for row in read_rows(tmp_path)] == ['1', '2', '6']


@pytest.mark.filterwarnings('ignore::ResourceWarning')  # A kill closes nothing.
def test_a_kill_while_the_csv_file_is_rewound_loses_no_row(
  tmp_path, monkeypatch
):
  write_run(tmp_path, 0, 3)
  with monkeypatch.context() as patch:
    patch.setattr(metrics.csv.DictWriter, 'writerows', _killed)
    with pytest.raises(KeyboardInterrupt):
      metrics.MetricsWriter(tmp_path, True, 2)
  write_run(tmp_path, 2, 3)
  assert [row['step'] for row in read_rows(tmp_path)] == ['1', '2', '3']


def kept_aside(workdir):
  """Content of the files that were set aside, by name."""
  return {p.name: p.read_bytes() for p in workdir.glob('metrics.csv.d*')}


def edited(lines, delimiter=',', end='\r\n'):
  return end.join(delimiter.join(row) for row in lines) + end


def more_column(rows):
  return [[*row, 'mine' if i == 0 else 'good'] for i, row in enumerate(rows)]


def floats(rows):
  return [rows[0], *([f'{row[0]}.0', *row[1:]] for row in rows[1:])]


def decimal_commas(rows):
  return [[cell.replace('.', ',') for cell in row] for row in rows]


# What a spreadsheet makes of the rows, and whether they can still be read.
SPREADSHEETS = {
  'semicolon': lambda rows: edited(rows, ';').encode(),
  'tab': lambda rows: edited(rows, '\t').encode(),
  'decimal comma': lambda rows: edited(decimal_commas(rows), ';').encode(),
  'mark': lambda rows: edited(rows).encode('utf-8-sig'),
  'mark, semicolon': lambda rows: edited(rows, ';').encode('utf-8-sig'),
  'utf-16': lambda rows: edited(rows, '\t').encode('utf-16'),
  'utf-16, big': lambda rows: b'\xfe\xff' + edited(rows).encode('utf-16-be'),
  '1.0': lambda rows: edited(floats(rows)).encode(),
  'column': lambda rows: edited(more_column(rows)).encode(),
  'cell': lambda rows: edited([*rows[:-1], [*rows[-1], '7']]).encode(),
  'empty rows': lambda rows: edited([*rows, [''] * len(rows[0])]).encode(),
}
UNREADABLE = {
  'utf-16 without a mark': lambda rows: edited(rows).encode('utf-16-le'),
  'latin-1': lambda rows: edited(more_column(rows)).encode() + b'\xe9,1\r\n',
  'no header': lambda rows: edited(rows[1:]).encode(),
  'sums': lambda rows: edited([*rows, ['Sum', *rows[1][1:]]]).encode(),
  'words': lambda rows: edited([*rows, ['4', '#REF!', *rows[1][2:]]]).encode(),
  'descending': lambda rows: edited([rows[0], *rows[:0:-1]]).encode(),
  'twice': lambda rows: edited([*rows, *rows[1:]]).encode(),
  '1.5': lambda rows: edited([*rows, ['4.5', *rows[1][1:]]]).encode(),
  'xlsx': lambda rows: b'PK\x03\x04\xff\xfe\x00\x00\r\n',
  'zeros': lambda rows: edited(rows).encode() + bytes(512) + b'\r\n',
  'quote': lambda rows: edited(rows).encode() + b'"' + b'x' * 200_000 + b'\r\n',
}


@pytest.mark.parametrize('case', [*SPREADSHEETS, *UNREADABLE])
def test_a_csv_file_that_a_spreadsheet_changed_is_kept_and_read_if_it_can_be(
  tmp_path, caplog, case
):
  write_run(tmp_path, 0, 3)
  path = tmp_path / 'metrics.csv'
  with open(path, newline='') as file:
    rows = list(csv.reader(file))
  before = read_rows(tmp_path)
  content = (SPREADSHEETS | UNREADABLE)[case](rows)
  path.write_bytes(content)
  for _ in range(2):  # The second finds its own file, which is not kept.
    write_run(tmp_path, 3, 4)
  kept = before if case in SPREADSHEETS else []
  assert read_rows(tmp_path)[:-1] == kept
  assert read_rows(tmp_path)[-1]['step'] == '4'
  assert kept_aside(tmp_path) == {'metrics.csv.damaged': content}
  (line,) = [r.getMessage() for r in caplog.records]
  assert line.count('\n') == 0
  assert line.startswith(f'{path} is not as training wrote it (')
  reads = 'its rows are continued' if kept else 'a new one begins'
  assert f'kept as metrics.csv.damaged, {reads} after step 3.' in line


def test_a_file_set_aside_replaces_no_other(tmp_path, caplog):
  for number in range(3):
    (tmp_path / 'metrics.csv').write_text(f'{number}\r\n')
    write_run(tmp_path, 0, 1)
  names = ['metrics.csv.damaged', 'metrics.csv.damaged.2']
  assert sorted(kept_aside(tmp_path)) == [*names, 'metrics.csv.damaged.3']
  assert kept_aside(tmp_path)[names[0]] == b'0\r\n'


def test_a_folder_in_place_of_the_csv_file_is_set_aside(tmp_path, caplog):
  (tmp_path / 'metrics.csv').mkdir()
  write_run(tmp_path, 0, 1)
  assert (tmp_path / 'metrics.csv.damaged').is_dir()
  assert [row['step'] for row in read_rows(tmp_path)] == ['1']


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_an_unchanged_csv_file_is_continued_without_a_word(
  tmp_path, caplog, end
):
  write_run(tmp_path, 0, 3)
  path = tmp_path / 'metrics.csv'
  path.write_bytes(path.read_bytes().replace(b'\r\n', end.encode()))
  write_run(tmp_path, 2, 3)
  assert [row['step'] for row in read_rows(tmp_path)] == ['1', '2', '3']
  assert kept_aside(tmp_path) == {} and caplog.records == []


def test_a_last_line_without_its_end_is_lost_only_if_it_is_not_needed(
  tmp_path, caplog
):
  write_run(tmp_path, 0, 3)
  path = tmp_path / 'metrics.csv'
  content = path.read_bytes()[:-2]
  path.write_bytes(content)
  write_run(tmp_path, 2, 2)  # Step 3 will be written again.
  assert kept_aside(tmp_path) == {} and caplog.records == []
  path.write_bytes(content)
  write_run(tmp_path, 3, 4)
  assert kept_aside(tmp_path) == {'metrics.csv.damaged': content}
  assert [row['step'] for row in read_rows(tmp_path)] == ['1', '2', '4']


def _killed(*_):
  raise KeyboardInterrupt


@pytest.mark.parametrize('tag', [*metrics.TRAIN_TAGS])
@pytest.mark.parametrize('is_first', [True, False])
def test_a_listed_tag_that_is_not_computed_is_an_error_that_names_it(
  tmp_path, monkeypatch, tag, is_first
):
  monkeypatch.setattr(metrics.processes, 'is_first', lambda: is_first)
  writer = metrics.MetricsWriter(tmp_path, True, 0)
  values = {name: x for name, x in train_row(1).items() if name != tag}
  with pytest.raises(
    KeyError, match=f'{tag}: listed in metrics.py, but not computed'
  ):
    writer.scalars(1, 0.5, values)
  writer.close()
  assert not is_first or read_rows(tmp_path) == []


@pytest.mark.parametrize('tag', ['train/new', 'eval_five_view/loss'])
@pytest.mark.parametrize('is_first', [True, False])
def test_a_computed_tag_that_is_not_listed_is_an_error_that_names_it(
  tmp_path, monkeypatch, tag, is_first
):
  monkeypatch.setattr(metrics.processes, 'is_first', lambda: is_first)
  writer = metrics.MetricsWriter(tmp_path, True, 0)  # With flips: ten views.
  with pytest.raises(KeyError, match=f'{tag}: computed, but not listed in'):
    writer.scalars(1, 0.5, train_row(1) | {tag: 0.5})
  writer.close()
  assert not is_first or read_rows(tmp_path) == []


def test_one_error_names_all_tags_that_are_missing_or_unknown():
  with pytest.raises(KeyError) as error:
    metrics.check_tags({'a': 1.0, 'y': 1.0, 'x': 1.0}, ('a', 'b', 'c'), ('d',))
  assert error.value.args == (
    'b, c: listed in metrics.py, but not computed;'
    ' x, y: computed, but not listed in metrics.py',
  )
  metrics.check_tags({'a': 1.0, 'd': 1.0}, ('a',), ('d', 'e'))


def test_a_metric_of_evaluation_without_a_sum_is_an_error_that_names_it():
  totals = metrics.Totals()
  totals.add({'loss': np.ones(()), 'count': np.ones(())})
  with pytest.raises(KeyError, match='top9_error: listed .* not computed'):
    totals.means(('loss', 'top9_error'))


def test_a_sum_that_is_not_listed_is_an_error_that_names_it():
  sums = {'loss': np.ones(()), 'margin': np.ones(()), 'count': np.ones(())}
  with pytest.raises(KeyError, match='margin: computed, but not listed in'):
    metrics.Totals().add(sums)


@pytest.mark.parametrize(
  ('flip', 'many'), [(True, 'eval_ten_view'), (False, 'eval_five_view')]
)
def test_the_tags_of_evaluation(tmp_path, flip, many):
  names = ('loss', 'top1_error', 'top5_error')
  expected = [f'{prefix}/{name}' for prefix in ('eval', many) for name in names]
  assert metrics.eval_tags(flip) == expected
  writer = metrics.MetricsWriter(tmp_path, flip, 0)
  writer.scalars(1, 0.5, train_row(1) | dict.fromkeys(expected, 0.5))
  writer.close()
  (row,) = read_rows(tmp_path)
  assert list(row) == ['step', 'epoch', *metrics.TRAIN_TAGS, *expected]
  assert {row[tag] for tag in expected} == {'0.5'}


@pytest.mark.parametrize(
  ('error', 'expected'),
  [
    (None, [True]),
    (FloatingPointError, [False]),
    (OSError, [False]),
    (KeyboardInterrupt, []),
    (SystemExit, []),
  ],
)
def test_only_a_run_that_ends_has_succeeded_and_only_an_error_has_failed(
  tmp_path, monkeypatch, error, expected
):
  ends = []
  end = lambda _, succeeded: ends.append(succeeded)
  monkeypatch.setattr('alexnet_jax.events.EventWriter.end', end)
  with contextlib.suppress(BaseException):
    with metrics.MetricsWriter(tmp_path, True, 0) as writer:
      writer.scalars(1, 0.5, train_row(1))
      if error is not None:
        raise error
  assert ends == expected
  assert scalar_points(tmp_path, 'train/loss') == [(1, 0.125)]


def test_a_full_disk_does_not_replace_the_error_that_ended_the_run(
  tmp_path, monkeypatch
):
  def end(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr('alexnet_jax.events.EventWriter.end', end)
  with pytest.raises(OSError, match='checkpoint 4 is whole'):
    with metrics.MetricsWriter(tmp_path, True, 0):
      raise OSError(errno.ENOSPC, 'checkpoint 4 is whole')
  with pytest.raises(OSError, match='No space left'):
    with metrics.MetricsWriter(tmp_path, True, 0):
      pass


def test_other_processes_than_the_first_write_nothing(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(metrics.processes, 'is_first', lambda: False)
  writer = metrics.MetricsWriter(tmp_path, True, 0)
  writer.scalars(1, 0.5, train_row(1))
  writer.close()
  assert writer.events is None
  assert os.listdir(tmp_path) == []
  assert capfd.readouterr() == ('', '')


def test_progress_prints_plain_lines_where_there_is_no_terminal(
  capsys, monkeypatch
):
  clock = iter([103.5, 109.5])  # The first step is done; the report.
  monkeypatch.setattr(
    progress_lib, 'time', types.SimpleNamespace(time=lambda: next(clock))
  )
  progress = progress_lib.Progress(4, 10, began=100.0)
  for _ in range(3):
    progress.update()
  row = {'train/loss': 2.5, 'train/top1_error': 0.125}
  row |= {'eval/loss': 2.25, 'eval/top5_error': 0.5, 'eval_ten_view/loss': 2.0}
  progress.report(7, 0.5, row)
  progress.close()
  out, err = capsys.readouterr()
  # Two steps in the 6 s since the first one; three are left.
  assert out.splitlines() == [
    'first step done 3.5 s after the start',
    'step 7/10  epoch 0.50  loss 2.5  top-1 12.50%  left 00:09',
    '  eval  loss 2.25  top-5 50.00%',
    '  eval_ten_view  loss 2',
  ]
  assert '\r' not in out + err and 'it/s' not in err


@pytest.mark.parametrize('terminal', [False, True])
def test_progress_is_silent_in_other_processes_than_the_first(
  capfd, monkeypatch, terminal
):
  for stream in (sys.stdout, sys.stderr):
    monkeypatch.setattr(stream, 'isatty', lambda: terminal)
  values = {'train/loss': 2.5, 'eval/loss': 2.5}
  for is_first in (True, False):  # The first shows that it would be seen.
    monkeypatch.setattr(
      metrics.processes, 'is_first', functools.partial(bool, is_first)
    )
    progress = progress_lib.Progress(0, 2, began=0.0)
    progress.update()
    progress.report(1, 0.5, values)
    progress.close()
    out, err = capfd.readouterr()
    assert (bool(out), bool(err)) == (is_first, terminal and is_first)


def test_no_line_is_longer_than_a_screen_is_wide(capsys):
  values = dict.fromkeys(metrics.TRAIN_TAGS, 0.123456)
  values |= dict.fromkeys(metrics.eval_tags(True), 0.123456)
  progress = progress_lib.Progress(0, 2_000_000, began=time.time() - 3e6)
  progress.report(1_999_999, 89.99, values)
  progress.close()
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3
  assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(('classes', 'is_shown'), [(5, False), (6, True)])
def test_top5_errors_of_at_most_five_classes_are_in_the_csv_file_alone(
  tmp_path, capsys, classes, is_shown
):
  row = train_row(1) | {'eval/top1_error': 0.5, 'eval/top5_error': 0.0}
  with metrics.MetricsWriter(tmp_path, True, 0, classes) as writer:
    writer.scalars(1, 0.5, row)
  progress = progress_lib.Progress(0, 2, 0.0, classes)
  progress.report(1, 0.5, row)
  progress.close()
  tags = read_events(tmp_path).Tags()['scalars']
  assert {'eval/top1_error'} <= {*tags}
  assert ('eval/top5_error' in tags) == is_shown
  assert ('top-5' in capsys.readouterr().out) == is_shown
  assert 'eval/top5_error' in (tmp_path / 'metrics.csv').read_text()


def test_the_first_two_groups_of_tensorboard_are_the_curves():
  tags = map(metrics.event_tag, [*metrics.TRAIN_TAGS, *metrics.eval_tags(True)])
  groups = sorted({tag.partition('/')[0] for tag in tags})
  assert groups == ['eval', 'train', 'views']
  assert metrics.event_tag('eval_five_view/loss') == 'views/five_loss'


def test_a_logged_line_does_not_follow_the_bar_in_its_line(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  handler = logging.StreamHandler(sys.stderr)
  monkeypatch.setattr(logging.getLogger(), 'handlers', [handler])
  shown = progress_lib.Progress(0, 8, time.time())
  logging.getLogger().warning('Compiling.')
  shown.close()
  logging.getLogger().warning('Ended.')
  bar, line = capsys.readouterr().err.split('Compiling.\n')
  assert '0/8' in bar and bar.endswith('\r')
  assert line.endswith('\nEnded.\n') and handler.filters == []
