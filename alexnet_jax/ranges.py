"""The types and the ranges of config values."""

from collections.abc import Iterator, Mapping
import functools
import math
import runpy

from alexnet_jax import cache
from alexnet_jax.runtime import config_file

# The types that a value may have, by the type of its value in configs/paper.py.
TYPES = {
  bool: ('True or False', bool),
  int: ('a whole number', int),
  float: ('a number', int | float),
  str: ('text', str),
  tuple: ('a tuple of numbers or names', tuple | list),
}

# For each rule a predicate, and the keys whose values must satisfy it.
RANGES = {
  'must be positive': (
    lambda value: value > 0,
    (
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
      'optimizer.fc8_rate_factor',
      'optimizer.plateau_patience',
      'train.epochs',
      'train.log_every_steps',
      'train.eval_every_epochs',
      'train.checkpoint_every_steps',
      'train.plateau_warning_steps',
      'train.profile_steps',
      'eval.batch_size',
    ),
  ),
  'must not be negative': (
    lambda value: value >= 0,
    (
      'model.num_classes',
      'model.conv1_padding',
      'model.lrn_alpha',
      'input.max_bad_records',
      'augment.color_std',
      'augment.color_end_epoch',
      'optimizer.weight_decay',
      'optimizer.plateau_drops',
      'optimizer.conv1_freeze_epoch',
      'train.diagnostics_every_evals',
      'train.profile_step',
    ),
  ),
  'must be at least 0 and below 1': (
    lambda value: 0 <= value < 1,
    ('model.dropout_rate', 'optimizer.momentum'),
  ),
  'must be from 1e-6 to 1e9': (
    lambda value: 1e-6 <= value <= 1e9,
    ('train.epochs', 'train.eval_every_epochs'),
  ),
  'must be above 1': (lambda value: value > 1, ('optimizer.drop_factor',)),
  f'is not one of {", ".join(cache.MODES)}': (
    lambda value: value in cache.MODES,
    ('input.cache',),
  ),
  'must be () or three numbers from 0 to 255, the means of R, G and B': (
    lambda value: _are_three(value) and all(0 <= x <= 255 for x in value),
    ('input.channel_means',),
  ),
  'must be () or three positive numbers, the divisors of R, G and B': (
    lambda value: _are_three(value) and all(0 < x < math.inf for x in value),
    ('input.channel_stds',),
  ),
  'may only name fc6, fc7 and fc8': (
    lambda value: {*value} <= {'fc6', 'fc7', 'fc8'},
    ('model.dropout_inputs',),
  ),
  'must be 1 or 2': (lambda value: value in (1, 2), ('model.num_towers',)),
  'must be 2 or 3': (lambda value: value in (2, 3), ('model.pool_size',)),
  'must be at least 0 and below 2 ** 32': (
    lambda value: 0 <= value < 2**32,
    ('seed',),
  ),
}


# Larger whole numbers overflow in JAX or have no memory: those of a net and a
# batch, and all others (the seed has a rule of its own).
MAX_SIZE, MAX_NUMBER = 2**20, 2**31 - 1


@functools.cache
def _paper():
  """The values of configs/paper.py by dotted key."""
  module = runpy.run_path(str(config_file.FOLDER / 'paper.py'))
  return dict(config_file.items(module['get_config']()))


def wrong_types(values: Mapping[str, object]) -> Iterator[str]:
  """Yields a line for each key that is missing or has a value of another type.

  Args:
    values: config values by dotted key, from `config_file.items`.
  """
  for key, example in _paper().items():
    way_out = f'such as {example!r}, its value in configs/paper.py'
    kind, types = TYPES[type(example)]
    if hasattr(values.get(key), 'dtype'):
      kind += ' (a Python value, not a NumPy one)'
    if key not in values:
      where = f'config.{key} is missing (a config of another version?)'
      yield f'{where}; set it to {kind}, {way_out}'
    elif not _has_type(values[key], types):
      yield f'config.{key}={values[key]!r} must be {kind}, {way_out}'


def _has_type(value, types):
  if isinstance(value, tuple | list):
    is_element = lambda x: isinstance(x, int | float | str)
    return types == tuple | list and all(map(is_element, value))
  # A bool is an int.
  return isinstance(value, types) and (types is bool or type(value) is not bool)


def out_of_range(flat: Mapping[str, object]) -> dict[str, tuple[object, str]]:
  """Values that break a rule of `RANGES` or are not finite, with it, by key.

  Args:
    flat: config values by dotted key, from `config.flatten`.
  """
  found = {
    key: (value, 'must be finite')
    for key, value in flat.items()
    if isinstance(value, float) and not math.isfinite(value)
  }
  for rule, (holds, keys) in RANGES.items():
    for key in keys:
      if key not in found and not holds(flat[key]):
        found[key] = (flat[key], rule)
  for key, value in flat.items():
    is_size = key.startswith(('model.', 'input.', 'eval.'))
    limit = MAX_SIZE if is_size else MAX_NUMBER
    numbers = value if isinstance(value, list | tuple) else [value]
    large = [x for x in numbers if type(x) is int and x > limit]
    if large and key != 'seed' and key not in found:
      found[key] = (value, f'must not exceed {limit:,}')
  return found


def _are_three(values):
  """Whether these are three numbers, or none."""
  are_numbers = all(type(value) in (int, float) for value in values)
  return are_numbers and len(values) in (0, 3)
