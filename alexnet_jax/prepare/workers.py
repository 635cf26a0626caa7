"""Worker processes that write shards, and end when this process ends.

They are spawned, so each imports the main module: a script that prepares a data
set needs the usual `if __name__ == '__main__'`.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import threading

from alexnet_jax.prepare import shards
from alexnet_jax.runtime import signals


@signals.deferred()
def write_all(
  todo: Sequence[shards.Shard],
  max_skipped: int,
  num_workers: int,
  report: Callable[[int, dict[pathlib.Path, list[str]]], None],
) -> None:
  """Writes shards, each completely or not at all.

  Args:
    todo: the shards to write.
    max_skipped: number of unreadable images to skip in one shard; see
      `shards.write`.
    num_workers: number of processes.
    report: called at least twice a second with the number of images processed
      so far and, by path, the lines about skipped images of every finished
      shard. An exception that it raises ends the work.

  Raises:
    RuntimeError: if a worker process was killed.
    signals.Stopped: if a signal asks to stop.
  """
  context = multiprocessing.get_context('spawn')
  num_processed = context.Value('q', 0)
  stop = context.RawValue('b', False)
  pool = concurrent.futures.ProcessPoolExecutor(
    num_workers, context, _initialize_worker, (num_processed, stop)
  )
  waiting, running, skipped = list(todo), {}, {}
  try:
    while waiting or running:
      while waiting and len(running) < 2 * num_workers:
        shard = waiting.pop(0)
        # A list: the rest of the split is not pickled with them.
        shard = dataclasses.replace(shard, examples=list(shard.examples))
        with signals.blocked():  # `submit` starts processes.
          running[pool.submit(_write, shard, max_skipped)] = shard.path
      done, _ = concurrent.futures.wait(
        running, 0.5, concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        skipped[running.pop(future)] = future.result()
      signals.check()
      # Read without the lock, which a killed process may hold forever.
      report(num_processed.get_obj().value, skipped)
  except concurrent.futures.process.BrokenProcessPool as error:
    # The pool ends the others by SIGTERM, which they block.
    for process in multiprocessing.active_children():
      process.kill()
    raise RuntimeError(
      'a worker process was killed, perhaps because memory ran out; the same'
      ' command continues, and needs less memory with'
      f' --workers={max(num_workers // 2, 1)}'
    ) from error
  finally:
    # After an error or Ctrl-C the workers abandon their unfinished shards.
    stop.value = True
    pool.shutdown(cancel_futures=True)


def _initialize_worker(num_processed, stop):
  global _num_processed, _stop
  _num_processed, _stop = num_processed, stop
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _write(shard, max_skipped):
  return shards.write(shard, max_skipped, _count_image)['skipped'].tolist()


def _count_image():
  with _num_processed.get_lock():
    _num_processed.value += 1
  if _stop.value:
    raise KeyboardInterrupt


def _exit_with_parent():
  """Ends this worker at once when its parent was killed."""
  multiprocessing.parent_process().join()
  os._exit(1)
