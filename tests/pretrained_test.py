"""Fine-tuning: what a state takes from a pretrained run, and what is refused.

The pretrained runs here are checkpoints of random numbers; train_test.py has
one that was trained.
"""

import contextlib
import dataclasses
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import placement
from alexnet_jax import pretrained as pretrained_lib
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax import weights as weights_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.prepare import prepare
from configs import quickstart
from tests import narrow_nets


def make_config(data_dir):
  """A net with a sixth layer, and few others: each takes time to initialise."""
  config = quickstart.get_config()
  config.model.conv_features = (4, 0, 0, 0, 8, 8)
  config.model.fc_features = (0, 16)
  config.input.data_dir = str(data_dir)
  config.input.batch_size = 16
  config.mesh.layout = 'data'
  config.eval.batch_size = 100
  return config


@pytest.fixture
def config(data_dir):
  return make_config(data_dir)


def save_pretrained(config, workdir):
  """Writes a run with random parameters at step 7; returns the parameters."""
  workdir_lib.write_config(workdir, config)
  run = run_lib.open_run(config)
  rng = np.random.default_rng(7)
  state = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype),
    train_state.state_template(run),
  )
  state = placement.place(state.replace(step=np.int32(7)), run.mesh)
  metadata = train_state.CheckpointMetadata(
    config_lib.flatten(config), run.dataset.fingerprint, metrics={}
  )
  with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
    checkpoints.save(7, state, dataclasses.asdict(metadata), None)
  return jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope='module')
def three_classes(data_dir, tmp_path_factory):
  """Name of a prepared data set of three classes."""
  folder = tmp_path_factory.mktemp('three')
  for i, part in enumerate(['train', 'val'] * 3):
    path = folder / part / f'class{i // 2}' / '0.png'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (76, 76), (80 * i // 2,) * 3).save(path)
  prepare.prepare(f'folder:{folder}', 'three', data_dir, size=76)
  return 'three'


@pytest.mark.parametrize(
  ('classes', 'layout'), [(3, 'data'), (3, 'towers'), (10, 'data')]
)
def test_all_layers_but_the_classifier_start_from_the_pretrained_ones(
  data_dir, three_classes, tmp_path, classes, layout
):
  before = make_config(data_dir)
  if classes == 3:
    before.model.num_classes = 3
    before.input.dataset, before.input.eval_split = three_classes, 'validation'
  before.model.init_std = 0.25
  pretrained = save_pretrained(before, tmp_path)
  config = make_config(data_dir)
  config.mesh.layout = layout
  new = train_state.create_train_state(run_lib.open_run(config))
  config.train.init_from = str(tmp_path)
  state = pretrained_lib.create_train_state(run_lib.open_run(config))
  assert state.params.keys() == pretrained.keys() >= {'conv1', 'conv6', 'fc7'}
  pretrained['fc8'] = new.params['fc8']  # Drawn as without pretraining.
  assert pretrained['fc8']['kernel'].shape == (16, 10)
  jax.tree.map(np.testing.assert_array_equal, state.params, pretrained)
  placed = lambda tree: [x.sharding for x in jax.tree.leaves(tree)]
  assert placed(state) == placed(new)
  assert int(state.step) == 0
  assert all((v == 0).all() for v in jax.tree.leaves(state.opt_state))


def test_a_checkpoint_that_is_named_gives_its_classifier_too(
  data_dir, tmp_path
):
  config = make_config(data_dir)
  pretrained = save_pretrained(config, tmp_path)
  folder = tmp_path / 'checkpoints'
  shutil.copytree(folder / '7', folder / '9')  # A newer one, which is damaged.
  shutil.rmtree(folder / '9/state')
  config.train.init_from = str(folder / '7')
  run = run_lib.open_run(config)
  pretrained_lib.check(run)
  state = pretrained_lib.create_train_state(run)
  jax.tree.map(np.testing.assert_array_equal, state.params, pretrained)
  for step, error, problem in (
    (9, ValueError, 'it cannot be read'),
    (8, FileNotFoundError, 'there is no such checkpoint'),
  ):
    config.train.init_from = str(folder / str(step))
    with pytest.raises(error, match=f'init_from=.*/{step}: {problem}'):
      pretrained_lib.create_train_state(run_lib.open_run(config))


def save_weights(config, path):
  """Writes random parameters of the config's net as a file; returns them."""
  weights = narrow_nets.weights(config)
  weights_lib.save(path, weights)
  return weights.params


@pytest.mark.parametrize('layout', ['data', 'towers'])
def test_all_layers_but_the_classifier_start_from_a_file(
  config, tmp_path, monkeypatch, layout
):
  pretrained = save_weights(config, tmp_path / 'net.safetensors')
  monkeypatch.setenv('HOME', str(tmp_path))
  config.mesh.layout, config.train.init_from = layout, '~/net.safetensors'
  run = run_lib.open_run(config)
  pretrained_lib.check(run)
  state = pretrained_lib.create_train_state(run)
  new = train_state.create_train_state(run)
  pretrained['fc8'] = new.params['fc8']
  jax.tree.map(np.testing.assert_array_equal, state.params, pretrained)
  assert int(state.step) == 0


def test_a_file_that_does_not_fit_is_refused_before_anything_is_written(
  config, tmp_path
):
  file = tmp_path / 'net.safetensors'
  save_weights(config, file)
  config.train.init_from = str(file)
  config.model.lrn_alpha = 2e-5
  expected = {'is another network; use its values': file.read_bytes()}
  expected['config.train.init_from: .*net.safetensors'] = b'no tensors'
  for message, content in expected.items():
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
      train.train_and_evaluate(config, tmp_path / 'tuned')
    assert str(error.value).count('\n') <= 2
  file.unlink()
  with pytest.raises(FileNotFoundError, match='net.safetensors: there is no'):
    train.train_and_evaluate(config, tmp_path / 'tuned')
  assert not (tmp_path / 'tuned').exists()


def remove_workdir(workdir):
  shutil.rmtree(workdir)


def remove_folder(workdir):
  shutil.rmtree(workdir / 'checkpoints')


def remove_checkpoints(workdir):
  remove_folder(workdir)
  (workdir / 'checkpoints').mkdir()


def remove_config(workdir):
  (workdir / 'config.json').unlink()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (remove_workdir, 'init_from=.*there is no .*pretrained/config.json'),
    (remove_folder, 'init_from=.*there is no .*pretrained/checkpoints'),
    (remove_checkpoints, 'init_from=.*pretrained: no latest checkpoint'),
    (remove_config, 'init_from=.*there is no .*pretrained/config.json'),
  ],
  ids=['workdir', 'folder', 'checkpoints', 'config'],
)
def test_fine_tuning_without_a_pretrained_run_writes_nothing(
  config, tmp_path, damage, message
):
  save_pretrained(config, tmp_path / 'pretrained')
  damage(tmp_path / 'pretrained')
  config.train.init_from = str(tmp_path / 'pretrained')
  with pytest.raises(FileNotFoundError, match=message):
    train.train_and_evaluate(config, tmp_path / 'tuned')
  assert not (tmp_path / 'tuned').exists()


def test_fine_tuning_from_a_damaged_checkpoint_names_the_key(config, tmp_path):
  save_pretrained(config, tmp_path / 'pretrained')
  for file in (tmp_path / 'pretrained/checkpoints/7/state').rglob('*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:10])
  config.train.init_from = str(tmp_path / 'pretrained')
  with pytest.raises(
    ValueError, match='init_from=.*: its latest checkpoi'
  ) as e:
    train.train_and_evaluate(config, tmp_path / 'tuned')
  assert str(e.value).count('\n') == 0
  # Without `train`'s check, as when a later process finds the damage.
  with pytest.raises(ValueError, match='init_from=.*: its latest checkpoi'):
    pretrained_lib.create_train_state(run_lib.open_run(config))


@pytest.mark.parametrize(
  'path', ['pretrained', './pretrained/', '../a/pretrained']
)
def test_a_relative_path_is_relative_to_the_current_folder(
  config, tmp_path, monkeypatch, path
):
  (tmp_path / 'a').mkdir()
  monkeypatch.chdir(tmp_path / 'a')
  expected = save_pretrained(config, tmp_path / 'a/pretrained')
  config.train.init_from = path
  state = pretrained_lib.create_train_state(run_lib.open_run(config))
  np.testing.assert_array_equal(
    state.params['fc7']['kernel'], expected['fc7']['kernel']
  )


@pytest.mark.parametrize('file', ['record', 'state'])
def test_what_is_damaged_is_found_before_anything_is_written(
  config, tmp_path, file
):
  save_pretrained(config, tmp_path / 'pretrained')
  shutil.rmtree(tmp_path / 'pretrained/checkpoints/7' / file)
  config.train.init_from = str(tmp_path / 'pretrained')
  with pytest.raises(ValueError) as error:
    train.train_and_evaluate(config, tmp_path / 'tuned')
  assert str(tmp_path / 'pretrained') in str(error.value)
  if file != 'state':
    assert not (tmp_path / 'tuned').exists()
  else:
    other = make_config('elsewhere')
    workdir_lib.check_workdir(tmp_path / 'tuned', other)


def test_a_damaged_config_is_replaced_by_that_of_the_checkpoint(
  config, tmp_path
):
  save_pretrained(config, tmp_path / 'pretrained')
  (tmp_path / 'pretrained/config.json').write_text('{')
  config.train.init_from = str(tmp_path / 'pretrained')
  pretrained_lib.check(run_lib.open_run(config))


def fail(error):
  def failing(*_, **__):
    raise error

  return failing


@pytest.mark.parametrize(
  ('module', 'name', 'error'),
  [
    (train.train_state, 'create_or_restore', KeyboardInterrupt()),
    (run_lib.Run, 'train_batches', FileNotFoundError('vanished')),
    (train.metrics, 'MetricsWriter', OSError('disk full')),
    (train.train_step_lib, 'compile_train_step', RuntimeError('no memory')),
    (train, 'run_steps', FloatingPointError('train/loss is nan at step 0')),
    (train, 'run_steps', KeyboardInterrupt()),
  ],
)
def test_a_command_that_fails_before_a_checkpoint_leaves_the_folder_usable(
  config, tmp_path, monkeypatch, module, name, error
):
  with monkeypatch.context() as patch:
    if name != 'compile_train_step':
      patch.setattr(train.train_step_lib, 'compile_train_step', fail(error))
    patch.setattr(module, name, fail(error))
    with pytest.raises(type(error)):
      train.train_and_evaluate(config, tmp_path / 'run')
  assert (tmp_path / 'run/config.json').exists()  # It got as far as that.
  config.seed, config.model.dropout_rate = 7, 0.25
  workdir_lib.check_workdir(tmp_path / 'run', config)
  with workdir_lib.owned_workdir(tmp_path / 'run', config):
    assert workdir_lib.read_config(tmp_path / 'run').seed == 7


def test_fine_tuning_another_network_names_every_key_and_writes_nothing(
  config, tmp_path
):
  config.model.fc_features = (16, 16)
  save_pretrained(config, tmp_path / 'pretrained')
  config.train.init_from = str(tmp_path / 'pretrained')
  config.model.fc_features = (8, 16)
  config.model.lrn_alpha = 2e-5
  config.model.init_bias = 0.1  # May differ.
  config.input.crop_size = 75
  with pytest.raises(ValueError) as error:
    train.train_and_evaluate(config, tmp_path / 'tuned')
  first, *lines = str(error.value).splitlines()
  where = f'config.train.init_from={tmp_path / "pretrained"}'
  assert first.startswith(where)
  assert lines == [
    'config.input.crop_size is 67 there but 75 here; config.model.fc_features'
    ' is [16, 16] there but [8, 16] here; config.model.lrn_alpha is 0.0001'
    ' there but 2e-05 here'
  ]
  assert not (tmp_path / 'tuned').exists()
