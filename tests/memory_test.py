"""How much memory is free: of planted control groups, devices and processes."""

import types

import jax
import numpy as np
import psutil
import pytest

from alexnet_jax.runtime import memory
from alexnet_jax.runtime import processes

GIB = 2**30
HOST = 100 * GIB
UNLIMITED = 2**63 - 4096  # What version 1 shows without a limit.


@pytest.fixture
def host(monkeypatch):
  stats = types.SimpleNamespace(available=HOST)
  monkeypatch.setattr(psutil, 'virtual_memory', lambda: stats)


def plant(root, groups, files):
  """Plants /proc/self/cgroup and the files of groups, by path."""
  (root / 'proc/self').mkdir(parents=True)
  (root / 'proc/self/cgroup').write_text(groups)
  for path, content in files.items():
    file = root / 'sys/fs/cgroup' / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{content}\n')


def group_v2(folder, limit, used, cached=0):
  return {
    f'{folder}memory.max': limit,
    f'{folder}memory.current': used,
    f'{folder}memory.stat': f'anon 7\ninactive_file {cached}\nactive_file 9',
  }


def group_v1(folder, limit, used, cached=0):
  return {
    f'memory/{folder}memory.limit_in_bytes': limit,
    f'memory/{folder}memory.usage_in_bytes': used,
    f'memory/{folder}memory.stat': f'cache 9\ntotal_inactive_file {cached}',
  }


V1 = '12:cpuset:/x\n4:memory:/a/b\n1:name=systemd:/\n0::/\n'


@pytest.mark.parametrize(
  ('groups', 'files', 'expected'),
  [
    ('0::/\n', {}, HOST),  # Outside of containers the root has no limit.
    ('0::/\n', group_v2('', 8 * GIB, 3 * GIB), 5 * GIB),
    ('0::/\n', group_v2('', 8 * GIB, 8 * GIB, cached=2 * GIB), 2 * GIB),
    ('0::/\n', group_v2('', 'max', 3 * GIB), HOST),
    ('0::/\n', group_v2('', 400 * GIB, 3 * GIB), HOST),
    ('0::/\n', group_v2('', 8 * GIB, 9 * GIB), 0),
    # A limit holds for the groups below.
    (
      '0::/a/b\n',
      group_v2('a/b/', 'max', GIB) | group_v2('a/', 8 * GIB, 2 * GIB),
      6 * GIB,
    ),
    # The path is that of the host, the mount that of the container.
    ('0::/../../pod\n', group_v2('', 8 * GIB, GIB), 7 * GIB),
    (V1, group_v1('a/b/', 8 * GIB, 4 * GIB, cached=GIB), 5 * GIB),
    (V1, group_v1('a/b/', UNLIMITED, GIB) | group_v1('', 4 * GIB, 0), 4 * GIB),
    (V1, group_v1('', UNLIMITED, GIB), HOST),
    ('4:hugetlb,memory:/a\n', group_v1('a/', 8 * GIB, 0), 8 * GIB),
    # Version 2 without its memory controller beside version 1.
    (V1, group_v1('a/b/', 2 * GIB, 0) | {'unified/cgroup.procs': ''}, 2 * GIB),
  ],
)
def test_the_limits_of_control_groups_count(
  tmp_path, host, groups, files, expected
):
  plant(tmp_path, groups, files)
  assert memory.of_host(tmp_path) == expected


def test_without_control_groups_the_host_counts(tmp_path, host):
  assert memory.of_host(tmp_path) == HOST
  assert 0 < memory.of_host() <= HOST


@pytest.mark.parametrize(('elsewhere', 'expected'), [(10, 10), (60, 25)])
def test_the_processes_on_a_host_share_its_memory(
  monkeypatch, host, elsewhere, expected
):
  monkeypatch.setattr(memory, '_left_in_cgroups', lambda root: ())
  assert memory.of_each_process() == HOST

  def gather(mine):  # Four processes on this host, and one on another.
    other = np.array([mine[0] ^ 1, elsewhere << 10], np.uint32)
    return np.stack([mine, other, mine, mine, mine])

  monkeypatch.setattr(processes, 'gather', gather)
  assert memory.of_each_process() == expected * GIB


def devices_with(*stats):
  def of(one):
    if isinstance(one, Exception):
      raise one
    return one

  return [
    types.SimpleNamespace(memory_stats=lambda one=one: of(one)) for one in stats
  ]


FREE_10 = {'bytes_limit': 12 * GIB, 'bytes_in_use': 2 * GIB}
FREE_8 = {'bytes_limit': 9 * GIB, 'bytes_in_use': GIB}


@pytest.mark.parametrize(
  ('stats', 'expected'),
  [
    ([FREE_10], 10 * GIB),
    ([FREE_10, FREE_8], 8 * GIB),
    ([FREE_10, None], None),
    ([{'bytes_in_use': 5}], None),
    ([jax.errors.JaxRuntimeError('UNIMPLEMENTED')], None),
  ],
)
def test_the_device_with_the_least_free_memory_counts(
  monkeypatch, stats, expected
):
  monkeypatch.setattr(jax, 'local_devices', lambda: devices_with(*stats))
  assert memory.of_each_device() == expected


@pytest.mark.parametrize(('other', 'expected'), [(4, 4), (40, 10), (-1, None)])
def test_all_processes_agree_on_the_least_of_their_devices(
  monkeypatch, other, expected
):
  monkeypatch.setattr(jax, 'local_devices', lambda: devices_with(FREE_10))
  mib = other << 10 if other > 0 else other
  monkeypatch.setattr(
    processes, 'gather', lambda mine: np.stack([mine, np.int32(mib)])
  )
  assert memory.of_each_device() == (expected and expected * GIB)


def test_a_cpu_device_does_not_tell():
  assert memory.of_each_device() is None
