"""The rules for a config, checked before data are read or code is compiled."""

from collections.abc import Iterator
import json
import math

import ml_collections

from alexnet_jax import feature_maps
from alexnet_jax import mesh_rules
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import ranges
from alexnet_jax.runtime import config_file


def check(config: ml_collections.ConfigDict, num_devices: int) -> None:
  """Raises one ValueError that lists the broken rules, in at most three lines.

  Args:
    config: a config with the keys of configs/paper.py.
    num_devices: number of devices (accelerators, or CPU devices) of the run.
  """
  # Values of a wrong type cannot be compared with a range.
  problems = [*ranges.wrong_types(dict(config_file.items(config)))]
  problems = problems or [*_problems(config, num_devices)]
  if problems:
    if len(problems) > 3:
      problems[2:] = [f'and {len(problems) - 2} more rules are broken']
    # A value may hold the end of a line.
    raise ValueError('\n'.join(p.replace('\n', r'\n') for p in problems))


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
  """Config values by dotted key, as JSON returns them (tuples become lists)."""
  flat = {}
  for section, value in json.loads(config.to_json_best_effort()).items():
    if isinstance(value, dict):
      flat.update({f'{section}.{key}': v for key, v in value.items()})
    else:
      flat[section] = value
  return flat


def _problems(
  config: ml_collections.ConfigDict, num_devices: int
) -> Iterator[str]:
  out_of_range = ranges.out_of_range(flatten(config))
  for key, (value, rule) in out_of_range.items():
    yield f'config.{key}={value} {rule}'
  net, inputs = config.model, config.input
  if 'model.num_towers' not in out_of_range:
    yield from _network(net)
  used = {
    'model.conv1_kernel',
    'model.conv1_stride',
    'model.pool_size',
    'input.crop_size',
  }
  smallest = 1
  if not used & out_of_range.keys():
    smallest = _smallest_crop(net)
    yield from _geometry(net, inputs, smallest)
  if 0 < inputs.image_size < inputs.crop_size:
    yield from _crop_size(inputs, smallest)
  yield from _optimizer(config.optimizer)
  yield from _frozen_layers(net, config.optimizer.frozen_layers)
  if 'model.num_towers' not in out_of_range:
    yield from mesh_rules.problems(config, num_devices)


def _network(net):
  if net.num_towers == 1 and not net.tower_links:
    yield 'config.model.tower_links=False needs config.model.num_towers=2'
  if 'fc6' in net.dropout_inputs and not net.tower_links:
    yield (
      f'config.model.dropout_inputs={net.dropout_inputs} drops maps of both'
      ' towers before fc6: it needs config.model.tower_links=True'
    )
  yield from _widths(net)
  if net.activation not in model.ACTIVATIONS:
    names = ' or '.join(map(repr, model.ACTIVATIONS))
    yield f'config.model.activation={net.activation} is unknown; use {names}'
  if net.dtype not in ('float32', 'bfloat16'):
    yield (
      f"config.model.dtype={net.dtype} is unknown; use 'float32' or 'bfloat16'"
    )
  for key in ('lrn_layers', 'lrn_before_activation', 'within_map_norm_layers'):
    convs = model.CONVS[: len(net.conv_features)]
    if not set(net[key]) <= set(convs):
      yield (
        f'config.model.{key}={net[key]} may only name convolutional layers:'
        f' {", ".join(convs)}'
      )


def _widths(net):
  for key, numbers in (('conv_features', (5, 6)), ('fc_features', (2,))):
    widths, setting = net[key], f'config.model.{key}={net[key]}'
    if len(widths) not in numbers:
      lengths = ' or '.join(map(str, numbers))
      yield f'{setting} must have {lengths} entries, one per layer'
    if not all(isinstance(width, int) for width in widths):
      yield f'{setting} must hold whole numbers'
    elif any(width < 0 or width % net.num_towers for width in widths):
      even = ' and even, half for each tower' if net.num_towers == 2 else ''
      yield f'{setting} must be 0 (no such layer) or positive{even}'
    elif key == 'conv_features' and widths and not widths[0]:
      yield f'{setting} must have a first layer'


def _smallest_crop(net):
  """The smallest crop that leaves every layer a pixel."""
  maps = 1
  for _ in model.POOLED:
    maps = 2 * (maps - 1) + net.pool_size
  covered = net.conv1_stride * (maps - 1)
  if net.conv1_ceil_mode:  # One pixel of the last window is enough.
    covered -= net.conv1_stride - 1
  return max(1, net.conv1_kernel - 2 * net.conv1_padding + covered)


def _feature_map_sizes(net, crop):
  geometry = (net.conv1_kernel, net.conv1_stride, net.conv1_padding)
  return feature_maps.sizes(crop, *geometry, net.pool_size, net.conv1_ceil_mode)


def _geometry(net, inputs, smallest):
  sizes = _feature_map_sizes(net, inputs.crop_size)
  empty = [name for name, size in sizes.items() if size < 1]
  if empty:
    larger = ''
    if smallest > inputs.image_size:
      larger = f', and config.input.image_size at least {_image_size(smallest)}'
    yield (
      f'config.input.crop_size={inputs.crop_size} leaves {empty[0]} without'
      f' output; with this conv1 it must be at least {smallest}{larger}'
    )


def _image_size(crop):
  """The image size of which a crop is 7/8, as the paper's 224 is of 256."""
  return -(-crop * 8 // 7)


def _crop_size(inputs, smallest):
  size = inputs.image_size
  # 7/8 as in the paper; a crop of the whole image would not be random.
  crop = max(round(size * 7 / 8), smallest)
  way_out = f'try {crop}'
  if crop >= size and smallest > 1:
    way_out = (
      'these images are too small for this net, try'
      f' config.input.image_size={_image_size(smallest)} and {smallest}'
    )
  yield (
    f'config.input.crop_size={inputs.crop_size} must not exceed'
    f' config.input.image_size={size}; {way_out}'
  )


def _optimizer(optim):
  is_known = optim.schedule in optimizer.SCHEDULES
  if not is_known:
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
    elif (
      key == 'drop_epochs' and drops and is_known and optim.schedule != 'steps'
    ):
      yield (
        f'config.optimizer.drop_epochs={drops} belongs to'
        " config.optimizer.schedule='steps'; set that, or empty it"
      )


def _frozen_layers(net, frozen):
  sections = (model.CONVS, net.conv_features), (('fc6', 'fc7'), net.fc_features)
  pairs = [p for section in sections for p in zip(*section, strict=False)]
  layers = [*(name for name, width in pairs if width), 'fc8']
  setting = f'config.optimizer.frozen_layers={frozen}'
  if not set(frozen) <= set(layers):
    yield f'{setting} may only name layers of this net: {", ".join(layers)}'
  elif set(frozen) == set(layers):
    yield f'{setting} leaves no layer to train; leave out fc8'
