"""A config as a work directory records it: read, upgraded, compared.

A run continues only with the config that it began with, apart from `MAY_CHANGE`.
A work directory of an earlier version is read in today's keys: whoever adds,
renames or removes a key of configs/paper.py says so in `ADDED`, `RENAMED` or
`REMOVED`.
"""

from collections.abc import Mapping

import ml_collections

from alexnet_jax import config as config_lib

# A run may be continued with other values of these keys: they say how long to
# train, how often to evaluate, and where. A step computes the same, up to
# rounding.
MAY_CHANGE = frozenset(
  {
    'input.data_dir',
    'train.epochs',
    'train.log_every_steps',
    'train.checkpoint_every_steps',
    'train.plateau_warning_steps',
    'eval.batch_size',
    'mesh.layout',
    'mesh.towers',
  }
)
# Evaluation may read another split as well.
EVALUATION_MAY_CHANGE = MAY_CHANGE | {'input.eval_split'}
# Keys of config.model in which a pretrained network may differ: its classes,
# its initial weights, and the dtype of its activations.
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

# How `upgrade` reads a config that an earlier version recorded.
# The present name of a key, by its old name.
RENAMED: Mapping[str, str] = {}
# The value that reproduces the old behaviour, by key that did not exist then.
ADDED: Mapping[str, object] = {}
# The value that the code now always has, by key that exists no more.
REMOVED: Mapping[str, object] = {}


def unflatten(flat: Mapping[str, object]) -> ml_collections.ConfigDict:
  """The locked config of flattened values (lists become tuples)."""
  tree = {}
  for key, value in flat.items():
    section, _, name = key.rpartition('.')
    values = tree.setdefault(section, {}) if section else tree
    values[name] = tuple(value) if isinstance(value, list) else value
  return ml_collections.ConfigDict(tree).lock()


def upgrade(flat: Mapping[str, object]) -> dict[str, object]:
  """A flattened config that an earlier version recorded, in today's keys.

  A removed key is kept where its value is not the one that the code now has, so
  that the run is refused by name.
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
  """Raises ValueError if a run is continued with another config.

  Args:
    config: of this command.
    recorded: flattened config of the run so far.
    where: what recorded it, for the message.
    may_change: keys that may differ.
  """
  now = config_lib.flatten(config)
  if config.optimizer.schedule == 'cosine':  # It ends where the run ends.
    may_change -= {'train.epochs'}
  keys = sorted((now.keys() | recorded.keys()) - may_change)
  differ = _differences(keys, recorded, now, where)
  if differ:
    raise ValueError(
      f'{where} was made with another config; use a fresh --workdir, or its'
      ' values:\n' + '\n'.join(differ)
    )


def check_same_network(
  config: ml_collections.ConfigDict, recorded: Mapping[str, object], where: str
) -> None:
  """Raises ValueError if pretrained parameters do not fit the network.

  Args:
    config: of this command.
    recorded: flattened config of the pretraining.
    where: what recorded it, for the message.
  """
  now = config_lib.flatten(config)
  same = [
    key
    for key in sorted(now)
    if key.startswith('model.')
    and key.removeprefix('model.') not in PRETRAINED_MAY_DIFFER
  ]
  # fc6 has one row of weights per unit of the last maps: crop_size.
  differ = _differences(['input.crop_size', *same], recorded, now, where)
  if differ:
    raise ValueError(
      f'{where} is another network; use its values:\n' + '\n'.join(differ)
    )


def _differences(keys, recorded, now, where):
  missing = object()
  differ = lambda key: recorded.get(key, missing) != now.get(key, missing)
  shown = lambda values, key: repr(values[key]) if key in values else 'not set'
  return [
    f'config.{key} is {shown(recorded, key)} in {where} but {shown(now, key)}'
    ' here'
    for key in keys
    if differ(key)
  ]
