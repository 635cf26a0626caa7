"""Work directories whose path Orbax and its libraries misread.

Checkpoints are saved and read through another name of such a folder. Those that
an earlier version saved through its path are completed.
"""

import asyncio
from collections.abc import Callable
import logging
import os
import pathlib
import re
import shutil

import orbax.checkpoint as ocp

from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

# etils takes brackets, * and ? for a pattern, Orbax `gs:` for an address, and
# TensorStore a backslash for a separator; it wants one slash at the start.
SYNTAX = re.compile(r'^//|[][*?\\]|gs:')
DESCRIPTORS = pathlib.Path('/proc/self/fd')  # Linux has it.
INCOMPLETE = (
  'an earlier version misread its path and did not complete it; --mode=train'
  ' does, nothing is lost'
)


def check(workdir: pathlib.Path) -> None:
  """Raises ValueError if an absolute path is misread and has no other name."""
  found = SYNTAX.search(str(workdir))
  if found and not DESCRIPTORS.exists():
    raise ValueError(
      f'{workdir} has {found[0]!r} at character {found.start() + 1}, which the'
      ' libraries that save checkpoints misread; rename that folder, or make a'
      ' link to it (ln -s) and name the link'
    )


def read_again(read: Callable, steps: Callable, tries: int = 10) -> object:
  """The result of `read()`, which may fail beside a run that saves.

  A run deletes old checkpoints: after a ValueError `read()` is tried again, up to
  `tries` times, if `steps()`, the list of the checkpoints, has changed. Not with
  several processes, which read together.
  """
  for _ in range(tries if processes.is_single_process() else 0):
    before = steps()
    try:
      return read()
    except ValueError:
      if steps() == before:
        raise
  return read()


def check_files(folder: pathlib.Path) -> None:
  """Raises ValueError for a pipe or device there, which Orbax would open."""
  for path in folder.rglob('*'):
    files.check_regular(path)


def open_folder(workdir: pathlib.Path) -> tuple[pathlib.Path, int | None]:
  """A name of a folder that no library misreads.

  Args:
    workdir: absolute path of a work directory.

  Returns:
    The path itself and None; or a name of the open folder, and its file
    descriptor, which the caller closes.
  """
  if not SYNTAX.search(str(workdir)):
    return workdir, None
  descriptor = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
  return DESCRIPTORS / str(descriptor), descriptor


def is_incomplete(state: pathlib.Path, workdir: pathlib.Path) -> bool:
  """Whether a saved state lacks arrays that an earlier version has written.

  Each process writes its arrays to a folder, from which they are merged. Either
  that folder was not found, or it is not where it should be.

  Args:
    state: folder of the state in a checkpoint.
    workdir: absolute path of the work directory.
  """
  written = any(state.glob('ocdbt.process_*')) or _misplaced(state, workdir)
  return bool(written) and not (state / 'manifest.ocdbt').exists()


def complete(state: pathlib.Path, workdir: pathlib.Path) -> None:
  """Merges the arrays of an incomplete state; `state` must not be misread."""
  for path in _misplaced(state, workdir):
    shutil.move(path, state / path.name)
  context = ocp.type_handlers.get_ts_context()
  asyncio.run(
    ocp.type_handlers.merge_ocdbt_per_process_files(
      state, context, use_zarr3=False
    )
  )
  log.info('Completed the arrays of checkpoint %s.', state.parent.name)


def _misplaced(state, workdir):
  """What TensorStore wrote elsewhere, with slashes for backslashes."""
  if '\\' not in str(workdir):
    return []
  suffix = ocp.utils.TMP_DIR_SUFFIX
  folder = pathlib.Path(str(workdir).replace('\\', '/'), *state.parts[-3:-2])
  temporary = f'{state.parent.name}{suffix}', f'{state.name}{suffix}'
  return [*folder.joinpath(*temporary).glob('*')]
