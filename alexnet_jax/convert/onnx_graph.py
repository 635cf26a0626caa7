"""ONNX: the graph of a net, built by hand.

One node for each convolution with its groups, pooling and dense layer, and one
of ONNX's own local response norms for each tower. The outputs of the nodes have
the names of the activations of `model.AlexNet`, with maps as [batch, features,
height, width]; 'fc8' is called 'logits'. All is computed in float32, also for a
net that was trained in bfloat16.
"""

import importlib.util
import json
import os
import pathlib

import numpy as np

from alexnet_jax import augment
from alexnet_jax import model
from alexnet_jax import weights as weights_lib
from alexnet_jax.runtime import files

# From 2022, so that older versions of ONNX Runtime read the files.
OPSET, IR_VERSION = 17, 8
MAX_BYTES = 2**31 - 1  # The limit of a protobuf message, such as an ONNX file.
OPERATIONS = {'relu': 'Relu', 'tanh': 'Tanh'}  # Keys of `model.ACTIVATIONS`.


def export(
  weights: weights_lib.Weights, path: str | os.PathLike, crops: bool = False
) -> None:
  """Writes a net as an ONNX file; inputs, outputs and errors are `build`'s."""
  content = build(weights, crops).SerializeToString()
  files.write_bytes(pathlib.Path(path), content)


def build(weights: weights_lib.Weights, crops: bool = False):
  """The `onnx.ModelProto` of a net, for batches of any size.

  Its input is `images`, uint8 [batch, size, size, 3] RGB, with `size`
  config.input.image_size, as preparation stores them; it takes their centre.
  Its output is `probabilities`, float32 [batch, classes]. The class names are
  in its metadata as a JSON list, beside what `weights.about` says.

  Args:
    weights: the net.
    crops: build the bare net, from `crops`, float32 [batch, crop, crop, 3] as
      `augment.view_at` returns them, to `logits`, float32 [batch, classes].

  Raises:
    ValueError: if an ONNX file cannot hold the net, or `onnx` is not installed.
  """
  _check(weights)
  from onnx import TensorProto
  from onnx import helper

  graph, inputs = _Graph(), weights.config.input
  if crops:
    x = name = 'crops'
    dtype, size = TensorProto.FLOAT, inputs.crop_size
  else:
    name, dtype, size = 'images', TensorProto.UINT8, inputs.image_size
    x = _centre_view(graph, weights, name)
  x = graph.add('Transpose', x, perm=(0, 3, 1, 2))
  output = _dense_layers(graph, weights, _convolutions(graph, weights, x))
  if not crops:
    output = graph.add('Softmax', output, output='probabilities', axis=1)
  shapes = ('batch', size, size, 3), ('batch', len(weights.class_names))
  proto = helper.make_model(
    helper.make_graph(
      graph.nodes,
      'alexnet_jax',
      [helper.make_tensor_value_info(name, dtype, shapes[0])],
      [helper.make_tensor_value_info(output, TensorProto.FLOAT, shapes[1])],
      graph.constants,
    ),
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=IR_VERSION,
    producer_name='alexnet_jax',
  )
  class_names = json.dumps(weights.class_names)
  helper.set_model_props(proto, weights.about | {'class_names': class_names})
  return proto


def _check(weights):
  if importlib.util.find_spec('onnx') is None:
    raise ValueError('ONNX files need the library onnx: pip install onnx')
  layers = weights.params.values()
  size = sum(array.nbytes for layer in layers for array in layer.values())
  if size > MAX_BYTES - 2**24:  # What is left holds the rest.
    raise ValueError(
      f'the weights have {size} bytes, but an ONNX file at most {MAX_BYTES};'
      ' write .safetensors'
    )
  activation = weights.config.model.activation
  if activation not in OPERATIONS:
    raise ValueError(
      f'config.model.activation={activation} cannot be written as ONNX, only'
      f' {" and ".join(OPERATIONS)}'
    )


class _Graph:
  """The nodes and constants of a graph so far; values are known by name."""

  def __init__(self):
    self.nodes, self.constants = [], []

  def constant(self, name: str, value: object) -> str:
    """An array; numbers become float32."""
    from onnx import numpy_helper

    value = np.asarray(value)
    if value.dtype != np.int64:
      value = value.astype(np.float32)
    self.constants.append(numpy_helper.from_array(value, name))
    return name

  def add(self, operation: str, *inputs: str, **attributes) -> str:
    """The output of a new node; `output` names it."""
    output = attributes.pop('output', f'{operation}_{len(self.nodes)}')
    self._add(operation, inputs, [output], attributes)
    return output

  def split(self, x: str, parts: int) -> list[str]:
    """Equal parts of the features."""
    if parts == 1:
      return [x]
    outputs = [f'Split_{len(self.nodes)}_{part}' for part in range(parts)]
    self._add('Split', [x], outputs, {'axis': 1})
    return outputs

  def join(self, parts: list[str]) -> str:
    """The features of all parts."""
    return self.add('Concat', *parts, axis=1) if parts[1:] else parts[0]

  def name_last(self, name: str) -> str:
    """Renames the output of the last node, which no other node has read yet."""
    self.nodes[-1].output[:] = [name]
    return name

  def _add(self, operation, inputs, outputs, attributes):
    from onnx import helper

    name = f'{operation}_{len(self.nodes)}'
    node = helper.make_node(operation, inputs, outputs, name, **attributes)
    self.nodes.append(node)


def _centre_view(graph, weights, images):
  """`augment.view_at` for the centre, [batch, crop, crop, 3]."""
  from onnx import TensorProto

  inputs = weights.config.input
  size, crop = inputs.image_size, inputs.crop_size
  ((top, left, _),) = augment.view_offsets(size, crop, many=False, flip=False)
  corners = {
    'top_left': (top, left),
    'bottom_right': (top + crop, left + crop),
    'height_width': (1, 2),
  }
  corners = [graph.constant(k, np.int64(v)) for k, v in corners.items()]
  x = graph.add('Slice', images, *corners)
  x = graph.add('Cast', x, to=TensorProto.FLOAT)
  mean = inputs.channel_means
  if weights.mean_image is not None:
    mean = weights.mean_image[top : top + crop, left : left + crop]
  x = graph.add('Sub', x, graph.constant('mean', mean))
  if inputs.channel_stds:
    x = graph.add('Div', x, graph.constant('stds', inputs.channel_stds))
  return x


def _convolutions(graph, weights, x):
  """The maps that the first dense layer reads, from [batch, 3, crop, crop]."""
  net = weights.config.model
  activation = OPERATIONS[net.activation]
  for name, features in zip(model.CONVS, net.conv_features, strict=False):
    if features:
      x = _convolution(graph, weights, name, x)
      if name in net.lrn_before_activation:
        x = graph.add(activation, _norms(graph, net, name, x))
      else:
        x = _norms(graph, net, name, graph.add(activation, x))
    if name in model.POOLED:
      window = {'kernel_shape': (net.pool_size, net.pool_size)}
      x = graph.add('MaxPool', x, **window, strides=(2, 2))
    if features or name in model.POOLED:
      x = graph.name_last(name)
  return x


def _convolution(graph, weights, name, x):
  net, layer = weights.config.model, weights.params[name]
  size = layer['kernel'].shape[0]
  stride, before, after = 1, size // 2, size // 2
  if name == 'conv1':
    stride, before, after = net.conv1_stride, *[net.conv1_padding] * 2
    if net.conv1_ceil_mode:  # The last window may extend beyond the edges.
      covered = weights.config.input.crop_size + 2 * before - size
      after += -covered % stride
  return graph.add(
    'Conv',
    x,
    graph.constant(f'{name}/kernel', layer['kernel'].transpose(3, 2, 0, 1)),
    graph.constant(f'{name}/bias', layer['bias']),
    output=f'{name}/linear',
    strides=(stride, stride),
    pads=(before, before, after, after),
    group=_num_groups(net, name),
  )


def _num_groups(net, name):
  """How many groups of features a layer reads separately."""
  reads_both = name in model.READ_BOTH_TOWERS and net.tower_links
  return 1 if reads_both or name in ('conv1', 'fc8') else net.num_towers


def _norms(graph, net, name, x):
  """`layers.local_response_norm` and `layers.within_map_norm`."""
  if name in net.lrn_layers:
    groups = 1 if net.lrn_across_towers else net.num_towers
    # ONNX divides alpha by the size.
    settings = {'size': 5, 'bias': net.lrn_k, 'alpha': 5 * net.lrn_alpha}
    parts = graph.split(x, groups)
    x = graph.join(
      [graph.add('LRN', part, beta=0.75, **settings) for part in parts]
    )
  if name in net.within_map_norm_layers:
    squares = graph.add('Mul', x, x)
    # Zeros beyond the edges count, so 25 means are the sum of the squares,
    # which the norm multiplies by 1e-3 / 25.
    window = {'kernel_shape': (5, 5), 'pads': (2, 2, 2, 2)}
    sums = graph.add('AveragePool', squares, **window, count_include_pad=1)
    for operation, value in (('Mul', 1e-3), ('Add', 1.0), ('Pow', 0.75)):
      value = graph.constant(f'{name}/{operation}', value)
      sums = graph.add(operation, sums, value)
    x = graph.add('Div', x, sums)
  return x


def _dense_layers(graph, weights, x):
  """The logits, from the maps of the last convolutional layer."""
  net, params = weights.config.model, weights.params
  keep_rate = 1.0 if net.inverted_dropout else 1 - net.dropout_rate
  # At test time the inputs of these layers are multiplied by `keep_rate`;
  # here their kernels are.
  is_dropped = 'fc6' in net.dropout_inputs and 'fc6' in params
  scale = keep_rate if is_dropped else 1.0
  maps = [features for features in net.conv_features if features][-1]
  for name, reader in (('fc6', 'fc7'), ('fc7', 'fc8'), ('fc8', '')):
    if name not in params:
      continue
    groups = _num_groups(net, name)
    parts = graph.split(x, groups)
    kernels = np.split(scale * params[name]['kernel'], groups, axis=1)
    if maps:
      parts = [graph.add('Flatten', part) for part in parts]
      kernels = [_maps_first(kernel, maps // groups) for kernel in kernels]
    biases = np.split(params[name]['bias'], groups)
    outputs = []
    for i, part in enumerate(parts):
      suffix = f'/{i}' if groups > 1 else ''
      kernel = graph.constant(f'{name}/kernel{suffix}', kernels[i])
      bias = graph.constant(f'{name}/bias{suffix}', biases[i])
      outputs.append(graph.add('Gemm', part, kernel, bias))
    x, maps = graph.join(outputs), 0
    if name == 'fc8':
      return graph.name_last('logits')
    graph.name_last(f'{name}/linear')
    x = graph.add(OPERATIONS[net.activation], f'{name}/linear', output=name)
    scale = keep_rate if reader in net.dropout_inputs else 1.0


def _maps_first(kernel, features):
  """Rows [height, width, features] in the order [features, height, width]."""
  rows = kernel.reshape(-1, features, kernel.shape[1])
  return rows.swapaxes(0, 1).reshape(kernel.shape)
