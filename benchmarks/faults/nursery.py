"""Starts commands that are hurt at a chosen moment, and watches them."""

from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

import psutil

from benchmarks.faults import victim

CODE = 'from benchmarks.faults import victim; victim.serve()'
LIMIT = 240.0  # Seconds of a command.


@dataclasses.dataclass
class Ended:
  """A command that has ended."""

  code: int  # As of `subprocess`: negative after a signal.
  printed: str  # stdout and stderr.
  survivors: int  # Processes of the command that outlived it by seconds.


class Command:
  """A command that runs."""

  def __init__(self, pid: int, output: pathlib.Path, read_code):
    self.pid, self.output, self._read_code = pid, output, read_code

  def wait(self, seconds: float = LIMIT) -> Ended:
    """Returns when the command has ended, or kills it after some seconds."""
    code = self._read_code(self.pid, seconds)
    if code is None:
      self.kill()
      raise TimeoutError(f'no end within {seconds:g} s: {self.printed()}')
    return Ended(code, self.printed(), self._survivors())

  def printed(self) -> str:
    """What the command has printed so far."""
    return self.output.read_text(errors='replace')

  def wait_for(self, text: str, seconds: float = LIMIT) -> None:
    """Returns when the command has printed a text."""
    end = time.monotonic() + seconds
    while text not in self.printed():
      if time.monotonic() > end or not psutil.pid_exists(self.pid):
        raise TimeoutError(f'{text!r} was not printed: {self.printed()}')
      time.sleep(0.01)

  def kill(self) -> None:
    """Kills the command and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.pid, signal.SIGKILL)

  def _survivors(self):
    """How many processes of its session are alive after up to ten seconds."""
    end = time.monotonic() + 10
    while (alive := session(self.pid)) and time.monotonic() < end:
      time.sleep(0.05)
    self.kill()
    return len(alive)


def session(pid: int) -> list[int]:
  """The processes of a session, less those that have ended."""
  found = []
  for process in psutil.process_iter():
    with contextlib.suppress(OSError, psutil.Error):
      if os.getsid(process.pid) == pid:
        if process.status() != psutil.STATUS_ZOMBIE:
          found.append(process.pid)
  return found


class Nursery:
  """A process that forks commands, in an environment and network of its own."""

  def __init__(
    self, prefix: Sequence[str] = (), cwd: pathlib.Path | None = None
  ):
    """Starts the process.

    Args:
      prefix: precedes its command line.
      cwd: folder whose packages it imports; None for that of this module.
    """
    self._process = subprocess.Popen(
      [*prefix, sys.executable, '-c', CODE],
      cwd=cwd or pathlib.Path(__file__).parents[2],
      env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    self._output = tempfile.TemporaryDirectory(prefix='victims')
    self._codes, self._numbers = {}, itertools.count()
    self._buffer = b''
    self._read(60)  # It is ready.

  def start(
    self,
    argv: Sequence[object],
    hurt: victim.Hurt | None = None,
    program: str = 'main',
    **constants: object,
  ) -> Command:
    """Starts a command in a session of its own.

    Args:
      argv: its flags.
      hurt: when and how it is hurt.
      program: 'main' or 'prepare'.
      **constants: values of 'module__NAME' of the package to set first.
    """
    output = pathlib.Path(self._output.name) / str(next(self._numbers))
    order = {
      'argv': list(map(str, argv)),
      'hurt': hurt and dataclasses.asdict(hurt),
      'program': program,
      'constants': constants,
      'output': str(output),
    }
    output.touch()
    self._process.stdin.write(json.dumps(order).encode() + b'\n')
    self._process.stdin.flush()
    while not (pid := self._read(60).get('pid')):
      pass
    return Command(pid, output, self._code)

  def run(self, argv, hurt=None, program='main', **constants) -> Ended:
    """Runs a command to its end."""
    return self.start(argv, hurt, program, **constants).wait()

  def _code(self, pid, seconds):
    end = time.monotonic() + seconds
    while pid not in self._codes:
      if (left := end - time.monotonic()) < 0:
        return None
      self._read(left)
    return self._codes.pop(pid)

  def _read(self, seconds):
    """The next message; {} if there is none in this time."""
    end = time.monotonic() + seconds
    while b'\n' not in self._buffer:
      left = max(0.0, end - time.monotonic())
      if not select.select([self._process.stdout], [], [], left)[0]:
        return {}
      if not (part := os.read(self._process.stdout.fileno(), 65536)):
        raise RuntimeError('the process that starts commands has died')
      self._buffer += part
    line, _, self._buffer = self._buffer.partition(b'\n')
    message = json.loads(line)
    if 'code' in message:
      self._codes[message['ended']] = message['code']
    return message

  def close(self) -> None:
    """Ends the process and all commands."""
    self._process.stdin.close()
    self._process.wait()
    self._output.cleanup()
