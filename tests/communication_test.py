"""The benchmark of collectives: its reader of programs, and what it holds."""

import jax
import pytest

from alexnet_jax import model
from alexnet_jax import towers
from benchmarks import communication

NARROW = {
  'num_classes': 10,
  'conv_features': (4, 4, 4, 4, 4),
  'fc_features': (8, 8),
}
# The smallest maps for three poolings: 15, 7, 3 and 1 pixels.
SIZES = {'batch_size': 8, 'image_size': 72, 'crop_size': 67}
PAIRS = 'replica_groups={{0,1},{2,3}}'
SCOPE = 'metadata={op_name="jit(f)/jvp()/AlexNet/AlexNet._conv/conv3/gather"}'


def create_mesh(layout='towers', per_net='2', number=4):
  return towers.create_mesh(layout, per_net, jax.devices()[:number])


def instruction(kind, shape, groups, rest=SCOPE):
  return f'  %x.1 = {shape} {kind}(%y), channel_id=1, {groups}, {rest}'


def narrow_net(layout='towers', mesh=None, **changes):
  return model.AlexNet(**NARROW | changes, **towers.sharing(layout, mesh))


@pytest.fixture(scope='module')
def program():
  """(text, bytes to sum, net) of a narrow net's step on two by two devices."""
  mesh = create_mesh()
  net = narrow_net(mesh=mesh)
  return *communication.compile_step(net, mesh, **SIZES), net


# Operand and received bytes on two devices of a ring, worked by hand.
@pytest.mark.parametrize(
  ('kind', 'shape', 'operand', 'received'),
  [
    ('all-gather', 'f32[4,13,13,256]{3,2,1,0}', 346_112, 346_112),
    ('all-gather-start', 'bf16[4,256]', 1_024, 1_024),
    ('reduce-scatter', 'f32[4,16]{0,1}', 512, 256),
    (
      'all-reduce',
      '(f32[4]{0}, f32[11,11,3,4], /*index=2*/f32[])',
      5_828,
      5_828,
    ),
    ('all-to-all', '(f32[5], f32[5])', 40, 20),
  ],
)
def test_bytes_of_a_collective(kind, shape, operand, received):
  line = instruction(kind, shape, PAIRS)
  (found,) = communication.collectives(line, create_mesh())
  assert found.kind == kind.removesuffix('-start')
  assert (found.operand_bytes, found.received_bytes) == (operand, received)


@pytest.mark.parametrize(
  ('groups', 'axis', 'size'),
  [
    ('replica_groups={{0,1},{2,3}}', 'tower', 2),
    ('replica_groups={{0,2},{1,3}}', 'data', 2),
    ('replica_groups={{0,1,2,3}}', 'data and tower', 4),
    ('replica_groups={{0,3},{1,2}}', 'other devices', 2),
    ('replica_groups={{0},{1},{2},{3}}', 'none', 1),
    ('replica_groups=[2,2]<=[4]', 'tower', 2),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', 'data', 2),
    ('replica_groups=[1,4]<=[4]', 'data and tower', 4),
    ("replica_groups=mesh['data'=2,'tower'=2] {'tower'}", 'tower', 2),
    ("replica_groups=mesh['data'=2,'tower'=2] {'data'}", 'data', 2),
    ("replica_groups=mesh['data'=1,'tower'=2] {'data'}", 'none', 1),
  ],
)
def test_every_print_style_of_groups_names_the_axis(groups, axis, size):
  line = instruction('all-gather', 'f32[4]', groups)
  (found,) = communication.collectives(line, create_mesh())
  assert (found.axis, found.group_size) == (axis, size)
  assert (found.layer, found.direction) == ('conv3', 'forward')


def test_two_towers_talk_where_the_papers_gpus_do(program):
  text, gradient_bytes, net = program
  mesh = create_mesh()
  found = communication.collectives(text, mesh)
  assert list(communication.problems(found, net, gradient_bytes)) == []
  assert sorted(c.layer for c in found if c.kind == 'all-gather') == [
    'conv3',
    'fc6',
    'fc7',
    'fc8',
    'logits',
  ]
  # Four images a pair; conv3 reads 3x3 maps of 4 kernels, half from there.
  (conv3,) = [c for c in found if (c.layer, c.kind) == ('conv3', 'all-gather')]
  assert conv3.received_bytes == 4 * 3 * 3 * 2 * 4


def test_one_device_talks_to_nobody():
  text, _ = communication.compile_step(narrow_net(), None, **SIZES)
  assert communication.collectives(text, None) == []


@pytest.mark.parametrize(
  ('extra', 'problem'),
  [
    (('all-gather', 'f32[5,5,4,4]', PAIRS), '1 more: all-gather, conv3'),
    (('all-to-all', 'f32[8]', PAIRS), '1 more: all-to-all, conv3'),
    (('all-reduce', 'f32[2]', PAIRS), 'all-reduce over tower'),
    (
      ('all-reduce', 'f32[100]', 'replica_groups={{0,2},{1,3}}'),
      'bytes beside the gradients',
    ),
  ],
)
def test_one_collective_more_is_a_problem(program, extra, problem):
  text, gradient_bytes, net = program
  mesh = create_mesh()
  text += '\n' + instruction(*extra)
  found = communication.collectives(text, mesh)
  (said,) = communication.problems(found, net, gradient_bytes)
  assert problem in said


def test_one_collective_less_is_a_problem(program):
  text, gradient_bytes, net = program
  mesh = create_mesh()
  found = communication.collectives(text, mesh)
  gather = next(c for c in found if c.layer == 'fc7')
  found.remove(gather)
  (said,) = communication.problems(found, net, gradient_bytes)
  assert said == '1 missing: all-gather, fc7, forward, tower'


# The ten classes divide over two devices and not over four, where fc8 is whole
# on every device and its gradients are summed with those of the convolutions.
@pytest.mark.parametrize(
  ('number', 'gathered', 'home'),
  [(2, ('fc6', 'fc7', 'fc8'), 'logits'), (4, ('fc6', 'fc7'), 'fc8')],
)
def test_one_weird_trick_gathers_examples_and_no_weights(
  number, gathered, home
):
  mesh = create_mesh('one_weird_trick', 'auto', number)
  net = narrow_net('one_weird_trick', mesh)
  text, gradient_bytes = communication.compile_step(net, mesh, **SIZES)
  found = communication.collectives(text, mesh)
  assert list(communication.problems(found, net, gradient_bytes)) == []
  of_kind = lambda kind: [c.layer for c in found if c.kind == kind]
  assert tuple(of_kind('all-gather')) == gathered
  assert sorted(of_kind('reduce-scatter')) == sorted(gathered)
  assert of_kind('all-to-all') == [home, home]
  # Kernels and biases by hand: conv1 to conv5, and fc8.
  convs = 11 * 11 * 3 * 4 + 5 * 5 * 2 * 4 + 3 * 3 * 4 * (4 + 2 + 2) + 5 * 4
  fc8 = (8 * 10 + 10) * (home == 'fc8')
  assert gradient_bytes == 4 * (convs + fc8)
