"""docs/speed_model.md: its results follow from its inputs, its bytes from XLA."""

import json
import pathlib

import jax
import pytest

from alexnet_jax import feature_maps
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from benchmarks import collectives
from benchmarks import layer_times
from benchmarks import synthetic
from configs import paper

ROOT = pathlib.Path(__file__).parents[1]
SLACK = 64  # Bytes of metrics, which are summed beside the gradients.
# Sums of every layer by hand: 224 pixels, no padding at conv1, two groups.
PAPER = {
  'conv1': 11 * 11 * 3 * 96 + 96,
  'conv2': 5 * 5 * 48 * 256 + 256,
  'conv3': 3 * 3 * 256 * 384 + 384,
  'conv4': 3 * 3 * 192 * 384 + 384,
  'conv5': 3 * 3 * 192 * 256 + 256,
  'fc6': 6 * 6 * 256 * 4096 + 4096,
  'fc7': 4096 * 4096 + 4096,
  'fc8': 4096 * 1000 + 1000,
}
CONVS = sum(v for k, v in PAPER.items() if k.startswith('conv'))
ALL = 60_965_224
# Units of an image that the layers read at which devices meet in some layout.
READS = {'conv3': 13 * 13 * 256, 'fc6': 9216, 'fc7': 4096, 'fc8': 4096}


def received_bytes(
  layout,
  shape,
  batch,
  activations=4,
  *,
  params=PAPER,
  reads=READS,
  classes=1000,
):
  """Bytes that a device receives in a step, by mesh axis.

  Args:
    layout: 'towers', 'data' or 'one_weird_trick'.
    shape: of the mesh, (data, tower).
    batch: images of a step, over all devices.
    activations: bytes of a number on its way to a layer.
    params: weights and biases of each layer.
    reads: units of an image that it reads.
    classes: of the net.
  """
  data, tower = shape
  both_ways = lambda names: 2 * activations * sum(reads[n] for n in names)
  found = {'data': 0.0, 'tower': 0.0}
  if tower > 1:  # Each has its half of the maps of its examples.
    exchanged = both_ways(('conv3', 'fc6', 'fc7', 'fc8')) + 4 * classes
    found['tower'] = exchanged * batch / data / tower
  summed = sum(params.values()) / tower
  if layout == 'one_weird_trick' and data > 1:
    whole = classes % data > 0  # Then every device has all of fc8.
    split = ('fc6', 'fc7') if whole else ('fc6', 'fc7', 'fc8')
    summed -= sum(params[name] for name in split)
    resharded = both_ways(['fc8']) if whole else 2 * 4 * classes
    others = (data - 1) / data * batch
    found['data'] = others * (both_ways(split) + resharded / data)
  found['data'] += 2 * (data - 1) / data * 4 * summed
  return found


def test_sizes_are_those_of_the_paper():
  create = lambda key: synthetic.create_state(model.AlexNet(), 224, key)
  params = jax.eval_shape(create, jax.random.key(0)).params
  count = lambda layer: sum(x.size for x in jax.tree.leaves(layer))
  assert {name: count(layer) for name, layer in params.items()} == PAPER
  assert sum(PAPER.values()) == ALL
  sizes = feature_maps.sizes(224, 11, 4, 0)
  assert READS['conv3'] == sizes['pool2'] ** 2 * 256
  assert READS['fc6'] == sizes['pool5'] ** 2 * 256


# By hand, on rings: what a device has not, there and back; 128 images of the
# paper's net. Of 1,000 classes 8 devices have 125 each; 64 do not divide them.
@pytest.mark.parametrize(
  ('layout', 'shape', 'data', 'tower'),
  [
    ('data', (1, 1), 0, 0),
    ('data', (2, 1), 4 * ALL, 0),
    ('data', (8, 1), 2 * 7 / 8 * 4 * ALL, 0),
    # Half of what is read, both ways, and of the logits, one way.
    ('towers', (1, 2), 0, 128 * 4 * (sum(READS.values()) + 500)),
    (
      'towers',
      (4, 2),
      2 * 3 / 4 * 4 * ALL / 2,
      32 * 4 * (sum(READS.values()) + 500),
    ),
    (
      'one_weird_trick',
      (8, 1),
      2 * 7 / 8 * 4 * CONVS
      + 2 * 4 * 112 * (9216 + 4096 + 4096)
      + 2 * 4 * 112 * 125,
      0,
    ),
    (
      'one_weird_trick',
      (64, 1),
      2 * 63 / 64 * 4 * (CONVS + PAPER['fc8'])
      + 2 * 4 * 126 * (9216 + 4096)
      + 2 * 4 * 126 * 4096 / 64,
      0,
    ),
  ],
)
def test_bytes_by_hand(layout, shape, data, tower):
  found = received_bytes(layout, shape, 128)
  assert found == pytest.approx({'data': data, 'tower': tower})


def test_activations_of_two_bytes_halve_what_is_no_gradient_and_no_logit():
  both = [received_bytes('towers', (2, 2), 8, width) for width in (4, 2)]
  assert both[0]['data'] == both[1]['data']
  logits = 4 * 1000 * 4 / 2
  assert both[1]['tower'] - logits == (both[0]['tower'] - logits) / 2


def test_formulas_agree_with_the_recorded_programs():
  path = ROOT / 'benchmarks' / 'results' / 'communication.json'
  record = json.loads(path.read_text())
  assert '--batch' not in record['environment']['command']  # 256 by default.
  assert len(record['figures']) == 11
  for row in record['figures']:
    shape = tuple(map(int, row['mesh'].split('x')))
    found = received_bytes(row['layout'], shape, 256)
    assert 0 <= row['received_bytes'] - sum(found.values()) <= SLACK


# On 4 devices, among which ten classes cannot be divided. Two convolutions compile
# in half the time.
def test_formulas_agree_with_a_compiled_program():
  changes = {
    'num_classes': 10,
    'conv_features': (4, 0, 0, 0, 4),
    'fc_features': (8, 8),
  }
  layout, shape = 'one_weird_trick', (4, 1)
  mesh = mesh_lib.create_mesh(layout, 'auto', jax.devices()[:4])
  net = synthetic.network(layout, mesh, **changes)
  sizes = {'batch_size': 8, 'image_size': 72, 'crop_size': 67}
  compiled = synthetic.compile_step(net, mesh, **sizes)
  program = collectives.read(compiled.as_text(), mesh)
  convs = 11 * 11 * 3 * 4 + 4 + 3 * 3 * 2 * 4 + 4
  found = received_bytes(
    layout,
    shape,
    8,
    params={'convs': convs, 'fc6': 4 * 8 + 8, 'fc7': 72, 'fc8': 90},
    reads={'fc6': 4, 'fc7': 8, 'fc8': 8},
    classes=10,
  )
  more = sum(c.received_bytes for c in program) - sum(found.values())
  assert 0 <= more <= SLACK


def test_operations_are_those_of_training():
  # Forward 724,406,816 multiply-adds; conv1's 105,415,200 not for the pixels.
  macs = 3 * 724_406_816 - 105_415_200
  assert layer_times.train_flops() == 2 * macs == pytest.approx(4.1356e9, 1e-5)


def tables():
  """The rows of both tables of the page, as cells."""
  blocks = (ROOT / 'docs' / 'speed_model.md').read_text().split('\n\n')
  found = [block for block in blocks if block.startswith('|')]
  return [
    [
      [cell.strip() for cell in line.strip('|').split('|')]
      for line in block.strip().splitlines()[2:]
    ]
    for block in found
  ]


def estimate(given, layout, devices):
  """The cells of a row of the second table."""
  shape = mesh_lib.mesh_shape(layout, 'auto', devices)
  batch = devices * given['batch per device']
  hosts = -(-devices // given['devices per host'])
  received = received_bytes(layout, shape, batch, given['activations'])
  reading = batch / hosts
  reading /= min(
    given['cores per host'] * given['decoding'],
    given['processes per host'] * given['process'],
  )
  arithmetic = given['batch per device'] * given['work'] * 1e9
  arithmetic /= given['peak'] * 1e12 * given['utilisation']
  outside = given['network' if hosts > 1 else 'link']
  between = received['tower'] / given['link'] + received['data'] / outside
  between /= 1e9
  rate = batch / max(reading, arithmetic + between)
  hours = given['epochs'] * 1_281_167 / rate / 3600
  return [
    str(devices),
    f'{layout} {"x".join(map(str, shape))}',
    f'{sum(received.values()) / 1e6:.1f}',
    *(f'{1e3 * seconds:.2f}' for seconds in (reading, arithmetic, between)),
    'hosts' if reading > arithmetic + between else 'devices',
    f'{rate:,.0f}',
    f'{hours:.2f}',
  ]


def test_results_follow_from_the_inputs():
  inputs, results = tables()
  given = {row[0]: float(row[1].replace(',', '')) for row in inputs}
  assert given['work'] * 1e9 == pytest.approx(layer_times.train_flops(), 1e-5)
  assert paper.get_config().train.epochs == given['epochs']
  found = [
    estimate(given, layout, devices)
    for devices in (1, 8, 64)
    for layout in (mesh_lib.LAYOUTS if devices > 1 else ('data',))
  ]
  assert found == results
  alone = given['peak'] * 1e3 * given['utilisation'] / given['work']
  text = (ROOT / 'docs' / 'speed_model.md').read_text()
  assert f'could take {alone:,.0f} images/s' in text
  assert {row[6] for row in results} == {'hosts'}
