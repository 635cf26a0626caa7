"""Large pages of memory for large arrays, which a process must begin with."""

import os
import sys


def reexec_with_huge_pages() -> None:
  """Starts this program again with large pages, if it can and has none.

  On CPU a train step of the paper's net otherwise takes 1.1 to 1.2 times as long
  (experiments/LOG.md): its arrays are made anew in every step, and the kernel
  gives out their memory in pieces of 4 KiB. The C library reads the variable
  GLIBC_TUNABLES when a process begins; where it is set, even to nothing, it is
  left alone. To be called before JAX is imported.
  """
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
