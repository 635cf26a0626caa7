"""The benchmark of communication: the reader of programs, and its pattern."""

import functools

import jax
import pytest

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from benchmarks import collectives
from benchmarks import communication
from benchmarks import synthetic

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
  return mesh_lib.create_mesh(layout, per_net, jax.devices()[:number])


def instruction(kind, shape, groups, rest=SCOPE):
  return f'  %x.1 = {shape} {kind}(%y), channel_id=1, {groups}, {rest}'


def narrow_net(layout='towers', mesh=None, **changes):
  return model.AlexNet(
    **NARROW | changes, **mesh_lib.model_parallel_sizes(layout, mesh)
  )


@functools.cache
def compiled(layout, number):
  """(collectives, bytes to sum, net) of a narrow net's step."""
  mesh = create_mesh(layout, number=number)
  net = narrow_net(layout, mesh)
  program = synthetic.compile_step(net, mesh, **SIZES)
  found = collectives.read(program.as_text(), mesh)
  summed = communication.gradient_bytes(net, mesh, SIZES['crop_size'])
  return found, summed, net


def problems(layout, extra=(), without=None):
  """What is said of a step with other collectives, or without one of them."""
  found, gradient_bytes, net = compiled(layout, 4)
  mesh = create_mesh(layout)
  more = [collectives.read(line, mesh) for line in extra]
  found = [c for c in found if c is not without] + sum(more, [])
  return list(communication.problems(found, net, gradient_bytes))


# Print of the groups, layout of the mesh and axis of two and of four devices.
GROUPS = {
  2: (PAIRS, 'towers', 'tower'),
  4: ('replica_groups=[1,4]<=[4]', 'one_weird_trick', 'data'),
}


# Operand and received bytes of a ring of two devices, and of four, each of which
# receives the parts of three: worked by hand.
@pytest.mark.parametrize(
  ('devices', 'kind', 'shape', 'operand', 'received'),
  [
    (2, 'all-gather', 'f32[4,13,13,256]{3,2,1,0}', 346_112, 346_112),
    (2, 'all-gather-start', 'bf16[4,256]', 1_024, 1_024),
    (2, 'reduce-scatter', 'f32[4,16]{0,1}', 512, 256),
    (
      2,
      'all-reduce',
      '(f32[4]{0}, f32[11,11,3,4], /*index=2*/f32[])',
      5_828,
      5_828,
    ),
    (2, 'all-to-all', '(f32[5], f32[5])', 40, 20),
    (4, 'all-gather', 'f32[8,16]{1,0}', 128, 384),
    (4, 'reduce-scatter', 'bf16[2,16]', 256, 192),
    (4, 'all-reduce', 'f32[100]', 400, 600),
    (4, 'all-to-all', 'f32[2,4,3]{2,1,0}', 96, 72),
    (
      4,
      'all-to-all',
      '(f32[2,3], f32[2,3], f32[2,3], /*index=3*/f32[2,3])',
      96,
      72,
    ),
  ],
)
def test_bytes_of_a_collective(devices, kind, shape, operand, received):
  groups, layout, axis = GROUPS[devices]
  line = instruction(kind, shape, groups)
  (found,) = collectives.read(line, create_mesh(layout))
  assert found.kind == kind.removesuffix('-start')
  assert (found.axis, found.group_size) == (axis, devices)
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
  (found,) = collectives.read(line, create_mesh())
  assert (found.axis, found.group_size) == (axis, size)
  assert (found.layer, found.direction) == ('conv3', 'forward')


def test_two_towers_talk_where_the_papers_gpus_do():
  assert problems('towers') == []
  found, _, _ = compiled('towers', 4)
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
  program = synthetic.compile_step(narrow_net(), None, **SIZES)
  assert collectives.read(program.as_text(), None) == []
  assert communication.gradient_bytes(narrow_net(), None, 67) == 0


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
def test_one_collective_more_is_a_problem(extra, problem):
  (said,) = problems('towers', [instruction(*extra)])
  assert problem in said


def test_one_collective_less_is_a_problem():
  found, _, _ = compiled('towers', 4)
  gather = next(c for c in found if c.layer == 'fc7')
  assert problems('towers', without=gather) == [
    '1 missing: all-gather, fc7, forward, tower'
  ]


# The ten classes divide over two devices and not over four, where fc8 is whole
# on every device and its gradients are summed with those of the convolutions.
@pytest.mark.parametrize(
  ('number', 'gathered', 'home'),
  [(2, ('fc6', 'fc7', 'fc8'), 'logits'), (4, ('fc6', 'fc7'), 'fc8')],
)
def test_one_weird_trick_gathers_examples_and_no_weights(
  number, gathered, home
):
  found, gradient_bytes, net = compiled('one_weird_trick', number)
  assert list(communication.problems(found, net, gradient_bytes)) == []
  of_kind = lambda kind: [c.layer for c in found if c.kind == kind]
  assert tuple(of_kind('all-gather')) == gathered
  assert sorted(of_kind('reduce-scatter')) == sorted(gathered)
  assert of_kind('all-to-all') == [home, home]
  # Eight images; fc6 reads one pixel of 4 maps, fc7 and fc8 eight units, the
  # logits are ten. What a device gets is what it has not.
  others = lambda features: 8 * features * 4 * (number - 1) // number
  received = {
    c.layer: c.received_bytes for c in found if c.kind == 'all-gather'
  }
  expected = {'fc6': others(4), 'fc7': others(8), 'fc8': others(8)}
  assert received == {layer: expected[layer] for layer in gathered}
  # All examples' part of the features, in exchange for this device's rows.
  sent = others(10 if home == 'logits' else 8) // number
  assert {c.received_bytes for c in found if c.kind == 'all-to-all'} == {sent}
  # Kernels and biases by hand: conv1 to conv5, and fc8.
  convs = 11 * 11 * 3 * 4 + 5 * 5 * 2 * 4 + 3 * 3 * 4 * (4 + 2 + 2) + 5 * 4
  fc8 = (8 * 10 + 10) * (home == 'fc8')
  assert gradient_bytes == 4 * (convs + fc8)


ALL = 'replica_groups={{0,1,2,3}}'


@pytest.mark.parametrize(
  ('kind', 'shape', 'layer', 'problem'),
  [
    # Weights of fc6, of conv2, and of fc8 on their way.
    ('all-gather', 'f32[4,8]', 'fc6', '1 more: all-gather, fc6, forward, data'),
    (
      'all-gather',
      'f32[5,5,2,4]',
      'conv2',
      '1 more: all-gather, conv2, forward, data',
    ),
    (
      'all-to-all',
      'f32[8,10]',
      'logits',
      '1 more: all-to-all, logits, forward, data',
    ),
    # Gradients of fc7, of which every device has its own.
    (
      'all-reduce',
      'f32[8,8]',
      'fc7',
      'all-reduces of +272 bytes beside the gradients',
    ),
  ],
)
def test_one_collective_more_of_one_weird_trick_is_a_problem(
  kind, shape, layer, problem
):
  scope = f'metadata={{op_name="jit(f)/jvp()/AlexNet/{layer}/x"}}'
  line = instruction(kind, shape, ALL, scope)
  assert problems('one_weird_trick', [line]) == [problem]


@pytest.mark.parametrize(
  ('kind', 'layer', 'direction'),
  [
    ('all-gather', 'fc6', 'forward'),
    ('reduce-scatter', 'fc7', 'backward'),
    ('all-to-all', 'fc8', 'forward'),
    ('all-to-all', 'fc8', 'backward'),
  ],
)
def test_one_collective_less_of_one_weird_trick_is_a_problem(
  kind, layer, direction
):
  (gone,) = [
    c
    for c in compiled('one_weird_trick', 4)[0]
    if (c.kind, c.layer, c.direction) == (kind, layer, direction)
  ]
  assert problems('one_weird_trick', without=gone) == [
    f'1 missing: {kind}, {layer}, {direction}, data'
  ]


def test_gradients_that_are_not_summed_are_a_problem():
  for gone in compiled('one_weird_trick', 4)[0]:
    if gone.kind == 'all-reduce' and gone.operand_bytes > 64:
      (said,) = problems('one_weird_trick', without=gone)
      assert said.endswith('bytes beside the gradients')
      return
  raise AssertionError('no gradients are summed')
