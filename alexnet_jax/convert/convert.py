"""Reads and writes nets in the formats of this project and of others.

| format | in | out | by |
|---|---|---|---|
| work directory | yes | no | its checkpoints |
| .safetensors of this project | yes | yes | its metadata |
| .caffemodel (bvlc_alexnet) | yes | no | its name |
| .pt, .pth: PyTorch's state dict | yes | yes | its name |
| .torch.safetensors: a state dict | yes | yes | any other .safetensors |
| .onnx, .stablehlo | no | yes | |

Which net a foreign file holds is found from its shapes: two towers are read with
configs/caffe.py, one tower with configs/torchvision.py.
"""

import contextlib
import importlib
import json
import os
import pathlib
import stat

import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax import net as net_lib
from alexnet_jax import shipped_nets
from alexnet_jax import weights as weights_lib
from alexnet_jax import words
from alexnet_jax.convert import caffemodel
from alexnet_jax.convert import forms
from alexnet_jax.convert import torch_weights
from alexnet_jax.prepare import imagenet
from alexnet_jax.runtime import files

TORCH_SAFETENSORS = '.torch.safetensors'
# The endings of outputs; the first that fits decides.
ENDINGS = (
  TORCH_SAFETENSORS,
  weights_lib.SUFFIX,
  '.pt',
  '.pth',
  '.onnx',
  '.stablehlo',
)
MAX_BYTES = 1 << 30  # Four times the paper's net: no foreign file has more.
_PICKLES = (b'\x93NUMPY', b'PK\x03\x04', b'\x80')


def read(
  path: str | os.PathLike,
  *,
  config: ml_collections.ConfigDict | None = None,
  mean: str | os.PathLike | None = None,
  class_names: str | os.PathLike | None = None,
  checkpoint: str = 'best',
  data_dir: str | os.PathLike | None = None,
) -> weights_lib.Weights:
  """The net in a file of any format that can be read, or in a work directory.

  The folder `configs` must be importable, see `config_file.find_configs`.

  Args:
    path: the file or work directory.
    config: for a foreign file, what its shapes do not say; None for
      configs/caffe.py or configs/torchvision.py.
    mean: for a foreign file, a .binaryproto file of a mean image.
    class_names: file with one name a line; None for those that the net has, or
      for ILSVRC's if a foreign net has 1,000 classes.
    checkpoint: see `net.load`.
    data_dir: see `net.load`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if one of them is damaged or does not fit, or PyTorch has to
      read it and is not installed.
  """
  path = _existing(shipped_nets.find(path), '--input')
  names = class_names and _read_names(_existing(class_names, '--class_names'))
  kind = _kind(path)
  if kind == 'own':
    foreign = {'--mean': mean, '--config': config}
    given = [flag for flag, value in foreign.items() if value is not None]
    if given:
      raise ValueError(
        f'{given[0]} is for files of others, but {path} is of this project and'
        ' has its own; leave it out'
      )
    found = net_lib.open_weights(path, checkpoint=checkpoint, data_dir=data_dir)
    params, config, mean_image = found.params, found.config, found.mean_image
    names, about = names or found.class_names, found.about
  else:
    layers = kind(path)
    given = config
    config, mean_image = _config(layers, given, mean, kind, path)
    about = {'source': _source(path, given, config)}
    params = forms.scaled(forms.to_params(layers), config, -1)
    _check_shapes(params, config, path)
    forms.check_finite(layers, str(path))
    if names is None and config.model.num_classes == 1000:
      names = imagenet.class_names()
  if names is None or len(names) != config.model.num_classes:
    raise ValueError(
      f'{path} has {config.model.num_classes} classes, but'
      f' {len(names) if names else "no"} names are given; name a file with one'
      ' name a line: --class_names=FILE'
    )
  return weights_lib.Weights(params, config, names, mean_image, about)


def _source(path, given, config):
  preset = 'caffe' if config.model.num_towers == 2 else 'torchvision'
  read_with = f'configs/{preset}.py' if given is None else 'the given config'
  return f'converted from {path.name}, read with {read_with}'


def check_output(path: str | os.PathLike, crops: bool = False) -> pathlib.Path:
  """The absolute path of an output, checked before an input is read.

  Raises:
    ValueError: if no format has its ending, or none that takes `crops`.
    FileNotFoundError: if its folder does not exist.
  """
  path = files.local_path(path, '--output')
  if not path.name.endswith(ENDINGS) or path.is_dir():
    raise ValueError(
      f'--output={path} must be a file that ends with one of'
      f' {", ".join(ENDINGS)}'
    )
  if crops and path.suffix not in ('.onnx', '.stablehlo'):
    raise ValueError(
      f'--crops belongs to .onnx and .stablehlo files, not to {path.name}; leave'
      ' it out'
    )
  if not path.parent.is_dir():
    raise FileNotFoundError(f'--output: there is no folder {path.parent}')
  return path


def write(
  path: pathlib.Path, weights: weights_lib.Weights, crops: bool = False
) -> None:
  """Writes a net in the format that the ending says, and its model card.

  Args:
    path: path from `check_output`.
    weights: the net.
    crops: for ONNX and StableHLO: the bare net, from crops to logits.

  Raises:
    ValueError: if the format cannot hold this net, or needs a package that is
      not installed.
  """
  if path.name.endswith((TORCH_SAFETENSORS, '.pt', '.pth')):
    _write_torch(path, weights)
  elif path.suffix == weights_lib.SUFFIX:
    weights_lib.save(path, weights)
  else:
    # Both need packages that other formats do not.
    module = {'.onnx': 'onnx_graph', '.stablehlo': 'stablehlo'}[path.suffix]
    exporter = importlib.import_module(f'alexnet_jax.convert.{module}')
    exporter.export(weights, path, crops=crops)
  model_card = importlib.import_module('alexnet_jax.convert.model_card')
  model_card.write(path, weights, crops)


def _existing(path, flag):
  path = files.local_path(path, flag)
  if not path.exists():
    more = shipped_nets.nor_a_net(path) if flag == '--input' else ''
    raise FileNotFoundError(f'{flag}={path}: no such file or folder{more}')
  return path


def _kind(path):
  """'own' for a net of this project, otherwise the function that reads it."""
  if path.is_dir():
    return 'own'
  if not stat.S_ISREG(path.stat().st_mode):  # A pipe would never end.
    raise ValueError(f'--input={path} is neither a file nor a folder')
  with open(path, 'rb') as file:
    start = file.read(9)
  if path.suffix == weights_lib.SUFFIX:
    return _kind_of_safetensors(path)
  weights_lib.check_file(path, MAX_BYTES)
  if path.suffix == caffemodel.SUFFIX:
    return caffemodel.read
  if path.suffix in ('.pt', '.pth'):
    return torch_weights.read
  if path.suffix in ('.npy', '.npz', '.pkl', '.pickle') or start.startswith(
    _PICKLES
  ):
    raise ValueError(
      f'{path} may hold Python objects, and reading those can run any code. In a'
      ' process that may trust it, save the arrays as a state dict (FILE.pt or'
      ' FILE.safetensors) and convert that'
    )
  raise ValueError(
    f'--input={path} has no known format; name a work directory, or a file that'
    ' ends with .safetensors, .caffemodel, .pt or .pth'
  )


def _kind_of_safetensors(path):
  """The same for a .safetensors file, by its metadata."""
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    header = file.read(min(length, 100_000_000))  # The format's own limit.
  metadata = {}
  with contextlib.suppress(ValueError, RecursionError, AttributeError):
    metadata = json.loads(header).get('__metadata__', {})
  if (
    isinstance(metadata, dict) and metadata.get('format') == weights_lib.FORMAT
  ):
    return 'own'
  weights_lib.check_file(path, MAX_BYTES)
  return torch_weights.read_safetensors


def _config(layers, config, mean, kind, path):
  """The config and the mean image of a foreign net."""
  if config is None:
    presets = {2: _preset('caffe'), 1: _preset('torchvision')}
    if kind is caffemodel.read:
      del presets[1]
    presets[2].input.channel_means = caffemodel.PUBLISHED_MEANS
  else:
    presets = {config.model.num_towers: config}
  config = ml_collections.ConfigDict(
    forms.config_of(layers, presets, str(path))
  )
  mean_image = None
  if mean is not None:
    mean = _existing(mean, '--mean')
    weights_lib.check_file(mean, MAX_BYTES)
    mean_image = caffemodel.read_mean(mean)
    config.input.channel_means = ()
    config.input.image_size = len(mean_image)
  elif not config.input.channel_means:
    raise ValueError(
      f'{path} has no mean image; name one with --mean=FILE.binaryproto, or set'
      ' input.channel_means in the config'
    )
  try:
    config_lib.check(config, num_devices=1)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return config.lock(), mean_image


def _preset(name):
  return importlib.import_module(f'configs.{name}').get_config()


def _check_shapes(params, config, path):
  found = {
    f'{name}/{kind}': x.shape
    for name, layer in params.items()
    for kind, x in layer.items()
  }
  weights_lib.check_shapes(found, weights_lib.shapes(config), str(path))


def _read_names(path):
  """The class names in a file."""
  weights_lib.check_file(path, 1 << 24)
  try:
    names = words.distinct(path.read_text('utf-8-sig').splitlines())
  except UnicodeDecodeError as error:
    raise ValueError(f'--class_names={path} is not UTF-8 text') from error
  if not all(name.strip() for name in names) or len({*names}) != len(names):
    raise ValueError(
      f'--class_names={path} must have one name a line, none empty or twice'
    )
  return names


def _write_torch(path, weights):
  net = weights.config.model
  if not net.tower_links:
    raise ValueError(
      f'{path}: a state dict cannot hold towers without links'
      ' (model.tower_links=False), whose fc6 and fc7 PyTorch has no layer for;'
      ' write a .safetensors file'
    )
  params = forms.scaled(dict(weights.params), weights.config, 1)
  theirs = _preset('torchvision').model
  keys = ('num_towers', 'lrn_layers', 'within_map_norm_layers', 'activation')
  keys += ('conv1_stride', 'conv1_padding', 'conv1_ceil_mode', 'pool_size')
  is_torchvision = (
    all(net[key] == theirs[key] for key in keys)
    and {*params} == torch_weights.TORCHVISION.keys()
  )
  torch_weights.write(
    path,
    forms.from_params(params),
    torch_weights.TORCHVISION if is_torchvision else {},
    weights.about,
  )
