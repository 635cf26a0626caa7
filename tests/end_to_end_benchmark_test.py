"""The benchmark of the whole run: what it takes, and which side it blames."""

import itertools
from unittest import mock

import jax
import numpy as np
import pytest

from alexnet_jax import digits
from alexnet_jax import images
from alexnet_jax import run as run_lib
from benchmarks import end_to_end as benchmark
from configs import quickstart

STEPS, ROUNDS = 3, 2


@pytest.fixture(scope='module')
def run(data_dir):
  config = quickstart.get_config()
  config.model.conv_features = (4, 8, 8, 8, 8)
  config.model.fc_features = (16, 16)
  config.input.data_dir = str(data_dir)
  config.input.batch_size = 16
  config.mesh.layout = 'data'
  digits.prepare_if_missing(config)
  return run_lib.open_run(config)


def test_all_kinds_are_measured(run, monkeypatch):
  taken = []
  steps = benchmark.train.run_steps

  def count(step, state, batches, inputs, done, progress):
    stop = done + inputs.__length_hint__()
    taken.append((done, stop, type(batches) is itertools.repeat))
    return steps(step, state, batches, inputs, done, progress)

  monkeypatch.setattr(benchmark.train, 'run_steps', count)
  decode = mock.Mock(side_effect=images.decode)
  monkeypatch.setattr(images, 'decode', decode)
  found = benchmark.measure_kinds(run, STEPS, ROUNDS)
  assert {name: len(segments) for name, segments in found.items()} == {
    'real': ROUNDS,
    'synthetic': ROUNDS,
    'host alone': ROUNDS,
    'first epoch': ROUNDS,
    'uncached': ROUNDS,
  }
  for segments in found.values():
    assert all(s.images_per_second > 0 < s.cpu_seconds for s in segments)
  # The cache was filled first; what the other kinds take is less than an epoch.
  assert 1497 < decode.call_count < 2 * 1497
  # One training of all segments, each drained first; order turns every round.
  lengths = [stop - done for done, stop, _ in taken]
  assert lengths == [benchmark.DRAIN, 1] * 4 + [benchmark.DRAIN, STEPS] * 8
  assert [begin for begin, _, _ in taken[1:]] == [e for _, e, _ in taken[:-1]]
  same = [same for _, _, same in taken[::2]]
  turned = [False, False, True, False]  # Uncached, first, synthetic, real.
  assert same == [*turned, *turned[::-1], *turned]


def test_the_host_alone_counts_what_comes_after_the_buffers():
  batches = ({'label': np.zeros(n)} for n in itertools.count())
  benchmark.drained(batches, 4)
  assert len(next(batches)['label']) == benchmark.DRAIN + 4


def test_where_the_host_delivers_more_the_device_is_the_limit():
  rates = {
    'real': [90.0, 96.0, 99.0],
    'synthetic': [100.0, 100.0, 100.0],
    'host alone': [250.0, 200.0, 350.0],
  }
  figure, line = benchmark.judge(rates, shared=False)
  assert figure == 0.96
  assert line == (
    'the device is the limit: the host alone delivers 2.50 times what it takes'
  )


def test_where_the_host_delivers_less_it_is_the_limit():
  rates = {
    'real': [45.0, 48.0, 49.0],
    'synthetic': [100.0, 100.0, 100.0],
    'host alone': [50.0, 50.0, 50.0],
  }
  figure, line = benchmark.judge(rates, shared=False)
  assert figure == 0.96
  assert line == (
    'the host is the limit: the device alone takes 2.00 times what it delivers'
  )


def test_what_sharing_the_cores_costs():
  # 10 ms on the device, and 5 CPU-ms of the host on two cores: 12.5 ms.
  segments = {
    'synthetic': [benchmark.Segment(100.0, 0.02, 0.0)],
    'host alone': [benchmark.Segment(400.0, 0.005, 0.0)],
  }
  assert benchmark.sharing(segments, 2) == pytest.approx(0.8)


def test_a_save_is_timed_with_the_change_after_it():
  found, state = benchmark.one_save({'w': jax.numpy.ones((1000, 1000))})
  assert state['w'][0, 0] == 1 + 3  # One before, one without, one after.
  whole, blocked = found[benchmark.WHOLE], found[benchmark.BLOCKED]
  assert whole > blocked + found[benchmark.AFTER]
  assert min(found.values()) > 0
