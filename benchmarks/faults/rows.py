"""A row: a fault, how often it is injected, and what must hold each time.

The trials of a row run in a process of their own, which is killed if one takes
too long: a decoder in C cannot be stopped in any other way.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import datetime
import gc
import logging
import multiprocessing
import pathlib
import tempfile
import time
import warnings
import zlib

import numpy as np

from alexnet_jax.runtime import command

MAX_SHOWN = 5  # Failures that a record shows; all are counted.
SAVE_SECONDS = 5  # A row that is stopped loses at most so much.
OPEN_SECONDS = 600  # Limit for what a row does before its first trial.


class Broken(Exception):
  """A promise did not hold."""


class Unavailable(Exception):
  """This machine does not allow the fault to be injected."""


@dataclasses.dataclass(frozen=True)
class Row:
  """A promise, and how it is put to the test.

  Attributes:
    name: key of the row in the record.
    injected: the fault.
    promise: what must hold.
    full: number of trials of the full run.
    quick: the same with --quick.
    opened: context manager for all trials; takes a folder that is kept for all
      rows of a command, and yields a function of (random generator, empty
      folder). It returns what was seen, in a word or two, or figures by name;
      any exception means that the promise was broken.
    deadline: limit in seconds of one trial.
    is_size: whether the number is the size of one trial, such as its seconds;
      the function of `opened` takes it as a third argument.
  """

  name: str
  injected: str
  promise: str
  full: int
  quick: int
  opened: Callable
  deadline: float = 60.0
  is_size: bool = False


def folder():
  """A temporary folder."""
  return tempfile.TemporaryDirectory(prefix='faults')


def check(holds: object, problem: str) -> None:
  """Raises Broken, with the problem, unless the promise holds."""
  if not holds:
    raise Broken(problem)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides the very many messages about faults that are injected."""
  loggers = [logging.getLogger(name) for name in ('alexnet_jax', 'absl')]
  before = [logger.level for logger in loggers]
  command.quiet_libraries()
  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    for logger, level in zip(loggers, before, strict=True):
      logger.setLevel(level)


def play(
  row: Row, first: int, count: int, shared: pathlib.Path
) -> Iterator[tuple[int, object, str]]:
  """Runs the trials `first` ... `count` - 1 in this process.

  A trial depends on its number and the name of its row alone.

  Yields:
    The number of the next trial, what was seen, and the problem, '' if there
    was none; after `opened` (`first`, '', '').
  """
  with quiet(), row.opened(shared) as trial:
    yield first, '', ''
    for number in range(first, 1 if row.is_size else count):
      rng = np.random.default_rng((zlib.crc32(row.name.encode()), number))
      seen, problem = '', ''
      with tempfile.TemporaryDirectory(dir=shared) as folder:
        try:
          more = (count,) if row.is_size else ()
          seen = trial(rng, pathlib.Path(folder), *more)
        except Unavailable:
          raise
        except Exception as error:
          text = ' '.join(str(error).split())[:500]
          problem = f'trial {number}: {type(error).__name__}: {text}'
      yield number + 1, seen, problem
      if number % 1000 == 999:
        gc.collect()


def entry_of(
  row: Row, earlier: dict | None, count: int, commit: str, first: int = 0
) -> dict[str, object]:
  """The record of a row, continued if this commit has begun it.

  More trials than earlier are added to those of the earlier command; a row that
  could not be run then is tried again. With changed files there is no commit to
  continue.

  Args:
    row: the row.
    earlier: its record of an earlier command, if there is one.
    count: number of trials.
    commit: commit of the code.
    first: number of the first trial of a row that is begun.
  """
  if earlier and earlier['commit'] == commit and not commit.endswith('+'):
    if earlier['count'] == count or not row.is_size:
      kept = {k: v for k, v in earlier.items() if k != 'not_run'}
      return kept | {'count': max(earlier['count'], count)}
  return {
    'injected': row.injected,
    'promise': row.promise,
    'count': count,
    'done': first,
    'seen': {},
    'broken': 0,
    'failures': [],
    'seconds': 0.0,
    'date': '',
    'commit': commit,
  }


def add(entry: dict, done: int, seen: object, problem: str) -> None:
  """Adds a trial to the record of its row."""
  entry['done'] = done
  entry['date'] = str(datetime.date.today())
  if problem:
    entry['broken'] += 1
    if len(entry['failures']) < MAX_SHOWN:
      entry['failures'].append(problem)
  elif isinstance(seen, dict):
    entry['figures'] = seen
  elif seen:
    entry['seen'][seen] = entry['seen'].get(seen, 0) + 1


def is_complete(row: Row, entry: dict) -> bool:
  """Whether nothing of a row is left to do."""
  wanted = 1 if row.is_size else entry['count']
  return entry['done'] >= wanted or 'not_run' in entry


def holds(row: Row, entry: dict) -> bool:
  """Whether all trials have been made, and none broke the promise.

  A row that this machine does not allow breaks none, and is named.
  """
  return is_complete(row, entry) and not entry['broken']


class Player:
  """A process that plays rows; a new one when it dies or hangs."""

  def __init__(self, shared: pathlib.Path):
    self._shared, self._process = shared, None

  def __call__(self, row: Row, entry: dict, save: Callable[[], None]) -> None:
    """Plays what is left of a row, and adds it to its record.

    Args:
      row: the row.
      entry: its record, from `begin` or an earlier command.
      save: called now and then, when `entry` has grown.
    """
    earlier, began, saved = entry['seconds'], time.monotonic(), 0.0
    while not is_complete(row, entry):
      self._start()
      self._pipe.send((row, entry['done'], entry['count']))
      seconds = OPEN_SECONDS
      while not is_complete(row, entry):
        try:
          if not self._pipe.poll(seconds):
            problem = f'no end within {seconds:g} s'
            break
          found = self._pipe.recv()
        except (EOFError, ConnectionError):
          problem = f'the process died with {self._end()}'
          break
        if isinstance(found, str):  # Not a trial: why there are none.
          entry['not_run'] = found
        else:
          add(entry, *found)
        seconds = row.deadline + (entry['count'] if row.is_size else 0)
        entry['seconds'] = round(earlier + time.monotonic() - began, 1)
        if time.monotonic() - saved > SAVE_SECONDS:
          save()
          saved = time.monotonic()
      else:
        break
      self.close()
      number = entry['done']
      add(entry, number + 1, '', f'trial {number}: {problem}')
      if seconds == OPEN_SECONDS:  # It would not do better a second time.
        entry['not_run'] = 'the row could not be opened'
    save()

  def _start(self):
    if self._process is None:
      context = multiprocessing.get_context('spawn')
      self._pipe, theirs = context.Pipe()
      self._process = context.Process(
        target=_serve, args=(theirs, self._shared), daemon=False
      )
      self._process.start()
      theirs.close()

  def _end(self):
    self._process.join(10)
    return f'exit code {self._process.exitcode}'

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.join()
      self._pipe.close()
      self._process = None


def _serve(pipe, shared):
  """Plays what it receives; what it starts ends when the pipe is closed."""
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      row, first, count = pipe.recv()
      try:
        for found in play(row, first, count, shared):
          pipe.send(found)
      except Unavailable as error:
        pipe.send(str(error))
