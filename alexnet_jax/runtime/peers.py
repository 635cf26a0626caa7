"""The other processes of a run: whether they are alive, and how they ended.

JAX ends a process whose peer is lost by abort(), after lines of C++ that name
nobody, and cannot call Python instead: jaxlib 0.10 raises std::bad_cast in its
`missed_heartbeat_callback`. So each process here tells JAX's coordination
service every second that it lives, reads what the others tell, and ends with
one line and an exit code of its own, before JAX does. Process 0 holds the
service. If it dies, JAX aborts the others at once; a handler of SIGABRT then
prints the line.
"""

import atexit
from collections.abc import Callable
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import threading
import time

from alexnet_jax.runtime import signals

# The exit code when another process was lost: repeat the command. `sysexits.h`
# calls it a temporary failure.
LOST = os.EX_TEMPFAIL
_FOLDER = 'alexnet_jax/processes'  # Keys in the coordination service.
_LEFT = {'code': 0, 'line': ''}
_CONNECTION = re.compile(
  r'gloo|nccl|socket|connection|heartbeat|coordination service'
  r'|another task|UNAVAILABLE|DEADLINE_EXCEEDED',
  re.IGNORECASE,
)
# How an error of XLA begins where it is one line. JAX raises some in C++, called
# by a module of this package.
_XLA = re.compile(r'\w+Error: [A-Z_]+: ')
_GLOO = (
  'on CPUs, Gloo connects them by the name of each host (`hostname`), which must'
  ' resolve to an address that the others reach (not to 127.0.1.1, as in'
  " Debian's /etc/hosts), at any high port"
)
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Peers:
  """Tells the other processes that this one lives, and watches them.

  Time is counted in beats of this process, so one that was suspended does not
  take the others for dead when it wakes up.
  """

  def __init__(self, client, address: str, index: int, number: int, seconds):
    """Starts to tell and to watch.

    Args:
      client: JAX's client of the coordination service.
      address: 'host:port' of that service, in process 0.
      index: index of this process.
      number: number of processes.
      seconds: a process that is silent for so long is lost.
    """
    self._client, self._address = client, address
    self._index, self._number = index, number
    self._interval = min(1.0, seconds / 10)
    self._limit = seconds / self._interval  # In beats.
    self._notes = {}  # The newest beats and ends, by key.
    self._answers = 0
    self._exchanges = 0
    self._silent = [0] * number  # For how many beats, by process.
    self._has_left = threading.Event()
    self._is_ending = threading.Lock()
    self._threads = [
      threading.Thread(target=target, daemon=True)
      for target in (self._tell, self._watch)
    ]
    for thread in self._threads:
      thread.start()
    atexit.register(self.leave)  # Before JAX leaves the service.
    self._handler = _HANDLER(self._aborted)  # C does not keep it alive.
    _set_handler(signal.SIGABRT, self._handler)

  def _tell(self):
    beat = 0
    while not self._has_left.wait(self._interval):
      beat += 1
      with contextlib.suppress(Exception):  # `_watch` notices the silence.
        self._put('beat', beat)
        self._notes = dict(self._client.key_value_dir_get(_FOLDER))
        self._answers += 1

  def _put(self, kind, value):
    self._client.key_value_set(
      f'{_FOLDER}/{kind}/{self._index}', json.dumps(value), allow_overwrite=True
    )

  def _note(self, kind, process):
    return json.loads(self._notes.get(f'{_FOLDER}/{kind}/{process}', 'null'))

  def _watch(self):
    others = [p for p in range(self._number) if p != self._index]
    beats, answers = {}, 0
    while not self._has_left.wait(self._interval):
      if end := self._end_of_another():
        time.sleep(1)  # An error of this process itself comes first.
        self._adopt(end)
      if self._answers == answers:
        self._silent[0] += self._index != 0
      else:
        answers = self._answers
        self._silent[0] = 0
        for process in others:
          beat = self._note('beat', process)
          is_silent = beat == beats.get(process) and not self._left(process)
          self._silent[process] = is_silent * (self._silent[process] + 1)
          beats[process] = beat
      self._end_if_lost(self._limit)

  def _left(self, process):
    return self._note('end', process) == _LEFT

  def _end_of_another(self):
    """What a process that ends all has told the others, if there is one."""
    ends = (self._note('end', p) for p in range(self._number))
    return next((end for end in ends if end and end != _LEFT), None)

  def _adopt(self, end):
    self.end_all(end['line'], end['code'])

  def _end_if_lost(self, beats):
    silent = max(self._silent)
    if silent >= beats:
      seconds = round(silent * self._interval)
      line = self._lost(self._silent.index(silent), f'for {seconds} s')
      self.end_all(line, LOST)

  def _lost(self, process, how_long):
    return (
      f'process {process} of {self._number} is lost: not heard of {how_long} (it'
      ' has died, it hangs, or its network is cut; see its log). Start all'
      f' processes again: {signals.resume_hint}'
    )

  def exchange(self, text: str) -> list[str]:
    """The texts of all processes; all must call it equally often."""
    self._exchanges += 1
    keys = [
      f'{_FOLDER}_said/{self._exchanges}/{process}'
      for process in range(self._number)
    ]
    self._client.key_value_set(keys[self._index], text)
    day = 86_400_000  # The watch ends it before.
    return [self._client.blocking_key_value_get(key, day) for key in keys]

  def end_all(self, line: str, code: int, others: str = '') -> None:
    """Ends this process at once, and the others within a few seconds.

    Args:
      line: what this process prints.
      code: exit code of all.
      others: what the others print; by default the same.
    """
    if not self._is_ending.acquire(blocking=False):
      threading.Event().wait()  # Another thread is about to end the process.
    signals.print_line(line)
    end = {'code': code, 'line': others or line}
    telling = threading.Thread(target=self._put, args=('end', end), daemon=True)
    telling.start()
    telling.join(2)
    if self._index == 0:  # The service ends with it: the others read first.
      time.sleep(3 * self._interval)
    signals.exit_at_once(code)

  def fail(
    self, error: str, show: Callable[[], None], is_one_line: bool = False
  ) -> None:
    """Ends all processes for an error in this one.

    If the error is about a connection, another process may be its cause: then
    the others have a few seconds to tell, or to be missed.

    Args:
      error: the error in words.
      show: prints it.
      is_one_line: whether this process ends with one line, as for a user's
        mistake. An error that begins with an XLA status is not a user's mistake.
    """
    may_be_another = not is_one_line or _XLA.match(error)
    if may_be_another and _CONNECTION.search(error):
      for _ in range(10):
        self._end_if_lost(5)
        time.sleep(self._interval)
    with contextlib.suppress(OSError):  # The disk of the log may be full.
      show()
    if may_be_another and 'gloo' in error.lower():
      signals.print_line(f'All processes are alive; {_GLOO}')
    me = f'process {self._index} of {self._number}'
    first_line = error.partition('\n')[0]
    self.end_all(
      f'{me} ends with the error above, and so do the others',
      1,
      f'{me} has ended with an error: {first_line}',
    )

  def leave(self) -> None:
    """Waits until all processes are about to end, and stops the watch."""
    while True:
      with contextlib.suppress(Exception):  # The service may be slow.
        self._put('end', _LEFT)
      if all(self._left(process) for process in range(self._number)):
        break
      time.sleep(self._interval / 10)
    self._has_left.set()
    for thread in self._threads:
      thread.join()

  def _aborted(self, _):
    """Called in the thread that called abort(); returns if no peer is lost."""
    if end := self._end_of_another():
      line, code = end['line'], end['code']
    elif self._index and not _answers(self._address):
      line, code = self._lost(0, 'any more'), LOST
    else:
      return
    signals.print_line(line)
    signals.exit_at_once(code)


def _answers(address):
  host, _, port = address.rpartition(':')
  with contextlib.suppress(OSError):
    with socket.create_connection((host.strip('[]'), int(port)), timeout=2):
      return True
  return False


def _set_handler(number, handler):
  """Sets a handler that runs at once, in the thread that gets the signal.

  Those of Python's `signal` run later, in the main thread.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, _HANDLER]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(number, handler)
