"""Reused memory for batches of images."""

import collections
import contextlib
import mmap
import weakref

import numpy as np


class BufferPool:
  """uint8 arrays of one shape whose memory is reused once they are free.

  Decoding into fresh memory takes 1.5 times as long as into warm memory. An
  array is free when nothing refers to it. On CPU `jax.device_put` aliases the
  page-aligned array for the lifetime of the jax.Array, which holds a reference
  to it, so a batch that a step may still read is never overwritten.
  """

  def __init__(self, shape: tuple[int, ...]):
    self._shape = shape
    self._free = collections.deque()

  def take(self) -> np.ndarray:
    """An array with undefined contents."""
    try:
      memory = self._free.pop()
    except IndexError:
      private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
      memory = mmap.mmap(-1, int(np.prod(self._shape)), private)
      if hasattr(mmap, 'MADV_HUGEPAGE'):  # Linux.
        with contextlib.suppress(OSError):  # The kernel may lack huge pages.
          memory.madvise(mmap.MADV_HUGEPAGE)
    # NumPy collapses chains of views to their owner, but not past an mmap: every
    # view of this array holds a reference to it.
    array = np.frombuffer(memory, np.uint8).reshape(self._shape)
    owner = array
    while isinstance(owner.base, np.ndarray):
      owner = owner.base
    weakref.finalize(owner, self._free.append, memory)
    return array
