"""The step's benchmark: operations counted by hand, one net in two libraries."""

import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import interleaved
from benchmarks import layers
from benchmarks import memory
from benchmarks import report
from benchmarks import saving
from benchmarks import train_step


def test_operations_are_those_of_section_3_5_by_hand():
  # Outputs x (kernel x input maps that it sees).
  assert layers.macs() == {
    'conv1': 55 * 55 * 96 * (11 * 11 * 3),
    'conv2': 27 * 27 * 256 * (5 * 5 * 48),
    'conv3': 13 * 13 * 384 * (3 * 3 * 256),
    'conv4': 13 * 13 * 384 * (3 * 3 * 192),
    'conv5': 13 * 13 * 256 * (3 * 3 * 192),
    'fc6': 9216 * 4096,
    'fc7': 4096 * 4096,
    'fc8': 4096 * 1000,
  }
  assert layers.train_flops() == pytest.approx(4.1356e9, rel=1e-5)


@pytest.mark.slow  # It compiles the parts of the full net.
def test_the_parts_have_all_operations_of_a_step(monkeypatch):
  seen = []

  def run(function, arguments, rounds):
    if arguments:  # The update keeps its own.
      seen.append(jax.eval_shape(function, *arguments))
    return 0.5 * len(seen)

  monkeypatch.setattr(layers, '_median', run)
  rows = layers.seconds(2, 'float32', 1)
  total = sum(row['gflop'] for row in rows)
  assert total == pytest.approx(2 * layers.train_flops() / 1e9)
  assert [row['name'] for row in rows if row['gflop']] == list(layers.macs())
  assert [row['name'] for row in rows][-2:] == ['augmentation', 'update']
  # What is timed second is all of it: less the forward half.
  assert rows[0]['forward_seconds'] == rows[0]['backward_seconds'] == 0.5
  assert seen[0].shape == (2, 55, 55, 96)
  assert seen[1][0].shape == (2, 55, 55, 96)  # Beside the gradients.


def test_many_calls_share_one_wait(monkeypatch):
  calls = []
  monkeypatch.setattr(layers, 'calls_at_once', lambda: 4)
  slow = lambda x: calls.append(x) or time.sleep(0.01)
  seconds = layers._median(slow, (1,), rounds=3)
  assert calls == [1] * (1 + 3 * 4)
  assert 0.01 <= seconds < 0.03


def test_both_nets_are_one():
  torch_alexnet = pytest.importorskip('benchmarks.torch_alexnet')
  net = torch_alexnet.AlexNet()
  assert sum(p.numel() for p in net.parameters()) == 60_965_224
  assert train_step.logits_difference() < 1e-4  # Float32, eight layers.


def test_both_norms_of_pytorch_are_one():
  torch = pytest.importorskip('torch')
  torch_alexnet = pytest.importorskip('benchmarks.torch_alexnet')
  x = 100 * torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0))
  torch.testing.assert_close(
    torch_alexnet._stock_norm(x), torch_alexnet._fusible_norm(x)
  )


@pytest.mark.slow  # It compiles the full net.
def test_a_process_times_its_own_work():
  process = train_step.Process(train_step.OURS, 1, 'float32', train=False)
  assert process() < 0.01  # It only compiles, which does not count.
  seconds = process()
  assert 0 < seconds < 60
  assert 10e6 < process.close() < 100e9  # Bytes.


def test_a_turn_has_its_steps_and_its_seconds(monkeypatch):
  steps = []
  monkeypatch.setattr(interleaved, 'TURN', (3, 0.0))
  assert 0 < interleaved.mean_seconds(steps.append) < 0.1
  assert steps == [1, 1, 1]
  steps.clear()
  assert interleaved.mean_seconds(lambda n: time.sleep(0.01 * n), 5) < 0.02
  interleaved.mean_seconds(steps.append, at_once=2)
  assert steps == [2, 2]
  monkeypatch.setattr(interleaved, 'TURN', (1, 0.05))
  seconds = interleaved.mean_seconds(
    lambda number: steps.append(time.sleep(0.02))
  )
  assert len(steps) >= 3 + 2
  assert seconds >= 0.02


def test_the_bar_is_held_against_the_best_where_ours_does_worst():
  result = lambda *medians: {
    'ratios': {str(m): {'median': m, 'least': 0.0} for m in medians}
  }
  results = [result(1.2, 1.1, 1.4), result(1.05, 1.3)]
  assert train_step.least_ratio(results) == 1.05


def test_a_wrong_flag_ends_the_command_at_once():
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.train_step', '--batches=32,x'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert 'takes whole numbers above 0' in done.stderr
  assert 'Traceback' not in done.stderr


def test_a_stray_word_is_no_flag(monkeypatch):
  called = []
  monkeypatch.setattr(report.app, 'run', lambda main: main(['x', 'quick']))
  with pytest.raises(SystemExit, match='quick is not a flag'):
    report.run(called.append)
  assert not called


def test_seconds_of_its_own_count_instead_of_the_wall():
  taken = interleaved.seconds({'own': lambda: 7.0, 'wall': lambda: None}, 3)
  assert taken['own'] == [7.0] * 3
  assert all(0 <= s < 1 for s in taken['wall'])


def test_peak_memory_grows_by_what_is_touched():
  before = report.peak_bytes()
  np.ones(300_000_000, np.uint8)
  assert 200e6 < report.peak_bytes() - before < 400e6 or before > 1e9


def test_a_save_is_timed_with_the_change_after_it():
  found, state = saving.one_save({'w': jax.numpy.ones((1000, 1000))})
  assert state['w'][0, 0] == 1 + 3  # One before, one without, one after.
  assert found[saving.WHOLE] > found[saving.BLOCKED] + found[saving.AFTER]
  assert min(found.values()) > 0


def test_ten_times_the_images_are_ten_times_the_links(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(b'a')
  paths = memory.photographs(str(tmp_path))
  memory.make_folder(tmp_path / 'links', paths, 12)
  links = sorted((tmp_path / 'links/train/class').iterdir())
  assert len(links) == 12
  assert {link.read_bytes() for link in links} == {b'a'}


def test_a_folder_without_photographs_is_one_line(tmp_path):
  with pytest.raises(SystemExit) as ended:
    memory.photographs(str(tmp_path))
  assert str(ended.value) == f'--folder={tmp_path} holds no JPEG'


def test_figures_are_kept_with_where_they_are_of(tmp_path):
  report.write(tmp_path / 'figures.json', {'a': [1]})
  found = json.loads((tmp_path / 'figures.json').read_text())
  assert found['figures'] == {'a': [1]}
  assert {'machine', 'cores', 'jax', 'commit', 'command'} <= set(
    found['environment']
  )
