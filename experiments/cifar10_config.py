"""The configs of trainings of cuda-convnet's nets, for `cifar10_training`."""

from collections.abc import Mapping
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import digits
from configs import quickstart
from experiments import cuda_convnet
from experiments import run_files

ACTIVATIONS = {'relu': nn.relu, 'tanh': jnp.tanh}
# Keys that do not determine a training, and the values of keys that the first
# recorded configs did not have yet.
NOT_RECORDED = frozenset({'input.data_dir', 'train.max_epochs'})
ADDED = {'optimizer.drop_bias_rate': True, 'input.max_examples': 0}
QUICK_EXAMPLES = 128


def get_config(
  data_dir: str = dataset_lib.DATA_DIR, quick: bool = False
) -> ml_collections.ConfigDict:
  """The config of a training: the 26% net and its recipe.

  Args:
    data_dir: folder of the prepared data sets.
    quick: whether to train on the digits, which are prepared if they are
      missing, in place of CIFAR-10.
  """
  config = ml_collections.ConfigDict(
    {
      'seed': 0,
      'model': {
        'net': '26pct',  # A key of cuda_convnet.NETS.
        'activation': 'relu',  # A key of ACTIVATIONS.
        'has_decay': True,  # Whether weights decay.
      },
      'input': {
        'data_dir': data_dir,
        'dataset': 'cifar10',
        'train_split': 'train',
        'eval_split': 'validation',
        'crop_size': 32,  # Pixels; random crops if the images are larger.
        'max_examples': 0,  # The first ones of each split; 0 for all.
      },
      # Whether to reflect training images, and to test on ten views, not five.
      'augment': {'flip': False},
      'optimizer': {
        # (epochs, rate of the weights, share of the training split) by stage.
        'stages': ((8.0, 1e-3, 1.0), (2.0, 1e-4, 1.0)),
        # Whether the rate of biases falls with that of weights; otherwise it
        # stays that of the first stage.
        'drop_bias_rate': True,
      },
      'train': {
        'eval_every_epochs': 1,
        # Ends when the error on 10,000 training images is as low; 0 for never.
        'target_error': 0.0,
        'max_epochs': 0.0,  # Ends there; a higher value continues; 0 for none.
      },
    }
  )
  if quick:
    on_digits = quickstart.get_config()
    on_digits.input.data_dir = data_dir
    digits.prepare_if_missing(on_digits)
    for key in ('dataset', 'train_split', 'eval_split'):
      config.input[key] = on_digits.input[key]
    config.input.max_examples = QUICK_EXAMPLES
  return config


def recorded(config: ml_collections.ConfigDict) -> dict[str, object]:
  """Config values by dotted key that determine a training."""
  flat = config_lib.flatten(config)
  return {k: v for k, v in flat.items() if k not in NOT_RECORDED}


def differences(
  found: Mapping[str, object], now: Mapping[str, object]
) -> list[str]:
  """Keys whose values differ in two results of `recorded`, `found` the older."""
  found = {**ADDED, **found}
  return [key for key in now if found.get(key) != now[key]]


def open_dataset(config: ml_collections.ConfigDict) -> dataset_lib.Dataset:
  """The data set of a config.

  Raises:
    FileNotFoundError: if it has not been prepared.
    ValueError: if it is damaged, or does not fit the config and the nets.
  """
  inputs, classes = config.input, 10  # Units of the last layer of every net.
  dataset = dataset_lib.open_dataset(inputs.data_dir, inputs.dataset, 32)
  if dataset.image_size < inputs.crop_size:
    raise ValueError(
      f'{dataset.path} holds images of {dataset.image_size} pixels, but this net'
      f' needs {inputs.crop_size}; prepare it again with --size=32'
    )
  if len(dataset.class_names) != classes:
    raise ValueError(
      f'{dataset.path} has {len(dataset.class_names)} classes, but this net has'
      f' {classes}; prepare CIFAR-10 under that name'
    )
  return dataset


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a net or an activation that does not exist."""
  known = {'net': cuda_convnet.NETS, 'activation': ACTIVATIONS}
  for key, values in known.items():
    if config.model[key] not in values:
      raise ValueError(
        f'config.model.{key}={config.model[key]} is unknown; use'
        f' {" or ".join(values)}'
      )


def check_recorded(
  config: ml_collections.ConfigDict, file: pathlib.Path
) -> None:
  """Raises ValueError if the config differs from the one in `file`."""
  differ = differences(run_files.read(file), recorded(config))
  if differ:
    raise ValueError(
      f'{file} was made with another config ({", ".join(differ)} differ); use a'
      ' fresh --output'
    )
