"""Nets with the geometry of the presets and few features, as files hold them."""

import dataclasses
import importlib
import pathlib

import ml_collections
import numpy as np

from alexnet_jax import weights as weights_lib
from configs import cifar10
from configs import quickstart

PRESETS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py')
)
# Groups of 4, 6 and 8 maps: the norm's window of 5 meets both of their edges.
CONV_WIDTHS, FC_WIDTHS, CLASSES = (12, 16, 8, 12, 16, 8), (24, 16), 10
# The classes and the image size of the net of `tiny`.
ANIMALS, TINY_SIZE = ('ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu'), 16


def preset(name: str) -> ml_collections.ConfigDict:
  """A preset with few features in the layers that it has."""
  config = importlib.import_module(f'configs.{name}').get_config()
  net = config.model
  narrow = lambda widths, few: tuple(
    few_ if width else 0 for width, few_ in zip(widths, few, strict=False)
  )
  net.conv_features = narrow(net.conv_features, CONV_WIDTHS)
  net.fc_features = narrow(net.fc_features, FC_WIDTHS)
  net.num_classes = CLASSES
  return config


def variant(**changes: object) -> ml_collections.ConfigDict:
  """The small geometry of the quick start, with other values of model keys."""
  config = quickstart.get_config()
  config.model.update(
    {'conv_features': CONV_WIDTHS[:5], 'fc_features': FC_WIDTHS} | changes
  )
  return config


def weights(config: ml_collections.ConfigDict) -> weights_lib.Weights:
  """Random weights that keep activations in the range of the pixels."""
  rng, params = np.random.default_rng(0), {}
  for name, shape in sorted(weights_lib.shapes(config).items()):
    layer, _, kind = name.partition('/')
    # The variance for ReLUs of He et al. 2015; logits of about one.
    scale = 1.0 if kind == 'bias' else np.sqrt(2 / np.prod(shape[:-1]))
    scale *= 0.02 if layer == 'fc8' else 1.0
    array = rng.normal(0, scale, shape).astype(np.float32)
    params.setdefault(layer, {})[kind] = array
  size = config.input.image_size
  mean = rng.uniform(100, 150, (size, size, 3)).astype(np.float32)
  mean = None if config.input.channel_means else mean
  names = tuple(f'class {label}' for label in range(config.model.num_classes))
  about = {'source': 'a test', 'license': 'CC0-1.0'}
  return weights_lib.Weights(params, config, names, mean, about)


def tiny() -> weights_lib.Weights:
  """A net of few features for images of 16 x 16 pixels, seven kinds of animals.

  Its probabilities are so far apart that batches of all sizes order them alike.
  """
  config = cifar10.get_config()
  config.model.num_classes = len(ANIMALS)
  config.model.conv_features = (4, 4, 4, 4, 4)
  config.model.fc_features = (8, 8)
  config.model.pool_size = 2
  config.input.image_size, config.input.crop_size = TINY_SIZE, TINY_SIZE - 4
  return dataclasses.replace(weights(config.lock()), class_names=ANIMALS)


def images(config: ml_collections.ConfigDict, count: int) -> np.ndarray:
  """Random images as preparation stores them."""
  shape = count, *(config.input.image_size,) * 2, 3
  return np.random.default_rng(1).integers(0, 256, shape, np.uint8)
