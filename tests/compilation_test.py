"""Compiler options, and the cache of compiled programs on disk."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.runtime import compilation

PROGRAM = """
import sys
import jax
from alexnet_jax.runtime import compilation
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
compilation.enable_compilation_cache(sys.argv[1])
jax.jit(lambda x: 2 * x)(1.0)
print(seen.count('/jax/compilation_cache/cache_hits'))
"""


def hits(folder, **variables):
  """Number of cache hits in a process that compiles one program."""
  environment = os.environ.copy()
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, folder],
    capture_output=True,
    text=True,
    check=True,
    env=environment | variables,
  )
  return int(done.stdout)


def test_the_next_command_finds_compiled_programs_in_the_cache(tmp_path):
  folder = tmp_path / 'not' / 'there'
  assert hits(str(folder)) == 0
  assert any(folder.iterdir())
  assert hits(str(folder)) >= 1
  assert hits('') == 0
  assert hits('', JAX_COMPILATION_CACHE_DIR=str(folder)) == 0


@pytest.mark.parametrize(
  'folder, problem',
  [
    ('{tmp}/file/cache', 'Not a directory'),
    ('{tmp}/' + 256 * 'x', 'File name too long'),
    ('{tmp}/closed', 'is read-only'),
    ('~nobody-here/cache', 'there is no home folder for ~nobody-here/cache'),
    ('', None),
    ('gs://bucket/cache', None),
    ('{tmp}/new/folder', None),
  ],
)
def test_without_a_folder_to_write_there_is_one_line_and_no_cache(
  tmp_path, monkeypatch, caplog, folder, problem
):
  (tmp_path / 'file').write_text('')
  folder = folder.replace('{tmp}', str(tmp_path))
  if folder.endswith('closed'):  # For root nothing is.
    monkeypatch.setattr(os, 'access', lambda *_: False)
  set_to = {}
  monkeypatch.setattr(
    type(jax.config), 'update', lambda _, k, v: set_to.update({k: v})
  )
  compilation.enable_compilation_cache(folder)
  used = set_to['jax_compilation_cache_dir']
  assert used == (None if problem or not folder else folder)
  assert [problem in line for line in caplog.messages] == [True] * bool(problem)


@pytest.mark.parametrize('mode', [0o700, 0o755, 0o770, 0o777, 0o1777])
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path, caplog, mode):
  folder = tmp_path / 'cache'
  folder.mkdir()
  folder.chmod(mode)
  problem = compilation._problem(str(folder))
  assert ('other users may write' in problem) == bool(mode & 0o022)
  assert f'chmod go-w {folder}' in problem or not mode & 0o022


def test_the_cache_of_another_user_is_not_used(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'geteuid', lambda: 12345)
  assert 'belongs to another user' in compilation._problem(str(tmp_path))


def test_the_default_cache_is_this_users_alone(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  folder = tmp_path / '.cache/alexnet_jax/xla'
  for _ in range(2):
    assert (
      compilation._problem(os.path.expanduser(compilation.DEFAULT_DIR)) == ''
    )
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # Of an earlier version, with another umask.


@pytest.fixture
def untried(monkeypatch):
  """Forgets before and after a test which options XLA accepts."""
  compilation._accepted.cache_clear()
  yield
  compilation._accepted.cache_clear()


@pytest.mark.usefixtures('untried')
@pytest.mark.parametrize(
  'refused',
  [
    {'xla_cpu_no_such_option': 'LIBRARY_FUSION_TYPE_DOT'},
    {'xla_cpu_experimental_ynn_fusion_type': 'NO_SUCH_VALUE'},
  ],
)
def test_options_that_xla_refuses_are_left_out_and_named_once(
  monkeypatch, caplog, refused
):
  jit = jax.jit
  monkeypatch.setattr(
    jax, 'jit', lambda fn, compiler_options: jit(fn, compiler_options=refused)
  )
  assert [compilation.network_options() for _ in range(3)] == [{}] * 3
  (line,) = caplog.messages
  assert f'JAX {jax.__version__} does not accept' in line
  assert 'xla_cpu_experimental_ynn_fusion_type' in line


@pytest.mark.usefixtures('untried')
def test_options_that_xla_accepts_are_used(monkeypatch, caplog):
  jit = jax.jit
  monkeypatch.setattr(jax, 'jit', lambda fn, compiler_options: jit(fn))
  assert compilation.network_options() and compilation.inference_options()
  assert compilation.network_options() != compilation.inference_options()
  assert caplog.messages == []


def test_compiler_options_are_empty_on_other_backends_than_cpu(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert compilation.network_options() == compilation.inference_options() == {}


def test_options_that_compile_fast_give_the_same_results():
  draw = lambda key: jnp.exp(
    jax.random.normal(key, (999,)) @ jnp.ones((999, 9))
  )
  usual = jax.jit(draw)(jax.random.key(0))
  fast = jax.jit(draw, compiler_options=compilation.fast_compile_options())
  # Sums of 999 numbers in another order.
  np.testing.assert_allclose(fast(jax.random.key(0)), usual, rtol=1e-5)
