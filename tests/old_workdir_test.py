"""A work directory of commit ed611a7: every version resumes and evaluates it.

The fixture is a narrow net on the digits, 188 steps of 32 images in 4 epochs,
with checkpoints of steps 141 (the best) and 188. The expected metrics are those
of that commit. A new config key needs an entry in `recorded_config.ADDED`, a
renamed one in `RENAMED`, a removed one in `REMOVED`.
"""

import csv
import json
import pathlib
import shutil

import pytest

from alexnet_jax import evaluate
from alexnet_jax import train
from alexnet_jax import trained_net
from alexnet_jax import workdir as workdir_lib
from configs import quickstart

FIXTURE = pathlib.Path(__file__).parent / 'fixtures/workdir_ed611a7'
# float32 sums are rounded differently: the fixture was made with another number
# of devices and threads, and compiled at another optimisation level.
NEAR = {'rel': 1e-4}


@pytest.fixture
def workdir(tmp_path):
  return shutil.copytree(FIXTURE, tmp_path / 'run')


@pytest.mark.parametrize('which', ['best', 'latest'])
def test_it_evaluates_to_the_metrics_of_its_commit(workdir, data_dir, which):
  expected = json.loads((workdir / 'evaluation.json').read_text())
  if which == 'latest':
    expected = json.loads((workdir / 'result.json').read_text())
  (workdir / 'evaluation.json').unlink()
  found = evaluate.evaluate([workdir], which, data_dir=str(data_dir))
  assert found.keys() == {tag for tag in expected if tag.startswith('eval')}
  for tag, value in found.items():
    near = {'abs': 0} if tag.endswith('error') else NEAR
    assert value == pytest.approx(expected[tag], **near), tag
  file = json.loads((workdir / 'evaluation.json').read_text())
  assert file['step'] == {'best': 141, 'latest': 188}[which]


def current_config(data_dir):
  """The config of the fixture as a user of this version writes it."""
  config = quickstart.get_config()
  config.seed = 1
  config.model.conv_features = (8, 8, 8, 8, 8)
  config.model.fc_features = (16, 16)
  config.model.init_std = 0.1
  config.model.conv345_init_std = 0.1
  config.model.fc67_init_std = 0.1
  config.model.dropout_rate = 0.2
  config.input.data_dir = str(data_dir)
  config.input.batch_size = 32
  config.optimizer.learning_rate = 0.02
  config.optimizer.drop_epochs = (2.0,)
  config.train.eval_every_epochs = 1.0
  config.train.log_every_steps = 47
  config.train.checkpoint_every_steps = 100
  config.train.diagnostics_every_evals = 0
  config.eval.batch_size = 300
  return config


def test_it_resumes_and_reaches_the_metrics_of_its_commit(workdir, data_dir):
  config = current_config(data_dir)
  config.train.epochs = 5.0
  found = train.train_and_evaluate(config, workdir)
  # What ed611a7 gives, resumed from the same checkpoint.
  assert found['train/loss'] == pytest.approx(1.8334277202101315, **NEAR)
  assert found['eval/loss'] == pytest.approx(1.6463516235351563, **NEAR)
  assert found['eval/top1_error'] == pytest.approx(0.6733333333333333)
  assert found['train/learning_rate'] == 0.002
  with open(workdir / 'metrics.csv', newline='') as file:
    steps = [int(row['step']) for row in csv.DictReader(file)]
  assert steps == [47, 94, 100, 141, 188, 200, 234]
  assert json.loads((workdir / 'result.json').read_text())['step'] == 234


def test_it_opens_as_a_trained_net(workdir, data_dir):
  net = trained_net.open_net(workdir, data_dir=str(data_dir))
  assert (net.step, net.which) == (141, 'best')
  assert net.class_names == tuple('0123456789')
  assert net.params['fc8']['kernel'].shape == (16, 10)
  assert net.config.model.conv_features == (8, 8, 8, 8, 8)
  assert net.statistics.mean_image.shape == (76, 76, 3)


def test_its_config_is_read_with_every_key_of_this_version(data_dir):
  recorded = workdir_lib.read_config(FIXTURE)
  today = current_config(data_dir)
  for section in today:
    if section != 'seed':
      assert set(recorded[section]) == set(today[section]), section
