"""Work directories whose path the libraries of checkpoints misread."""

import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_path
from alexnet_jax.runtime import digests

STATE = {'w': np.arange(6, dtype=np.float32), 'step': np.int32(3)}


def opened(workdir, **kwargs):
  return contextlib.closing(checkpoint.Checkpoints(workdir, **kwargs))


def save(workdir, scale=1):
  workdir.mkdir(parents=True, exist_ok=True)
  with opened(workdir) as checkpoints:
    state = jax.tree.map(lambda x: jnp.asarray(x * scale), STATE)
    checkpoints.save(3, state, {'seed': 1}, 0.5)


def template():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.tree.map(np.array, STATE),
  )


def assert_restored(found):
  jax.tree.map(np.testing.assert_array_equal, found, STATE)


@pytest.mark.parametrize(
  'name',
  ['lr=[0.01]/run', 'x[0:3]', 'a\\b', 'end\\', '**', 'gs:', 'gs:/b', '\\[?]'],
)
def test_checkpoints_are_saved_and_read_under_any_name(tmp_path, name):
  workdir = tmp_path / 'in' / name
  save(workdir)
  with opened(workdir) as checkpoints:
    state, metadata = checkpoints.restore_latest(template(), lambda _: None)
  assert_restored(state)
  assert metadata == {'seed': 1}
  with opened(workdir, read_only=True) as checkpoints:
    assert_restored(checkpoints.restore(template(), 3))
  assert [path.name for path in workdir.iterdir()] == ['checkpoints']
  assert len([*(tmp_path / 'in').iterdir()]) == 1


def test_a_name_with_two_slashes_is_read(tmp_path):
  workdir = type(tmp_path)(f'/{tmp_path}')
  assert str(workdir).startswith('//')
  save(workdir)
  with opened(workdir) as checkpoints:
    assert_restored(checkpoints.restore(template(), 3))


def test_a_folder_that_the_name_would_match_is_left_alone(tmp_path):
  temporary = 'checkpoints/3.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp'
  save(tmp_path / 'ab', scale=7)
  shutil.copytree(
    tmp_path / 'ab/checkpoints/3/state', tmp_path / 'ab' / temporary
  )  # As while that run saves.
  save(tmp_path / 'a?')
  with opened(tmp_path / 'a?') as checkpoints:
    assert_restored(checkpoints.restore(template(), 3))


@pytest.mark.parametrize('name', ['[1]', 'a\\b'])
def test_what_an_earlier_version_left_incomplete_is_completed(tmp_path, name):
  workdir = tmp_path / name / 'run'
  save(workdir)
  state = workdir / 'checkpoints/3/state'
  (state / 'manifest.ocdbt').unlink()
  (state.parent / digests.FILE).unlink()  # That version wrote none.
  shutil.rmtree(state / 'd')
  if '\\' in name:  # TensorStore took it for a slash.
    temporary = 'checkpoints/3.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp'
    elsewhere = tmp_path / 'a/b/run' / temporary
    elsewhere.mkdir(parents=True)
    for moved in ('ocdbt.process_0', '_sharding'):
      shutil.move(state / moved, elsewhere / moved)
  with opened(workdir, read_only=True) as checkpoints:
    with pytest.raises(
      checkpoint.DamagedError, match='misread .*nothing is lo'
    ):
      checkpoints.restore(template(), 3)
  for _ in range(2):
    with opened(workdir) as checkpoints:
      state, _ = checkpoints.restore_latest(template(), lambda _: None)
      assert_restored(state)


def test_without_another_name_such_a_path_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint_path, 'DESCRIPTORS', tmp_path / 'none')
  checkpoint_path.check(tmp_path)
  for folder, where in ((tmp_path / 'a[1]/b', 3), (tmp_path / '?', 2)):
    with pytest.raises(
      ValueError, match='misread; rename that folder, or'
    ) as e:
      checkpoint_path.check(folder)
    place = len(str(tmp_path)) + where
    assert f'at character {place}, ' in str(e.value)
