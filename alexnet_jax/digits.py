"""The embedded data set: scikit-learn's handwritten digits.

Commands prepare it on first use, so the quick start needs no download.
"""

import jax
import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax.runtime import processes


def prepare_if_missing(config: ml_collections.ConfigDict) -> None:
  """Prepares the digits if the config names them and they are not prepared.

  Raises:
    ValueError: if the config is invalid, or the data set cannot be written.
  """
  inputs = config.input
  if inputs.dataset != 'digits':
    return
  config_lib.check(config, jax.device_count())
  path = dataset_lib.dataset_path(inputs.data_dir, 'digits')
  # Process 0 goes first: other hosts may share its file system.
  if processes.is_first() and not path.exists():
    _prepare(inputs.data_dir, inputs.image_size)
  processes.barrier('digits')
  if not path.exists():
    _prepare(inputs.data_dir, inputs.image_size)
  processes.barrier('digits')


def _prepare(data_dir, size):
  from alexnet_jax.prepare import prepare  # Slow to import, rarely needed.

  prepare.prepare('digits', 'digits', data_dir, size=size)
