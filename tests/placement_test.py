"""Arrays on their way to the devices of a mesh and back."""

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import placement
from tests.mesh_test import create_mesh
from tests.mesh_test import shards


def test_towers_place_a_tower_and_a_part_of_the_batch_on_each_device():
  mesh = create_mesh('2x2')
  kernel, labels = np.arange(6.0).reshape(1, 6), np.arange(4)
  tree = {'kernel': kernel}
  placed = placement.place(tree, mesh, mesh_lib.param_specs(tree, mesh))[
    'kernel'
  ]
  placed_labels = placement.place_batch({'label': labels}, mesh)['label']
  for data, tower in np.ndindex(2, 2):
    device = mesh.devices[data, tower]
    part = kernel[:, 3 * tower : 3 * tower + 3].tolist()
    assert shards(placed)[device] == part
    assert shards(placed_labels)[device] == [2 * data, 2 * data + 1]


def test_one_weird_trick_places_units_and_a_part_of_the_batch_on_each_device():
  mesh = create_mesh('trick 4')
  kernel, labels = np.arange(8.0).reshape(1, 8), np.arange(8)
  tree = {'conv1': {'kernel': kernel}, 'fc6': {'kernel': kernel}}
  specs = mesh_lib.param_specs(tree, mesh, ('fc6', 'fc7'))
  placed = placement.place(tree, mesh, specs)
  placed_labels = placement.place_batch({'label': labels}, mesh)['label']
  for i, device in enumerate(mesh.devices[:, 0]):
    mine = [2 * i, 2 * i + 1]
    assert shards(placed['conv1']['kernel'])[device] == kernel.tolist()
    assert shards(placed['fc6']['kernel'])[device] == [mine]
    assert shards(placed_labels)[device] == mine


@pytest.mark.parametrize('mesh', ['single', '2x1', '2x2', 'trick 4'])
def test_a_single_process_reads_every_batch_index(mesh):
  indices = placement.local_batch_indices(8, create_mesh(mesh))
  assert indices.tolist() == list(range(8))


@pytest.mark.parametrize('spec', [None, (), ('x',), ('x', 'y'), (None, 'y')])
def test_fetch_returns_whole_numpy_arrays(spec):
  values = np.arange(32, dtype=np.float32).reshape(4, 8)
  if spec is None:
    place = jax.devices()[0]
  else:
    mesh = jax.make_mesh((2, 2), ('x', 'y'), (AxisType.Auto,) * 2)
    place = NamedSharding(mesh, P(*spec))
  tree = {'on_device': jax.device_put(values, place), 'on_host': values[0]}
  found = placement.fetch(tree)
  assert {type(x) for x in found.values()} == {np.ndarray}
  np.testing.assert_array_equal(found['on_device'], values, strict=True)
  np.testing.assert_array_equal(found['on_host'], values[0], strict=True)


def test_fetch_may_gather_from_other_processes_under_a_transfer_guard(
  monkeypatch,
):
  class Part:
    is_fully_addressable = is_fully_replicated = False

  def gather(part, tiled):
    # The guard is read instead of tried, since reading needs no transfer on
    # CPU.
    assert tiled
    return jax.config.jax_transfer_guard_device_to_host

  monkeypatch.setattr(mesh_lib.jax, 'Array', Part)
  monkeypatch.setattr(placement.multihost_utils, 'process_allgather', gather)
  with jax.transfer_guard('disallow'):
    assert placement._whole(Part()) == 'allow'


@pytest.mark.parametrize('name', ['single', '2x1', '2x2', 'trick 4'])
def test_the_batch_template_describes_a_placed_batch(name):
  mesh = create_mesh(name)
  batch = {
    'image': np.zeros((8, 5, 5, 3), np.uint8),
    'label': np.zeros(8, np.int32),
    'mask': np.zeros(8, bool),
  }
  placed = placement.place_batch(batch, mesh)
  template = placement.batch_template(8, 5, mesh)
  facts = lambda x: (x.shape, x.dtype, x.sharding)
  assert jax.tree.map(facts, template) == jax.tree.map(facts, placed)
