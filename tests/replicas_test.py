"""Copies of arrays on four devices of one process; two: processes_test."""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from alexnet_jax import mesh as mesh_lib
from alexnet_jax.runtime import processes
from alexnet_jax.runtime import replicas

VALUES = np.arange(48, dtype=np.float32).reshape(4, 12)


@pytest.fixture(autouse=True)
def several(monkeypatch):
  monkeypatch.setattr(processes, 'is_single_process', lambda: False)


def array(mesh, spec, changed=None, values=VALUES):
  """The values on all devices; in `changed`, by index, one bit is another."""
  sharding = NamedSharding(mesh, spec)
  parts = []
  for index, (device, part) in enumerate(
    sharding.devices_indices_map(values.shape).items()
  ):
    copy = values[part].copy()
    if index == changed:
      copy.reshape(-1).view(np.uint32)[-1 if index else 0] ^= 1
    parts.append(jax.device_put(copy, device))
  return jax.make_array_from_single_device_arrays(values.shape, sharding, parts)


def check(tree, saved):
  replicas.check(tree, jax.device_get(replicas.digests(tree)), saved)


SPECS = [P(), P('tower'), P(None, 'tower'), P('data')]


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('changed', [0, 3])
def test_one_bit_in_one_copy_is_noticed(spec, changed):
  mesh = mesh_lib.create_mesh('towers', '2', jax.devices())
  same = {'a': array(mesh, P()), 'b': array(mesh, spec)}
  check(same, [])
  with pytest.raises(
    ValueError, match=r'^b/w in process 0 .* has been saved yet;'
  ):
    check(same | {'b': {'w': array(mesh, spec, changed)}}, [])


def two_signs(values):
  signs = np.ones_like(values)
  signs[0, [1, 2]] = -1
  return values * signs


@pytest.mark.parametrize('change', [lambda x: 2 * x, np.negative, two_signs])
def test_a_change_of_many_elements_is_noticed(change):
  mesh = mesh_lib.create_mesh('data', '1', jax.devices())
  values = np.random.default_rng(0).standard_normal((4, 16), np.float32)
  copies = [jax.device_put(values, d) for d in jax.devices()]
  copies[3] = jax.device_put(change(values), jax.devices()[3])
  differs = jax.make_array_from_single_device_arrays(
    values.shape, NamedSharding(mesh, P()), copies
  )
  with pytest.raises(ValueError, match='differs from its copy'):
    check([differs], [])


def test_parts_without_a_copy_may_differ():
  mesh = mesh_lib.create_mesh('data', 'auto', jax.devices())
  check([array(mesh, P('data'), 2)], [3])


@pytest.mark.parametrize('dtype', [np.int32, jax.numpy.bfloat16, np.int8])
def test_other_types_can_be_compared(dtype):
  mesh = mesh_lib.create_mesh('data', 'auto', jax.devices())
  values = jax.device_put(VALUES.astype(dtype), NamedSharding(mesh, P()))
  check((values, jax.numpy.zeros_like(values[0, 0])), [3])
