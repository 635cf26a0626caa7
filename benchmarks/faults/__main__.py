r"""What a run survives: every promise, tested by injecting what it is about.

    python -m benchmarks.faults --output=FILE.json [--quick] [--check]
    python -m benchmarks.faults --rows=images,checkpoint_mixed --most=1000

Each promise is a row: what is injected, how often, what must hold, what was
seen. FILE.json is written row by row: a command that was stopped goes on where
it stopped, and trials that are there with the same commit are not repeated. The
full run takes some hours; some rows need root (a small tmpfs, network
namespaces) and say so where they cannot run. Trial 7 of a row draws the same in
every run, so that `--rows=NAME --first=7 --most=8` repeats a failure.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading

from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from benchmarks import harness
from benchmarks.faults import archives
from benchmarks.faults import checkpoints
from benchmarks.faults import configs
from benchmarks.faults import disk
from benchmarks.faults import hostile
from benchmarks.faults import images
from benchmarks.faults import peers
from benchmarks.faults import processes
from benchmarks.faults import records
from benchmarks.faults import rows as rows_lib
from benchmarks.faults import runs
from benchmarks.faults import soak

FLAGS = harness.FLAGS
MODULES = (
  *(processes, peers, checkpoints, records, images, archives, hostile),
  *(configs, disk),
)
ROWS = [row for module in MODULES for row in module.ROWS]
# Rows that measure: nothing else runs beside them.
ALONE = soak.ROWS
PLAYERS = 2  # Rows that are played at the same time.


def read_record(path: str) -> dict[str, dict]:
  """The rows of an earlier command, by name; none if there is no such file."""
  if not path or not os.path.exists(path):
    return {}
  return json.loads(files.read_bytes(path))['figures']['rows']


def chosen(names: list[str]) -> list[rows_lib.Row]:
  """The rows of these names, or all; an unknown name exits with one line."""
  known = {row.name: row for row in (*ALONE, *ROWS)}
  if unknown := {*names} - {*known}:
    sys.exit(f'--rows={min(unknown)} is not one of {", ".join(known)}')
  return [row for name, row in known.items() if name in names or not names]


def play_all(
  chosen_rows: list[rows_lib.Row], entries: dict[str, dict], save
) -> None:
  """Plays rows into their records: those of `ALONE`, then several at a time."""
  # A player that was killed may have left a disk mounted there.
  with tempfile.TemporaryDirectory(
    prefix='faults', ignore_cleanup_errors=True
  ) as folder:
    shared = pathlib.Path(folder)
    os.environ |= {
      'JAX_COMPILATION_CACHE_DIR': f'{shared}/xla',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    runs.prepare_digits(shared)
    for is_alone, players in ((True, 1), (False, PLAYERS)):
      waiting = iter([r for r in chosen_rows if (r in ALONE) == is_alone])
      _play(shared, waiting, entries, save, players)


def _play(shared, waiting, entries, save, players):
  """Plays rows of an iterator in so many processes."""
  lock = threading.Lock()

  def play_some():
    with contextlib.closing(rows_lib.Player(shared)) as player:
      while True:
        with lock:
          row = next(waiting, None)
        if row is None:
          return
        player(row, entries[row.name], save)
        print(line_of(row, entries[row.name]), flush=True)

  with concurrent.futures.ThreadPoolExecutor(players) as threads:
    try:
      for future in [threads.submit(play_some) for _ in range(players)]:
        future.result()
    except KeyboardInterrupt:
      save()
      shutil.rmtree(shared, ignore_errors=True)
      os._exit(130)  # Players end when their pipes are closed.


def line_of(row: rows_lib.Row, entry: dict) -> str:
  """One line about a row."""
  seen = ', '.join(f'{key} {n}' for key, n in sorted(entry['seen'].items()))
  for name, value in entry.get('figures', {}).items():
    seen += f'{", " if seen else ""}{name} {value:.4g}'
  state = 'holds' if rows_lib.holds(row, entry) else 'BROKEN'
  if 'not_run' in entry:
    state, seen = 'not run', entry['not_run']
  number = entry['count'] if row.is_size else entry['done']
  problems = ''.join(f'\n    {failure}' for failure in entry['failures'])
  return f'{row.name:20} {number:6} {state:8} {seen}{problems}'


def measure() -> harness.Outcome:
  commit, entries = workdir_lib.current_commit(), read_record(FLAGS.output)
  selected = chosen(FLAGS.rows)
  if FLAGS.quick and not FLAGS.rows:
    selected = [row for row in selected if row.quick]
  for row in selected:
    count = max(row.quick, 1) if FLAGS.quick else row.full
    count = min(count, FLAGS.most) if FLAGS.most else count
    earlier = entries.get(row.name)
    if FLAGS.first and earlier and earlier['commit'] == commit:
      sys.exit(
        f'--first={FLAGS.first} begins a record, but {FLAGS.output} has trials'
        f' of {row.name} with this commit; name another --output'
      )
    entries[row.name] = rows_lib.entry_of(
      row, earlier, count, commit, FLAGS.first
    )
  lock = threading.Lock()

  def save():
    with lock:
      if FLAGS.output:
        harness.write_record(FLAGS.output, {'rows': entries})

  play_all(selected, entries, save)
  broken = [r.name for r in selected if not rows_lib.holds(r, entries[r.name])]
  skipped = [r.name for r in selected if 'not_run' in entries[r.name]]
  verdict = f'{len(selected) - len(broken) - len(skipped)} promises hold'
  verdict += f'; not run here: {", ".join(skipped)}' if skipped else ''
  verdict += f'; BROKEN: {", ".join(broken)}' if broken else ''
  return harness.Outcome({'rows': entries}, verdict, not broken)


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  harness.run(
    measure,
    quick='Few trials of most rows: under two minutes on two cores.',
    check='Fail if a promise is broken.',
    rows=([], 'Names of rows to play; by default all.'),
    most=(0, 'Limit for the number of trials of a row.'),
    first=(0, 'Number of the first trial, to repeat one that failed.'),
  )
