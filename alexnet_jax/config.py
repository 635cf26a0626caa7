"""Every rule that a config must obey, checked before data or compilation."""

from collections.abc import Iterator
import itertools
import json
import math
import os
import pathlib

import ml_collections

from alexnet_jax import files
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import towers

# A run may be continued with another value of these: they say how far, how
# often to look, and where; what a step computes stays, up to rounding.
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
# Evaluation may look at another split as well.
EVALUATION_MAY_CHANGE = MAY_CHANGE | {'input.eval_split'}
CONFIG_FILE = 'config.json'
# Keys of config.model in which a pretrained network may differ: its classes,
# what its initial weights were, and in what its activations were computed.
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


def check(config: ml_collections.ConfigDict, num_devices: int) -> None:
  """Raises one ValueError that lists every broken rule, one to a line.

  Args:
    config: with the keys of configs/paper.py.
    num_devices: accelerators (or CPU devices) that the run will use.
  """
  try:
    problems = list(_problems(config, num_devices))
  except AttributeError as error:
    raise ValueError(
      f'the config lacks a key of configs/paper.py: {error}; was it made by'
      ' another version of this project?'
    ) from error
  if problems:
    raise ValueError('\n'.join(problems))


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
  """Values by dotted key, as JSON gives them back (tuples become lists)."""
  flat = {}
  for section, value in json.loads(config.to_json_best_effort()).items():
    if isinstance(value, dict):
      flat.update({f'{section}.{key}': v for key, v in value.items()})
    else:
      flat[section] = value
  return flat


def check_unchanged(
  config: ml_collections.ConfigDict,
  made_with: dict,
  where: str,
  may_change: frozenset[str] = MAY_CHANGE,
) -> None:
  """Raises ValueError if a run is continued with another config.

  Args:
    config: of this command.
    made_with: `flatten`ed config of the run so far.
    where: its place, for the message.
    may_change: keys that may differ.
  """
  now = flatten(config)
  differ = [
    f'config.{key}: {made_with.get(key)!r} there, {now.get(key)!r} here'
    for key in sorted(now.keys() | made_with.keys())
    if key not in may_change and now.get(key) != made_with.get(key)
  ]
  if differ:
    raise ValueError(
      f'{where} was made with another config; use a fresh --workdir, or its'
      ' values:\n' + '\n'.join(differ)
    )


def check_same_network(
  config: ml_collections.ConfigDict, made_with: dict, where: str
) -> None:
  """Raises ValueError if pretrained parameters do not fit the network.

  Args:
    config: of this command.
    made_with: `flatten`ed config of the pretraining.
    where: its place, for the message.
  """
  now = flatten(config)
  same = [
    key
    for key in sorted(now)
    if key.startswith('model.')
    and key.removeprefix('model.') not in PRETRAINED_MAY_DIFFER
  ]
  differ = [
    f'config.{key}: {made_with.get(key)!r} there, {now[key]!r} here'
    # fc6 has a row for every unit of the last maps: crop_size.
    for key in ['input.crop_size', *same]
    if now[key] != made_with.get(key)
  ]
  if differ:
    raise ValueError(
      f'{where} is another network; use its values:\n' + '\n'.join(differ)
    )


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """The config that `open_workdir` recorded in a work directory.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged.
  """
  file = pathlib.Path(workdir).expanduser() / CONFIG_FILE
  if not file.exists():
    raise FileNotFoundError(
      f'no {file}; name a --workdir in which --mode=train has been run'
    )
  tree = {}
  for key, value in _read_flat(file).items():
    section, _, name = key.rpartition('.')
    values = tree.setdefault(section, {}) if section else tree
    values[name] = tuple(value) if isinstance(value, list) else value
  return ml_collections.ConfigDict(tree).lock()


def _read_flat(file: pathlib.Path) -> dict[str, object]:
  try:
    flat = json.loads(file.read_text())
    if not isinstance(flat, dict):
      raise ValueError('no values by key')
    return flat
  except ValueError as error:
    raise ValueError(
      f'{file} is damaged ({error}); remove it, or use a fresh --workdir'
    ) from error


def check_workdir(
  workdir: str | os.PathLike,
  config: ml_collections.ConfigDict,
  may_change: frozenset[str] = MAY_CHANGE,
) -> pathlib.Path:
  """The absolute path of a work directory fit for this config; writes nothing.

  Raises:
    ValueError: if it could not be written, or belongs to another config.
  """
  if not os.fspath(workdir):
    raise ValueError('--workdir= is empty; name a folder')
  path = pathlib.Path(workdir).expanduser().absolute()
  there = next(p for p in (path, *path.parents) if p.exists())
  if not (there.is_dir() and os.access(there, os.W_OK)):
    raise ValueError(
      f'--workdir={workdir} cannot be written ({there} is no writable folder);'
      ' name a folder that can'
    )
  file = path / CONFIG_FILE
  if file.exists():
    check_unchanged(
      config, _read_flat(file), f'--workdir={workdir}', may_change
    )
  return path


def open_workdir(
  workdir: str | os.PathLike, config: ml_collections.ConfigDict
) -> pathlib.Path:
  """Makes the work directory if need be, and records the config in it.

  Raises:
    ValueError: as `check_workdir`.
  """
  path = check_workdir(workdir, config)
  try:
    path.mkdir(parents=True, exist_ok=True)
    files.write_json(path / CONFIG_FILE, flatten(config))
  except OSError as error:
    raise ValueError(
      f'--workdir={workdir} cannot be written ({error}); name a folder that can'
    ) from error
  return path


def _problems(
  config: ml_collections.ConfigDict, num_devices: int
) -> Iterator[str]:
  net, inputs, optim = config.model, config.input, config.optimizer
  for key, value in flatten(config).items():
    if isinstance(value, float) and not math.isfinite(value):
      yield f'config.{key}={value} must be finite'
  if not 0 <= config.seed < 2**32:
    yield f'config.seed={config.seed} must be at least 0 and below 2 ** 32'
  yield from _positive(
    config,
    (
      'model.num_classes',
      'model.conv1_kernel',
      'model.conv1_stride',
      'model.init_std',
      'model.conv345_init_std',
      'model.fc67_init_std',
      'model.lrn_k',
      'input.image_size',
      'input.crop_size',
      'input.batch_size',
      'optimizer.learning_rate',
      'optimizer.drop_factor',
      'optimizer.bias_rate_factor',
      'optimizer.plateau_patience',
      'train.epochs',
      'train.log_every_steps',
      'train.eval_every_epochs',
      'train.checkpoint_every_steps',
      'train.plateau_warning_steps',
      'eval.batch_size',
    ),
  )
  yield from _network(net)
  if 0 < inputs.image_size < inputs.crop_size:
    yield (
      f'config.input.crop_size={inputs.crop_size} must not exceed'
      f' config.input.image_size={inputs.image_size}; try {inputs.image_size}'
    )
  yield from _geometry(net, inputs)
  yield from _optimizer(optim)
  for key in ('color_std', 'color_end_epoch'):
    if config.augment[key] < 0:
      yield f'config.augment.{key}={config.augment[key]} must not be negative'
  yield from _mesh(config, num_devices)


def _positive(config, keys):
  for key in keys:
    section, name = key.split('.')
    if config[section][name] <= 0:
      yield f'config.{key}={config[section][name]} must be positive'


def _network(net):
  if net.num_towers not in (1, 2):
    yield f'config.model.num_towers={net.num_towers} must be 1 or 2'
    return
  if net.num_towers == 1 and not net.tower_links:
    yield 'config.model.tower_links=False needs config.model.num_towers=2'
  for key, numbers in (('conv_features', (5, 6)), ('fc_features', (2,))):
    widths, said = net[key], f'config.model.{key}={net[key]}'
    if len(widths) not in numbers:
      lengths = ' or '.join(map(str, numbers))
      yield f'{said} must have {lengths} entries, one per layer'
    if not all(isinstance(width, int) for width in widths):
      yield f'{said} must hold whole numbers'
    elif any(width < 0 or width % net.num_towers for width in widths):
      half = ' and even, half for each tower' if net.num_towers == 2 else ''
      yield f'{said} must be 0 (no such layer) or positive{half}'
    elif key == 'conv_features' and widths and not widths[0]:
      yield f'{said} must have a first layer'
  if net.activation not in model.ACTIVATIONS:
    names = ' or '.join(map(repr, model.ACTIVATIONS))
    yield f'config.model.activation={net.activation} is unknown; use {names}'
  if net.dtype not in ('float32', 'bfloat16'):
    yield (
      f"config.model.dtype={net.dtype} is unknown; use 'float32' or 'bfloat16'"
    )
  if net.pool_size not in (2, 3):
    yield f'config.model.pool_size={net.pool_size} must be 2 or 3'
  if net.lrn_alpha < 0:
    yield f'config.model.lrn_alpha={net.lrn_alpha} must not be negative'
  for key in ('lrn_layers', 'lrn_before_activation', 'within_map_norm_layers'):
    layers = model.CONVS[: len(net.conv_features)]
    if not set(net[key]) <= set(layers):
      yield (
        f'config.model.{key}={net[key]} may hold names of convolutional layers'
        f' alone: {", ".join(layers)}'
      )
  if net.dropout_rate < 0 or 1 <= net.dropout_rate < math.inf:
    yield f'config.model.dropout_rate={net.dropout_rate} must be at least 0 and below 1'
  if net.conv1_padding < 0:
    yield f'config.model.conv1_padding={net.conv1_padding} must not be negative'


def _geometry(net, inputs):
  geometry = (net.conv1_kernel, net.conv1_stride, net.conv1_padding)
  if min(inputs.crop_size, *geometry[:2]) < 1 or net.pool_size not in (2, 3):
    return  # Said already.
  sizes = lambda crop: model.feature_map_sizes(crop, *geometry, net.pool_size)
  empty = [name for name, size in sizes(inputs.crop_size).items() if size < 1]
  if empty:
    least = next(
      crop for crop in itertools.count(1) if min(sizes(crop).values()) >= 1
    )
    yield (
      f'config.input.crop_size={inputs.crop_size} leaves {empty[0]} without'
      f' output; with this conv1 it must be at least {least}'
    )


def _optimizer(optim):
  if optim.schedule not in optimizer.SCHEDULES:
    yield (
      f'config.optimizer.schedule={optim.schedule} is not a schedule; use'
      f' {" or ".join(map(repr, optimizer.SCHEDULES))}'
    )
  for key in ('drop_epochs', 'conv1_drop_epochs'):
    drops = optim[key]
    is_epoch = lambda x: isinstance(x, int | float) and 0 <= x < math.inf
    if not all(map(is_epoch, drops)):
      yield f'config.optimizer.{key}={drops} must hold numbers of at least 0'
    elif list(drops) != sorted(drops):
      yield f'config.optimizer.{key}={drops} must be in ascending order'
    elif key == 'drop_epochs' and drops and optim.schedule == 'plateau':
      yield (
        f'config.optimizer.drop_epochs={drops} belongs to'
        " config.optimizer.schedule='steps'; set that, or empty it"
      )
  if optim.momentum < 0 or 1 <= optim.momentum < math.inf:
    yield f'config.optimizer.momentum={optim.momentum} must be at least 0 and below 1'
  if 0 < optim.drop_factor <= 1:
    yield f'config.optimizer.drop_factor={optim.drop_factor} must be above 1'
  for key in ('weight_decay', 'plateau_drops', 'conv1_freeze_epoch'):
    if optim[key] < 0:
      yield f'config.optimizer.{key}={optim[key]} must not be negative'


def _mesh(config, num_devices):
  mesh = config.mesh
  if mesh.layout not in towers.LAYOUTS:
    yield (
      f'config.mesh.layout={mesh.layout} is not a layout; use'
      f' {" or ".join(map(repr, towers.LAYOUTS))}'
    )
    return
  if str(mesh.towers) not in ('1', '2', 'auto'):
    yield f"config.mesh.towers={mesh.towers} must be '1', '2' or 'auto'"
    return
  if config.model.num_towers not in (1, 2):
    return  # Said already.
  try:
    data, tower = towers.mesh_shape(
      mesh.layout, mesh.towers, num_devices, config.model.num_towers
    )
  except ValueError as error:
    yield str(error)
    return
  if tower == 2 and config.model.lrn_across_towers:
    yield (
      'config.model.lrn_across_towers=True needs both towers on one device; use'
      " config.mesh.layout='data'"
    )
  if config.model.num_classes % tower:
    yield (
      f'config.model.num_classes={config.model.num_classes} must be even on'
      ' two towers; use config.mesh.towers=1'
    )
  if mesh.layout == 'one_weird_trick' and num_devices > 1:
    yield from _one_weird_trick(config.model, num_devices)
  for section in ('input', 'eval'):
    size = config[section].batch_size
    if size > 0 and size % data:
      near = [n for n in (size // data * data, -(-size // data) * data) if n]
      yield (
        f'config.{section}.batch_size={size} must be a multiple of {data}, the'
        f" size of mesh axis 'data' with {num_devices} devices; try"
        f' {" or ".join(map(str, near))}'
      )


def _one_weird_trick(net, num_devices):
  way_out = "use config.mesh.layout='data'"
  if not net.tower_links:
    yield (
      "config.mesh.layout='one_weird_trick' splits fc6 and fc7 over all devices,"
      f' so it needs config.model.tower_links=True; {way_out}'
    )
  if any(isinstance(w, int) and w % num_devices for w in net.fc_features):
    yield (
      f'config.model.fc_features={net.fc_features} must be multiples of the'
      f" {num_devices} devices with config.mesh.layout='one_weird_trick';"
      f' {way_out}'
    )
