"""Full and read-only disks, and a loss that is not finite."""

import contextlib
import errno
import os
import pathlib
import subprocess
from unittest import mock

import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import run_summary
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import command
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import files
from benchmarks.faults import rows
from benchmarks.faults import runs

check = rows.check
PAGE = 4096  # The unit of a disk in memory.


def num_pages(folder: pathlib.Path) -> int:
  """Pages that the files below a folder take."""
  found = (path for path in folder.rglob('*') if path.is_file())
  return sum(-(-path.stat().st_size // PAGE) + 1 for path in found)


def few_pages(pages: int, rng) -> int:
  """Bytes of a disk that is probably too small for so many pages."""
  return int(rng.integers(1, max(2, round(1.2 * pages)))) * PAGE


@contextlib.contextmanager
def mounted(folder: pathlib.Path, num_bytes: int):
  """A disk in memory of its own; yields a function that remounts it.

  Raises:
    Unavailable: if this user may not mount one.
  """
  disk = folder / 'disk'
  disk.mkdir()

  def mount(*options):
    line = ['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', str(disk)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
      raise rows.Unavailable(f'no tmpfs can be mounted: {done.stderr.strip()}')

  mount(f'size={num_bytes}')
  try:
    yield disk, lambda *options: mount('remount', *options)
  finally:
    subprocess.run(['umount', '-l', str(disk)], check=True)


def said_full(work, name: str) -> bool:
  """Whether some work has ended with the one error of a full disk.

  Args:
    work: function without arguments.
    name: what the error must name, such as the folder.
  """
  try:
    work()
  except OSError as error:
    check(error.errno == errno.ENOSPC, f'another error: {error}')
    check('make space' in command.refusal(error), f'no way out: {error}')
    check(name in str(error), f'{name} is not named: {error}')
    check(len(str(error).splitlines()) == 1, f'several lines: {error}')
    return True
  return False


@contextlib.contextmanager
def full_disk(shared):
  """Runs on a disk that is full at a random moment, and then is not."""
  runs.reference(shared)
  pages = num_pages(runs.uninterrupted(shared))

  def trial(rng, folder):
    with mounted(folder, few_pages(pages, rng)) as (disk, remount):
      work = lambda: runs.train_here(shared, disk / 'run')
      is_full = said_full(work, f'{disk}/run')
      before = checkpoint.saved_steps(disk / 'run')
      remount(f'size={9 * pages * PAGE}')
      work()
      runs.check_same(shared, disk / 'run')
    if not is_full:
      return 'enough room'
    return 'continued, equal' if before else 'begun again, equal'

  yield trial


@contextlib.contextmanager
def full_disk_in_preparation(shared):
  """Preparations on a disk that is full at a random moment."""
  source = runs.new_folder(shared) / 'photographs'
  runs.write_photographs(source, 60)
  work = lambda root: prepare.prepare(f'folder:{source}', 'set', root, size=24)
  with mock.patch.object(prepare, 'SHARD_EXAMPLES', 6):
    whole = work(runs.new_folder(shared))
    expected, pages = runs.tree(whole), num_pages(whole)

    def trial(rng, folder):
      with mounted(folder, few_pages(pages, rng)) as (disk, remount):
        is_full = said_full(lambda: work(disk), f'{disk}/set')
        check(not is_full or not (disk / 'set/1.0.0').exists(), 'half a set')
        remount(f'size={9 * pages * PAGE}')
        check(runs.tree(work(disk)) == expected, 'the bytes differ')
      return 'continued, equal' if is_full else 'enough room'

    yield trial


# What writes the files of a run, apart from Orbax.
WRITERS = (
  (files, 'sync'),
  (digests, 'write'),
  (os, 'replace'),
  ('alexnet_jax.events.EventWriter', 'scalars'),
  ('alexnet_jax.events.EventWriter', 'image'),
  ('alexnet_jax.metrics.MetricsWriter', 'scalars'),
)


@contextlib.contextmanager
def injected(shared):
  """Runs in which one call of one writer fails as on a full disk."""
  runs.reference(shared)

  def trial(rng, folder):
    owner, name = WRITERS[rng.integers(len(WRITERS))]
    target = owner if isinstance(owner, str) else owner.__name__
    number, calls = int(rng.integers(8)), []
    with contextlib.ExitStack() as stack:
      patch = mock.patch(f'{target}.{name}', autospec=True)
      original = patch.get_original()[0]

      def write(*args, **kwargs):
        calls.append(name)
        if len(calls) == number + 1:
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

      stack.enter_context(patch).side_effect = write
      work = lambda: runs.train_here(shared, folder / 'run')
      is_full = said_full(work, f'{folder}/run')
    check(is_full == (len(calls) > number), f'{target}.{name} is ignored')
    work()
    runs.check_same(shared, folder / 'run')
    return 'continued, equal' if is_full else 'not called'

  yield trial


@contextlib.contextmanager
def read_only(shared):
  """Commands in a folder on a read-only disk."""

  def trial(_, folder):
    with mounted(folder, 10**8) as (disk, remount):
      runs.train_here(shared, disk / 'begun', train__epochs=0.1)
      remount('ro')
      before = [path.name for path in disk.rglob('*')]
      for workdir in (disk / 'begun', disk / 'new'):
        try:
          runs.train_here(shared, workdir)
        except (ValueError, OSError) as error:
          check(str(disk) in str(error), f'no name in {error}')
          check(len(str(error).splitlines()) == 1, f'several lines: {error}')
        else:
          raise rows.Broken(f'it trained in {workdir}, which is read-only')
      check([p.name for p in disk.rglob('*')] == before, 'files changed')
    return 'refused, begun and new'

  yield trial


@contextlib.contextmanager
def not_finite(shared):
  """Runs whose rates are so high that they diverge, at some step."""

  def trial(rng, folder):
    workdir, changes = folder / 'run', {}
    exponent = rng.uniform(2, 30)
    if rng.random() < 0.5:  # Some steps pass, and are saved, before.
      exponent = rng.uniform(0, 4)
      changes = {'train__checkpoint_every_steps': 1}
    rate = float(10**exponent)
    try:
      runs.train_here(shared, workdir, optimizer__learning_rate=rate, **changes)
      outcome = 'finite to its end'
      for name, value in run_summary.read_result(workdir).items():
        check('/' not in name or np.isfinite(value), f'{name} is {value}')
    except FloatingPointError as error:
      outcome = 'ended at its step'
      for words in (' at step ', 'First not finite', 'repeat the command with'):
        check(words in str(error), f'no "{words}" in {error}')
    saved = checkpoint.saved_steps(workdir)
    for step in saved:
      arrays = runs.arrays_of(shared, workdir, step).values()
      finite = [np.isfinite(array).all() for array in arrays]
      check(all(finite), f'checkpoint {step} is not finite')
    return f'{outcome}, checkpoints: {len(saved)}'

  yield trial


GOES_ON = (
  'one line that names the disk; with room the same command goes on and ends'
  ' with the results of the uninterrupted run'
)
ROWS = [
  rows.Row(
    *('full_disk', 'a disk in memory that is full at a random moment'),
    *(GOES_ON, 40, 1, full_disk, 300),
  ),
  rows.Row(
    *('full_disk_preparation', 'the same, in preparation'),
    'one line that names the disk; with room the same command ends with the'
    ' same bytes',
    *(40, 4, full_disk_in_preparation, 300),
  ),
  rows.Row(
    *('full_disk_injected', 'ENOSPC from a call that writes or renames'),
    *(GOES_ON, 40, 1, injected, 300),
  ),
  rows.Row(
    *('read_only', 'a work directory on a read-only disk'),
    *('one line that names it; nothing changes', 10, 1, read_only, 300),
  ),
  rows.Row(
    *('not_finite', 'learning rates of 1 to 1e30'),
    'the run ends and names the step; every checkpoint is finite',
    *(10, 1, not_finite, 300),
  ),
]
