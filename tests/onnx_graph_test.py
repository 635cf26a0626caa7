"""ONNX files in ONNX Runtime against our net: every activation, every preset."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from alexnet_jax import augment
from alexnet_jax import evaluator
from alexnet_jax import model
from alexnet_jax import net as net_lib
from alexnet_jax.convert import onnx_graph
from tests import narrow_nets

# The largest difference of an activation, over its largest value. Measured: 2e-6,
# and 8e-6 after tanh in both norms.
TOLERANCE = 2e-5

VARIANTS = {
  'tanh, norms first': {
    'activation': 'tanh',
    'lrn_before_activation': ('conv1', 'conv2'),
    'within_map_norm_layers': ('conv1', 'conv3'),
  },
  'no conv2, conv3 and fc7, another rate of dropout': {
    'conv_features': (12, 0, 0, 12, 16),
    'fc_features': (24, 0),
    'dropout_rate': 0.3,
  },
  'no conv5 and fc6, no links': {
    'conv_features': (12, 16, 8, 12, 0),
    'fc_features': (0, 16),
    'tower_links': False,
  },
  'no fc6 and fc7': {'fc_features': (0, 0), 'dropout_inputs': ('fc6', 'fc7')},
  'dropout before fc6': {'dropout_inputs': ('fc6', 'fc7'), 'dropout_rate': 0.3},
  'windows that exceed a padded crop': {
    'conv1_stride': 3,
    'conv1_padding': 1,
    'pool_size': 2,
  },
  'whole windows of a crop': {'conv1_stride': 3, 'conv1_ceil_mode': False},
}
# These presets have all that others have.
QUICK = {'caffe', 'conv6', 'run147', 'run150', 'source', 'torchvision'}
CONFIGS = [
  pytest.param(
    functools.partial(narrow_nets.preset, name),
    id=name,
    marks=[] if name in QUICK else pytest.mark.slow,
  )
  for name in narrow_nets.PRESETS
]
CONFIGS += [
  pytest.param(functools.partial(narrow_nets.variant, **changes), id=name)
  for name, changes in VARIANTS.items()
]


def run(proto, *arrays, outputs=None):
  """The outputs of ONNX Runtime for each input."""
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
  (given,) = session.get_inputs()
  return [session.run(outputs, {given.name: array}) for array in arrays]


def ours(weights, images, layers=()):
  """Probabilities and activations, by the code of evaluation in float32."""
  inputs = weights.config.input
  net = model.AlexNet(**dict(weights.config.model) | {'dtype': 'float32'})
  sizes = inputs.image_size, inputs.crop_size
  offsets = augment.view_offsets(*sizes, many=False, flip=False)
  mean_image = weights.mean_image
  if mean_image is None:
    mean_image = np.full(
      (sizes[0], sizes[0], 3), inputs.channel_means, np.float32
    )

  @jax.jit
  def predict(params, images, mean_image):
    return evaluator.predict(
      net,
      params,
      images,
      mean_image,
      jnp.asarray(offsets),
      crop_size=sizes[1],
      channel_stds=inputs.channel_stds,
      layers=layers,
    )

  log_probs, activations = predict(weights.params, images, mean_image)
  arrays = {name: np.asarray(x[0]) for name, x in activations.items()}
  return np.exp(log_probs), arrays


def difference(found, expected):
  return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('create_config', CONFIGS)
def test_all_activations_are_ours(create_config):
  config = create_config()
  weights = narrow_nets.weights(config)
  images = narrow_nets.images(config, 3)
  proto = onnx_graph.build(weights)
  onnx.checker.check_model(proto, full_check=True)
  # A layer that is left out has no name there, unless it is pooled.
  names = [
    name
    for name in net_lib.Net(weights).layer_names
    if name.partition('/')[0] in {*weights.params, *model.POOLED}
  ]
  for name in names:
    name = name.replace('fc8', 'logits')
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
  (found, *activations), (of_one, *_) = run(proto, images, images[:1])
  expected, our_activations = ours(weights, images, tuple(names))
  differences = {'probabilities': difference(found, expected)}
  for name, activation in zip(names, activations, strict=True):
    if activation.ndim == 4:
      activation = activation.transpose(0, 2, 3, 1)
    assert activation.shape == our_activations[name].shape
    differences[name] = difference(activation, our_activations[name])
  assert max(differences.values()) < TOLERANCE, differences
  assert (found.argmax(1) == expected.argmax(1)).all()
  np.testing.assert_allclose(of_one, found[:1], rtol=1e-5, atol=1e-7)


def test_the_bare_net_takes_crops_and_returns_logits():
  weights = narrow_nets.weights(narrow_nets.variant())
  size = weights.config.input.crop_size
  crops = np.random.default_rng(2).normal(0, 64, (2, size, size, 3))
  crops = crops.astype(np.float32)
  ((found,),) = run(onnx_graph.build(weights, crops=True), crops)
  net = model.AlexNet(**weights.config.model)
  expected = jax.jit(net.apply)({'params': weights.params}, crops)
  assert difference(found, expected) < TOLERANCE


def test_a_file_has_the_class_names_and_its_source(tmp_path):
  weights = narrow_nets.weights(narrow_nets.variant())
  path = tmp_path / 'net.onnx'
  onnx_graph.export(weights, path)
  session = onnxruntime.InferenceSession(path)
  metadata = session.get_modelmeta().custom_metadata_map
  assert json.loads(metadata.pop('class_names')) == [*weights.class_names]
  assert metadata == weights.about
  (given,), (returned,) = session.get_inputs(), session.get_outputs()
  assert (given.name, given.shape) == ('images', ['batch', 76, 76, 3])
  assert (returned.name, returned.shape) == ('probabilities', ['batch', 10])
  net = net_lib.Net(weights)
  images = narrow_nets.images(weights.config, 2)
  (found,) = session.run(None, {'images': images})
  assert difference(found, net.probabilities(images)) < TOLERANCE
  # What does not fit is refused with the name of the input.
  with pytest.raises(Exception, match='invalid dimensions for input: images'):
    session.run(None, {'images': images[:, :75]})


@pytest.mark.parametrize(
  ('place', 'name', 'value', 'message'),
  [
    (onnx_graph, 'MAX_BYTES', 2**24, 'the weights have .* write .safetensors'),
    (onnx_graph, 'OPERATIONS', {'relu': 'Relu'}, 'activation=tanh cannot be'),
    (importlib.util, 'find_spec', lambda _: None, 'pip install onnx'),
  ],
)
def test_what_cannot_be_written_is_one_line_and_no_file(
  monkeypatch, tmp_path, place, name, value, message
):
  weights = narrow_nets.weights(narrow_nets.variant(activation='tanh'))
  monkeypatch.setattr(place, name, value)
  with pytest.raises(ValueError, match=message) as error:
    onnx_graph.export(weights, tmp_path / 'net.onnx')
  assert '\n' not in str(error.value)
  assert list(tmp_path.iterdir()) == []
