"""A net in one file: its weights, config, class names and preprocessing.

The file is a .safetensors file: the parameters by name, 'conv1/kernel',
'conv1/bias' and so on, and 'mean_image'. Its metadata hold the rest as text.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os
import pathlib
import stat

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax import augment
from alexnet_jax import config as config_lib
from alexnet_jax import model
from alexnet_jax import recorded_config
from alexnet_jax.runtime import files

SUFFIX = '.safetensors'
FORMAT = 'alexnet_jax/1'
MEAN_IMAGE = 'mean_image'
# The paper's net takes 244 MB in float32; a file of more than this is refused.
MAX_BYTES = 8 << 30
MAX_IMAGE_SIZE = 4096  # In pixels; 16 times the paper's.


@dataclasses.dataclass(frozen=True)
class Weights:
  """All that is needed to use a net.

  Attributes:
    params: kernels and biases by layer, float32: 'kernel' [height, width, in,
      out] or [in, out], 'bias' [out]. The inputs of fc6 are in the order
      [height, width, features].
    config: config of the net, with the keys of configs/paper.py.
    class_names: one name per label.
    mean_image: mean of the training set, float32 [size, size, 3], RGB, 0..255;
      None if config.input.channel_means is set.
    about: what else is known, by name: 'source', 'license' and so on.
  """

  params: dict[str, dict[str, np.ndarray]]
  config: ml_collections.ConfigDict
  class_names: tuple[str, ...]
  mean_image: np.ndarray | None
  about: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def subtracted(self) -> np.ndarray:
    """What is subtracted from a stored image, float32 [size, size, 3]."""
    if self.mean_image is not None:
      return self.mean_image
    inputs = self.config.input
    return augment.constant_mean_image(inputs.image_size, inputs.channel_means)


def save(path: str | os.PathLike, weights: Weights) -> None:
  """Writes the file: whole, or not at all."""
  path = pathlib.Path(path)
  tensors = flax.traverse_util.flatten_dict(weights.params, sep='/')
  if weights.mean_image is not None:
    tensors[MEAN_IMAGE] = weights.mean_image
  metadata = {
    **weights.about,
    'format': FORMAT,
    'config': json.dumps(config_lib.flatten(weights.config)),
    'class_names': json.dumps(weights.class_names),
  }
  content = safetensors.numpy.save(
    {name: np.ascontiguousarray(x) for name, x in tensors.items()}, metadata
  )
  files.write_bytes(path, content)  # `save_file` sets mode 0600.


def load(path: str | os.PathLike) -> Weights:
  """Reads a file that `save` has written.

  Nothing in it is run, and its shapes are checked before a tensor is read.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged, or not such a file, or its tensors are not
      those of its config.
  """
  path = pathlib.Path(path)
  check_file(path, MAX_BYTES)
  if path.suffix != SUFFIX:
    raise ValueError(
      f'{path} is neither a work directory nor a {SUFFIX} file; python -m'
      ' alexnet_jax.convert reads other formats'
    )
  try:
    file = safetensors.safe_open(path, 'numpy')
  except Exception as error:  # The library has an error class of its own.
    raise ValueError(
      f'{path} is no whole .safetensors file: {error}'
    ) from error
  with file:
    metadata = dict(file.metadata() or {})
    if metadata.pop('format', None) != FORMAT:
      raise ValueError(
        f'{path} was not written by this project (its metadata lack format='
        f'{FORMAT}); python -m alexnet_jax.convert reads files of others'
      )
    config, class_names, expected = _describe(path, metadata)
    names = set(file.keys()) - {MEAN_IMAGE}
    check_names(names, str(path))
    found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    check_shapes(found, expected, str(path))
    size = config.input.image_size
    if not config.input.channel_means:
      if MEAN_IMAGE not in file.keys() or file.get_slice(
        MEAN_IMAGE
      ).get_shape() != [size, size, 3]:
        raise ValueError(
          f'{path} lacks {MEAN_IMAGE} of shape {(size, size, 3)}'
        )
      names.add(MEAN_IMAGE)
    kinds = {name: file.get_slice(name).get_dtype() for name in names}
    if other := {name for name in kinds if kinds[name] != 'F32'}:
      raise ValueError(
        f'{path}: {min(other)} must be finite float32, but is'
        f' {kinds[min(other)]}'
      )
    tensors = {name: file.get_tensor(name) for name in names}
  for name, tensor in tensors.items():
    if not np.isfinite(tensor).all():
      raise ValueError(
        f'{path}: {name} must be finite float32, but has infinite values or NaN'
      )
  mean_image = tensors.pop(MEAN_IMAGE, None)
  params = flax.traverse_util.unflatten_dict(tensors, sep='/')
  return Weights(params, config, class_names, mean_image, metadata)


def check_file(path: pathlib.Path, max_bytes: int) -> None:
  """Raises an error unless `path` is a regular file of at most `max_bytes`."""
  if not path.exists():
    raise FileNotFoundError(f'there is no file {path}')
  status = path.stat()
  if not stat.S_ISREG(status.st_mode):  # A pipe would never end.
    raise ValueError(f'{path} is not a file')
  if status.st_size > max_bytes:
    raise ValueError(
      f'{path} has {status.st_size} bytes, more than the {max_bytes} that any'
      ' such net has'
    )


def check_names(names: Iterable[str], where: str) -> None:
  """Raises ValueError for names that messages could not print in a line."""
  if not all(len(name) <= 200 and name.isprintable() for name in names):
    raise ValueError(
      f'{where} has names of over 200 characters, or that cannot be printed; no'
      ' such net has'
    )


def _describe(path, metadata):
  """The config, class names and shapes of metadata, which may hold anything."""
  try:
    flat = recorded_config.upgrade(json.loads(metadata.pop('config')))
    config = recorded_config.unflatten(flat)
    config_lib.check(_for_one_device(config), num_devices=1)
    class_names = tuple(map(str, json.loads(metadata.pop('class_names'))))
    if config.input.image_size > MAX_IMAGE_SIZE:
      raise ValueError(f'an image_size over {MAX_IMAGE_SIZE}')
    expected = shapes(config)
    if len(class_names) != config.model.num_classes or not class_names:
      raise ValueError(
        f'{len(class_names)} class names for {config.model.num_classes} classes'
      )
  except Exception as error:
    text = ' '.join(str(error).split())[:300]
    raise ValueError(
      f'{path} is damaged or of another version: its config or class names'
      f' cannot be used ({type(error).__name__}: {text})'
    ) from error
  return config, class_names, expected


def _for_one_device(config):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.mesh.layout = 'data'
  return config


def shapes(config: ml_collections.ConfigDict) -> dict[str, tuple[int, ...]]:
  """The shapes of the parameters of the config's net, by 'layer/kind'."""
  size = config.input.crop_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = model.AlexNet(**config.model).init
  params = jax.eval_shape(init, jax.random.key(0), images)['params']
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  return {name: x.shape for name, x in flat.items()}


def check_shapes(
  found: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
  where: str,
) -> None:
  """Raises ValueError unless parameters have the shapes of the config's net.

  Args:
    found: their shapes by 'layer/kind'.
    expected: those of the net, from `shapes`.
    where: name of their file in the message.
  """
  differ = [
    f'{name} is {found.get(name, "missing")} there, but'
    f' {expected.get(name, "not used")} in the net'
    for name in sorted(expected.keys() | found.keys())
    if found.get(name) != expected.get(name)
  ]
  if differ:
    more = f'; and {len(differ) - 6} more' if differ[6:] else ''
    raise ValueError(
      f'{where} does not hold the parameters of the net of its config:\n'
      f'{"; ".join(differ[:6])}{more}'
    )
