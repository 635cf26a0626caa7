"""Metrics against NumPy loops, and the files as TensorBoard and csv read them."""

import csv
import inspect
import math
import os
import sys
import types

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import metrics
from alexnet_jax import pictures


def read_rows(workdir):
  with open(workdir / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def read_events(workdir):
  guidance = {'scalars': 0, 'images': 0}  # 0: keep all.
  events = event_accumulator.EventAccumulator(str(workdir), guidance)
  return events.Reload()


def scalar_points(workdir, tag):
  return [(e.step, e.value) for e in read_events(workdir).Scalars(tag)]


def write_run(workdir, start, stop):
  """Steps after `start` to `stop`, with a/x = step / 8: exact in float32."""
  writer = metrics.MetricsWriter(workdir, ('a/x', 'a/y'), start)
  for step in range(start + 1, stop + 1):
    writer.scalars(step, step / 2, {'a/x': step / 8})
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
  sums = metrics.batch_sums(*map(jnp.asarray, (log_probs, labels, mask)))
  expected = expected_sums(log_probs, labels, mask)
  assert {k: float(v) for k, v in sums.items()} == expected
  assert (expected['top5_error'] > 0) == (classes >= 6)


def test_ties_count_against_the_net():
  uniform = jnp.full((2, 10), -math.log(10))
  sums = metrics.batch_sums(uniform, jnp.array([0, 9]), jnp.array([True, True]))
  assert (sums['top1_error'], sums['top5_error']) == (2, 2)


@pytest.mark.parametrize('nan_at', [slice(None), 1], ids=['all', 'label'])
def test_nan_counts_as_an_error(nan_at):
  log_probs = np.log(np.array([[0.05, 0.9, 0.05]], np.float32))
  log_probs[0, nan_at] = np.nan
  sums = metrics.batch_sums(
    jnp.asarray(log_probs), jnp.array([1]), jnp.array([True])
  )
  assert (sums['top1_error'], sums['top5_error']) == (1, 1)
  assert np.isnan(sums['loss'])


def test_masked_nan_leaves_the_sums_finite():
  log_probs = jnp.array([[-1.0, -2.0], [jnp.nan, jnp.nan]])
  sums = metrics.batch_sums(
    log_probs, jnp.array([0, 0]), jnp.array([True, False])
  )
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
  assert totals.means('eval', ('loss', 'top1_error')) == {
    'eval/loss': 2.5,
    'eval/top1_error': 0.75,
  }


def test_totals_add_in_double_precision():
  totals = metrics.Totals()
  for loss in (2.0**24, 1.0, 1.0):  # In float32, 2 ** 24 + 1 is 2 ** 24.
    totals.add({'loss': np.array(loss, 'float32'), 'count': np.ones(())})
  assert totals.sums['loss'] == 2**24 + 2


def test_csv_has_a_row_per_step_and_blanks_for_what_was_not_measured(tmp_path):
  write_run(tmp_path, 0, 2)
  assert read_rows(tmp_path) == [
    {'step': '1', 'epoch': '0.5000', 'a/x': '0.125', 'a/y': ''},
    {'step': '2', 'epoch': '1.0000', 'a/x': '0.25', 'a/y': ''},
  ]


def test_rows_and_points_are_in_the_files_before_the_writer_is_closed(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, ('a/x',), 0)
  writer.scalars(1, 0.5, {'a/x': 0.125})
  assert [row['step'] for row in read_rows(tmp_path)] == ['1']
  assert scalar_points(tmp_path, 'a/x') == [(1, 0.125)]
  writer.close()


def test_every_step_is_there_once_after_a_rewind(tmp_path):
  write_run(tmp_path, 0, 6)
  write_run(tmp_path, 4, 8)
  write_run(tmp_path, 7, 9)
  expected = [(step, step / 8) for step in range(1, 10)]
  rows = [(int(r['step']), float(r['a/x'])) for r in read_rows(tmp_path)]
  assert rows == expected
  assert scalar_points(tmp_path, 'a/x') == expected


def test_step_0_starts_anew(tmp_path):
  write_run(tmp_path, 0, 6)
  write_run(tmp_path, 0, 2)
  assert [row['step'] for row in read_rows(tmp_path)] == ['1', '2']
  assert scalar_points(tmp_path, 'a/x') == [(1, 0.125), (2, 0.25)]


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
      metrics.MetricsWriter(tmp_path, ('a/x', 'a/y'), 2)
  write_run(tmp_path, 2, 3)
  assert [row['step'] for row in read_rows(tmp_path)] == ['1', '2', '3']


def _killed(*_):
  raise KeyboardInterrupt


def public_methods(cls):
  return {
    name: inspect.signature(member)
    for name, member in vars(cls).items()
    if not name.startswith('_')
  }


def test_the_null_writer_has_the_methods_of_the_writer():
  methods = public_methods(metrics.MetricsWriter)
  assert {'scalars', 'image', 'hyperparameters', 'close'} <= methods.keys()
  assert public_methods(metrics.NullWriter) == methods


def test_the_null_writer_writes_nothing(tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  writer = metrics.NullWriter()
  writer.hyperparameters({'a.rate': 0.5}, 'a/x')
  writer.scalars(1, 0.5, {'a/x': 0.125})
  writer.image(1, 'a/picture', np.zeros((2, 2, 3), np.uint8))
  writer.close()
  assert os.listdir(tmp_path) == []
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('spec', [None, (), ('x',), ('x', 'y'), (None, 'y')])
def test_what_is_fetched_is_numpys_whole_array(spec):
  values = np.arange(32, dtype=np.float32).reshape(4, 8)
  if spec is None:
    place = jax.devices()[0]
  else:
    mesh = jax.make_mesh((2, 2), ('x', 'y'), (AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec(*spec))
  tree = {'on_device': jax.device_put(values, place), 'on_host': values[0]}
  found = mesh_lib.fetch(tree)
  assert {type(x) for x in found.values()} == {np.ndarray}
  np.testing.assert_array_equal(found['on_device'], values, strict=True)
  np.testing.assert_array_equal(found['on_host'], values[0], strict=True)


def test_parts_of_other_processes_may_be_fetched_where_transfers_are_guarded(
  monkeypatch,
):
  class Part:
    is_fully_addressable = is_fully_replicated = False

  def gather(part, tiled):
    # On CPU, where a read needs no transfer, the guard would not notice it.
    assert tiled
    return jax.config.jax_transfer_guard_device_to_host

  monkeypatch.setattr(metrics.jax, 'Array', Part)
  monkeypatch.setattr(metrics.multihost_utils, 'process_allgather', gather)
  with jax.transfer_guard('disallow'):
    assert metrics._whole(Part()) == 'allow'


def test_image_grid_puts_images_in_rows_with_white_lines_between():
  grays = np.array([10, 20.6, 300, -5, 40], np.float32)  # Rounded and clipped.
  images = np.ones((5, 2, 3, 3), np.float32) * grays[:, None, None, None]
  picture = pictures.image_grid(images, 3)
  line = [255]
  row = lambda a, b, c: [a] * 3 + line + [b] * 3 + line + [c] * 3 + line
  white = [255] * 12
  upper, lower = row(10, 21, 255), row(0, 40, 255)
  expected = np.array([upper, upper, white, lower, lower, white], np.uint8)
  assert picture.dtype == np.uint8
  np.testing.assert_array_equal(picture, np.stack([expected] * 3, -1))


def test_kernel_grid_shows_tower_0_above_tower_1_each_kernel_at_full_range():
  # One bright pixel per kernel, its place telling the kernel; odd scales.
  kernels = np.zeros((2, 2, 3, 4), np.float32)
  places = [(0, 0), (0, 1), (1, 0), (1, 1)]
  for feature, (y, x) in enumerate(places):
    kernels[..., feature] = -feature
    kernels[y, x, :, feature] = 10**feature
  picture = pictures.kernel_grid(kernels, zoom=1)[..., 0]
  # Each of the two rows: two kernels with a line right of and below each;
  # a line of `zoom` pixels between the towers.
  expected = [
    [255, 0, 255, 0, 255, 255],
    [0, 0, 255, 0, 0, 255],
    [255] * 6,
    [255] * 6,
    [0, 0, 255, 0, 0, 255],
    [255, 0, 255, 0, 255, 255],
    [255] * 6,
  ]
  np.testing.assert_array_equal(picture, expected)


def test_kernel_grid_zooms_every_weight_to_a_square_of_its_color():
  kernels = np.zeros((1, 2, 3, 2), np.float32)
  kernels[0, 0] = [[1, 1], [0.5, 0.5], [0, 0]]
  picture = pictures.kernel_grid(kernels, zoom=2)
  left = [255, 128, 0]  # 127.5 rounds to even.
  np.testing.assert_array_equal(picture[:2, :2], np.full((2, 2, 3), left))
  np.testing.assert_array_equal(picture[:2, 2:4], np.zeros((2, 2, 3)))


def test_kernel_grid_of_equal_weights_is_finite():
  assert (
    pictures.kernel_grid(np.ones((1, 1, 3, 2), np.float32), 1)[0, 0, 0] == 0
  )


def test_progress_prints_plain_lines_where_there_is_no_terminal(
  capsys, monkeypatch
):
  clock = iter([103.5, 109.5])  # The first step is done; the report.
  monkeypatch.setattr(
    metrics, 'time', types.SimpleNamespace(time=lambda: next(clock))
  )
  progress = metrics.Progress(4, 10, began=100.0)
  for _ in range(3):
    progress.update()
  progress.report(7, 0.5, {'train/loss': 2.5, 'train/top1_error': 0.125})
  progress.close()
  out, err = capsys.readouterr()
  # Two steps in the 6 s since the first one; three are left.
  assert out.splitlines() == [
    'first step done 3.5 s after the start',
    'step 7/10  epoch 0.50  train/loss 2.5  train/top1_error 12.50%'
    '  remaining 00:09',
  ]
  assert '\r' not in out + err and 'it/s' not in err


@pytest.mark.parametrize('terminal', [False, True])
def test_silent_progress_prints_nothing(capfd, monkeypatch, terminal):
  for stream in (sys.stdout, sys.stderr):
    monkeypatch.setattr(stream, 'isatty', lambda: terminal)
  values = {'train/loss': 2.5, 'eval/loss': 2.5}
  for silent in (False, True):  # The first shows that it would be seen.
    progress = metrics.Progress(0, 2, began=0.0, silent=silent)
    progress.update()
    progress.report(1, 0.5, values)
    progress.close()
    out, err = capfd.readouterr()
    assert (bool(out), bool(err)) == (not silent, terminal and not silent)
