"""PyTorch's state dicts: .pt and .pth files, or .safetensors files of them."""

from collections.abc import Mapping
import pathlib
import re
import zipfile

import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax import weights as weights_lib
from alexnet_jax.convert import forms
from alexnet_jax.runtime import files

# The names of torchvision's alexnet, by ours.
TORCHVISION = {
  'conv1': 'features.0',
  'conv2': 'features.3',
  'conv3': 'features.6',
  'conv4': 'features.8',
  'conv5': 'features.10',
  'fc6': 'classifier.1',
  'fc7': 'classifier.4',
  'fc8': 'classifier.6',
}
# What a training script wraps a state dict in.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')
MAX_TENSORS = 1000


def read(path: pathlib.Path) -> list[forms.Layer]:
  """The layers of a state dict that `torch.save` has written.

  They are in the order of the numbers in their names. Only tensors are read:
  PyTorch refuses any other object in the file.

  Raises:
    ValueError: if it is damaged or holds something else, or PyTorch is not
      installed.
  """
  torch = _import_torch(path)
  # The records of a .pt file are not compressed: these would fill the memory.
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      if any(x.file_size > x.compress_size for x in archive.infolist()):
        raise ValueError(f'{path} is a compressed archive, not a state dict')
  try:
    found = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # PyTorch raises many kinds.
    if 'weights_only' in str(error) or 'Weights only' in str(error):
      raise ValueError(
        f'{path} holds objects, not only tensors, and reading them could run'
        ' any code; save the net again where you trust it:'
        ' torch.save(net.state_dict(), FILE)'
      ) from error
    text = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'{path} cannot be read ({type(error).__name__}: {text}); is it complete?'
    ) from error
  for name in _WRAPPERS:
    if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
      found = found[name]
  are_tensors = isinstance(found, Mapping) and all(
    isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()
  )
  if not are_tensors:
    raise ValueError(
      f'{path} holds no state dict, names with tensors; save one:'
      ' torch.save(net.state_dict(), FILE)'
    )
  if any(x.layout != torch.strided or x.is_complex() for x in found.values()):
    raise ValueError(f'{path} has tensors that are sparse or not real')
  # A few stored numbers can be the view of a huge tensor.
  if sum(x.nbytes for x in found.values()) > path.stat().st_size:
    raise ValueError(f'{path} has tensors of more bytes than the file')
  try:
    tensors = {
      name: x.detach().to(torch.float32).numpy() for name, x in found.items()
    }
  except (RuntimeError, TypeError, NotImplementedError) as error:
    raise ValueError(f'{path} has tensors without plain numbers') from error
  return _layers(tensors, path)


def read_safetensors(path: pathlib.Path) -> list[forms.Layer]:
  """The layers of a state dict in a .safetensors file; see `read`."""
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      names = [*file.keys()][: MAX_TENSORS + 1]
      tensors = {name: file.get_tensor(name) for name in names}
  except Exception as error:  # The library has an error class of its own.
    text = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'{path} cannot be read ({text}); is it complete, with tensors of float32'
      ' or float16?'
    ) from error
  return _layers(tensors, path)


def _import_torch(path):
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ValueError(
      f'{path} needs PyTorch (pip install torch); .safetensors files do not'
    ) from error
  return torch


def _layers(tensors, path):
  """The layers of tensors by name, each with a weight and a bias."""
  weights_lib.check_names(tensors, str(path))
  by_name = {}
  for name, x in tensors.items():
    layer, _, kind = name.rpartition('.')
    by_name.setdefault(layer, {})[kind] = x
  numbers = lambda name: [
    (int(part), '') if part.isdecimal() else (-1, part)
    for part in re.split(r'([0-9]{1,9})', name)
  ]
  layers, rest = [], []
  for name in sorted(by_name, key=numbers):
    kinds = by_name[name]
    kernel, bias = kinds.get('weight'), kinds.get('bias')
    if (
      len(kinds) == 2
      and kernel is not None
      and bias is not None
      and kernel.ndim in (2, 4)
      and bias.shape == kernel.shape[:1]
      and kernel.size
    ):
      layers.append(forms.Layer(name, kernel, bias))
    else:
      rest += [f'{name}.{k} {list(x.shape)}' for k, x in kinds.items()]
  if rest or not layers:
    more = f', {len(rest) - 8} more' if rest[8:] else ''
    raise ValueError(
      f'{path} is not an AlexNet, whose layers each have a weight of 2 or 4 axes'
      f' and a bias: it also holds {", ".join(rest[:8]) or "nothing"}{more}'
    )
  # By shape first: 'classifier' comes before 'features'.
  return sorted(layers, key=lambda layer: -layer.kernel.ndim)


def write(
  path: pathlib.Path,
  layers: list[forms.Layer],
  names: Mapping[str, str],
  metadata: Mapping[str, str],
) -> None:
  """Writes a state dict: whole, or not at all.

  Args:
    path: a file that ends with .safetensors, or otherwise one for `torch.load`.
    layers: the layers, with names of this project.
    names: names in the file, by those; other layers keep theirs.
    metadata: metadata of a .safetensors file.

  Raises:
    ValueError: if it needs PyTorch, which is not installed.
  """
  tensors = {}
  for layer in layers:
    name = names.get(layer.name, layer.name)
    tensors |= {f'{name}.weight': layer.kernel, f'{name}.bias': layer.bias}
  with files.replacing(path) as temporary:
    if path.suffix == '.safetensors':
      # `save_file` would let nobody else read it.
      temporary.write_bytes(safetensors.numpy.save(tensors, dict(metadata)))
    else:
      torch = _import_torch(path)
      state = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
      torch.save(state, temporary)
