"""The files of a checkpoint: digests, damage, full disks, and their locks.

Orbax notices a truncated file, not a changed one, and raises errors of many
types; here they become errors that say what has happened to the checkpoint.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import json
import logging
import pathlib
import shutil
import typing

import jax

from alexnet_jax.runtime import digests
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

# Names of the items on disk.
STATE, RECORD, METRICS = 'state', 'record', 'metrics'
METRIC = 'eval/top1_error'  # The key in the latter.
REPLACED = 'replaced.'  # Before the name of a step.
T = typing.TypeVar('T')
# The machine is at fault, not the file.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
_NOT_DAMAGE += (errno.ENOMEM, errno.ESTALE)


class DamagedError(ValueError):
  """Files of a checkpoint are truncated, corrupted or missing."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """Raises DamagedError for whatever Orbax raises when it reads a bad file.

  The type depends on the damage: `null` for an object of JSON is a TypeError or
  an AttributeError. An error of the system or of a device keeps its type.
  """
  try:
    yield
  except DamagedError:
    raise
  except Exception as error:
    number = error.errno if isinstance(error, OSError) else None
    if number in _NOT_DAMAGE or isinstance(
      error, MemoryError | jax.errors.JaxRuntimeError
    ):
      raise
    reason = error.__cause__ or error
    raise DamagedError(str(reason) or type(reason).__name__) from error


def check_digests(step: pathlib.Path, item: str) -> bool:
  """Compares the files of one item of a checkpoint with their digests.

  Args:
    step: folder of the checkpoint.
    item: name of the item.

  Returns:
    Whether the checkpoint has digests; those of earlier versions have none.

  Raises:
    DamagedError: if a file is missing or has other content than was saved.
  """
  with reading():
    recorded = digests.read(step)
    if recorded is None:
      return False
    mine = {k: v for k, v in recorded.items() if k.startswith(f'{item}/')}
    if problems := digests.problems(step, mine):
      more = f', and {len(problems) - 1} more' if problems[1:] else ''
      raise DamagedError(f'{problems[0]}{more}')
  return True


def parse(kind: type[T], values: object) -> T:
  """The dataclass whose fields a checkpoint has stored as JSON.

  Args:
    kind: the dataclass; its fields may be dataclasses and dicts.
    values: what JSON gave.

  Raises:
    DamagedError: if a field is missing, unknown or of another type.
  """
  try:
    return _parse(kind, values, kind.__name__)
  except (TypeError, KeyError, AttributeError) as error:
    raise DamagedError(f'its record is damaged: {error}') from error


def _parse(kind, value, name):
  if dataclasses.is_dataclass(kind):
    types = typing.get_type_hints(kind)
    return kind(**{k: _parse(types[k], v, k) for k, v in value.items()})
  if typing.get_origin(kind) is dict:
    element = typing.get_args(kind)[1]
    return {k: _parse(element, v, k) for k, v in value.items()}
  if isinstance(kind, type):
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (kind is int and value < 0):
      raise TypeError(f'{name} is {value!r}')
  return value


def recorded_config(checkpoints: pathlib.Path) -> dict[str, object] | None:
  """The config in the newest checkpoint whose record can be read.

  Args:
    checkpoints: folder of the checkpoints, which need not exist.

  Returns:
    Values by dotted key, as recorded; None if there are none.
  """
  steps = [path for path in checkpoints.glob('*') if path.name.isdecimal()]
  for step in sorted(steps, key=lambda path: int(path.name), reverse=True):
    if record := read_record(step):
      return dict(record['config'])
  return None


def read_record(step: pathlib.Path) -> dict | None:
  """The metadata of a checkpoint, with a config and metrics; None if damaged.

  Args:
    step: folder of the checkpoint.
  """
  with contextlib.suppress(DamagedError), reading():
    check_digests(step, RECORD)
    record = json.loads(files.read_bytes(step / RECORD / 'metadata'))
    dict(record['config']), dict(record['metrics'])
    return record
  return None


def full_disk_named(
  folder: pathlib.Path,
) -> contextlib.AbstractContextManager[None]:
  """Turns the errors of a full disk into one that says what is kept.

  Args:
    folder: folder of the checkpoints.
  """

  def kept():
    names = [path.name for path in folder.glob('*')]
    newest = max((int(n) for n in names if n.isdecimal()), default=None)
    if newest is None:
      return 'no checkpoint yet'
    return f'checkpoint {newest} is whole'

  return files.full_disk_named(folder, kept)


def rename(step: pathlib.Path, word: str) -> None:
  """Renames the checkpoint in folder `step` to WORD.STEP, which it replaces."""
  renamed = step.with_name(f'{word}.{step.name}')
  log.error('checkpoint %s is now %s', step.name, renamed)
  shutil.rmtree(renamed, ignore_errors=True)
  step.rename(renamed)


def set_aside(step: pathlib.Path) -> None:
  """Gives a checkpoint another name until one of the same step is saved."""
  if processes.is_first():
    step.rename(step.with_name(f'{REPLACED}{step.name}'))
  processes.barrier('replaced checkpoint')


def put_back(folder: pathlib.Path) -> None:
  """Ends what `set_aside` began: removes a checkpoint if its step was saved.

  Otherwise, after a kill or on a full disk, the checkpoint gets its name back.

  Args:
    folder: folder of the checkpoints.
  """
  for replaced in folder.glob(f'{REPLACED}*') if processes.is_first() else ():
    step = replaced.with_name(replaced.name.removeprefix(REPLACED))
    if step.exists():
      shutil.rmtree(replaced)
    else:
      replaced.rename(step)


def rename_damaged(folder: pathlib.Path, errors: dict[int, Exception]) -> None:
  """Gives damaged checkpoints other names, and logs why.

  Args:
    folder: folder of the checkpoints.
    errors: why they cannot be read, by step.
  """
  for step, error in errors.items() if processes.is_first() else ():
    if not isinstance(error, DamagedError):
      error = 'it has another config or data set than those before it'
    log.error('checkpoint %d cannot be read (%s)', step, error)
    rename(folder / str(step), 'damaged')
  processes.barrier('damaged checkpoints')


def remove_unreadable(step: pathlib.Path) -> None:
  """Removes what a checkpoint can do without, where it is damaged.

  Orbax reads the validation error and its own metadata of every checkpoint when
  it opens the folder, and fails if one of them cannot be read. The error is
  written again if the record of the checkpoint has it.

  Args:
    step: folder of the checkpoint.
  """
  error, metadata = step / METRICS, step / '_CHECKPOINT_METADATA'
  if error.exists() and not _is_readable(lambda: _read_error(step)):
    log.error('the validation error of checkpoint %s cannot be read', step.name)
    if not _is_readable(lambda: _restore_error(step)):
      shutil.rmtree(error)
      log.error('it is now taken as not evaluated')
  if metadata.exists() and not _is_readable(
    lambda: json.loads(files.read_bytes(metadata)).keys()
  ):
    log.error('%s cannot be read and is not needed; removed', metadata)
    shutil.rmtree(metadata) if metadata.is_dir() else metadata.unlink()


def _is_readable(read):
  """Whether `read()` finds no damage; other errors keep their type."""
  with contextlib.suppress(DamagedError), reading():
    read()
    return True
  return False


def _read_error(step):
  check_digests(step, METRICS)
  float(json.loads(files.read_bytes(step / METRICS / METRICS))[METRIC])


def _restore_error(step):
  """Writes the validation error from the record; its digest must be the same."""
  check_digests(step, RECORD)
  record = json.loads(files.read_bytes(step / RECORD / 'metadata'))
  if record.get('unfinished'):  # Its metrics are those of an earlier state.
    raise DamagedError('the state was not evaluated')
  content = json.dumps({METRIC: record['metrics'][METRIC]})
  files.write_bytes(step / METRICS / METRICS, content.encode())
  _read_error(step)
  log.error('it was restored from the record of the checkpoint')


def save_without_locks() -> None:
  """Lets this process save to a file system that has no locks.

  TensorStore locks every file that it writes, although each has one writer and
  gets its name by a rename. Orbax has no option for it.
  """
  try:
    from orbax.checkpoint._src.serialization import tensorstore_utils

    contexts = (
      tensorstore_utils._BASE_TS_CONTEXT,
      tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT,
    )
  except (ImportError, AttributeError):  # Another version of Orbax.
    log.warning('Orbax may fail to save here: the file system has no locks.')
    return
  for context in contexts:
    context['file_io_locking'] = {'mode': 'none'}
