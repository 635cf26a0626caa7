"""A work directory: the config and the result of a training run, and its lock.

docs/files.md lists its files; `config.json` and `result.json` are written here.
"""

from collections.abc import Iterator, Mapping
import configparser
import contextlib
import importlib.metadata
import logging
import os
import pathlib
import re
import subprocess

import jax
import ml_collections
import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_files
from alexnet_jax import checkpoint_path
from alexnet_jax import config as config_lib
from alexnet_jax import recorded_config
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

CONFIG_FILE = 'config.json'
RESULT_FILE = 'result.json'
EVALUATION_FILE = 'evaluation.json'
# A recorded config of any version has these keys.
_ESSENTIAL = {'seed', 'input.dataset', 'model.num_classes', 'train.epochs'}


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """The recorded config of a work directory, upgraded to the current keys.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged.
  """
  file = pathlib.Path(workdir) / CONFIG_FILE
  if not file.exists():
    way_out = 'name a --workdir in which --mode=train has been run'
    raise FileNotFoundError(f'no {file}; {way_out}')
  return recorded_config.unflatten(_read_flat(file))


def _read_flat(file: pathlib.Path) -> dict[str, object]:
  """The config in `file`; if that is damaged, the one in a checkpoint beside it."""
  try:
    flat = _parse(file)
  except ValueError as error:
    flat = checkpoint_files.recorded_config(file.parent / checkpoint.FOLDER)
    if flat is None:
      raise ValueError(
        f'{file} is damaged ({error}); remove it, or use a fresh --workdir'
      ) from error
  if missing := _ESSENTIAL - flat.keys():
    lacks = f'is not a config of this project, it lacks {min(missing)}'
    raise ValueError(f'{file} {lacks}; use another --workdir')
  return recorded_config.upgrade(flat)


def _parse(file):
  flat = files.read_object(file)
  try:
    recorded_config.unflatten(flat)
  except (AttributeError, TypeError) as error:
    raise ValueError(f'its keys are none of a config: {error}') from error
  return flat


def check_workdir(
  workdir: str | os.PathLike, config: ml_collections.ConfigDict
) -> pathlib.Path:
  """The absolute path of a work directory to train in; writes nothing.

  Raises:
    ValueError: if it cannot be written, or belongs to another config. A config
      without a checkpoint or a result, of a command that failed early, counts
      for nothing.
  """
  if not os.fspath(workdir):
    raise ValueError('--workdir= is empty; name a folder')
  path = files.local_path(workdir, '--workdir')
  checkpoint_path.check(path)
  # Checkpoints that may not be read must not look like none.
  for folder in (path, path / checkpoint.FOLDER):
    check_writable(folder, f'--workdir={workdir}')
  file = path / CONFIG_FILE
  if file.exists():
    recorded = _read_flat(file)
    if has_trained(path):
      recorded_config.check_unchanged(config, recorded, str(file))
  return path


def has_trained(workdir: pathlib.Path) -> bool:
  """Whether a checkpoint or the result of a run is, or was, there."""
  # Not what an interrupted save has left.
  saved = re.compile(r'((damaged|diverged|replaced)\.)?\d+')
  checkpoints = (workdir / checkpoint.FOLDER).glob('*')
  return any(saved.fullmatch(p.name) for p in checkpoints) or any(
    (workdir / name).exists() for name in (RESULT_FILE, EVALUATION_FILE)
  )


def check_writable(path: pathlib.Path, flag: str) -> None:
  """Raises ValueError unless `path` is, or can become, a writable folder.

  The message begins with `flag`.
  """
  try:
    existing = next(p for p in (path, *path.parents) if p.exists())
  except OSError as error:  # No permission above, or a long name.
    raise ValueError(
      f'{flag} cannot be written ({error.strerror}); name a folder that can'
    ) from error
  allowed = os.access(existing, os.R_OK | os.W_OK | os.X_OK)
  if not (existing.is_dir() and allowed):
    raise ValueError(
      f'{flag} cannot be written ({existing} is not a writable folder); name a'
      ' folder that can'
    )


def write_config(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Creates the work directory if it is missing, and records the config in it.

  Raises:
    ValueError: if it cannot be written, or belongs to another config.
  """
  check_workdir(workdir, config)
  file = workdir / CONFIG_FILE
  with _errors_named(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    if file.exists():
      try:
        _parse(file)
      except ValueError:
        kept = files.set_aside(file)
        log.warning(
          '%s was damaged; kept as %s, and written again.', file, kept.name
        )
    files.write_json(file, config_lib.flatten(config))


@contextlib.contextmanager
def _errors_named(workdir):
  """Turns an OSError into an error that names the work directory."""
  with files.full_disk_named(workdir, lambda: 'nothing is lost'):
    try:
      yield
    except OSError as error:
      words = f'--workdir={workdir} cannot be written ({error})'
      raise ValueError(f'{words}; name a folder that can') from error


@contextlib.contextmanager
def owned_workdir(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> Iterator[None]:
  """Creates and locks the work directory for this run, and records its config.

  Raises:
    ValueError: if it cannot be written, belongs to another config, is locked by
      another run, or is not visible to all hosts.
  """
  has_locks = True
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      with _errors_named(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        has_locks = stack.enter_context(files.locked(workdir))
      write_config(workdir, config)
    if not _is_shared(workdir):
      raise ValueError(
        f'--workdir={workdir} must be on a file system that all hosts share:'
        ' process 0 has written to it, and another does not see it'
      )
    if processes.any_process(not has_locks):
      checkpoint_files.save_without_locks()
    yield


def _is_shared(workdir):
  """Whether all processes see a file that process 0 makes there now.

  An older file says nothing: every host may have one of its own.
  """
  if processes.is_single_process():
    return True
  for left in workdir.glob('shared.*.tmp') if processes.is_first() else ():
    left.unlink()  # A kill has left it.
  seed = np.frombuffer(os.urandom(4), np.uint32)
  # A name that no host has asked for before: network file systems remember.
  file = workdir / f'shared.{processes.gather(seed)[0, 0]:08x}.tmp'
  try:
    if processes.is_first():
      file.touch()
    processes.barrier('work directory')
    return not processes.any_process(not file.exists())
  finally:
    if processes.is_first():
      file.unlink(missing_ok=True)


def remove_result(workdir: pathlib.Path) -> None:
  """Removes result.json, if there is one, when training continues."""
  if processes.is_first():
    (workdir / RESULT_FILE).unlink(missing_ok=True)


def write_result(
  workdir: pathlib.Path,
  step: int,
  epoch: float,
  wall_seconds: float,
  commit: str,
  values: Mapping[str, float],
) -> None:
  """Writes result.json, unless it exists: the last metrics, and their cost.

  Args:
    workdir: work directory of the run.
    step: number of completed steps.
    epoch: passes through the training set.
    wall_seconds: duration of the whole run in seconds.
    commit: commit or version of the code, from `current_commit`.
    values: the last metrics, by tag.
  """
  if not processes.is_first() or (workdir / RESULT_FILE).exists():
    return
  result = {
    'step': step,
    'epoch': epoch,
    'wall_seconds': round(wall_seconds, 1),
    'commit': commit,
    'devices': [device.device_kind for device in jax.devices()],
  }
  files.write_json(workdir / RESULT_FILE, result | {**values})


def current_commit() -> str:
  """The commit of this code, with '+' if files were changed.

  Without a git repository of this package, the version of the package.
  """
  file = pathlib.Path(__file__).resolve()
  root = file.parents[1]
  # A user's own repository around the folder has its own commits.
  if _git(root, 'rev-parse', '--show-toplevel') == str(root) and _git(
    root, 'ls-files', '--', str(file)
  ):
    describe = ('describe', '--always', '--dirty=+', '--abbrev=40')
    if found := _git(root, *describe, '--exclude=*'):
      return found
  return _version(root)


def _git(folder, *arguments):
  """The output of a git command; '' if it fails or there is no git."""
  # These variables, as git sets them for its hooks, name another repository.
  env = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
  try:
    found = subprocess.run(
      ['git', *arguments], cwd=folder, env=env, capture_output=True, text=True
    )
  except (OSError, ValueError):  # A ValueError if the output is no UTF-8.
    return ''
  return found.stdout.strip() if found.returncode == 0 else ''


def _version(root):
  """The version in the setup.cfg beside the package, or the installed one."""
  setup = configparser.ConfigParser(interpolation=None)
  with contextlib.suppress(OSError, ValueError, configparser.Error):
    setup.read(root / 'setup.cfg')
  if setup.get('metadata', 'name', fallback='') == 'alexnet_jax':
    return setup.get('metadata', 'version', fallback='')
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    return importlib.metadata.version('alexnet_jax')
  return ''
