"""Nets that come with the package are found by name, wherever a net is named."""

import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax import config as config_lib
from alexnet_jax import pretrained
from alexnet_jax import recorded_config
from alexnet_jax import shipped_nets
from alexnet_jax.convert import convert
from configs import cifar10

RECORD = (
  pathlib.Path(__file__).parents[1] / 'experiments/results/cifar10_40_epochs'
)


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
  with pytest.raises(FileNotFoundError) as missing:
    alexnet_jax.load('small')
  assert str(missing.value).endswith('/small, nor a net of the package: tiny')
  with pytest.raises(FileNotFoundError, match=r'small\.safetensors$'):
    alexnet_jax.load('small.safetensors')


def test_a_path_of_that_name_is_preferred(named, tmp_path):
  (tmp_path / 'here/tiny').mkdir()
  hides = (
    r'here/tiny/config\.json, and this folder hides the net of the package'
  )
  with pytest.raises(FileNotFoundError, match=hides):
    alexnet_jax.load('tiny')
  assert shipped_nets.find('./tiny') == './tiny'


def test_commands_take_a_name(named, run_command, pictures, tiny_net_file):
  words = ('predict', pictures / 'e.png', '--json')
  by_name = run_command(*words, net=('--weights=tiny',))
  assert by_name[:2] == run_command(*words)[:2]
  assert by_name[0] == 0 and json.loads(by_name[1])
  code, _, err = run_command('evaluate', net=('--weights=tiny',))
  assert code == 1 and 'or name another: --dataset=NAME' in err
  for net in ('small', 'tiny,small'):
    code, _, err = run_command('evaluate', net=(f'--weights={net}',))
    assert code == 1 and 'small, nor a net of the package: tiny' in err
  code, _, err = run_command('predict', 'e.png', net=('--weights=small',))
  assert code == 1 and 'small, nor a net of the package: tiny' in err


def test_the_converter_takes_a_name(named, tiny_net):
  assert convert.read('tiny').class_names == tiny_net.class_names
  with pytest.raises(FileNotFoundError, match='nor a net of the package: tiny'):
    convert.read('small')


def test_fine_tuning_records_the_name(named, monkeypatch):
  config = cifar10.get_config()
  config.train.init_from = 'tiny'
  resolved = recorded_config.resolve(config, 10)
  assert resolved.train.init_from == 'tiny'
  path, where = pretrained._source(types.SimpleNamespace(config=resolved))
  assert path == shipped_nets.FOLDER / 'tiny.safetensors'
  assert where == 'config.train.init_from=tiny'
  with pytest.raises(FileNotFoundError, match='nor a net of the package: tiny'):
    pretrained._open_checkpoints(None, pathlib.Path('small'), 'init_from=small')


def test_the_cifar10_net_is_that_of_its_config_and_its_card():
  net = alexnet_jax.load('cifar10')
  leaves = jax.tree.leaves(net.params)
  assert sum(leaf.size for leaf in leaves) == 745_802
  recorded = json.loads((RECORD / 'config.json').read_text())
  config = json.loads(json.dumps(config_lib.flatten(net.config)))
  assert {**config, **recorded} == config  # Later keys have their defaults.
  card = (shipped_nets.FOLDER / 'README.md').read_text()
  result = json.loads((RECORD / 'result.json').read_text())
  for name in ('top1_error', 'top5_error'):
    one, ten = (result[f'{view}/{name}'] for view in ('eval', 'eval_ten_view'))
    assert f'| {one:.2%} | {ten:.2%} |' in card
  for label, name in enumerate(net.class_names):
    assert f'    {label} {name}\n' in card
  assert 'states no licence' in card


def test_the_cifar10_net_knows_a_ship():
  # A dark hull on blue water, below a bright sky.
  ship = np.full((32, 32, 3), (150, 180, 220), np.uint8)
  ship[20:] = (40, 80, 150)
  ship[12:21, 4:28] = (70, 70, 75)
  (classes,) = alexnet_jax.load('cifar10').predict([ship])
  assert classes[0][0] == 'ship' and classes[0][1] > 0.5  # It is 0.99.
