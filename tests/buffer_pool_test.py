"""Buffers are reused once nothing refers to them."""

import gc
import time

import jax
import numpy as np

from alexnet_jax import buffer_pool


def wait_until(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    gc.collect()
    time.sleep(0.01)


# Reused memory is recognised by its contents. Its address proves nothing: fresh
# memory may have the same one, but is zero.
def test_the_pool_reuses_memory_once_it_is_free():
  pool = buffer_pool.BufferPool((4, 8, 8, 3))
  array = pool.take()
  array[:] = 1
  del array
  assert (pool.take() == 1).all()


def test_the_pool_keeps_memory_while_a_view_of_a_view_lives():
  pool = buffer_pool.BufferPool((4, 8, 8, 3))
  array = pool.take()
  array[:] = 1
  view = array[1:].reshape(3, -1)[:, ::2]
  del array
  pool.take()[:] = 2
  assert (view == 1).all()
  del view
  assert (pool.take() == 1).all()


def test_device_put_aliases_a_buffer_and_the_pool_waits_for_the_array():
  pool = buffer_pool.BufferPool((4, 8, 8, 3))
  array = pool.take()
  address = array.ctypes.data
  assert address % 64 == 0
  array[:] = 1
  on_device = jax.device_put(array, jax.devices()[0]).block_until_ready()
  # Without aliasing there would be nothing to wait for.
  assert on_device.unsafe_buffer_pointer() == address
  del array
  gc.collect()
  other = pool.take()
  assert other.ctypes.data != address
  other[:] = 2
  assert (np.asarray(on_device) == 1).all()
  del on_device, other
  wait_until(lambda: any((a == 1).all() for a in (pool.take(), pool.take())))
