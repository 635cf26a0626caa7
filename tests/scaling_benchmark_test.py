"""The benchmark of scaling: its processes, its formulas, its model on paper."""

import re

import jax
import pytest

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from benchmarks import communication
from benchmarks import layers
from benchmarks import scaling
from configs import paper

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
READS = {'conv3': 13 * 13 * 256, 'fc6': 9216, 'fc7': 4096, 'fc8': 4096}


def sizes():
  config = paper.get_config()
  return scaling.layer_sizes(dict(config.model), config.input.crop_size)


def test_sizes_are_those_of_the_paper():
  found = sizes()
  assert {name: size['params'] for name, size in found.items()} == PAPER
  assert sum(PAPER.values()) == ALL
  reads = {name: size['reads'] for name, size in found.items()}
  assert {name: units for name, units in reads.items() if units} == READS


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
  found = scaling.received_bytes(sizes(), 1000, layout, shape, 128)
  assert found == pytest.approx({'data': data, 'tower': tower})


def test_activations_of_two_bytes_halve_what_is_no_gradient_and_no_logit():
  both = [
    scaling.received_bytes(sizes(), 1000, 'towers', (2, 2), 8, width)
    for width in (4, 2)
  ]
  assert both[0]['data'] == both[1]['data']
  logits = 4 * 1000 * 4 / 2
  assert both[1]['tower'] - logits == (both[0]['tower'] - logits) / 2


# The command compares the paper's net with two devices; here of 4 devices, for
# which ten classes do not divide. Two convolutions compile in half the time.
def test_formulas_agree_with_a_compiled_program():
  settings = {
    **dict(paper.get_config().model),
    'num_classes': 10,
    'conv_features': (4, 0, 0, 0, 4),
    'fc_features': (8, 8),
  }
  layout, shape = 'one_weird_trick', (4, 1)
  mesh = mesh_lib.create_mesh(layout, 'auto', jax.devices()[:4])
  net = model.AlexNet(**settings, **mesh_lib.model_parallel_sizes(layout, mesh))
  compiled, _ = communication.compile_step(
    net, mesh, batch_size=8, image_size=72, crop_size=67
  )
  program = communication.collectives(compiled.as_text(), mesh)
  sizes = scaling.layer_sizes(settings, 67)
  found = scaling.received_bytes(sizes, 10, layout, shape, 8)
  more = sum(c.received_bytes for c in program) - sum(found.values())
  assert 0 <= more <= scaling.SLACK


# Round numbers: a device needs 1 s for an image; a host decodes 10 a second.
GIVEN = {
  'peak_tflops': layers.train_flops() / 0.5 / 1e12,
  'utilisation': 0.5,
  'link_gbytes': 1.0,
  'network_gbytes': 0.1,
  'devices_per_host': 8,
  'cores_per_host': 2,
  'decode_rate': 5.0,
  'process_rate': 20.0,
  'processes_per_host': 1,
  'images_per_device': 4,
  'activation_bytes': 4,
}


def test_operations_are_those_of_training():
  # Forward 724,406,816 multiply-adds; conv1's 105,415,200 not for the pixels.
  macs = 3 * 724_406_816 - 105_415_200
  assert layers.train_flops() == 2 * macs == pytest.approx(4.1356e9, rel=1e-5)


def test_one_device_on_paper_is_arithmetic_alone():
  found = scaling.on_paper('data', 1, GIVEN)
  assert found['seconds'] == pytest.approx(
    {'reading': 0.4, 'arithmetic': 4.0, 'between devices': 0.0}
  )
  assert found['limit'] == 'devices'
  assert found['images_per_second'] == pytest.approx(1.0)
  assert found['hours'] == pytest.approx(90 * 1_281_167 / 3600)


def test_bytes_come_after_arithmetic_and_hosts_beside_both():
  found = scaling.on_paper('data', 8, GIVEN)
  exchange = 2 * 7 / 8 * 4 * ALL / 1e9
  assert found['seconds']['between devices'] == pytest.approx(exchange)
  assert found['images_per_second'] == pytest.approx(32 / (4 + exchange))
  slow = scaling.on_paper('data', 8, GIVEN | {'decode_rate': 1.0})
  assert slow['limit'] == 'hosts'
  assert slow['images_per_second'] == pytest.approx(2.0)


def test_a_host_decodes_no_more_than_its_processes_hand_out():
  slow = GIVEN | {'process_rate': 1.5}
  assert scaling.on_paper('data', 8, slow)['images_per_second'] == 1.5
  slow['processes_per_host'] = 2
  found = scaling.on_paper('data', 16, slow)  # Two hosts.
  assert found['images_per_second'] == pytest.approx(6.0)


def test_hosts_talk_over_the_network_and_towers_over_the_link():
  found = scaling.on_paper('towers', 16, GIVEN)
  bytes_ = scaling.received_bytes(sizes(), 1000, 'towers', (8, 2), 64)
  expected = bytes_['tower'] / 1e9 + bytes_['data'] / 1e8
  assert found['seconds']['between devices'] == pytest.approx(expected)
  assert found['seconds']['reading'] == pytest.approx(64 / 2 / 10)
  assert found['mesh'] == '8x2'


def test_names_say_layout_mesh_and_processes():
  assert [scaling.shown(*layout) for layout in scaling.QUICK] == [
    'one device',
    'towers 1x2',
    'data 2x1',
    'data 2x1, 2 processes',
    'one_weird_trick 2x1',
  ]


class Fake:
  """In place of the processes of a layout."""

  def __init__(self, *arguments):
    self.calls, self.closed = 0, False
    made.append(self)

  def __call__(self):
    self.calls += 1

  def close(self):
    self.closed = True


made = []


def test_layouts_run_in_turn_and_are_ended(monkeypatch):
  monkeypatch.setattr(scaling, 'Runner', Fake)
  made.clear()
  taken = scaling.fixed_costs(scaling.QUICK, rounds=3, steps=10)
  assert list(taken) == [scaling.shown(*layout) for layout in scaling.QUICK]
  assert all(len(seconds) == 3 for seconds in taken.values())
  # Compiled, untimed, and three rounds.
  assert [(fake.calls, fake.closed) for fake in made] == [(5, True)] * 5


def test_a_process_that_ends_early_is_one_line(monkeypatch):
  monkeypatch.setattr(scaling.sys, 'executable', '/bin/false')
  runner = scaling.Runner('data', 1, 1, 1)
  try:
    with pytest.raises(SystemExit, match=re.escape('without its steps')):
      runner()
  finally:
    runner.close()
