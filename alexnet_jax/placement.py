"""Copies between the host and the devices of the mesh.

Arrays reach the devices through `place` and `place_batch`, and the host through
`fetch`; all else is an implicit transfer, which raises in the training loop.
"""

import functools

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, PyTree
import numpy as np

from alexnet_jax import mesh as mesh_lib


def place(
  tree: PyTree, mesh: Mesh | None, specs: PyTree = mesh_lib.REPLICATED
) -> PyTree:
  """Puts a tree on the device, or on the mesh with `specs` (a prefix tree).

  With several processes, each passes the whole tree.
  """
  if mesh is None or not mesh.is_multi_process:
    return jax.device_put(tree, mesh_lib.shardings(mesh, specs))
  full = jax.tree.broadcast(specs, tree, is_leaf=lambda x: isinstance(x, P))
  return jax.tree.map(functools.partial(_put_parts, mesh), tree, full)


def _put_parts(mesh, x, spec):
  # `jax.device_put` would compare the values of all processes in every call.
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(
      _put_parts(mesh, jax.random.key_data(x), spec)
    )
  x = np.asarray(x)
  return _assemble(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


def local_batch_indices(
  batch_size: int, mesh: Mesh | None
) -> Int[np.ndarray, 'local']:
  """Indices into the global batch that the devices of this process need."""
  indices = np.arange(batch_size)
  if mesh is None:
    return indices
  blocks = indices.reshape(mesh.shape['data'], -1)
  return blocks[_local_blocks(mesh)].reshape(-1)


def place_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
  """The global batch on the devices, from this process's part of it.

  Args:
    batch: leaves [local, ...] with the examples of `local_batch_indices`.
    mesh: mesh over which the global batch is sharded.
  """
  if mesh is None or not mesh.is_multi_process:
    return place(batch, mesh, mesh_lib.batch_spec())
  sharding = NamedSharding(mesh, mesh_lib.batch_spec())
  blocks = _local_blocks(mesh)

  def put(x):
    size = len(x) // len(blocks)

    def block(index):
      first = np.searchsorted(blocks, (index[0].start or 0) // size) * size
      return x[first : first + size]

    shape = (size * mesh.shape['data'], *x.shape[1:])
    return _assemble(shape, sharding, block)

  return jax.tree.map(put, batch)


def batch_template(
  batch_size: int, image_size: int, mesh: Mesh | None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of a global batch on the devices."""
  sharding = mesh_lib.shardings(mesh, mesh_lib.batch_spec())
  struct = lambda dtype, *shape: jax.ShapeDtypeStruct(
    (batch_size, *shape), dtype, sharding=sharding
  )
  return {
    'image': struct(np.uint8, image_size, image_size, 3),
    'label': struct(np.int32),
    'mask': struct(np.bool_),
  }


def _assemble(shape, sharding, block):
  with jax.transfer_guard('allow'):  # It counts as an implicit transfer.
    return jax.make_array_from_callback(shape, sharding, block)


def _local_blocks(mesh):
  """Positions on the axis 'data' where this process has a device, ascending."""
  process = np.vectorize(lambda device: device.process_index)(mesh.devices)
  return np.flatnonzero((process == jax.process_index()).any(axis=1))


def fetch(tree: PyTree) -> PyTree:
  """Copies a tree of arrays to the host, waiting for their computation.

  With several processes, all must call it; each gets the whole arrays.
  """
  return jax.device_get(jax.tree.map(_whole, tree))


def _whole(x):
  if isinstance(x, jax.Array) and not (
    x.is_fully_addressable or x.is_fully_replicated
  ):
    with jax.transfer_guard('allow'):  # It counts as an implicit transfer.
      return multihost_utils.process_allgather(x, tiled=True)
  return x
