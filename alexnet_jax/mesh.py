"""The device mesh ('data', 'tower'): its shape, and the partition specs.

A single device has no mesh (`None`). On several devices the network runs under
`jax.shard_map`, with the batch sharded over 'data', in one of `LAYOUTS`:

* 'towers', the paper's (section 3.5): each device has one tower, half of the
  output channels of every layer;
* 'data': each device has all parameters;
* 'one_weird_trick' (Krizhevsky 2014, arXiv:1404.5997): each device has all
  parameters of the convolutions, and an equal share of the units of fc6, fc7
  and fc8.

The parameter tree is always the same; layouts differ only in its specs.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PyTree

REPLICATED = P()
LAYOUTS = ('towers', 'data', 'one_weird_trick')


def mesh_shape(
  layout: str, towers: str | int, num_devices: int, num_towers: int = 2
) -> tuple[int, int]:
  """Sizes of the axes ('data', 'tower') for `num_devices` devices.

  Args:
    layout: one of `LAYOUTS`; all but 'towers' use every device for 'data'.
    towers: devices that share one network in the layout 'towers': 1, 2, or
      'auto', which is 2 if the network has two towers and `num_devices` is
      even, otherwise 1. Other layouts ignore it.
    num_devices: number of devices.
    num_towers: number of towers of the network; 2 (one per GPU) in section 3.5.

  Raises:
    ValueError: if `towers` is 2 but the network has one tower, or the number of
      devices is odd.
  """
  if layout != 'towers':
    return num_devices, 1
  if towers == 'auto':
    tower = 1 if num_devices % num_towers else num_towers
  else:
    tower = int(towers)
  if tower > num_towers:
    raise ValueError(
      f'config.mesh.towers={towers} needs a network of two towers, but'
      f" config.model.num_towers={num_towers}; use config.mesh.towers='1' or"
      " 'auto'"
    )
  if num_devices % tower:
    raise ValueError(
      f'config.mesh.towers={towers} needs an even number of devices, but there'
      f" are {num_devices}; use config.mesh.towers='1' or 'auto'"
    )
  return num_devices // tower, tower


def create_mesh(
  layout: str,
  towers: str | int,
  devices: Sequence[jax.Device],
  num_towers: int = 2,
) -> Mesh | None:
  """The mesh ('data', 'tower') over `devices`; None for a single device.

  Arguments and errors are those of `mesh_shape`.
  """
  shape = mesh_shape(layout, towers, len(devices), num_towers)
  if len(devices) == 1:
    return None
  # A TPU slice may have no physical axis of size two for the towers.
  grid = mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )
  return Mesh(grid, ('data', 'tower'), axis_types=(AxisType.Auto,) * 2)


def tower_devices(mesh: Mesh | None) -> int:
  """Number of devices that share one network: 1 or 2."""
  return 1 if mesh is None else mesh.shape['tower']


def model_parallel_sizes(layout: str, mesh: Mesh | None) -> dict[str, int]:
  """`tower_devices` and `fc_devices`, the attributes of `model.AlexNet`."""
  is_sharded = mesh is not None and layout == 'one_weird_trick'
  return {
    'tower_devices': tower_devices(mesh),
    'fc_devices': mesh.shape['data'] if is_sharded else 1,
  }


def param_specs(
  tree: PyTree, mesh: Mesh | None, layers_sharded_over_data: Sequence[str] = ()
) -> PyTree:
  """Partition specs of a tree of parameters, or of the train state.

  Args:
    tree: tree with kernels and biases under the names of their layers.
    mesh: device mesh; if two devices share a network, the last axis of every
      leaf is sharded over 'tower'.
    layers_sharded_over_data: layers whose leaves are sharded over 'data'
      instead, see `model.AlexNet.layers_sharded_over_data`.
  """

  def spec(path, x):
    layer = getattr(path[-2], 'key', None) if len(path) > 1 else None
    if layer in layers_sharded_over_data:
      return P(*[None] * (x.ndim - 1), 'data')
    if tower_devices(mesh) > 1 and x.ndim:
      return P(*[None] * (x.ndim - 1), 'tower')
    return P()

  return jax.tree.map_with_path(spec, tree)


def batch_spec() -> P:
  """The spec of a batch, whose examples are sharded over the axis 'data'."""
  return P('data')


def shardings(mesh: Mesh | None, specs: PyTree) -> PyTree:
  """The shardings of specs on the mesh, or on the single device."""
  if mesh is None:
    device = SingleDeviceSharding(jax.local_devices()[0])
    make = lambda _: device
  else:
    make = lambda spec: NamedSharding(mesh, spec)
  return jax.tree.map(make, specs, is_leaf=lambda x: isinstance(x, P))


def shard_map(
  fn: Callable, mesh: Mesh | None, in_specs: PyTree, out_specs: PyTree
) -> Callable:
  """`fn` mapped over the devices of the mesh; `fn` itself without a mesh."""
  if mesh is None:
    return fn
  return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def global_batch_indices(
  num_local: int, mesh: Mesh | None
) -> Int[Array, 'batch']:
  """Indices into the global batch of this device's examples.

  Call it inside `shard_map`.
  """
  indices = jnp.arange(num_local)
  if mesh is None:
    return indices
  return indices + lax.axis_index('data') * num_local
