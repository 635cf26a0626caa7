"""Configs against the paper's numbers, and the rules against broken configs.

Numbers are literals from the paper. Where a message names a way out, the test
takes it.
"""

import ast
import importlib
import pathlib
import re

import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax import ranges
from configs import paper

CONFIGS = pathlib.Path(paper.__file__).parent
NAMES = sorted(path.stem for path in CONFIGS.glob('[!_]*.py'))
OVERRIDES = [name for name in NAMES if name != 'paper']
PAPER_KEYS = sorted(config_lib.flatten(paper.get_config()))
FLOAT_KEYS = [
  key
  for key, value in config_lib.flatten(paper.get_config()).items()
  if isinstance(value, float)
]
SECTIONS = '2 3.1 3.2 3.3 3.4 3.5 4.1 4.2 5 6 6.1 7'.split()


def load(name):
  return importlib.import_module(f'configs.{name}').get_config()


def changed(**values):
  """paper.py with other values; `a__b` stands for the key a.b."""
  config = paper.get_config()
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in values.items()}
  )
  return config


def problems(config, num_devices=1):
  try:
    config_lib.check(config, num_devices)
  except ValueError as error:
    return str(error).split('\n')
  return []


@pytest.mark.parametrize('num_devices', [1, 2, 8])
@pytest.mark.parametrize('name', NAMES)
def test_every_config_obeys_the_rules(name, num_devices):
  assert problems(load(name), num_devices) == []


@pytest.mark.parametrize('name', NAMES)
def test_every_config_has_exactly_the_keys_of_paper(name):
  assert sorted(config_lib.flatten(load(name))) == PAPER_KEYS


@pytest.mark.parametrize('name', NAMES)
def test_every_config_refuses_unknown_keys(name):
  config = load(name)
  with pytest.raises(AttributeError):
    config.nonsense = 1
  with pytest.raises(AttributeError):
    config.model.nonsense = 1


def assignments(name):
  """(dotted key, source line) of the keys that a config file sets."""
  source = (CONFIGS / f'{name}.py').read_text()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Assign):
      target = ast.unparse(node.targets[0]).replace('eval_.', 'eval.')
      if '.' in target and 'ConfigDict(' not in ast.unparse(node.value):
        line = source.splitlines()[node.lineno - 1]
        yield target.removeprefix('config.'), line


@pytest.mark.parametrize('name', OVERRIDES)
def test_a_config_sets_only_the_keys_in_which_it_differs_from_its_base(name):
  source = (CONFIGS / f'{name}.py').read_text()
  (base,) = re.findall(r'^from configs import (\w+)$', source, re.MULTILINE)
  here, there = (config_lib.flatten(load(n)) for n in (name, base))
  keys = [key for key, _ in assignments(name)]
  assert keys and [key for key in keys if here[key] == there[key]] == []


def test_every_key_of_paper_cites_its_section_or_says_ours():
  lines = dict(assignments('paper'))
  assert sorted(lines) == PAPER_KEYS
  for key, line in lines.items():
    comment = line.partition('#')[2].strip()
    section = re.match(r'section (\d(\.\d)?)\b', comment)
    assert (
      section
      and section[1] in SECTIONS
      or re.match(r'ours\b', comment)
      or re.match(r"'(steps|plateau)' ", comment)
    ), f'{key}: {comment!r}'


@pytest.mark.parametrize(
  'key, value',
  {
    'model.num_classes': 1000,
    'model.conv_features': [96, 256, 384, 384, 256],
    'model.fc_features': [4096, 4096],
    'model.conv1_kernel': 11,
    'model.conv1_stride': 4,
    'model.init_std': 0.01,
    'model.conv345_init_std': 0.01,
    'model.dropout_rate': 0.5,
    'input.image_size': 256,
    'input.crop_size': 224,
    'input.batch_size': 128,
    'augment.flip': True,
    'augment.color_std': 0.1,
    'optimizer.learning_rate': 0.01,
    'optimizer.momentum': 0.9,
    'optimizer.weight_decay': 0.0005,
    'optimizer.schedule': 'plateau',
    'optimizer.drop_factor': 10,
    'optimizer.plateau_drops': 3,
    'mesh.layout': 'towers',
    'train.epochs': 90,
  }.items(),
)
def test_paper_config_has_the_papers_value(key, value):
  assert config_lib.flatten(paper.get_config())[key] == value


# Where a config differs from the text: values of the original source
# (layers-145.cfg, layer-params-145-2010.cfg; layers-146.cfg,
# layer-params-146-2011.cfg, layer-params-146-2012-2011.cfg), of section 3.2 and
# of Caffe's models/bvlc_alexnet.
SOURCE = {
  'model.lrn_alpha': 2e-5,
  'model.lrn_before_activation': ['conv1'],
  'model.within_map_norm_layers': ['conv2'],
  'model.conv345_init_std': 0.03,
  'input.dataset': 'ilsvrc2010',
  'augment.color_square_root': True,
  'augment.color_divide': True,
  'augment.color_end_epoch': 68,
  'augment.central_mean': True,
  'optimizer.schedule': 'steps',
  'optimizer.drop_epochs': [23, 51, 78],
  'optimizer.conv1_drop_epochs': [68],
  'optimizer.conv1_freeze_epoch': 72,
  'optimizer.bias_rate_factor': 2,
  'optimizer.drop_bias_rate': False,
  'optimizer.decay_biases': False,
  'train.epochs': 93,
}
CONV6 = {'model.conv_features': [96, 256, 384, 384, 256, 256]}
DIFFERENCES = {
  'source': SOURCE,
  'ilsvrc2010': {'input.dataset': 'ilsvrc2010'},
  'one_tower': {
    'model.num_towers': 1,
    'model.conv_features': [48, 128, 192, 192, 256],
  },
  'caffe': {
    'model.lrn_k': 1,
    'model.lrn_alpha': 2e-5,
    'model.lrn_across_towers': True,
    'mesh.layout': 'data',
    'model.fc67_init_std': 0.005,
    'model.init_bias': 0.1,
    'model.inverted_dropout': True,
    'input.crop_size': 227,
    'input.batch_size': 256,
    'augment.color_std': 0,
    'optimizer.schedule': 'steps',
    'optimizer.drop_epochs': [19.98, 39.96, 59.95, 79.93],
    'optimizer.bias_rate_factor': 2,
    'optimizer.decay_biases': False,
    'train.epochs': 89.92,
  },
  'torchvision': {
    'model.num_towers': 1,
    'model.conv_features': [64, 192, 384, 256, 256],
    'model.conv1_padding': 2,
    'model.conv1_ceil_mode': False,
    'model.lrn_layers': [],
    'model.inverted_dropout': True,
    'model.dropout_inputs': ['fc6', 'fc7'],
    'model.init_std': 0.02,
    'model.conv345_init_std': 0.012,
    'model.fc67_init_std': 0.0075,
    'model.init_bias': 0.0,
    'input.channel_means': [123.675, 116.28, 103.53],
    'input.channel_stds': [58.395, 57.12, 57.375],
    'input.batch_size': 256,
    'augment.color_std': 0,
    'optimizer.weight_decay': 1e-4,
    'optimizer.schedule': 'steps',
    'optimizer.drop_epochs': [30, 60],
  },
  'conv6': SOURCE
  | CONV6
  | {
    'model.num_classes': 21_843,
    'mesh.layout': 'data',
    'input.dataset': 'imagenet_fall2011',
    'augment.color_end_epoch': 0,
    'optimizer.drop_epochs': [6],
    'optimizer.conv1_drop_epochs': [],
    'optimizer.conv1_freeze_epoch': 0,
    'train.epochs': 8.0,
  },
  'conv6_finetune': SOURCE
  | CONV6
  | {
    'input.dataset': 'imagenet2012',
    'augment.color_end_epoch': 38,
    'optimizer.learning_rate': 0.001,
    'optimizer.bias_rate_factor': 20,
    'optimizer.drop_epochs': [22, 42],
    'optimizer.conv1_drop_epochs': [0, 5],
    'optimizer.conv1_freeze_epoch': 7,
    'train.epochs': 54,
    'train.init_from': 'runs/conv6',
  },
}


@pytest.mark.parametrize('name', DIFFERENCES)
def test_a_config_differs_from_the_text_only_in_the_values_of_its_source(name):
  text = config_lib.flatten(paper.get_config())
  here = config_lib.flatten(load(name))
  differ = {key for key in here if here[key] != text[key]}
  expected = {k: v for k, v in DIFFERENCES[name].items() if v != text[k]}
  assert {key: here[key] for key in differ} == expected


def test_the_epochs_of_caffe_are_the_steps_of_its_solver():
  config = load('caffe')
  epochs = (*config.optimizer.drop_epochs, config.train.epochs)
  steps = [epoch * 1_281_167 / 256 for epoch in epochs]
  # stepsize 100,000 and max_iter 450,000; epochs are given to 0.01.
  whole = [100_000, 200_000, 300_000, 400_000, 450_000]
  assert steps == pytest.approx(whole, abs=50)


# (changes to paper.py, number of devices, start of the error's only line).
# conv1 has kernels of 11 and stride 4. Its maps need 15 pixels for the three
# poolings (15, 7, 3, 1), so crops need 11 + 13 * 4 + 1 = 64; the last window
# extends beyond the edge.
RULES = [
  ({key: zero}, 1, f'config.{key.replace("__", ".")}={zero} must be positive')
  for key, zero in {
    'model__conv1_kernel': 0,
    'model__conv1_stride': 0,
    'model__init_std': 0.0,
    'model__conv345_init_std': 0.0,
    'model__fc67_init_std': 0.0,
    'model__lrn_k': 0.0,
    'input__image_size': 0,
    'input__crop_size': 0,
    'input__batch_size': 0,
    'optimizer__learning_rate': 0.0,
    'optimizer__drop_factor': 0.0,
    'optimizer__bias_rate_factor': 0.0,
    'optimizer__fc8_rate_factor': 0.0,
    'optimizer__plateau_patience': 0,
    'train__epochs': 0.0,
    'train__log_every_steps': 0,
    'train__eval_every_epochs': 0.0,
    'train__checkpoint_every_steps': 0,
    'train__plateau_warning_steps': 0,
    'eval__batch_size': 0,
  }.items()
] + [
  (
    {'input__cache': 'disk'},
    1,
    'config.input.cache=disk is not one of none, host, device, auto',
  ),
  (
    {'model__conv_features': (96, 256, 384, 256)},
    1,
    'config.model.conv_features=(96, 256, 384, 256) must have 5 or 6 entries',
  ),
  (
    {'model__conv_features': (96, -2, 384, 384, 256)},
    1,
    'config.model.conv_features=(96, -2, 384, 384, 256) must be 0 (no such layer) or positive and even',
  ),
  (
    {'model__fc_features': (4096,)},
    1,
    'config.model.fc_features=(4096,) must have 2 entries',
  ),
  (
    {'model__fc_features': (4096, 15)},
    1,
    'config.model.fc_features=(4096, 15) must be 0 (no such layer) or positive and even',
  ),
  (
    {'model__dropout_rate': 1.0},
    1,
    'config.model.dropout_rate=1.0 must be at least 0 and below 1',
  ),
  (
    {'model__dropout_rate': -0.1},
    1,
    'config.model.dropout_rate=-0.1 must be at least 0 and below 1',
  ),
  (
    {'model__conv1_padding': -1},
    1,
    'config.model.conv1_padding=-1 must not be negative',
  ),
  (
    {'input__crop_size': 257},
    1,
    'config.input.crop_size=257 must not exceed config.input.image_size=256;'
    ' try 224',
  ),
  (
    {'input__crop_size': 10},
    1,
    'config.input.crop_size=10 leaves conv1 without output; with this conv1 it'
    ' must be at least 64',
  ),
  (
    {'input__crop_size': 11},
    1,
    'config.input.crop_size=11 leaves pool1 without output; with this conv1 it'
    ' must be at least 64',
  ),
  (
    {'input__crop_size': 19},
    1,
    'config.input.crop_size=19 leaves pool2 without output; with this conv1 it'
    ' must be at least 64',
  ),
  (
    {'input__crop_size': 63},
    1,
    'config.input.crop_size=63 leaves pool5 without output; with this conv1 it'
    ' must be at least 64',
  ),
  (
    # 20,000 + 13 * 4 + 1.
    {'model__conv1_kernel': 20_000},
    1,
    'config.input.crop_size=224 leaves conv1 without output; with this conv1 it'
    ' must be at least 20053',
  ),
  (
    {'optimizer__schedule': 'linear'},
    1,
    "config.optimizer.schedule=linear is not a schedule; use 'steps' or"
    " 'plateau' or 'cosine'",
  ),
  (
    {'optimizer__drop_epochs': (20.0, 10.0)},
    1,
    'config.optimizer.drop_epochs=(20.0, 10.0) must be in ascending order',
  ),
  (
    {'optimizer__momentum': 1.0},
    1,
    'config.optimizer.momentum=1.0 must be at least 0 and below 1',
  ),
  (
    {'optimizer__momentum': -0.5},
    1,
    'config.optimizer.momentum=-0.5 must be at least 0 and below 1',
  ),
  (
    {'optimizer__weight_decay': -0.1},
    1,
    'config.optimizer.weight_decay=-0.1 must not be negative',
  ),
  (
    {'optimizer__plateau_drops': -1},
    1,
    'config.optimizer.plateau_drops=-1 must not be negative',
  ),
  (
    {'augment__color_std': -0.1},
    1,
    'config.augment.color_std=-0.1 must not be negative',
  ),
  (
    {'optimizer__schedule': 'steps', 'optimizer__drop_epochs': (-3.0,)},
    1,
    'config.optimizer.drop_epochs=(-3.0,) must hold numbers of at least 0',
  ),
  (
    {'optimizer__schedule': 'steps', 'optimizer__drop_epochs': (float('nan'),)},
    1,
    'config.optimizer.drop_epochs=(nan,) must hold numbers of at least 0',
  ),
  (
    {'model__lrn_layers': ('conv6',)},
    1,
    "config.model.lrn_layers=('conv6',) may only name convolutional layers:"
    ' conv1, conv2, conv3, conv4, conv5',
  ),
  ({'mesh__towers': '3'}, 1, "config.mesh.towers=3 must be '1', '2' or 'auto'"),
  (
    {'input__batch_size': 127, 'mesh__layout': 'data'},
    4,
    'config.input.batch_size=127 must be a multiple of 4, the size of mesh'
    " axis 'data' with 4 devices; try 124 or 128",
  ),
  (
    {'eval__batch_size': 127},  # Four devices: two pairs of towers.
    4,
    'config.eval.batch_size=127 must be a multiple of 2, the size of mesh'
    " axis 'data' with 4 devices; try 126 or 128",
  ),
  (
    {'input__batch_size': 3, 'mesh__layout': 'data'},
    4,
    'config.input.batch_size=3 must be a multiple of 4, the size of mesh'
    " axis 'data' with 4 devices; try 4",
  ),
  # The nets of the paper and of the run log.
  (
    {'input__channel_means': (104.0, 117.0)},
    1,
    'config.input.channel_means=[104.0, 117.0] must be () or three numbers from'
    ' 0 to 255',
  ),
  (
    {'input__channel_means': (104.0, 117.0, 256.0)},
    1,
    'config.input.channel_means=[104.0, 117.0, 256.0] must be ()',
  ),
  (
    {'input__channel_stds': (1.0, 1.0, 0.0)},
    1,
    'config.input.channel_stds=[1.0, 1.0, 0.0] must be () or three positive',
  ),
  (
    {'input__channel_stds': ('a', 'b', 'c')},
    1,
    "config.input.channel_stds=['a', 'b', 'c'] must be () or three positive",
  ),
  (
    {'model__dropout_inputs': ('fc6', 'conv5')},
    1,
    "config.model.dropout_inputs=['fc6', 'conv5'] may only name fc6, fc7 and",
  ),
  (
    {'model__dropout_inputs': ('fc6',), 'model__tower_links': False},
    1,
    "config.model.dropout_inputs=('fc6',) drops maps of both towers before fc6:"
    ' it needs config.model.tower_links=True',
  ),
  ({'model__num_towers': 3}, 2, 'config.model.num_towers=3 must be 1 or 2'),
  (
    {'model__num_towers': 1, 'model__tower_links': False},
    1,
    'config.model.tower_links=False needs config.model.num_towers=2',
  ),
  (
    {'model__num_towers': 1, 'mesh__towers': '2'},
    2,
    'config.mesh.towers=2 needs a network of two towers, but'
    " config.model.num_towers=1; use config.mesh.towers='1' or 'auto'",
  ),
  (
    {'model__num_towers': 1, 'model__fc_features': (4096, -1)},
    1,
    'config.model.fc_features=(4096, -1) must be 0 (no such layer) or positive',
  ),
  (
    {'model__conv_features': (96, 256, 384, 384, 256, 256, 256)},
    1,
    'config.model.conv_features=(96, 256, 384, 384, 256, 256, 256) must have 5'
    ' or 6 entries, one per layer',
  ),
  (
    {'model__conv_features': (96, 255, 384, 384, 256)},
    1,
    'config.model.conv_features=(96, 255, 384, 384, 256) must be 0 (no such'
    ' layer) or positive and even, half for each tower',
  ),
  (
    {'model__conv_features': (0, 256, 384, 384, 256)},
    1,
    'config.model.conv_features=(0, 256, 384, 384, 256) must have a first layer',
  ),
  (
    {'model__activation': 'gelu'},
    1,
    "config.model.activation=gelu is unknown; use 'relu' or 'tanh'",
  ),
  ({'model__pool_size': 4}, 1, 'config.model.pool_size=4 must be 2 or 3'),
  (
    # conv1's maps must have 8 pixels (8, 4, 2, 1): 11 + 6 * 4 + 1.
    {'model__pool_size': 2, 'input__crop_size': 35},
    1,
    'config.input.crop_size=35 leaves pool5 without output; with this conv1 it'
    ' must be at least 36',
  ),
  (
    {'model__lrn_alpha': -1e-4},
    1,
    'config.model.lrn_alpha=-0.0001 must not be negative',
  ),
  *(
    (
      {f'model__{key}': ('conv2', layer)},
      1,
      f"config.model.{key}=('conv2', '{layer}') may only name convolutional"
      ' layers: conv1, conv2, conv3, conv4, conv5',
    )
    for key, layer in {
      'lrn_layers': 'fc6',
      'lrn_before_activation': 'pool1',
      'within_map_norm_layers': 'conv7',
    }.items()
  ),
  (
    {'optimizer__drop_epochs': (10.0,)},  # paper.py has 'plateau'.
    1,
    'config.optimizer.drop_epochs=(10.0,) belongs to'
    " config.optimizer.schedule='steps'; set that, or empty it",
  ),
  (
    {'optimizer__drop_epochs': (10.0,), 'optimizer__schedule': 'cosine'},
    1,
    'config.optimizer.drop_epochs=(10.0,) belongs to'
    " config.optimizer.schedule='steps'; set that, or empty it",
  ),
  (
    {'optimizer__conv1_drop_epochs': (20.0, 10.0)},
    1,
    'config.optimizer.conv1_drop_epochs=(20.0, 10.0) must be in ascending order',
  ),
  (
    {'optimizer__conv1_drop_epochs': ('a',)},
    1,
    "config.optimizer.conv1_drop_epochs=('a',) must hold numbers",
  ),
  (
    {'optimizer__conv1_freeze_epoch': -1.0},
    1,
    'config.optimizer.conv1_freeze_epoch=-1.0 must not be negative',
  ),
  (
    {'optimizer__frozen_layers': ('conv1', 'conv6', 'pool5')},
    1,
    "config.optimizer.frozen_layers=('conv1', 'conv6', 'pool5') may only name"
    ' layers of this net: conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8',
  ),
  (
    {
      'optimizer__frozen_layers': ('conv1', 'fc6'),
      'model__conv_features': (96, 0, 0, 0, 256, 256),
      'model__fc_features': (0, 4096),
    },
    1,
    "config.optimizer.frozen_layers=('conv1', 'fc6') may only name layers of"
    ' this net: conv1, conv5, conv6, fc7, fc8',
  ),
  (
    {
      'optimizer__frozen_layers': ('conv1', 'fc8'),
      'model__conv_features': (96, 0, 0, 0, 0),
      'model__fc_features': (0, 0),
    },
    1,
    "config.optimizer.frozen_layers=('conv1', 'fc8') leaves no layer to train;"
    ' leave out fc8',
  ),
  (
    {'augment__color_end_epoch': -1.0},
    1,
    'config.augment.color_end_epoch=-1.0 must not be negative',
  ),
  # Values of a wrong type, or out of range.
  ({'seed': -1}, 1, 'config.seed=-1 must'),
  # jax.random.key would treat it as seed 0.
  ({'seed': 2**32}, 1, 'config.seed=4294967296 must'),
  (
    {'model__conv_features': ('a', 256, 384, 384, 256)},
    1,
    "config.model.conv_features=('a', 256, 384, 384, 256) must",
  ),
  (
    {'model__fc_features': (4096.0, 4096)},
    1,
    'config.model.fc_features=(4096.0, 4096) must',
  ),
  ({'model__dtype': 'a\nb'}, 1, r'config.model.dtype=a\nb is unknown; use'),
  (
    {'optimizer__drop_epochs': ('a',)},
    1,
    "config.optimizer.drop_epochs=('a',) must",
  ),
]


@pytest.mark.parametrize('change, num_devices, line', RULES)
def test_a_broken_rule_is_one_line_with_its_value_and_a_way_out(
  change, num_devices, line
):
  (problem,) = problems(changed(**change), num_devices)
  assert problem.startswith(line)


LAYOUTS = ('towers', 'data', 'one_weird_trick')
TRICK = {'mesh__layout': 'one_weird_trick'}
# Divisible by 3, 6, 7 and 9; by 3, 4 and 8.
THIRDS = {'input__batch_size': 126, 'eval__batch_size': 126}
EIGHTHS = {'input__batch_size': 120, 'eval__batch_size': 120}
# Like RULES, with the whole line and the remedies that it names.
MESH_RULES = [
  *(
    (
      {'model__dtype': dtype},
      num_devices,
      f"config.model.dtype={dtype} is unknown; use 'float32' or 'bfloat16'",
      [{'model__dtype': known} for known in ('float32', 'bfloat16')],
    )
    for dtype, num_devices in (('float16', 1), ('bf16', 4), ('', 1))
  ),
  (
    {'mesh__layout': 'tower'},
    4,
    "config.mesh.layout=tower is not a layout; use 'towers' or 'data' or"
    " 'one_weird_trick'",
    [{'mesh__layout': layout} for layout in LAYOUTS],
  ),
  *(
    (
      TRICK | {'model__tower_links': False} | change,
      num_devices,
      "config.mesh.layout='one_weird_trick' splits fc6 and fc7 over all"
      ' devices, so it needs config.model.tower_links=True; use'
      " config.mesh.layout='data'",
      [{'model__tower_links': True}, {'mesh__layout': 'data'}],
    )
    for num_devices, change in (
      (2, {}),
      (8, {}),
      (3, THIRDS | {'model__fc_features': (4098, 0)}),
    )
  ),
  *(
    (
      TRICK | {'model__fc_features': widths} | batch,
      num_devices,
      f'config.model.fc_features={widths} must be multiples of the'
      f" {num_devices} devices with config.mesh.layout='one_weird_trick'; use"
      " config.mesh.layout='data'",
      [{'mesh__layout': 'data'}],
    )
    for num_devices, widths, batch in (
      (3, (4096, 4096), THIRDS),
      (3, (4098, 4096), THIRDS),
      (4, (4094, 4096), {}),
      (6, (0, 4096), THIRDS),
      (8, (4092, 0), {}),
    )
  ),
  *(
    (
      {'model__num_classes': 21_843} | batch,
      num_devices,
      'config.model.num_classes=21843 must be even on two towers; use'
      " config.mesh.towers='1'",
      [{'mesh__towers': '1'}],
    )
    for num_devices, batch in ((2, {}), (6, THIRDS), (8, {}))
  ),
  *(
    (
      {'model__lrn_across_towers': True} | batch,
      num_devices,
      'config.model.lrn_across_towers=True needs both towers on one device;'
      " use config.mesh.layout='data'",
      [{'mesh__layout': 'data'}],
    )
    for num_devices, batch in ((2, {}), (6, THIRDS), (8, {}))
  ),
  *(
    (
      {'mesh__towers': '2'} | THIRDS,
      num_devices,
      'config.mesh.towers=2 needs an even number of devices, but there are'
      f" {num_devices}; use config.mesh.towers='1' or 'auto'",
      [{'mesh__towers': '1'}, {'mesh__towers': 'auto'}],
    )
    for num_devices in (1, 3, 7)
  ),
]


@pytest.mark.parametrize('change, num_devices, line, ways_out', MESH_RULES)
def test_a_broken_rule_about_devices_is_one_line_whose_ways_out_work(
  change, num_devices, line, ways_out
):
  assert problems(changed(**change), num_devices) == [line]
  for way in ways_out:
    (name,) = way
    assert name.rpartition('__')[2] in line
    assert str(way[name]) in line.partition('=')[2]
    assert problems(changed(**change | way), num_devices) == []


@pytest.mark.parametrize('num_devices', [2, 3, 4, 8])
@pytest.mark.parametrize(
  'change',
  [
    {'model__fc_features': (0, 0)},
    {'model__fc_features': (4104, 0)},  # 4104 = 171 * 3 * 8
    {'model__fc_features': (0, 4104)},
    {'model__num_classes': 5},  # Does not divide: fc8 is replicated.
    {'model__lrn_across_towers': True},  # Every device has whole convolutions.
    {'model__num_towers': 1, 'model__num_classes': 21_843},
    {'model__dtype': 'bfloat16'},
  ],
  ids=str,
)
def test_one_weird_trick_allows_everything_else(change, num_devices):
  base = TRICK | EIGHTHS | {'model__fc_features': (4104, 4104)}
  assert problems(changed(**base | change), num_devices) == []


def test_one_device_obeys_every_layout():
  change = {
    'model__tower_links': False,
    'model__fc_features': (4094, 30),
    'model__num_classes': 5,
    'input__batch_size': 127,
  }
  for layout in LAYOUTS:
    assert problems(changed(**change, mesh__layout=layout), 1) == []


def test_all_broken_rules_of_one_weird_trick_are_reported_at_once():
  change = TRICK | {'model__tower_links': False, 'input__batch_size': 126}
  found = problems(changed(**change), 6)
  assert [line.partition('=')[0] for line in found] == [
    'config.mesh.layout',
    'config.model.fc_features',
    'config.eval.batch_size',
  ]


@pytest.mark.parametrize(
  'change',
  [
    # One tower is neither halved nor spread over two devices.
    {'model__num_towers': 1, 'model__conv_features': (49, 127, 191, 193, 255)},
    {'model__num_towers': 1, 'model__num_classes': 5},
    {'model__conv_features': (96, 0, 0, 0, 0, 0), 'model__fc_features': (0, 0)},
    {'model__lrn_layers': (), 'model__lrn_alpha': 0.0},
    {'model__lrn_layers': ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')},
    {'model__pool_size': 2, 'input__crop_size': 36},
    {
      'input__image_size': 224,
      'input__crop_size': 224,
    },  # Only one place for the crop.
    # conv1 may have drops of its own, whatever the schedule.
    {'optimizer__conv1_drop_epochs': (0.0, 5.0)},
    {'optimizer__schedule': 'cosine'},
    {'model__num_classes': 0},
    {'optimizer__frozen_layers': ('conv1', 'fc8')},
  ],
  ids=str,
)
def test_what_no_rule_forbids_is_accepted(change):
  assert problems(changed(**change), 2) == []


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('key', FLOAT_KEYS)
def test_numbers_must_be_finite(key, value):
  config = changed(**{key.replace('.', '__'): value})
  (problem,) = problems(config)
  assert problem.startswith(f'config.{key}={value} must')


def test_many_broken_rules_are_reported_in_three_lines():
  config = changed(
    model__num_classes=-1,
    model__conv_features=(96, 256),
    model__dropout_rate=2.0,
    input__crop_size=20,
    input__batch_size=5,
    optimizer__schedule='linear',
    optimizer__momentum=1.5,
    mesh__layout='data',
    train__epochs=-1.0,
    eval__batch_size=7,
  )
  assert problems(config, 2) == [
    'config.train.epochs=-1.0 must be positive',
    'config.model.num_classes=-1 must not be negative',
    'and 7 more rules are broken',
  ]


@pytest.mark.parametrize('key', ['input.batch_size', 'eval.batch_size'])
@pytest.mark.parametrize(
  'layout, towers, num_devices, axis',
  [
    ('data', 'auto', 3, 3),
    ('data', 'auto', 6, 6),
    ('data', 'auto', 7, 7),
    ('one_weird_trick', 'auto', 3, 3),
    ('one_weird_trick', 'auto', 6, 6),
    ('one_weird_trick', '2', 8, 8),
    ('towers', 'auto', 3, 3),
    ('towers', 'auto', 6, 3),  # Pairs of devices.
    ('towers', '2', 14, 7),
    ('towers', '1', 6, 6),
  ],
)
def test_the_batch_sizes_named_are_the_nearest_that_work(
  key, layout, towers, num_devices, axis
):
  config = paper.get_config()
  config.mesh.layout, config.mesh.towers = layout, towers
  config.model.fc_features = (24 * 7, 24 * 7)
  config.input.batch_size = config.eval.batch_size = 10 * axis
  size = 10 * axis + 2
  config.update_from_flattened_dict({key: size})
  (problem,) = problems(config, num_devices)
  named = [int(n) for n in re.findall(r'\d+', problem.partition('try ')[2])]
  assert problem.startswith(
    f'config.{key}={size} must be a multiple of {axis}, the size of mesh axis'
    f" 'data' with {num_devices} devices; try "
  )
  around = []
  for candidate in range(size - axis, size + axis):
    config.update_from_flattened_dict({key: candidate})
    if not problems(config, num_devices):
      around.append(candidate)
  assert named == around == [10 * axis, 11 * axis]


def test_the_smallest_crop_named_works_and_no_smaller_one():
  (problem,) = problems(changed(input__crop_size=20, model__conv1_padding=3))
  least = int(problem.rpartition(' ')[2])
  works = lambda crop: (
    not problems(changed(input__crop_size=crop, model__conv1_padding=3))
  )
  assert (works(least), works(least - 1)) == (True, False)


@pytest.mark.parametrize('crop', [20, 224, 1000])
@pytest.mark.parametrize(
  'size', [1, 8, 32, 63, 64, 65, 66, 72, 76, 96, 112, 128, 223]
)
@pytest.mark.parametrize('name', ['paper', 'quickstart'])
def test_what_a_size_hint_says_works_and_leaves_random_crops(name, size, crop):
  config = load(name)
  config.input.image_size, config.input.crop_size = size, crop
  found = problems(config)
  if crop > size:
    line = found[-1]
    numbers = re.findall(r'\d+', line.partition('try ')[2])
  else:
    (line,) = [found[0]] if found else ['at least 64']
    numbers = re.findall(r'at least (\d+)', line)[::-1]
  *sizes, smaller = map(int, numbers)
  config.input.crop_size = smaller
  if sizes:
    config.input.image_size = sizes[0]
  assert problems(config) == []
  assert smaller < config.input.image_size or crop < size


def test_flattened_values_survive_json_unchanged():
  flat = config_lib.flatten(paper.get_config())
  assert flat['seed'] == 0
  assert flat['model.conv_features'] == [96, 256, 384, 384, 256]
  assert flat['optimizer.drop_epochs'] == []
  assert flat['augment.flip'] is True
  assert not any(isinstance(value, dict | tuple) for value in flat.values())


WRONG = (None, True, 3, 1.5, 1j, 'x', b'x', [1], (), ([1],), (None,), {'a': 1})
ACCEPTED = {float: (float, int), tuple: (tuple, list)}


@pytest.mark.parametrize('key', PAPER_KEYS)
def test_a_value_of_another_type_is_one_line_with_one_that_works(key):
  section, _, name = key.rpartition('.')
  place = lambda config: config[section] if section else config
  works = place(paper.get_config())[name]
  way_out = f', such as {works!r}, its value in configs/paper.py'
  for value in WRONG:
    config = paper.get_config()
    with config.ignore_type():
      place(config)[name] = value
    value = place(config)[name]  # A number may now be a float.
    is_nested = type(value) is tuple and value not in ((), (1,))
    if is_nested or type(value) not in ACCEPTED.get(
      type(works), (type(works),)
    ):
      (line,) = problems(config)
      is_section = hasattr(value, 'items')
      words = (
        ' is missing (a config of another version?); set it to '
        if is_section
        else f'={value!r} must be '
      )
      assert line.startswith(f'config.{key}{words}')
      assert line.endswith(way_out)
  config = paper.get_config().unlock()
  del place(config)[name]
  (line,) = problems(config)
  assert line.startswith(f'config.{key} is missing (')
  assert line.endswith(way_out)


@pytest.mark.parametrize('value', [np.int64(3), np.True_, np.float32(3)])
def test_a_value_of_numpy_is_refused_with_the_reason(value):
  config = paper.get_config()
  with config.ignore_type():
    config.seed = value
  (line,) = problems(config)
  assert 'must be a whole number (a Python value, not a NumPy one)' in line


@pytest.mark.parametrize(
  ('key', 'value', 'rule'),
  [
    ('model.conv_features', (10**30, 8, 8, 8, 8), 'must not exceed 1,048,576'),
    ('input.image_size', 10**30, 'must not exceed 1,048,576'),
    ('input.max_bad_records', -1, 'must not be negative'),
    ('eval.batch_size', 2**20 + 1, 'must not exceed 1,048,576'),
    ('train.log_every_steps', 10**30, 'must not exceed 2,147,483,647'),
    ('train.epochs', 1e-300, 'must be from 1e-6 to 1e9'),
    ('train.epochs', 1e300, 'must be from 1e-6 to 1e9'),
    ('train.eval_every_epochs', 1e-320, 'must be from 1e-6 to 1e9'),
  ],
)
def test_values_far_outside_of_any_use_are_one_line(key, value, rule):
  config = paper.get_config().unlock()
  section, name = key.split('.')
  config[section][name] = value
  found = ranges.out_of_range(config_lib.flatten(config))
  assert [*found] == [key] and found[key][1] == rule
