"""Nets that come with the package are found by name, wherever a net is named."""

import json
import shutil
import types

import pytest

import alexnet_jax
from alexnet_jax import pretrained
from alexnet_jax import recorded_config
from alexnet_jax import shipped_nets
from configs import cifar10


@pytest.fixture
def named(tmp_path, tiny_net_file, monkeypatch):
  """A package with one net, 'tiny'; works in an empty folder."""
  (tmp_path / 'nets').mkdir()
  shutil.copy(tiny_net_file, tmp_path / 'nets/tiny.safetensors')
  monkeypatch.setattr(shipped_nets, 'FOLDER', tmp_path / 'nets')
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')


def test_a_net_loads_by_name(named, tiny_net):
  assert shipped_nets.names() == ['tiny']
  assert alexnet_jax.load('tiny').class_names == tiny_net.class_names
  with pytest.raises(FileNotFoundError, match='small'):
    alexnet_jax.load('small')


def test_a_path_of_that_name_is_preferred(named, tmp_path):
  (tmp_path / 'here/tiny').mkdir()
  with pytest.raises(FileNotFoundError, match=r'here/tiny/config\.json'):
    alexnet_jax.load('tiny')
  assert shipped_nets.find('./tiny') == './tiny'


def test_commands_take_a_name(named, run_command, pictures, tiny_net_file):
  words = ('predict', pictures / 'e.png', '--json')
  by_name = run_command(*words, net=('--weights=tiny',))
  assert by_name[:2] == run_command(*words)[:2]
  assert by_name[0] == 0 and json.loads(by_name[1])
  code, _, err = run_command('evaluate', net=('--weights=tiny',))
  assert code == 1 and 'or name another: --dataset=NAME' in err
  code, _, err = run_command('predict', 'e.png', net=('--weights=small',))
  assert code == 1 and 'small' in err


def test_fine_tuning_records_the_name(named, monkeypatch):
  config = cifar10.get_config()
  config.train.init_from = 'tiny'
  resolved = recorded_config.resolve(config, 10)
  assert resolved.train.init_from == 'tiny'
  path, where = pretrained._source(types.SimpleNamespace(config=resolved))
  assert path == shipped_nets.FOLDER / 'tiny.safetensors'
  assert where == 'config.train.init_from=tiny'
