"""Forks commands that hurt themselves at a chosen moment; see nursery.py.

The process has imported everything, so that a command starts in a fraction of a
second. It must not have used JAX itself.
"""

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import select
import signal
import sys
import threading
import time

# The calls after which a command can be hurt.
MOMENTS = {
  'step': 'alexnet_jax.progress:Progress.update',
  'save': 'alexnet_jax.checkpoint:Checkpoints.save',
  'evaluation': 'alexnet_jax.evaluator:Evaluator.__call__',
  'shard': 'alexnet_jax.prepare.shards:write',
  'workers': 'alexnet_jax.prepare.workers:write_all',
}
HURT = 'hurt'  # A command prints it at its moment.


@dataclasses.dataclass(frozen=True)
class Hurt:
  """A signal that a command sends to itself.

  Attributes:
    moment: a key of `MOMENTS`; '' for the start of the command.
    call: the signal follows this call of the method, counted from 0.
    delay: seconds between the call and the signal.
    number: the signal; 0 for none.
  """

  moment: str = ''
  call: int = 0
  delay: float = 0.0
  number: int = signal.SIGKILL


def serve() -> None:
  """Forks the commands that stdin names, and reports how they end."""
  from alexnet_jax import main  # noqa: F401
  from alexnet_jax.prepare import prepare  # noqa: F401

  sessions = set()

  def report(**message):
    os.write(1, json.dumps(message).encode() + b'\n')

  report(ready=True)
  # SIGCHLD only wakes the loop: this process has no threads, so it can fork.
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.signal(signal.SIGCHLD, lambda *_: None)
  signal.set_wakeup_fd(writer)
  buffer = b''
  while True:
    ready, _, _ = select.select([0, reader], [], [])
    if reader in ready:
      os.read(reader, 1000)
      with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
          report(ended=found[0], code=os.waitstatus_to_exitcode(found[1]))
          sessions.discard(found[0])
    if 0 in ready:
      if not (part := os.read(0, 1 << 20)):
        break
      *lines, buffer = (buffer + part).split(b'\n')
      for line in lines:
        if not (pid := os.fork()):
          signal.set_wakeup_fd(-1)
          signal.signal(signal.SIGCHLD, signal.SIG_DFL)
          _run(**json.loads(line))
        sessions.add(pid)
        report(pid=pid)
  for pid in sessions:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(pid, signal.SIGKILL)


def _run(argv, hurt, program, constants, output):
  """Becomes a command; does not return."""
  os.setsid()
  file = os.open(output, os.O_WRONLY | os.O_APPEND)
  nothing = os.open(os.devnull, os.O_RDONLY)
  for target, source in ((0, nothing), (1, file), (2, file)):
    os.dup2(source, target)
  # Shells start background processes, perhaps this one, with SIGINT ignored.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  code = 1
  try:
    _become(argv, hurt, program, constants)
    code = 0
  except SystemExit as error:
    code = error.code
    if isinstance(code, str):
      print(code, file=sys.stderr)
      code = 1
  except BaseException:
    sys.excepthook(*sys.exc_info())
  # Threads and exit handlers end as in a program of its own.
  sys.stdout.flush()
  raise SystemExit(code or 0)


def _become(argv, hurt, program, constants):
  from absl import app
  from absl import flags

  from alexnet_jax import main
  from alexnet_jax.runtime import signals

  for name, value in constants.items():
    module, _, constant = name.rpartition('__')
    setattr(importlib.import_module(f'alexnet_jax.{module}'), constant, value)
  signals.install()
  if hurt:
    _arm(Hurt(**hurt))
  if program == 'main':
    sys.argv = ['main', *argv]  # config_flags reads it.
    app.run(main.main, argv=sys.argv, flags_parser=main.parse_flags)
  else:  # Its flags have the names of some of main's.
    for module, found in flags.FLAGS.flags_by_module_dict().items():
      for flag in () if module.startswith('absl') else tuple(found):
        delattr(flags.FLAGS, flag.name)
    command = importlib.import_module('alexnet_jax.prepare.__main__')
    app.run(command.main, argv=['prepare', *argv])


def _arm(hurt):
  """Lets this process send itself a signal at a moment."""

  def send():
    time.sleep(hurt.delay)
    os.write(2, f'{HURT}\n'.encode())
    os.kill(os.getpid(), hurt.number)

  start = lambda: threading.Thread(target=send, daemon=True).start()
  if not hurt.moment:
    start()
    return
  module, _, path = MOMENTS[hurt.moment].partition(':')
  owner, (*names, name) = importlib.import_module(module), path.split('.')
  for inner in names:
    owner = getattr(owner, inner)
  original, calls = getattr(owner, name), itertools.count()

  def called(*args, **kwargs):
    if next(calls) == hurt.call:
      start()
    return original(*args, **kwargs)

  setattr(owner, name, called)
