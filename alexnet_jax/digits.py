"""The embedded data set: scikit-learn's handwritten digits.

Commands prepare it on first use, so the quick start needs no download.
"""

import jax
import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax.runtime import processes

SPLITS = ('train', 'test')


def prepare_if_missing(config: ml_collections.ConfigDict) -> None:
  """Prepares the digits if the config names them and they are not prepared.

  Raises:
    ValueError: if the config is invalid or does not match the digits, or the
      data set cannot be written.
  """
  inputs = config.input
  if inputs.dataset != 'digits':
    return
  config_lib.check(config, jax.device_count())
  path = dataset_lib.dataset_path(inputs.data_dir, 'digits')
  if not path.exists():
    _check(config)  # A command that is refused leaves no digits behind.
  # Process 0 goes first: other hosts may share its file system.
  if processes.is_first() and not path.exists():
    _prepare(inputs.data_dir, inputs.image_size)
  processes.barrier('digits')
  if not path.exists():
    _prepare(inputs.data_dir, inputs.image_size)
  processes.barrier('digits')


def _check(config):
  if config.model.num_classes not in (0, 10):
    raise ValueError(
      f'config.model.num_classes={config.model.num_classes}, but the digits have'
      ' 10 classes; set it to 10'
    )
  for key in ('train_split', 'eval_split'):
    if config.input[key] not in SPLITS:
      raise ValueError(
        f'config.input.{key}={config.input[key]}: the digits have no such split;'
        f' use {" or ".join(SPLITS)}'
      )


def _prepare(data_dir, size):
  from alexnet_jax.prepare import prepare  # Slow to import, rarely needed.

  prepare.prepare('digits', 'digits', data_dir, size=size)
