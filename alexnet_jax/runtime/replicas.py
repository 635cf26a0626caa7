"""Copies of arrays on the devices of several processes, compared.

A program that differs, or a device that computes wrongly, makes copies differ.
Nobody would notice: a checkpoint stores one copy of each array.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, UInt32
import numpy as np

from alexnet_jax.runtime import processes

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def digests(tree: PyTree) -> UInt32[Array, 'device array'] | None:
  """Digests of the parts of all arrays on all devices; None if not needed.

  Each device reads its copies once, and four bytes per array are gathered. A
  single process needs none.

  Args:
    tree: arrays of up to 32 bits, on one mesh.
  """
  if processes.is_single_process():
    return None
  arrays = jax.tree.leaves(tree)
  specs = tuple(array.sharding.spec for array in arrays)
  return _function(arrays[0].sharding.mesh, specs)(*arrays)


def check(
  tree: PyTree,
  found: UInt32[np.ndarray, 'device array'] | None,
  saved: Sequence[int],
) -> None:
  """Raises ValueError in all processes if copies of a part of an array differ.

  A change of one element is always noticed, more are missed once in 2**32.

  Args:
    tree: the arrays.
    found: their `digests`, on the host.
    saved: steps of the checkpoints, before which the copies were equal.
  """
  if found is None:
    return
  named = jax.tree_util.tree_leaves_with_path(tree)
  devices = [*named[0][1].sharding.mesh.devices.flat]
  for (path, array), column in zip(named, found.T, strict=True):
    if differs := _first_difference(array, devices, column):
      one, other = (device.process_index for device in differs)
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise ValueError(
        f'{name} in process {other} differs from its copy in process {one}: the'
        f' code or the hardware of one of them is at fault. {_way_out(saved)}'
      )


def _way_out(saved):
  if not saved:
    return 'No checkpoint has been saved yet; the same commands begin again'
  return (
    f'All copies were equal at checkpoint {max(saved)}; nothing was saved since,'
    ' and the same commands continue from there'
  )


@functools.cache
def _function(mesh, specs):
  """Function of arrays that returns digests of their parts, [device, array]."""
  return jax.jit(
    jax.shard_map(
      lambda *parts: jnp.stack([_digest(part) for part in parts])[None],
      mesh=mesh,
      in_specs=specs,
      out_specs=P(mesh.axis_names),
      check_vma=False,
    ),
    out_shardings=NamedSharding(mesh, P()),
  )


def _digest(part):
  """A sum modulo 2**32 of the elements, each hashed with its place.

  Each hash is a bijection of the bits of its element. It must not be linear:
  sums of weighted bits are equal for arrays that differ by a factor of two.
  """
  bits = jax.lax.bitcast_convert_type(part, _UNSIGNED[part.dtype.itemsize])
  places = jnp.arange(part.size, dtype=jnp.uint32).reshape(part.shape)
  # lowbias32, from Chris Wellons' hash-prospector; the first factor, 2**32 over
  # the golden ratio, spreads the places.
  x = bits.astype(jnp.uint32) ^ (places * jnp.uint32(0x9E3779B9))
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)


def _first_difference(array, devices, digests):
  """Two devices whose copies of the same part differ; None if there are none."""
  parts = array.sharding.devices_indices_map(array.shape)
  seen = {}
  for device, digest in zip(devices, np.asarray(digests), strict=True):
    part = str(parts[device])
    one, expected = seen.setdefault(part, (device, digest))
    if digest != expected:
      return one, device
  return None
