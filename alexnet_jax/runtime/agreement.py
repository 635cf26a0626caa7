"""An agreement of all processes on a number that each may know first.

A scheduler may signal one process of several, and never all at the same step.
Yet a step, and a checkpoint, need all of them. So they agree before which step
they stop.

JAX has a service for that (`multihost_utils.reached_preemption_sync_point`). We
turn it off: its handler, in C++, replaces those of `signals` for SIGTERM, so a
second signal would not end the process, Ctrl-C and SIGHUP would not be agreed
on, and a program could not ask for a stop itself. Here the processes reduce one
integer a step on their devices, as they reduce the metrics.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from alexnet_jax.runtime import processes


class Agreement:
  """The largest of the processes' numbers, one call late.

  All processes must call it equally often. A call starts a reduction and reads
  that of the call before, whose devices have reached it meanwhile: nothing
  waits. Once the answer is not 0 it stays.
  """

  def __init__(self, ask: Callable[[], int]):
    """Agrees on what `ask` returns, an int32 of at least 0."""
    self._ask, self._pending, self._answer = ask, None, 0
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('devices',))
    self._spread = NamedSharding(mesh, P('devices'))
    self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

  def __call__(self) -> int:
    if self._answer:
      return self._answer
    if processes.is_single_process():
      self._answer = int(self._ask())
    else:
      if self._pending is not None:
        self._answer = int(jax.device_get(self._pending))
      number = np.array([self._ask()], np.int32)
      with jax.transfer_guard('allow'):  # It counts as an implicit transfer.
        numbers = jax.make_array_from_callback(
          (jax.device_count(),), self._spread, lambda _: number
        )
      self._pending = self._largest(numbers)
    return self._answer
