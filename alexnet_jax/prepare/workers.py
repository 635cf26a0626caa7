"""Shards written by processes: one per core, which end with this one.

They import the module that the program began with: a script that prepares a
data set needs the usual `if __name__ == '__main__'`.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import threading

from alexnet_jax.prepare import shards


def write_all(
  todo: Sequence[shards.Shard],
  may_skip: int,
  number: int,
  report: Callable[[int, dict[pathlib.Path, list[str]]], None],
) -> None:
  """Writes shards, each whole or not at all.

  Args:
    todo: the shards.
    may_skip: unreadable images of one shard, before it is given up.
    number: of processes.
    report: is called twice a second with the images done so far and what the
      finished shards skipped; an exception that it raises ends the work.

  Raises:
    RuntimeError: if a process has died.
  """
  context = multiprocessing.get_context('spawn')
  encoded, stop = context.Value('q', 0), context.RawValue('b', False)
  pool = concurrent.futures.ProcessPoolExecutor(
    number, context, _start, (encoded, stop)
  )
  waiting, running, skipped = list(todo), {}, {}
  try:
    while waiting or running:
      while waiting and len(running) < 2 * number:
        shard = waiting.pop(0)
        examples = list(shard.examples)  # Not the whole split.
        shard = dataclasses.replace(shard, examples=examples)
        with _deaf_to_ctrl_c():
          running[pool.submit(_write, shard, may_skip)] = shard.path
      done, _ = concurrent.futures.wait(
        running, 0.5, concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        skipped[running.pop(future)] = future.result()
      # Without the lock: a killed process may hold it.
      report(encoded.get_obj().value, skipped)
  except concurrent.futures.process.BrokenProcessPool as error:
    raise RuntimeError(
      'a process that worked on a shard was killed, perhaps for want of memory;'
      ' the same command continues, with less memory by --workers='
      f'{max(number // 2, 1)}'
    ) from error
  finally:
    stop.value = True  # After an error or Ctrl-C; unfinished shards are lost.
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
  """Processes that begin in it leave Ctrl-C to this one, from their start on."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(encoded, stop):
  global _encoded, _stop
  _encoded, _stop = encoded, stop
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _write(shard, may_skip):
  return shards.write(shard, may_skip, _count)['skipped'].tolist()


def _count():
  with _encoded.get_lock():
    _encoded.value += 1
  if _stop.value:
    raise KeyboardInterrupt


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)  # It was killed, and nobody waits for this shard.
