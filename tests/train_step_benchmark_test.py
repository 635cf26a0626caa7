"""The step's benchmark: operations counted by hand, one net in two libraries."""

import subprocess
import sys
import time

import jax
import pytest

from benchmarks import harness
from benchmarks import layer_times
from benchmarks import train_step


def test_operations_are_those_of_section_3_5_by_hand():
  # Outputs x (kernel x input maps that it sees).
  assert layer_times.macs() == {
    'conv1': 55 * 55 * 96 * (11 * 11 * 3),
    'conv2': 27 * 27 * 256 * (5 * 5 * 48),
    'conv3': 13 * 13 * 384 * (3 * 3 * 256),
    'conv4': 13 * 13 * 384 * (3 * 3 * 192),
    'conv5': 13 * 13 * 256 * (3 * 3 * 192),
    'fc6': 9216 * 4096,
    'fc7': 4096 * 4096,
    'fc8': 4096 * 1000,
  }
  assert layer_times.train_flops() == pytest.approx(4.1356e9, rel=1e-5)


@pytest.mark.slow  # It compiles the parts of the full net.
def test_the_parts_have_all_operations_of_a_step(monkeypatch):
  seen = []

  def run(function, arguments, rounds):
    if arguments:  # The update keeps its own.
      seen.append(jax.eval_shape(function, *arguments))
    return 0.5 * len(seen)

  monkeypatch.setattr(layer_times, '_median', run)
  rows = layer_times.seconds(2, 'float32', 1)
  total = sum(row['gflop'] for row in rows)
  assert total == pytest.approx(2 * layer_times.train_flops() / 1e9)
  assert [row['name'] for row in rows if row['gflop']] == list(
    layer_times.macs()
  )
  assert [row['name'] for row in rows][-2:] == ['augmentation', 'update']
  # What is timed second is all of it: less the forward half.
  assert rows[0]['forward_seconds'] == rows[0]['backward_seconds'] == 0.5
  assert seen[0].shape == (2, 55, 55, 96)
  assert seen[1][0].shape == (2, 55, 55, 96)  # Beside the gradients.


def test_many_calls_share_one_wait(monkeypatch):
  calls = []
  monkeypatch.setattr(harness, 'steps_per_wait', lambda: 4)
  slow = lambda x: calls.append(x) or time.sleep(0.01)
  seconds = layer_times._median(slow, (1,), rounds=3)
  assert calls == [1] * 4 * (1 + 3)  # The first round warms up.
  assert 0.01 <= seconds < 0.03


def test_both_nets_are_one():
  torch_net = pytest.importorskip('tests.torch_net')
  net = torch_net.AlexNet()
  assert sum(p.numel() for p in net.parameters()) == 60_965_224
  assert torch_net.logits_difference() < 1e-4  # Float32, eight layer_times.


def test_both_norms_of_pytorch_are_one():
  torch = pytest.importorskip('torch')
  torch_net = pytest.importorskip('tests.torch_net')
  x = 100 * torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0))
  torch.testing.assert_close(
    torch_net._stock_norm(x), torch_net._fusible_norm(x)
  )


@pytest.mark.slow  # It compiles the full net.
def test_a_worker_times_its_own_work():
  worker = train_step.start_worker(train_step.OURS, 1, 'float32')
  assert worker()[0] == 0  # It only compiles, which does not count.
  seconds, peak_bytes = worker()
  worker.close()
  assert 0 < seconds < 60
  assert 10e6 < peak_bytes < 100e9


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
