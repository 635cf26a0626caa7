"""The layers of a foreign net, and the net of this project that they are.

Others store kernels as [out, in, height, width] and [out, in], and the inputs
of the first fully connected layer with the features before the pixels.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import ml_collections
import numpy as np

from alexnet_jax import model

_FCS = ('fc6', 'fc7', 'fc8')


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer with weights of a foreign net.

  Attributes:
    name: its name in the file.
    kernel: [out, in, height, width], or [out, in] if it is fully connected.
    bias: [out].
  """

  name: str
  kernel: np.ndarray
  bias: np.ndarray


def config_of(
  layers: Sequence[Layer],
  presets: Mapping[int, ml_collections.ConfigDict],
  where: str,
) -> ml_collections.ConfigDict:
  """The config of the net that the shapes of its layers say.

  Args:
    layers: the layers, first to last.
    presets: config of what shapes do not say, by number of towers.
    where: name of the file in messages.

  Raises:
    ValueError: if no such net has these layers.
  """
  convs = [layer for layer in layers if layer.kernel.ndim == 4]
  fcs = [layer for layer in layers if layer.kernel.ndim == 2]
  if len(convs) not in (5, 6) or len(fcs) != 3 or [*layers] != convs + fcs:
    raise ValueError(
      f'{where} is not an AlexNet, which has 5 or 6 convolutional and 3 fully'
      f' connected layers: it holds {describe(layers)}'
    )
  first, second = convs[0].kernel.shape[0], convs[1].kernel.shape[1]
  towers = first // second if second and first % second == 0 else 0
  if towers not in presets:
    known = ' or '.join(str(n) for n in presets)
    raise ValueError(
      f'{where} is not an AlexNet of {known} towers, as {convs[1].name} reads'
      f' {second} of the {first} maps of {convs[0].name}: it holds'
      f' {describe(layers)}'
    )
  config = ml_collections.ConfigDict(presets[towers])
  config.model.num_towers = towers
  config.model.conv1_kernel = convs[0].kernel.shape[2]
  config.model.conv_features = tuple(len(x.kernel) for x in convs)
  config.model.fc_features = tuple(len(x.kernel) for x in fcs[:2])
  config.model.num_classes = len(fcs[2].kernel)
  return config.lock()


def describe(layers: Sequence[Layer]) -> str:
  """The names and shapes of at most eight layers, for messages."""
  shown = [f'{x.name} {list(x.kernel.shape)}' for x in layers[:8]]
  more = [f'{len(layers) - 8} more'] if layers[8:] else []
  return ', '.join([*shown, *more]) or 'no layer'


def to_params(layers: Sequence[Layer]) -> dict[str, dict[str, np.ndarray]]:
  """The parameters as `weights.Weights` has them, of layers for `config_of`."""
  params = {}
  convs = [layer for layer in layers if layer.kernel.ndim == 4]
  names = (*model.CONVS[: len(convs)], *_FCS)
  for name, layer in zip(names, layers, strict=True):
    kernel = layer.kernel
    units, inputs = kernel.shape[:2]
    maps = len(convs[-1].kernel)
    side = math.isqrt(inputs // maps)
    if name == 'fc6' and side * side * maps == inputs:
      kernel = kernel.reshape(units, maps, side, side).transpose(2, 3, 1, 0)
      kernel = kernel.reshape(inputs, units)
    else:
      kernel = kernel.transpose((2, 3, 1, 0) if kernel.ndim == 4 else (1, 0))
    params[name] = {
      'kernel': np.ascontiguousarray(kernel, np.float32),
      'bias': np.ascontiguousarray(layer.bias, np.float32),
    }
  return params


def from_params(params: Mapping[str, Mapping[str, np.ndarray]]) -> list[Layer]:
  """The layers of parameters as `weights.Weights` has them, first to last."""
  layers = []
  for name in (*model.CONVS, *_FCS):
    if name not in params:
      continue
    kernel, bias = (np.asarray(params[name][k]) for k in ('kernel', 'bias'))
    is_first_fc = kernel.ndim == 2 and layers[-1].kernel.ndim == 4
    if is_first_fc:
      maps = len(layers[-1].kernel)
      kernel = kernel.reshape(-1, maps, kernel.shape[1]).swapaxes(0, 1)
      kernel = kernel.reshape(-1, kernel.shape[2])
    axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
    layers.append(
      Layer(name, np.ascontiguousarray(kernel.transpose(axes)), bias)
    )
  return layers


def scaled(
  params: Mapping[str, Mapping[str, np.ndarray]],
  config: ml_collections.ConfigDict,
  power: int,
) -> dict[str, Mapping[str, np.ndarray]]:
  """Kernels times a power of the factor of their layers' inputs in use.

  With `model.inverted_dropout` there is none. Without it nets of others have
  the factor, 1 - `model.dropout_rate`, in their kernels: `power` is 1 for
  parameters that go out, -1 for those that come in.
  """
  net = config.model
  if net.inverted_dropout:
    return {**params}
  factor = np.float32(1 - net.dropout_rate) ** power
  names = {'fc6'} & {*net.dropout_inputs}
  present = [name for name in _FCS if name in params]
  for before, name in zip(present, present[1:], strict=False):
    reader = {'fc6': 'fc7', 'fc7': 'fc8'}[before]
    names |= {name} if reader in net.dropout_inputs else set()
  return {**params} | {
    name: {**params[name], 'kernel': params[name]['kernel'] * factor}
    for name in names & params.keys()
  }


def check_finite(layers: Sequence[Layer], where: str) -> None:
  """Raises ValueError if a weight is infinite or NaN."""
  for layer in layers:
    if not (np.isfinite(layer.kernel).all() and np.isfinite(layer.bias).all()):
      raise ValueError(f'{where}: {layer.name} has weights that are not finite')
