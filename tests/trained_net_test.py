"""A trained net, opened: its parameters, its label-free step, its predictions."""

import contextlib
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import input_pipeline
from alexnet_jax import predict
from alexnet_jax import trained_net
from alexnet_jax import workdir as workdir_lib


def test_a_trained_net_knows_what_it_needs(trained):
  assert (trained.step, trained.which) == (188, 'latest')
  assert trained.class_names == tuple('0123456789')
  assert trained.config.model.conv_features == (8, 8, 8, 8, 8)
  assert trained.network.num_classes == 10
  assert trained.statistics.mean_image.shape == (76, 76, 3)
  assert trained.params['fc8']['kernel'].shape == (16, 10)


@pytest.mark.parametrize('many', [False, True])
def test_its_step_without_labels_gives_the_predictions_of_the_split(
  trained, many
):
  batches = input_pipeline.eval_batches(
    trained.run.dataset, 'test', batch_size=60
  )
  with contextlib.closing(batches):
    images = next(batches)['image']
  log_probs, activations = trained.predict_batch(
    images, many=many, layers=('conv5', 'fc7')
  )
  stored = trained.predict_split(many).log_probs[:60]
  # The same float32 program, with batches of another size.
  np.testing.assert_allclose(jax.device_get(log_probs), stored, rtol=1e-4)
  assert activations['conv5'].shape == (5 if many else 1, 60, 1, 1, 8)
  assert activations['fc7'].shape == (5 if many else 1, 60, 16)
  assert (np.asarray(activations['fc7']) >= 0).all()  # After ReLU.


def test_only_the_process_that_saves_reads_the_names(
  trained, tmp_path, monkeypatch
):
  monkeypatch.setattr(trained_net.processes, 'is_first', lambda: False)
  monkeypatch.setattr(trained_net.records.Records, 'name', None)
  made = trained.predict_split(False, tmp_path)
  assert len(made.labels) == 300 and [*tmp_path.iterdir()] == []


def test_the_confident_errors_of_a_split_come_first(
  trained, old_workdir, data_dir
):
  stored = trained.predict_split(False)
  assert stored.names[0].endswith('.png') and len(stored.names) == 300
  found = [*predict.worst_of_split(old_workdir, 'latest', 'one', str(data_dir))]
  probs = np.exp(stored.log_probs)
  wrong = {
    stored.names[i]: (str(probs[i].argmax()), str(label), probs[i].max())
    for i, label in enumerate(stored.labels)
    if probs[i].argmax() != label
  }
  assert 1 < len(wrong) < 300
  assert {
    made.item.name: (*made.classes[:1], made.item.class_name) for made in found
  } == {
    name: ((best, pytest.approx(share, rel=1e-6)), true)
    for name, (best, true, share) in wrong.items()
  }
  shares = [made.classes[0][1] for made in found]
  assert shares == sorted(shares, reverse=True)
  assert all(made.item.image.shape == (76, 76, 3) for made in found)


def test_a_cache_that_training_asked_for_is_not_asked_for_again(
  old_workdir, tmp_path
):
  config = workdir_lib.read_config(old_workdir)
  config.input.cache = 'device'
  workdir_lib.write_config(tmp_path, config)
  assert trained_net.read_config(tmp_path).input.cache == 'auto'
  given = trained_net.read_config(tmp_path, config, split='train')
  assert given.input.cache == 'device'
  assert (given.input.eval_split, config.input.eval_split) == ('train', 'test')


def test_an_unknown_layer_is_named(trained):
  with pytest.raises(KeyError, match='fc9'):
    trained.predict_batch(np.zeros((8, 76, 76, 3), np.uint8), layers=['fc9'])


def test_released_parameters_are_restored_on_the_next_use(trained):
  before = jax.device_get(trained.params)
  released = trained.params['fc8']['kernel']
  trained.release()
  trained.release()  # Nothing is left to free.
  assert trained.params['fc8']['kernel'] is not released
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(trained.params), before
  )


def test_a_config_of_another_training_is_refused(old_workdir, data_dir):
  config = workdir_lib.read_config(old_workdir).copy_and_resolve_references()
  with config.unlocked():
    config.input.data_dir = str(data_dir)
    config.input.eval_split = 'train'  # Evaluation may change it.
    config.seed = 5
  with pytest.raises(
    ValueError, match='config.json (?s:.*)config.seed is 1 there but 5'
  ):
    trained_net.open_net(old_workdir, config=config)


def test_a_folder_that_is_no_training_is_named(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=f'no {tmp_path}/checkpoints; tra'
  ):
    trained_net.open_net(tmp_path)


def test_the_latest_checkpoint_may_be_replaced_while_it_is_read(
  old_workdir, data_dir, tmp_path, monkeypatch
):
  workdir = shutil.copytree(old_workdir, tmp_path / 'run')
  (folder,) = (workdir / 'checkpoints').glob('188')

  def save(step):
    folders = (workdir / 'checkpoints').glob('[0-9]*')
    older = max(folders, key=lambda path: int(path.name))
    older.rename(older.with_name(str(step)))  # The older one is gone.

  with monkeypatch.context() as patch:
    read, steps = trained_net.checkpoint.Checkpoints.read_metadata, [189, 190]

    def read_late(self, step):
      if steps:
        save(steps.pop(0))
      return read(self, step)

    patch.setattr(
      trained_net.checkpoint.Checkpoints, 'read_metadata', read_late
    )
    net = trained_net.open_net(workdir, 'latest', data_dir=str(data_dir))
  assert net.step == 190 and not folder.exists()
  save(191)  # Before the parameters are read.
  assert net.predict_split(False, tmp_path / 'saved').made_from['step'] == '191'
  for path in (workdir / 'checkpoints/191/state').glob('manifest*'):
    path.unlink()
  again = trained_net.open_net(workdir, 'latest', data_dir=str(data_dir))
  with pytest.raises(ValueError, match='cannot be read'):
    _ = again.params
