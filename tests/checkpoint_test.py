"""Checkpoints: what was saved is restored; damage is reported and survived.

The tests compare with the values that were saved, and damage files by hand.
"""

import contextlib
import dataclasses
import errno
import gc
import logging
import os
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_files
from alexnet_jax import checkpoint_retention
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import train_state
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import processes
from benchmarks.faults import checkpoints as faults_checkpoints
from benchmarks.faults import damage as damage_lib

# When a checkpoint is damaged, Orbax abandons the tasks that read the rest.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture(autouse=True)
def collect_abandoned_tasks():
  yield
  gc.collect()  # Their warnings are ignored here, but not in other files.


def make_state(step, mesh=None):
  """The state of `benchmarks.faults.checkpoints`, on the devices of a mesh."""
  state = faults_checkpoints.make_state(step)
  return placement.place(state, mesh, mesh_lib.param_specs(state, mesh))


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def accept(metadata):
  assert isinstance(metadata, dict)


def make_metadata(step):
  return {'config': {'seed': step}, 'metrics': {'train/loss': step / 7}}


@contextlib.contextmanager
def opened(workdir, **kwargs):
  with contextlib.closing(checkpoint.Checkpoints(workdir, **kwargs)) as opened:
    yield opened


def save(workdir, errors):
  """Saves a state for each step, with its error."""
  with opened(workdir) as checkpoints:
    for step, error in errors.items():
      checkpoints.save(step, make_state(step), make_metadata(step), error)


def assert_states_equal(found, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b, strict=True),
    found,
    expected,
  )


def test_every_field_of_state_and_metadata_is_restored(tmp_path):
  state = make_state(7)
  metadata = train_state.CheckpointMetadata(
    config={'model.conv_features': [4, 8], 'seed': 3, 'input.dataset': 'x'},
    dataset='0f',
    metrics={'eval/loss': 0.1 + 0.2},
    plateau=optimizer.Plateau(best_error=0.25, stalled=2, drops=1),
    stuck_steps=40,
    lowest_loss=0.2,
    steady_step=6,
    wall_seconds=1.5,
    unfinished={'loss': 0.1 + 0.7, 'batches': 2.0},
  )
  with opened(tmp_path) as checkpoints:
    checkpoints.save(7, state, dataclasses.asdict(metadata), 0.5)
  template = jax.tree.map(jnp.zeros_like, state)
  with opened(tmp_path) as checkpoints:
    found, found_metadata = checkpoints.restore_latest(
      abstract(template), accept
    )
  assert isinstance(found, train_state.TrainState)
  assert_states_equal(found, make_state(7))
  assert found_metadata == {
    'config': {'model.conv_features': [4, 8], 'seed': 3, 'input.dataset': 'x'},
    'dataset': '0f',
    'metrics': {'eval/loss': 0.1 + 0.2},
    'plateau': {'best_error': 0.25, 'stalled': 2, 'drops': 1},
    'stuck_steps': 40,
    'lowest_loss': 0.2,
    'steady_step': 6,
    'wall_seconds': 1.5,
    'unfinished': {'loss': 0.1 + 0.7, 'batches': 2.0},
  }


def test_a_plateau_controller_that_has_seen_no_error_is_restored(tmp_path):
  metadata = dataclasses.asdict(train_state.CheckpointMetadata({}, '0f', {}))
  with opened(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), metadata, None)
    found = checkpoints.read_metadata(1)
  assert optimizer.Plateau(**found['plateau']) == optimizer.Plateau()


def test_the_latest_two_and_the_best_are_kept(tmp_path):
  errors = {1: 0.9, 2: None, 3: 0.2, 4: 0.4, 5: None, 6: 0.3, 7: None}
  kept = {
    1: ([1], 1),
    2: ([1, 2], 1),
    3: ([2, 3], 3),
    4: ([3, 4], 3),
    5: ([3, 4, 5], 3),
    6: ([3, 5, 6], 3),
    7: ([3, 6, 7], 3),
  }
  for step, error in errors.items():
    save(tmp_path, {step: error})
    with opened(tmp_path) as checkpoints:
      assert (checkpoints.steps(), checkpoints.step_of('best')) == kept[step]


def test_one_command_keeps_the_same_checkpoints_as_one_command_per_save(
  tmp_path,
):
  save(tmp_path, {1: 0.9, 2: None, 3: 0.2, 4: 0.4, 5: None, 6: 0.3, 7: None})
  with opened(tmp_path) as checkpoints:
    assert (checkpoints.steps(), checkpoints.step_of('best')) == ([3, 6, 7], 3)


def test_without_an_error_there_is_no_best_step(tmp_path):
  save(tmp_path, {1: None, 2: None})
  with opened(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.step_of('latest') == 2
    with pytest.raises(FileNotFoundError, match='no best checkpoint .* train'):
      checkpoints.step_of('best')


def test_without_locks_orbax_writes_without_them(monkeypatch):
  get_context = checkpoint.ocp.type_handlers.get_ts_context
  for name in ('_BASE_TS_CONTEXT', '_DEFAULT_OCDBT_TS_CONTEXT'):
    default = get_context.__globals__[name]
    # monkeypatch removes the entry after the test.
    monkeypatch.setitem(default, 'file_io_locking', {'mode': 'os'})
  checkpoint_files.save_without_locks()
  for use_ocdbt in (True, False):
    context = get_context(use_ocdbt=use_ocdbt).spec.to_json()
    assert context['file_io_locking'] == {'mode': 'none'}


def test_an_error_of_zero_is_the_best(tmp_path):
  save(tmp_path, {1: 0.5, 2: 0.0, 3: 0.5, 4: 0.5, 5: None})
  with opened(tmp_path, read_only=True) as checkpoints:
    assert (checkpoints.steps(), checkpoints.step_of('best')) == ([2, 4, 5], 2)


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path):
  with opened(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(abstract(make_state(0)), accept) is None


def test_a_half_written_step_is_ignored_and_can_be_saved_again(tmp_path):
  save(tmp_path, {4: 0.5, 8: 0.4})
  folder = tmp_path / 'checkpoints'
  (folder / '8').rename(folder / '8.orbax-checkpoint-tmp')  # As after a kill.
  with opened(tmp_path) as checkpoints:
    assert checkpoints.steps() == [4]
    assert [path.name for path in folder.iterdir()] == ['4']  # It is removed.
    state, _ = checkpoints.restore_latest(abstract(make_state(0)), accept)
    assert_states_equal(state, make_state(4))
  save(tmp_path, {8: 0.4})
  with opened(tmp_path) as checkpoints:
    state, _ = checkpoints.restore_latest(abstract(make_state(0)), accept)
  assert_states_equal(state, make_state(8))


def truncate(step):
  file = max(step.glob('state/**/d/*'), key=lambda f: f.stat().st_size)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bytes(step):
  for file in step.glob('state/**/d/*'):
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    file.write_bytes(content)


def remove_manifests(step):
  for file in step.rglob('manifest.ocdbt'):
    file.unlink()


def truncate_metadata(step):
  file = step / 'record' / 'metadata'
  file.write_bytes(file.read_bytes()[:10])


def remove_metadata(step):
  shutil.rmtree(step / 'record')


def remove_metadata_file(step):
  (step / 'record' / 'metadata').unlink()


def remove_state(step):
  shutil.rmtree(step / 'state')


def list_in_metadata_of_orbax(step):
  (step / '_CHECKPOINT_METADATA').write_text('[]')


def folder_for_metadata_of_orbax(step):
  (step / '_CHECKPOINT_METADATA').unlink()
  (step / '_CHECKPOINT_METADATA').mkdir()


def nest_in_metadata_of_orbax(step):
  (step / '_CHECKPOINT_METADATA').write_text('[' * 100_000)


def remove_error(step):
  (step / 'metrics' / 'metrics').unlink()


def nest_error_without_digests(step):
  (step / digests.FILE).unlink()
  (step / 'metrics' / 'metrics').write_text('[' * 100_000)


def truncate_error(step):
  file = step / 'metrics' / 'metrics'
  file.write_bytes(file.read_bytes()[:10])


def flip_one_bit(step):
  """Flips a bit of the state's largest file, which TensorStore still reads."""
  file = max(step.glob('state/**/d/*'), key=lambda f: f.stat().st_size)
  damage_lib.flip_middle(file)


def flip_digests(step):
  file = step / digests.FILE
  file.write_text(file.read_text().replace('1', '2', 1))


def null_without_digests(step):
  (step / digests.FILE).unlink()
  (step / 'state/_METADATA').write_text('null')


def list_without_digests(step):
  (step / digests.FILE).unlink()
  (step / 'state/_METADATA').write_text('{"tree_metadata": []}')


def make_state_a_pipe(step):
  file = max(step.glob('state/**/d/*'), key=lambda f: f.stat().st_size)
  file.unlink()
  os.mkfifo(file)


DAMAGES = [
  flip_one_bit,
  flip_digests,
  null_without_digests,
  list_without_digests,
  make_state_a_pipe,
  truncate,
  flip_bytes,
  remove_manifests,
  truncate_metadata,
  remove_metadata,
  remove_metadata_file,
  remove_state,
]


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
  tmp_path, caplog, damage
):
  save(tmp_path, {4: 0.5, 8: 0.4})
  damage(tmp_path / 'checkpoints' / '8')
  with opened(tmp_path) as checkpoints, caplog.at_level(logging.WARNING):
    state, metadata = checkpoints.restore_latest(
      abstract(make_state(0)), accept
    )
    assert_states_equal(state, make_state(4))
    assert metadata == make_metadata(4)
    assert 'checkpoint 8 cannot be read' in caplog.text
    assert checkpoints.steps() == [4]
    checkpoints.save(8, make_state(9), make_metadata(9), 0.4)
  with opened(tmp_path) as checkpoints:
    assert (checkpoints.steps(), checkpoints.step_of('best')) == ([4, 8], 8)
    state, _ = checkpoints.restore_latest(abstract(make_state(0)), accept)
  assert_states_equal(state, make_state(9))


def test_no_flipped_bit_is_restored_in_silence(tmp_path):
  save(tmp_path, {4: 0.5, 8: 0.4})
  folder, rng = tmp_path / 'checkpoints/8', np.random.default_rng(0)
  read = {
    'state': lambda c: c.restore(abstract(make_state(0)), 8),
    'record': lambda c: c.read_metadata(8),
    'metrics': lambda c: c.step_of('best'),
  }
  with opened(tmp_path, read_only=True) as checkpoints:
    for item, number in (('state', 40), ('record', 20), ('metrics', 10)):
      files = [path for path in (folder / item).rglob('*') if path.is_file()]
      for _ in range(number):
        file = files[rng.integers(len(files))]
        before = file.read_bytes()
        damage_lib.flip_bit(file, rng)
        name = file.relative_to(folder)
        with pytest.raises(checkpoint.DamagedError, match=f'{name} has other'):
          read[item](checkpoints)
        file.write_bytes(before)
    assert_states_equal(read['state'](checkpoints), make_state(8))
    assert read['record'](checkpoints) == make_metadata(8)
    assert read['metrics'](checkpoints) == 8


def test_a_changed_error_is_taken_as_not_evaluated(tmp_path, caplog):
  save(tmp_path, {4: 0.5, 8: 0.4})
  file = tmp_path / 'checkpoints/4/metrics/metrics'
  file.write_text(file.read_text().replace('0.5', '0.1'))
  for _ in range(2):
    with opened(tmp_path) as checkpoints:
      assert checkpoints.step_of('best') == 8
      checkpoints.restore(abstract(make_state(0)), 4)
  assert caplog.text.count('error of checkpoint 4 cannot be read') == 1


@pytest.mark.parametrize(
  ('changes', 'restored'),
  [
    ({}, True),
    ({'metrics': {}}, False),
    ({'unfinished': {'loss': 1.0}}, False),
  ],
)
def test_a_damaged_error_is_taken_from_the_record(
  tmp_path, caplog, changes, restored
):
  for step, error in ((4, 0.1), (8, 0.4)):
    record = {'config': {}, 'metrics': {'eval/top1_error': error}}
    with opened(tmp_path) as checkpoints:
      checkpoints.save(step, make_state(step), record | changes, error)
  file = tmp_path / 'checkpoints/4/metrics/metrics'
  before = file.read_bytes()
  file.write_text('{')
  with opened(tmp_path) as checkpoints:
    assert checkpoints.step_of('best') == (4 if restored else 8)
  assert file.exists() == restored
  assert not restored or file.read_bytes() == before
  assert 'error of checkpoint 4 cannot be read' in caplog.text
  assert ('as not evaluated' in caplog.text) != restored


def test_a_loss_that_rises_for_long_leaves_the_newest_steady_checkpoint(
  tmp_path,
):
  # The state of step 3 has the loss of the row after it: it rises, too.
  losses = {1: 2.0, 2: 2.1, 3: 2.2, 4: 9.0, 5: 1e9, 6: 1e30}
  for step, loss in losses.items():
    with opened(tmp_path) as checkpoints:  # Also after a resume.
      record = {
        'config': {'model.num_classes': 10},
        'metrics': {'train/loss': loss},
        'lowest_loss': 2.0,
        'steady_step': min(step - 1, 2),
      }
      checkpoints.save(step, make_state(step), record, None)
  with opened(tmp_path) as checkpoints:
    assert checkpoints.steps() == [2, 5, 6]
  newest = checkpoint_retention.newest_steady
  assert newest(checkpoints.folder, [2, 5, 6]) == 2
  assert newest(checkpoints.folder, [2, 5, 6], 6) == 2  # By their own loss.


def test_each_record_is_read_once_while_a_run_saves(tmp_path, monkeypatch):
  read, read_record = [], checkpoint_files.read_record

  def reading(step):
    found = read_record(step)
    read.extend([int(step.name)] if found else [])
    return found

  monkeypatch.setattr(checkpoint_files, 'read_record', reading)
  with opened(tmp_path) as checkpoints:
    for step in range(1, 6):
      # The first has the lowest error, and is kept to the end.
      checkpoints.save(step, make_state(step), make_metadata(step), step / 9)
      checkpoints.wait()
  assert len(read) == len({*read}) and {1, 2, 3, 4} <= {*read}


def test_digests_are_there_as_soon_as_the_checkpoint_is(tmp_path):
  save(tmp_path, {4: 0.5})
  recorded = digests.read(tmp_path / 'checkpoints/4')
  items = {name.partition('/')[0] for name in recorded}
  assert items >= {'state', 'record', 'metrics'}


def test_a_checkpoint_without_digests_is_read_with_a_word(tmp_path, caplog):
  save(tmp_path, {4: 0.5})
  (tmp_path / 'checkpoints/4' / digests.FILE).unlink()
  with opened(tmp_path) as checkpoints:
    state, _ = checkpoints.restore_latest(abstract(make_state(0)), accept)
    assert checkpoints.step_of('best') == 4
  assert_states_equal(state, make_state(4))
  (message,) = caplog.messages
  assert message.startswith('Checkpoint 4 has no digests')


@pytest.mark.parametrize('matching', [[4], []])
def test_another_config_is_damage_only_if_an_older_checkpoint_has_this_one(
  tmp_path, caplog, matching
):
  save(tmp_path, {4: 0.5, 8: 0.4})

  def check(metadata):
    if metadata['config']['seed'] not in matching:
      raise ValueError(f'seed {metadata["config"]["seed"]}')

  with opened(tmp_path) as checkpoints:
    if matching:
      state, _ = checkpoints.restore_latest(abstract(make_state(0)), check)
      assert_states_equal(state, make_state(4))
      assert 'checkpoint 8 cannot be read (it has another' in caplog.text
    else:  # The error is that of the newest; nothing is renamed.
      with pytest.raises(ValueError, match='^seed 8$'):
        checkpoints.restore_latest(abstract(make_state(0)), check)
    assert checkpoints.steps() == (matching or [4, 8])


RECORD = dataclasses.asdict(train_state.CheckpointMetadata({'a': 1}, '0f', {}))


@pytest.mark.parametrize(
  ('record', 'problem'),
  [
    (None, 'NoneType'),
    ([], 'list'),
    ({}, 'config'),
    (RECORD | {'config': [1]}, 'list'),
    (RECORD | {'dataset': 1}, 'dataset is 1'),
    (RECORD | {'metrics': {'train/loss': None}}, 'train.loss is None'),
    (RECORD | {'plateau': {'drops': -1}}, 'drops is -1'),
    (RECORD | {'plateau': {'dropz': 1}}, 'dropz'),
    (RECORD | {'stuck_steps': '1'}, "stuck_steps is '1'"),
    (RECORD | {'wall_secondz': 1.0}, 'wall_secondz'),
  ],
)
def test_a_record_that_is_none_of_ours_is_damage(record, problem):
  parse = checkpoint_files.parse
  with pytest.raises(checkpoint.DamagedError, match=problem):
    parse(train_state.CheckpointMetadata, record)
  assert dataclasses.asdict(parse(train_state.CheckpointMetadata, RECORD)) == (
    RECORD
  )


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.ENOSPC, 'x'),
    ValueError('RESOURCE_EXHAUSTED: [OS error 28: No space left on device]'),
  ],
)
def test_a_full_disk_names_the_checkpoint_that_is_whole(
  tmp_path, monkeypatch, error
):
  save(tmp_path, {4: 0.5})

  def fail(_):
    raise error

  monkeypatch.setattr(digests, 'write', fail)
  words = f'disk full at {tmp_path}/checkpoints; checkpoint 4 is whole'
  with pytest.raises(OSError, match=words) as found:
    with checkpoint.opened(tmp_path) as checkpoints:
      checkpoints.save(8, make_state(8), make_metadata(8), 0.4)
  assert found.value.errno == errno.ENOSPC
  assert checkpoint.saved_steps(tmp_path) == [4]


@pytest.mark.parametrize(
  'damage',
  [
    truncate_error,
    remove_error,
    nest_error_without_digests,
    list_in_metadata_of_orbax,
    folder_for_metadata_of_orbax,
    nest_in_metadata_of_orbax,
  ],
  ids=lambda d: d.__name__,
)
def test_a_damaged_file_that_is_not_needed_does_not_lose_the_state(
  tmp_path, damage
):
  save(tmp_path, {4: 0.5, 8: 0.4})
  damage(tmp_path / 'checkpoints' / '8')
  with opened(tmp_path) as checkpoints:
    state, _ = checkpoints.restore_latest(abstract(make_state(0)), accept)
    assert int(state.step) == 8
    assert checkpoints.step_of('best') in (4, 8)
    checkpoints.save(12, make_state(12), make_metadata(12), 0.3)


def test_a_checkpoint_that_another_process_cannot_read_is_skipped_by_all(
  tmp_path, monkeypatch, caplog
):
  save(tmp_path, {4: 0.5, 8: 0.4})
  readable = []

  def any_process(value):
    readable.append(value)
    return len(readable) == 1  # Another process cannot read step 8.

  monkeypatch.setattr(processes, 'any_process', any_process)
  with opened(tmp_path) as checkpoints:
    state, _ = checkpoints.restore_latest(abstract(make_state(0)), accept)
    assert checkpoints.steps() == [4]
  assert_states_equal(state, make_state(4))
  assert readable == [False, False]
  assert 'checkpoint 8 cannot be read (another process' in caplog.text


@pytest.mark.parametrize('first', [True, False])
def test_only_the_first_process_cleans_up_before_the_others_continue(
  tmp_path, monkeypatch, first
):
  save(tmp_path, {4: 0.5, 8: 0.4})
  folder, at_barrier = tmp_path / 'checkpoints', []
  truncate(folder / '8')
  (folder / '9.orbax-checkpoint-tmp').mkdir()
  names = lambda: sorted(path.name for path in folder.iterdir())
  monkeypatch.setattr(processes, 'is_first', lambda: first)
  monkeypatch.setattr(
    processes, 'barrier', lambda _: at_barrier.append(names())
  )
  with opened(tmp_path) as checkpoints:
    checkpoints.restore_latest(abstract(make_state(0)), accept)
  cleaned = ['4', '8'] if first else ['4', '8', '9.orbax-checkpoint-tmp']
  put_aside = ['4', 'damaged.8'] if first else cleaned
  assert at_barrier == [cleaned, put_aside]
  assert names() == put_aside


def test_if_all_checkpoints_are_damaged_an_error_says_what_to_do(tmp_path):
  save(tmp_path, {4: 0.5, 8: 0.4})
  for damage, step in ((truncate, '4'), (flip_bytes, '8')):
    damage(tmp_path / 'checkpoints' / step)
  with opened(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=r'\[4, 8\].*fresh --workdir'):
      checkpoints.restore_latest(abstract(make_state(0)), accept)
    assert checkpoints.steps() == [4, 8]  # None is removed.


def test_a_template_of_another_shape_is_an_error_that_removes_nothing(tmp_path):
  save(tmp_path, {4: 0.5, 8: 0.4})
  template = make_state(0)
  template.params['conv1']['bias'] = jnp.zeros(6)
  with opened(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match='shape'):
      checkpoints.restore_latest(abstract(template), accept)
    assert checkpoints.steps() == [4, 8]


def test_opening_read_only_writes_nothing(tmp_path):
  save(tmp_path, {4: 0.5, 8: 0.4})
  truncate(tmp_path / 'checkpoints' / '8')
  under_way = tmp_path / 'checkpoints' / '12.orbax-checkpoint-tmp' / 'metrics'
  under_way.mkdir(parents=True)
  (under_way / 'metrics').write_text('{"eval')  # As while another run saves.
  files = lambda: {
    str(p): p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()
  }
  before = files()
  with opened(tmp_path, read_only=True) as checkpoints:
    checkpoints.restore(abstract(make_state(0)), 4)
  assert files() == before
  with opened(tmp_path / 'none', read_only=True) as checkpoints:
    assert checkpoints.steps() == []
  assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize('there_and_back', [False, True])
def test_a_checkpoint_is_restored_to_the_shardings_of_the_template(
  tmp_path, there_and_back
):
  mesh = mesh_lib.create_mesh('towers', '2', jax.devices())
  assert dict(mesh.shape) == {'data': 2, 'tower': 2}
  meshes = (mesh, None) if there_and_back else (None, mesh)
  with opened(tmp_path) as checkpoints:
    checkpoints.save(3, make_state(3, meshes[0]), {}, None)
  with opened(tmp_path) as checkpoints:
    found, _ = checkpoints.restore_latest(
      abstract(make_state(0, meshes[1])), accept
    )
  assert_states_equal(found, make_state(3))
  kernel = found.params['conv1']['kernel']
  if there_and_back:
    assert all(
      x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(found)
    )
  else:
    towers_only = P(None, None, None, 'tower')
    assert kernel.sharding == jax.sharding.NamedSharding(mesh, towers_only)
    assert found.step.sharding.is_fully_replicated
    # Tower 0 is on the first column of the mesh, tower 1 on the second.
    by_device = {s.device: s.data for s in kernel.addressable_shards}
    whole = np.asarray(make_state(3).params['conv1']['kernel'])
    for tower, devices in enumerate(mesh.devices.T):
      for device in devices:
        part = whole[..., 4 * tower : 4 * tower + 4]
        np.testing.assert_array_equal(by_device[device], part)


@pytest.mark.parametrize(
  ('names', 'steps'),
  [([], []), (['10', '9', 'damaged.8', '7.orbax-checkpoint-tmp'], [9, 10])],
)
def test_saved_steps_are_those_of_complete_checkpoints(tmp_path, names, steps):
  assert checkpoint.saved_steps(tmp_path) == []
  (tmp_path / 'checkpoints').mkdir()
  for name in names:
    (tmp_path / 'checkpoints' / name).mkdir()
  assert checkpoint.saved_steps(tmp_path) == steps


def test_a_reader_leaves_a_checkpoint_that_is_replaced_where_it_is(tmp_path):
  save(tmp_path, {4: None})
  (tmp_path / 'checkpoints/replaced.8').mkdir()
  checkpoint.Checkpoints(tmp_path, read_only=True).close()
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names >= {'4', 'replaced.8'} and '8' not in names


def test_a_checkpoint_that_is_replaced_is_there_until_the_new_one_is(tmp_path):
  folder = tmp_path / 'checkpoints'
  for kept in (False, True):  # A kill before, and after the save.
    (folder / 'replaced.8').mkdir(parents=True)
    if kept:
      (folder / '8').mkdir()
      (folder / '8/new').touch()
    checkpoint_files.put_back(folder)
    assert [path.name for path in folder.iterdir()] == ['8']
    assert (folder / '8/new').exists() == kept
    if not kept:
      (folder / '8').rmdir()
