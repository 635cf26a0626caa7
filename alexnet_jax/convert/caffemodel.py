"""Reads Caffe's .caffemodel and .binaryproto files, without Caffe.

Both are messages of caffe.proto. Its fields that are needed are declared here,
with both encodings of a layer, and the protobuf runtime reads them. Messages
inside of others, and packed floats, are declared as bytes: so the number of
layers is known before any is read, and floats are not copied one by one.
"""

import math
import pathlib

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message as message_lib
from google.protobuf import message_factory
import numpy as np

from alexnet_jax import weights as weights_lib
from alexnet_jax.convert import forms

SUFFIX = '.caffemodel'
# The mean of ILSVRC-2012's training images that Caffe's own examples use, R, G
# and B of 0..255. Caffe's order is B, G, R: 104, 117, 123.
PUBLISHED_MEANS = (123.0, 117.0, 104.0)
MAX_LAYERS = 1000
# By message: (field, number, type), a star marking repeated fields.
_FIELDS = {
  'Net': 'name 1 string; layers 2 bytes*; layer 100 bytes*',
  'Layer': 'name 1 string; type 2 string; blobs 7 bytes*;'
  ' convolution_param 106 bytes; lrn_param 118 bytes; pooling_param 121 bytes',
  'V1Layer': 'v0 1 bytes; name 4 string; type 5 int32; blobs 6 bytes*;'
  ' convolution_param 10 bytes; lrn_param 18 bytes; pooling_param 19 bytes',
  'Blob': 'num 1 int32; channels 2 int32; height 3 int32; width 4 int32;'
  ' data 5 bytes*; shape 7 bytes',
  'Shape': 'dim 1 int64*',
  'Convolution': 'pad 3 uint32*; kernel_size 4 uint32*; group 5 uint32;'
  ' stride 6 uint32*; dilation 18 uint32*',
  'LRN': 'local_size 1 uint32; alpha 2 float; beta 3 float;'
  ' norm_region 4 int32; k 5 float',
  'Pooling': 'pool 1 int32; kernel_size 2 uint32; stride 3 uint32;'
  ' pad 4 uint32',
}
# The types of layers that matter, by their number in the older encoding.
_TYPES = {4: 'Convolution', 14: 'InnerProduct', 15: 'LRN', 17: 'Pooling'}
# The layers of bvlc_alexnet with weights, norms and pooling, in order, and their
# settings; before them, what a setting is that a file leaves out.
_DEFAULTS = {
  'Convolution': {'pad': 0, 'group': 1, 'stride': 1, 'dilation': 1},
  'LRN': {'local_size': 5, 'alpha': 1, 'beta': 0.75, 'k': 1, 'norm_region': 0},
  'Pooling': {'pool': 0, 'stride': 1, 'pad': 0},
}
_NORM = _DEFAULTS['LRN'] | {'alpha': 1e-4}
_POOL = _DEFAULTS['Pooling'] | {'kernel_size': 3, 'stride': 2}
_LAYERS = (
  (
    'Convolution',
    {'pad': 0, 'kernel_size': 11, 'group': 1, 'stride': 4, 'dilation': 1},
  ),
  ('LRN', _NORM),
  ('Pooling', _POOL),
  (
    'Convolution',
    {'pad': 2, 'kernel_size': 5, 'group': 2, 'stride': 1, 'dilation': 1},
  ),
  ('LRN', _NORM),
  ('Pooling', _POOL),
  (
    'Convolution',
    {'pad': 1, 'kernel_size': 3, 'group': 1, 'stride': 1, 'dilation': 1},
  ),
  (
    'Convolution',
    {'pad': 1, 'kernel_size': 3, 'group': 2, 'stride': 1, 'dilation': 1},
  ),
  (
    'Convolution',
    {'pad': 1, 'kernel_size': 3, 'group': 2, 'stride': 1, 'dilation': 1},
  ),
  ('Pooling', _POOL),
  *[('InnerProduct', {})] * 3,
)


def _message_classes():
  file = descriptor_pb2.FileDescriptorProto(
    name='alexnet_jax/caffe.proto', package='alexnet_jax', syntax='proto2'
  )
  field_type = descriptor_pb2.FieldDescriptorProto
  for message, fields in _FIELDS.items():
    descriptor = file.message_type.add(name=message)
    for field in fields.split(';'):
      name, number, kind = field.split()
      descriptor.field.add(
        name=name,
        number=int(number),
        type=field_type.Type.Value(f'TYPE_{kind.rstrip("*").upper()}'),
        label=field_type.LABEL_REPEATED
        if kind.endswith('*')
        else field_type.LABEL_OPTIONAL,
      )
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return {
    name: message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f'alexnet_jax.{name}')
    )
    for name in _FIELDS
  }


_MESSAGES = _message_classes()


def read(path: pathlib.Path) -> list[forms.Layer]:
  """The layers of bvlc_alexnet in a .caffemodel file, first to last.

  The first kernel reads R, G and B, where the file has B, G, R.

  Raises:
    ValueError: if it is damaged or holds another net.
  """
  net = _parse('Net', path.read_bytes(), path)
  encoded = net.layer or net.layers
  if not encoded or len(encoded) > MAX_LAYERS:
    raise ValueError(
      f'{path} is no .caffemodel file, or damaged: it holds {len(encoded)}'
      ' layers'
    )
  kind = 'Layer' if net.layer else 'V1Layer'
  found = [_parse(kind, layer, path) for layer in encoded]
  if any(kind == 'V1Layer' and layer.v0 for layer in found):
    raise ValueError(
      f"{path} has the layers of Caffe's first version (V0); rewrite it with"
      " Caffe's upgrade_net_proto_binary"
    )
  names = [net.name, *(layer.name for layer in found)]
  names += [str(layer.type) for layer in found]
  weights_lib.check_names(names, str(path))
  _check_layers(net.name, found, path)
  layers = [_layer(layer, path) for layer in found if layer.blobs]
  if layers[0].kernel.shape[1:2] != (3,):
    raise ValueError(
      f'{path}: {layers[0].name} does not read the 3 colours of an image:'
      f' {forms.describe(layers)}'
    )
  layers[0] = forms.Layer(
    layers[0].name, layers[0].kernel[:, ::-1], layers[0].bias
  )
  return layers


def read_mean(path: pathlib.Path) -> np.ndarray:
  """The mean image in a .binaryproto file: float32 [size, size, 3], RGB.

  Raises:
    ValueError: if it is damaged or not such an image.
  """
  blob = _array(_parse('Blob', path.read_bytes(), path), path, 'the mean')
  if blob.ndim == 4 and blob.shape[0] == 1:
    blob = blob[0]
  if blob.ndim != 3 or len(blob) != 3 or blob.shape[1] != blob.shape[2]:
    raise ValueError(
      f'{path} holds an array of shape {list(blob.shape)}, not a mean image'
      ' [3, size, size]'
    )
  if not (blob.min() >= 0 and blob.max() <= 255):  # Also false for NaN.
    raise ValueError(f'{path} has values that images of 0..255 cannot give')
  return np.ascontiguousarray(blob[::-1].transpose(1, 2, 0))


def _parse(kind, encoded, path):
  try:
    return _MESSAGES[kind].FromString(encoded)
  except (message_lib.DecodeError, UnicodeDecodeError) as error:
    raise ValueError(
      f'{path} is not a whole file of Caffe ({error}); is it complete?'
    ) from error


def _type(layer):
  return _TYPES.get(layer.type, layer.type)


def _check_layers(name, layers, path):
  """Raises ValueError if the net is another one than bvlc_alexnet."""
  ours = {*_TYPES.values()}
  found = [x for x in layers if x.blobs or _type(x) in ours]
  types = [_type(x) for x in found]
  pool_then_norm = ('Pooling', 'LRN') in zip(types, types[1:], strict=False)
  if 'caffenet' in name.lower() or pool_then_norm:
    raise ValueError(
      f'{path} is CaffeNet ({name or "unnamed"}), which pools before it'
      ' normalises; only bvlc_alexnet, which normalises first, can be converted'
    )
  expected = _LAYERS
  if not {'LRN', 'Pooling'} & {*types}:  # Layers with weights alone.
    expected = [x for x in _LAYERS if x[0] in ('Convolution', 'InnerProduct')]
  if types != [kind for kind, _ in expected]:
    raise ValueError(
      f'{path} is not bvlc_alexnet: its layers are'
      f' {", ".join(map(str, types[:20])) or "without weights"}, not'
      f' {", ".join(kind for kind, _ in expected)}'
    )
  for layer, (kind, settings) in zip(found, expected, strict=True):
    for key, value in _stated(layer, kind, path).items():
      if not math.isclose(value, settings[key], rel_tol=1e-6):
        raise ValueError(
          f'{path} is not bvlc_alexnet: its layer {layer.name} has'
          f' {key}={value:g}, not {settings[key]:g}'
        )


def _stated(layer, kind, path):
  """The settings of a layer by name; none where the file has weights alone."""
  encoded = getattr(layer, f'{kind.lower()}_param', b'')
  if not encoded and kind in ('Convolution', 'InnerProduct'):
    return {}
  if len(encoded) > 1000:  # Lists of settings would be copied one by one.
    raise ValueError(f'{path}: its layer {layer.name} has too many settings')
  param = _parse(kind, encoded, path)
  stated = {**_DEFAULTS[kind]}
  for field, value in param.ListFields():
    # Some settings are lists, with a value for each axis or for all.
    values = [value] if isinstance(value, int | float) else {*value}
    if len(values) > 1:
      raise ValueError(
        f'{path} is not bvlc_alexnet: its layer {layer.name} has'
        f' {field.name}={sorted(values)}'
      )
    stated[field.name] = max(values)
  return stated


def _layer(layer, path):
  arrays = [
    _array(_parse('Blob', blob, path), path, layer.name)
    for blob in layer.blobs[:3]
  ]
  if len(arrays) != 2:
    raise ValueError(
      f'{path}: its layer {layer.name} has {len(layer.blobs)} arrays, not a'
      ' kernel and a bias'
    )
  kernel, bias = arrays
  if _type(layer) == 'InnerProduct' and kernel.shape[:2] == (1, 1):
    kernel = kernel[0, 0]  # The older encoding has four axes.
  if bias.size != len(kernel):
    raise ValueError(
      f'{path}: its layer {layer.name} has a kernel of shape'
      f' {list(kernel.shape)} and a bias of shape {list(bias.shape)}'
    )
  return forms.Layer(layer.name, kernel, bias.reshape(-1))


def _array(blob, path, name):
  shape = blob.num, blob.channels, blob.height, blob.width
  if len(blob.shape) > 100:
    raise ValueError(f'{path}: {name} has more axes than any array')
  if blob.shape:
    shape = tuple(_parse('Shape', blob.shape, path).dim)
  data = b''.join(blob.data) if len(blob.data) != 1 else blob.data[0]
  are_sizes = 1 <= len(shape) <= 8 and min(shape) >= 1
  if not are_sizes or math.prod(shape) * 4 != len(data):
    raise ValueError(
      f'{path}: {name} has an array of {len(data)} bytes for the shape'
      f' {list(shape)} of float32; is the file complete?'
    )
  return np.frombuffer(data, '<f4').reshape(shape)
