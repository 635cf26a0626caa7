"""Requests to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP end a command in order.

`install` belongs to a command: it replaces the signal handlers of the process.
A handler that raises an exception is of no use here: Python runs it at any
point of the main thread, also within a callback of a library, which swallows
it, within an import, or only after minutes of compilation. So the handlers do
nothing, and a thread reads the signals from Python's wakeup file descriptor:

- By default it ends the process at once, with one line. That loses nothing, as
  a kill does not: files are written under temporary names, which are removed.
- Within `deferred` it only sets what `received` returns. Who enters `deferred`
  asks `received` again and again, and ends when it is convenient. A second
  signal ends the process at once.

The exit code is 128 + the number of the signal, as of a shell.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import os
import pathlib
import select
import signal
import sys
import threading
import time
from typing import TypeVar

SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
# Signals that arrive sooner after the first are the same request: a terminal,
# `timeout` and `srun` may signal a process and then its whole group.
AGAIN_SECONDS = 1.0

Item = TypeVar('Item')

# Follows "interrupted by ...; ".
resume_hint = 'nothing was begun'
# Files that are of no use if the process ends.
temporary_files: set[pathlib.Path] = set()

_is_installed = False
_is_deferred = False
_received = 0
_writer = -1  # Where Python writes the signals for `_watch`.
_is_drained = threading.Event()  # `_watch` has read all that was written.
_has_ended = False  # The last line is printed.


class Stopped(KeyboardInterrupt):
  """Work was ended on request, at a point from which it can be continued.

  It is no `Exception`, so it passes through the handlers of failures.
  """

  def __init__(self, number: int, done: str = ''):
    """Stopped by signal `number`, after what `done` says, for the user."""
    super().__init__(number, done)


def install() -> None:
  """Lets the signals end this process as the docstring of this module says.

  Signals that are ignored, as SIGHUP under `nohup`, stay ignored. Call it in
  the main thread. A second call does nothing.
  """
  global _is_installed, _writer
  if _is_installed:
    return
  _is_installed = True
  reader, _writer = os.pipe()
  os.set_blocking(_writer, False)
  signal.set_wakeup_fd(_writer, warn_on_full_buffer=False)
  with blocked():  # In the thread for good: see `restart`.
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
  for number in SIGNALS:
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, lambda *_: None)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # See `restart`.


def restart(arguments: list[str]) -> None:
  """Replaces this program by a new start of Python; no signal is lost.

  Args:
    arguments: the arguments of Python.

  Raises:
    OSError: if the system cannot start it.
  """
  with blocked() if _is_installed else contextlib.nullcontext():
    # From here on a signal waits for the new program. One that came before has
    # been written, and `_watch` ends the process when it reads it.
    if _is_installed:
      _is_drained.clear()  # Another signal may have set it.
      os.write(_writer, b'\0')
      _is_drained.wait()
    os.execv(sys.executable, [sys.executable, *arguments])


@contextlib.contextmanager
def blocked() -> Iterator[None]:
  """Blocks the signals; processes that are started here inherit that.

  A terminal or a scheduler signals all processes; only the parent handles it.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """In this context a signal only sets what `received` returns."""
  global _is_deferred
  before, _is_deferred = _is_deferred, True
  try:
    yield
  finally:
    _is_deferred = before


def received() -> int:
  """The number of the signal that was deferred; 0 if there was none."""
  return _received


def check() -> None:
  """Raises Stopped if a signal was deferred."""
  if _received:
    raise Stopped(_received)


def until(stop: Callable[[], int], items: Iterable[Item]) -> Iterator[Item]:
  """Yields the items; raises Stopped before one if `stop()` is not 0."""
  for item in items:
    if number := stop():
      raise Stopped(number)
    yield item


def ended(stopped: KeyboardInterrupt) -> SystemExit:
  """Prints one line about it; returns the exception that ends the program."""
  global _has_ended
  _has_ended = True
  number, done = stopped.args or (signal.SIGINT, '')
  print_line(
    f'interrupted by {signal.Signals(number).name}{done}; {resume_hint}'
  )
  return SystemExit(128 + number)


def _watch(reader):
  """Handles every signal that arrives; runs in a thread."""
  global _received
  while True:
    number = os.read(reader, 1)[0]
    if number not in SIGNALS:  # Another one with a handler in Python, or none.
      _is_drained.set()
      continue
    if _received or not _is_deferred:
      _end(number)
    _received = number
    time.sleep(AGAIN_SECONDS)
    while select.select([reader], [], [], 0)[0]:
      os.read(reader, 1)
    if not _has_ended:
      print_line(
        f'{signal.Signals(number).name}: stopping; once more ends at once'
      )


def _end(number):
  name = signal.Signals(number).name
  last = 2
  with contextlib.suppress(OSError):  # It may be closed.
    last = os.dup(2)
    # The main thread still runs; what it prints from here on is lost.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  print_line(f'interrupted by {name}; {resume_hint}', last)
  exit_at_once(128 + number)


def exit_at_once(code: int) -> None:
  """Ends the process, in whatever the main thread is."""
  for path in tuple(temporary_files):
    with contextlib.suppress(OSError):
      path.unlink()
  os._exit(code)


def print_line(line: str, descriptor: int = 2) -> None:
  """Writes a line to stderr, after what was printed, from any thread."""
  if sys.stdout is not None:
    # Another thread, since a terminal that was stopped would block this one.
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(1)
  # Without Python's buffers and locks, which the main thread may hold.
  start = '\n' if os.isatty(descriptor) else ''  # After ^C or a progress bar.
  with contextlib.suppress(OSError):  # The terminal may be gone.
    os.write(descriptor, f'{start}{line}\n'.encode())
