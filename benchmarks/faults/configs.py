"""Random configs: refused in at most three lines, or usable."""

import contextlib
import importlib
import math
import pathlib

import jax

from alexnet_jax import config as config_lib
from alexnet_jax import model
from benchmarks.faults import damage
from benchmarks.faults import rows
from benchmarks.faults import runs

PRESETS = sorted(
  path.stem
  for path in (pathlib.Path(runs.__file__).parents[2] / 'configs').glob(
    '[a-z]*.py'
  )
)
NUMBERS = (
  *(0, 1, 2, 3, 5, 7, 64, 224, 1000, -1, 2**20 + 1, 2**31, 10**30),
  *(0.0, 1.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, -0.0),
)
OTHERS = (
  *('', 'x', 'data', 'towers', 'none', '1', '\n', '\udcff', 'x' * 5000),
  *(True, None, (), (1,), (4, 8, 8, 8, 8), ('conv1',), (math.nan,), ((),)),
)
DEVICES = (1, 2, 3, 4, 6, 8)
check = rows.check


def changed(rng):
  """A preset with one to four values drawn for any of its keys."""
  preset = importlib.import_module(f'configs.{damage.choose(PRESETS, rng)}')
  config = preset.get_config().unlock()
  keys = sorted(config_lib.flatten(config))
  for _ in range(rng.integers(1, 5)):
    section, _, key = damage.choose(keys, rng).rpartition('.')
    place = config[section] if section else config
    if rng.random() < 0.7 and isinstance(place[key], int | float):
      value = damage.choose(NUMBERS, rng)
      if rng.random() < 0.5 and not isinstance(place[key], bool):
        value = type(place[key])(place[key] * damage.choose((0.5, 2, 3), rng))
    else:
      value = damage.choose((*NUMBERS, *OTHERS), rng)
    with contextlib.suppress(TypeError, ValueError):  # It has another type.
      place[key] = value
  return config.lock()


@contextlib.contextmanager
def random_configs(shared):
  """Checks configs, and traces the nets of those that are accepted."""
  del shared

  def trial(rng, _):
    config, devices = changed(rng), int(damage.choose(DEVICES, rng))
    try:
      config_lib.check(config, devices)
    except ValueError as error:
      lines = str(error).split('\n')
      check(len(lines) <= 3, f'{len(lines)} lines: {error}')
      for line in lines:
        is_rule = 'config' in line or line.startswith('and ')
        check(is_rule, f'no key is named: {line!r}')
      return 'refused'
    net = dict(config.model)
    net['num_classes'] = net['num_classes'] or 10
    size = config.input.crop_size
    shape = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
    found = jax.eval_shape(model.AlexNet(**net).init, jax.random.key(0), shape)
    sizes = [leaf.size for leaf in jax.tree.leaves(found)]
    check(sizes and min(sizes) > 0, f'an empty layer: {found}')
    return 'accepted, traced'

  yield trial


ROWS = [
  rows.Row(
    'configs',
    'random values of up to four keys of any preset, on 1 to 8 devices',
    'refused in at most three lines that name the keys, or accepted, and then'
    ' the net can be traced',
    *(1_000, 30, random_configs),
  )
]
