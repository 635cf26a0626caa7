"""How much memory the processes of a run may still take."""

from collections.abc import Iterator
import contextlib
import pathlib
import socket
import zlib

import jax
import numpy as np
import psutil

from alexnet_jax.runtime import processes

# For each version of control groups (cgroups, which containers and Slurm use):
# where they are mounted, the files of their limit and of their usage, and the
# line of memory.stat with the cached files in it, which the kernel can drop.
_CGROUP_V1 = (
  'sys/fs/cgroup/memory',
  'memory.limit_in_bytes',
  'memory.usage_in_bytes',
  'total_inactive_file',
)
_CGROUP_V2 = ('sys/fs/cgroup', 'memory.max', 'memory.current', 'inactive_file')
_MIB = 20  # Bits.


def of_host(root: pathlib.Path = pathlib.Path('/')) -> int:
  """Bytes that are free for this process on its host.

  Limits of its control groups are counted.

  Args:
    root: folder of proc/ and sys/.
  """
  free = [psutil.virtual_memory().available, *_left_in_cgroups(root)]
  return max(min(free), 0)


def _left_in_cgroups(root) -> Iterator[int]:
  """Bytes below the limit of each control group of this process."""
  try:
    lines = (root / 'proc/self/cgroup').read_text().splitlines()
  except OSError:  # Not Linux.
    return
  for line in lines:
    _, controllers, path = line.split(':', 2)
    if controllers and 'memory' not in controllers.split(','):
      continue
    mount, *files = _CGROUP_V1 if controllers else _CGROUP_V2
    group = root / mount / path.lstrip('/')
    # A limit holds for all groups below. In a container the path may be that on
    # its host; then only the mount itself is found.
    for folder in (group, *group.parents):
      if folder.is_relative_to(root / mount):
        # There are no such files, or the limit is 'max'.
        with contextlib.suppress(OSError, ValueError):
          yield _left(folder, *files)


def _left(folder, limit, usage, reclaimable):
  number = lambda file: int((folder / file).read_text())
  stat = dict(map(str.split, (folder / 'memory.stat').read_text().splitlines()))
  return number(limit) - number(usage) + int(stat.get(reclaimable, 0))


def of_each_process() -> int:
  """Bytes that every process can take; the same number in all of them.

  The processes on a host share what is free there. All must call this.
  """
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id')  # As in a container.
  host = boot.read_text() if boot.exists() else socket.gethostname()
  mine = [zlib.crc32(host.encode()), of_host() >> _MIB]
  hosts, free = processes.gather(np.array(mine, np.uint32)).T
  on_host = (hosts[:, None] == hosts).sum(axis=1)
  return int((free // on_host).min()) << _MIB


def of_each_device() -> int | None:
  """Bytes that are free on every accelerator of the run.

  The same number in all processes, which must all call this. None if a device
  does not tell, as on CPU.
  """
  free = -1
  with contextlib.suppress(jax.errors.JaxRuntimeError, KeyError, TypeError):
    stats = [device.memory_stats() for device in jax.local_devices()]
    free = min(s['bytes_limit'] - s['bytes_in_use'] for s in stats) >> _MIB
  least = int(processes.gather(np.array(free, np.int32)).min())
  return None if least < 0 else least << _MIB
