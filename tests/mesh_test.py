"""The mesh, the specs of parameters, and what each device then holds."""

import dataclasses
import functools
import re

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import train_state

# Layout, devices that share a network (where it matters), number of devices.
# The names of the layouts 'towers' and 'data' are data x tower.
MESHES = {
  'single': ('towers', 'auto', 1),
  '1x2': ('towers', 'auto', 2),
  '2x2': ('towers', '2', 4),
  '2x1': ('data', 'auto', 2),
  '4x1': ('towers', '1', 4),
  'trick 2': ('one_weird_trick', 'auto', 2),
  'trick 4': ('one_weird_trick', 'auto', 4),
}


def create_mesh(name):
  layout, per_net, number = MESHES[name]
  return mesh_lib.create_mesh(layout, per_net, jax.devices()[:number])


def create_net(mesh_name='single', **changes):
  """A net with one pixel left for fc6, as a device of a mesh calls it."""
  sizes = mesh_lib.model_parallel_sizes(
    MESHES[mesh_name][0], create_mesh(mesh_name)
  )
  return model.AlexNet(
    conv_features=(4, 8, 8, 8, 12),
    fc_features=(16, 16),
    conv1_kernel=3,
    conv1_stride=2,
    **sizes,
    **changes,
  )


def state_shapes(num_classes=12):
  """The train state as shapes."""
  create = functools.partial(
    train_state.initial_state,
    create_net(num_classes=num_classes),
    functools.partial(optimizer.paper_sgd, momentum=0.9, weight_decay=0.0),
    31,
  )
  return jax.eval_shape(create, jax.random.key(0))


@pytest.mark.parametrize(
  ('layout', 'devices_per_net', 'num_devices', 'shape'),
  [
    ('towers', 'auto', 1, (1, 1)),
    ('towers', 'auto', 2, (1, 2)),
    ('towers', 'auto', 3, (3, 1)),
    ('towers', 'auto', 4, (2, 2)),
    ('towers', 'auto', 8, (4, 2)),
    ('towers', '1', 1, (1, 1)),
    ('towers', '1', 4, (4, 1)),
    ('towers', 1, 3, (3, 1)),
    ('towers', '2', 2, (1, 2)),
    ('towers', 2, 6, (3, 2)),
    ('data', 'auto', 1, (1, 1)),
    ('data', 'auto', 4, (4, 1)),
    ('data', '2', 3, (3, 1)),  # Ignored.
    ('one_weird_trick', 'auto', 1, (1, 1)),
    ('one_weird_trick', 'auto', 8, (8, 1)),
    ('one_weird_trick', '2', 3, (3, 1)),  # Ignored.
  ],
)
def test_mesh_shape(layout, devices_per_net, num_devices, shape):
  assert mesh_lib.mesh_shape(layout, devices_per_net, num_devices) == shape


layouts = pytest.mark.parametrize('layout', mesh_lib.LAYOUTS)


@layouts
@pytest.mark.parametrize('devices_per_net', ['auto', '1', 1])
@pytest.mark.parametrize('num_devices', [1, 3, 4])
def test_one_tower_stays_on_one_device(layout, devices_per_net, num_devices):
  shape = mesh_lib.mesh_shape(layout, devices_per_net, num_devices, 1)
  assert shape == (num_devices, 1)


@pytest.mark.parametrize('devices_per_net', ['2', 2])
def test_one_tower_cannot_spread_over_two_devices(devices_per_net):
  message = (
    'config.mesh.towers=2 needs a network of two towers, but'
    " config.model.num_towers=1; use config.mesh.towers='1' or 'auto'"
  )
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    mesh_lib.mesh_shape('towers', devices_per_net, 4, 1)


def test_mesh_of_one_tower_has_every_device_for_data():
  mesh = mesh_lib.create_mesh('towers', 'auto', jax.devices()[:4], 1)
  assert mesh.shape == {'data': 4, 'tower': 1}


@dataclasses.dataclass(frozen=True, eq=False)  # JAX compares it with others.
class Tpu:
  """A stand-in for a device of a slice with four on each host."""

  id: int
  coords: tuple[int, ...]
  device_kind: str
  platform: str = 'tpu'
  core_on_chip: int = 0
  slice_index: int = 0

  @property
  def process_index(self):
    return self.id // 4

  @property
  def __class__(self):
    return jax.Device  # As which the types of arguments are checked.


@pytest.mark.parametrize(
  ('kind', 'sides'),
  [
    ('TPU v5 lite', (2, 4, 1)),
    ('TPU v5 lite', (4, 4, 1)),  # No physical axis of two.
    ('TPU v6 lite', (8, 8, 1)),
    ('TPU v4', (4, 4, 4)),
  ],
)
def test_every_slice_of_tpus_has_its_pairs(kind, sides):
  places = np.ndindex(sides[::-1])
  devices = [Tpu(i, place[::-1], kind) for i, place in enumerate(places)]
  mesh = mesh_lib.create_mesh('towers', 'auto', devices)
  assert mesh.shape == {'data': len(devices) // 2, 'tower': 2}
  assert {d.id for d in mesh.devices.flat} == set(range(len(devices)))


@pytest.mark.parametrize(
  ('devices_per_net', 'num_devices'), [('2', 1), ('2', 3), (2, 5)]
)
def test_two_towers_need_an_even_number_of_devices(
  devices_per_net, num_devices
):
  message = (
    'config.mesh.towers=2 needs an even number of devices, but there are '
    f"{num_devices}; use config.mesh.towers='1' or 'auto'"
  )
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    mesh_lib.mesh_shape('towers', devices_per_net, num_devices)


@layouts
def test_one_device_has_no_mesh(layout):
  assert mesh_lib.create_mesh(layout, 'auto', jax.devices()[:1]) is None


def test_mesh_holds_every_device_once():
  mesh = create_mesh('2x2')
  assert mesh.shape == {'data': 2, 'tower': 2}
  assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()[:4]}


@pytest.mark.parametrize(
  ('mesh', 'tower_devices', 'fc_devices'),
  [
    ('single', 1, 1),
    ('1x2', 2, 1),
    ('2x2', 2, 1),
    ('4x1', 1, 1),
    ('trick 2', 1, 2),
    ('trick 4', 1, 4),
  ],
)
def test_network_knows_how_devices_share_it(mesh, tower_devices, fc_devices):
  assert mesh_lib.model_parallel_sizes(MESHES[mesh][0], create_mesh(mesh)) == {
    'tower_devices': tower_devices,
    'fc_devices': fc_devices,
  }


def test_one_device_shares_with_nobody():
  alone = {'tower_devices': 1, 'fc_devices': 1}
  assert mesh_lib.model_parallel_sizes('one_weird_trick', None) == alone


@pytest.mark.parametrize('mesh', ['1x2', '2x2'])
def test_every_leaf_is_split_on_its_last_axis(mesh):
  state = state_shapes()
  specs = mesh_lib.param_specs(state, create_mesh(mesh))
  layer = lambda conv: {
    'kernel': P(None, None, None, 'tower') if conv else P(None, 'tower'),
    'bias': P('tower'),
  }
  params = {f'conv{i}': layer(True) for i in range(1, 6)}
  params |= {f'fc{i}': layer(False) for i in range(6, 9)}
  assert specs.step == P()
  assert specs.params == params
  assert specs.opt_state.trace == params


@pytest.mark.parametrize(
  ('mesh', 'classes', 'split'),
  [
    ('trick 2', 10, ('fc6', 'fc7', 'fc8')),
    ('trick 4', 10, ('fc6', 'fc7')),
    ('trick 4', 12, ('fc6', 'fc7', 'fc8')),
  ],
)
def test_one_weird_trick_splits_the_layers_of_many_weights(
  mesh, classes, split
):
  net = create_net(mesh, num_classes=classes)
  state = state_shapes(num_classes=classes)
  specs = mesh_lib.param_specs(
    state, create_mesh(mesh), net.layers_sharded_over_data
  )
  whole = {'kernel': P(), 'bias': P()}
  parts = {'kernel': P(None, 'data'), 'bias': P('data')}
  params = {f'conv{i}': whole for i in range(1, 6)}
  params |= {f'fc{i}': whole for i in range(6, 9)} | dict.fromkeys(split, parts)
  assert specs.step == P()
  assert specs.params == params
  assert specs.opt_state.trace == params


@pytest.mark.parametrize('mesh', ['single', '2x1'])
def test_no_leaf_is_split_where_a_device_holds_both_towers(mesh):
  specs = mesh_lib.param_specs(state_shapes(), create_mesh(mesh))
  leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
  assert len(leaves) == 33  # 8 kernels, 8 biases, v of each, and the step.
  assert set(leaves) == {P()}


def shards(array):
  return {s.device: s.data.tolist() for s in array.addressable_shards}
