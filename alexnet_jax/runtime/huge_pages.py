"""Huge pages for large arrays, on Linux."""

import contextlib
import mmap
import os
import sys

from alexnet_jax.runtime import signals


def reexec_with_huge_pages() -> None:
  """Restarts this program with transparent huge pages for malloc, on Linux.

  Without them a train step of the paper's net on CPU takes 1.1 to 1.2 times as
  long (experiments/LOG.md): every step allocates its arrays again, and the
  kernel maps them page by page, 4 KiB each. The C library reads GLIBC_TUNABLES
  when a process starts; if it is already set, even to an empty string, nothing
  happens. Call this before JAX is imported.
  """
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    with contextlib.suppress(OSError):  # It only serves speed.
      signals.restart(sys.orig_argv[1:])


def allocate(num_bytes: int) -> mmap.mmap:
  """Private memory of zeros, in huge pages where the kernel has them."""
  memory = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  if hasattr(mmap, 'MADV_HUGEPAGE'):  # Defined on Linux only.
    with contextlib.suppress(OSError):  # The kernel may lack huge pages.
      memory.madvise(mmap.MADV_HUGEPAGE)
  return memory
