"""The benchmark of the operations in a step: what it reads from a trace."""

import pathlib
import time
import types

import jax
import jax.numpy as jnp
import pytest

from benchmarks import operations


# A type of jaxlib 0.12 has no __module__, and ends Python if that is an error.
@pytest.mark.filterwarnings('ignore:builtin type event_stats')
def test_the_operations_of_a_traced_program_and_their_sources(tmp_path):
  def program(x):
    with jax.named_scope('conv7'):
      x = jnp.sort(jnp.sin(x) @ x)
    return x

  compiled = jax.jit(program).lower(jnp.ones((300, 300))).compile()
  x = jax.block_until_ready(compiled(jnp.ones((300, 300))))
  with jax.profiler.trace(str(tmp_path)):
    began = time.perf_counter()
    jax.block_until_ready(compiled(x))
    whole = time.perf_counter() - began
  found = operations.seconds_by_operation(str(tmp_path))
  sources = operations.sources(compiled.as_text())
  assert list(found.values()) == sorted(found.values(), reverse=True)
  assert all(0 < seconds < whole for seconds in found.values())
  named = {operations.layer(sources.get(name, '')) for name in found}
  assert 'conv7' in named
  assert any('sort' in name for name in found)


def test_the_operations_of_a_tpu_are_named_by_their_events(monkeypatch):
  # As the profiler of a TPU is described; none was at hand.
  event = lambda name, **stats: types.SimpleNamespace(
    name=name, stats=stats.items(), duration_ns=2e9
  )
  line = lambda name, *events: types.SimpleNamespace(name=name, events=events)
  plane = types.SimpleNamespace(
    lines=[
      line('XLA Ops', *2 * [event('%fusion.3 = f32[8] fusion(%x)', size=1)]),
      line('Steps', event('7')),
    ]
  )
  found = types.SimpleNamespace(planes=[plane])
  monkeypatch.setattr(jax.profiler.ProfileData, 'from_file', lambda _: found)
  monkeypatch.setattr(pathlib.Path, 'rglob', lambda *_: ['a.xplane.pb'])
  assert operations.seconds_by_operation('folder') == {'fusion.3': 4.0}


def test_the_layer_of_a_source():
  step = 'jit(train_step)/'
  assert (
    operations.layer(step + 'jvp(AlexNet)/AlexNet._conv/conv2/split') == 'conv2'
  )
  backward = step + 'transpose(jvp(AlexNet))/AlexNet._dense/fc6/dot_general'
  assert operations.layer(backward) == 'fc6 backward'
  assert operations.layer(step + 'jvp(AlexNet)/reduce_window_max') == ''
  assert operations.layer('') == ''
