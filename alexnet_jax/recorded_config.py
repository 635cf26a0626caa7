"""Recorded configs: read from a work directory, upgraded, compared.

A run can only be resumed with its recorded config, apart from `MAY_CHANGE`. The
configs of earlier versions are upgraded to the current keys: whoever adds,
renames or removes a key of configs/paper.py lists it in `ADDED`, `RENAMED` or
`REMOVED`.
"""

from collections.abc import Mapping
import copy
import os

import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax import shipped_nets
from alexnet_jax.runtime import files

# A run may be resumed with other values of these keys: where the data are, how
# long to train, how often to log and save, how to use memory and devices, how
# many damaged records to leave out. Each step computes the same, up to rounding.
MAY_CHANGE = frozenset(
  {
    'input.data_dir',
    'input.cache',
    'input.max_bad_records',
    'train.epochs',
    'train.log_every_steps',
    'train.checkpoint_every_steps',
    'train.plateau_warning_steps',
    'eval.batch_size',
    'mesh.layout',
    'mesh.towers',
  }
)
# Evaluation may also use another split.
EVALUATION_MAY_CHANGE = MAY_CHANGE | {'input.eval_split'}
# Keys of config.model in which a pretrained network may differ: number of
# classes, initialisation, and dtype of the activations.
PRETRAINED_MAY_DIFFER = frozenset(
  {
    'num_classes',
    'init_std',
    'conv345_init_std',
    'fc67_init_std',
    'init_bias',
    'dtype',
  }
)

# How `upgrade` changes the config of an earlier version.
# Renamed keys: the current name by old name.
RENAMED: Mapping[str, str] = {'train.init_workdir': 'train.init_from'}
# Added keys, with the value that reproduces the old behaviour, as JSON has it
# (a list, not a tuple).
ADDED: Mapping[str, object] = {
  'input.cache': 'auto',  # The same batches.
  'model.conv1_ceil_mode': True,
  'model.dropout_inputs': ['fc7', 'fc8'],
  'input.channel_means': [],
  'input.channel_stds': [],
  'input.max_bad_records': 0,
  'optimizer.frozen_layers': [],
  'optimizer.fc8_rate_factor': 1.0,
}
# Removed keys, with the value whose behaviour is the only one now.
REMOVED: Mapping[str, object] = {}


def resolve(
  config: ml_collections.ConfigDict, num_classes: int
) -> ml_collections.ConfigDict:
  """The config as it is recorded: the number of classes, an absolute init_from.

  Args:
    config: config of this command.
    num_classes: number of classes of the data set, which a
      config.model.num_classes of 0 stands for.

  Raises:
    ValueError: if config.train.init_from is not a path, see `files.local_path`.
  """
  config = copy.deepcopy(config)
  config.model.num_classes = config.model.num_classes or num_classes
  config.train.init_from = _absolute(config.train.init_from)
  return config


def _absolute(init_from):
  """The absolute path without links, so that one folder has one name.

  The name of a net of the package stays as it is, wherever the package lies.
  """
  if not init_from or shipped_nets.find(init_from) != init_from:
    return init_from
  key = 'config.train.init_from'
  path = os.path.realpath(files.local_path(init_from, key))
  return str(files.local_path(path, key))


def unflatten(flat: Mapping[str, object]) -> ml_collections.ConfigDict:
  """The locked config of flattened values (lists become tuples)."""
  tree = {}
  for key, value in flat.items():
    section, _, name = key.rpartition('.')
    values = tree.setdefault(section, {}) if section else tree
    values[name] = tuple(value) if isinstance(value, list) else value
  return ml_collections.ConfigDict(tree).lock()


def upgrade(flat: Mapping[str, object]) -> dict[str, object]:
  """Upgrades the flattened config of an earlier version to the current keys.

  A removed key is kept if its value differs from that in `REMOVED`, so that
  `check_unchanged` refuses the run and names the key.
  """
  renamed = {RENAMED.get(key, key): value for key, value in flat.items()}
  kept = {
    key: value
    for key, value in renamed.items()
    if key not in REMOVED or value != REMOVED[key]
  }
  return {**ADDED, **kept}


def check_unchanged(
  config: ml_collections.ConfigDict,
  recorded: Mapping[str, object],
  where: str,
  may_change: frozenset[str] = MAY_CHANGE,
) -> None:
  """Raises ValueError if the config differs from the recorded one.

  Args:
    config: config of this command; before `resolve`, a config.model.num_classes
      of 0 is equal to every number.
    recorded: recorded config, flattened and upgraded.
    where: name of the record in the message.
    may_change: keys that may differ.
  """
  now = config_lib.flatten(config)
  if config.optimizer.schedule == 'cosine':  # Its rates depend on the length.
    may_change -= {'train.epochs'}
  if not config.model.num_classes:
    may_change |= {'model.num_classes'}
  if 'train.init_from' in recorded:  # Earlier versions recorded it as given.
    path = _absolute(recorded['train.init_from'])
    recorded = {**recorded, 'train.init_from': path}
  now['train.init_from'] = _absolute(now['train.init_from'])
  keys = sorted((now.keys() | recorded.keys()) - may_change)
  differ = _differences(keys, recorded, now)
  if differ:
    raise ValueError(
      f'{where} was made with another config; use a fresh --workdir, or its'
      f' values:\n{differ}'
    )


def check_same_network(
  config: ml_collections.ConfigDict, recorded: Mapping[str, object], where: str
) -> None:
  """Raises ValueError if pretrained parameters do not fit the network.

  Args:
    config: config of this command.
    recorded: recorded config of the pretrained network, flattened and upgraded.
    where: name of the record in the message.
  """
  now = config_lib.flatten(config)
  same = [
    key
    for key in sorted(now)
    if key.startswith('model.')
    and key.removeprefix('model.') not in PRETRAINED_MAY_DIFFER
  ]
  # The size of fc6's kernel depends on that of the last maps: on crop_size. The
  # scale of conv1's kernel depends on that of its inputs.
  keys = ['input.crop_size', 'input.channel_stds', *same]
  differ = _differences(keys, recorded, now)
  if differ:
    raise ValueError(f'{where} is another network; use its values:\n{differ}')


def _differences(keys, recorded, now):
  """The keys that differ, with their values, in at most two lines."""
  missing = object()
  differ = lambda key: recorded.get(key, missing) != now.get(key, missing)
  shown = lambda values, key: repr(values[key]) if key in values else 'not set'
  found = [
    f'config.{key} is {shown(recorded, key)} there but {shown(now, key)} here'
    for key in keys
    if differ(key)
  ]
  more = f'\nand {len(found) - 5} more keys differ' if found[5:] else ''
  return '; '.join(found[:5]) + more
