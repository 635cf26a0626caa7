"""Commands that are killed, stopped, repeated and started twice."""

import contextlib
import functools
import re
import signal

from benchmarks.faults import damage
from benchmarks.faults import nursery as nursery_lib
from benchmarks.faults import rows
from benchmarks.faults import runs
from benchmarks.faults import victim

STEPS, SAVES, EVALUATIONS = 24, 4, 4  # A run has so many; it ends with a save.
LAST_LINE = re.compile(
  r'interrupted by \w+(: step \d+ is saved)?; (the same command continues|'
  r'nothing was begun).*'
)
check = rows.check


def check_finished(ended: nursery_lib.Ended) -> None:
  """Raises Broken unless a command has done its work."""
  check(
    ended.code == 0,
    f'the repeated command ended with {ended.code}: {ended.printed[-400:]}',
  )
  check(not ended.survivors, f'{ended.survivors} processes are left')


@contextlib.contextmanager
def same_seed(shared):
  """Two runs of the same command, one of them here."""
  with contextlib.closing(nursery_lib.Nursery()) as nursery:

    def trial(_, folder):
      check_finished(nursery.run(runs.flags(shared, folder / 'run')))
      runs.check_same(shared, folder / 'run')
      return 'equal'

    yield trial


@contextlib.contextmanager
def killed(shared, moment, calls):
  """Runs that a signal kills after one of the first `calls` of a moment."""
  runs.reference(shared)
  with contextlib.closing(nursery_lib.Nursery()) as nursery:

    def trial(rng, folder):
      argv = runs.flags(shared, folder / 'run')
      hurt = victim.Hurt(moment, int(rng.integers(calls)), 0.1 * rng.random())
      dead = nursery.run(argv, hurt)
      check(not dead.survivors, f'{dead.survivors} processes are left')
      check(dead.code in (0, -signal.SIGKILL), dead.printed[-400:])
      check_finished(nursery.run(argv))
      runs.check_same(shared, folder / 'run')
      return 'killed, equal' if dead.code else 'had ended, equal'

    yield trial


@contextlib.contextmanager
def signalled(shared):
  """Runs that are stopped by a signal at any moment, also in start-up."""
  runs.reference(shared)
  with contextlib.closing(nursery_lib.Nursery()) as nursery:

    def trial(rng, folder):
      argv = runs.flags(shared, folder / 'run')
      number = (signal.SIGTERM, signal.SIGINT)[rng.integers(2)]
      moment = damage.choose(('', 'step', 'save', 'evaluation'), rng)
      calls = {'': 1, 'step': STEPS, 'save': SAVES, 'evaluation': EVALUATIONS}
      delay = (1.5 if moment == '' else 0.1) * rng.random()
      call = int(rng.integers(calls[moment]))
      ended = nursery.run(argv, victim.Hurt(moment, call, delay, number))
      check(not ended.survivors, f'{ended.survivors} processes are left')
      if ended.code:
        lines = ended.printed.splitlines()
        check(ended.code == 128 + number, f'exit code {ended.code}: {lines}')
        check(LAST_LINE.fullmatch(lines[-1]), f'the last line is {lines[-1]}')
        is_saved = (
          'is saved' in lines[-1] or (folder / 'run/result.json').exists()
        )
        check(
          is_saved or not moment, f'nothing is saved in a {moment}: {lines[-1]}'
        )
        check('Traceback' not in ended.printed, f'a traceback: {lines}')
      check_finished(nursery.run(argv))
      runs.check_same(shared, folder / 'run')
      kind = 'saved' if 'is saved' in ended.printed else 'at once'
      return f'{signal.Signals(number).name}, {kind if ended.code else "late"}'

    yield trial


@contextlib.contextmanager
def prepared(shared, moment, number=signal.SIGKILL):
  """Preparations in workers that are killed, and repeated."""
  with contextlib.closing(nursery_lib.Nursery()) as nursery:
    source = runs.new_folder(shared) / 'photographs'
    runs.write_photographs(source, 40)
    fixed = {'prepare.prepare__ALONE': 0, 'prepare.prepare__SHARD_EXAMPLES': 6}

    def flags_of(folder, workers=2):
      return [
        f'--source=folder:{source}',
        '--name=set',
        f'--data_dir={folder}',
        '--size=24',
        f'--workers={workers}',
      ]

    once = runs.new_folder(shared)
    run = functools.partial(nursery.run, program='prepare', **fixed)
    check_finished(run(flags_of(once, workers=1)))
    expected = runs.tree(once / 'set/1.0.0')

    def trial(rng, folder):
      workers = 2 if moment == 'workers' else 1
      delay = {'workers': 8.0, 'shard': 0.05}[moment] * rng.random()
      call = int(rng.integers(8)) if moment == 'shard' else 0
      hurt = victim.Hurt(moment, call, delay, number)
      dead = run(flags_of(folder, workers), hurt)
      check(not dead.survivors, f'{dead.survivors} workers are left')
      check(dead.code in (0, -number), dead.printed[-400:])
      check_finished(run(flags_of(folder, 1)))
      check(runs.tree(folder / 'set/1.0.0') == expected, 'the bytes differ')
      return 'killed, equal' if dead.code else 'had ended, equal'

    yield trial


@contextlib.contextmanager
def two_owners(shared):
  """A second run in the work directory of one at work."""
  with contextlib.closing(nursery_lib.Nursery()) as nursery:

    def trial(rng, folder):
      argv = runs.flags(shared, folder / 'run')
      first = nursery.start(argv)
      first.wait_for('first step done')
      second = nursery.run(argv)
      last = second.printed.splitlines()[-1]
      owned = f'another process is at work in {folder / "run"}'
      is_late = second.code == 0  # The first has ended before it began.
      check(is_late or (second.code == 1 and owned in last), last)
      check('Traceback' not in second.printed, second.printed[-400:])
      check_finished(first.wait())
      runs.check_same(shared, folder / 'run')
      return 'late' if is_late else 'refused, equal'

    yield trial


EQUAL = (
  'the same command goes on and ends with the metrics.csv (but for times) and'
  ' the arrays of the uninterrupted run, bit by bit; no process is left'
)


def _killed(name, injected, moment, calls, full, quick):
  opened = functools.partial(killed, moment=moment, calls=calls)
  return rows.Row(name, injected, EQUAL, full, quick, opened, 600)


ROWS = [
  rows.Row(
    *('same_seed', 'nothing: the same command in another process'),
    'metrics.csv (but for times) and all arrays are equal, bit by bit',
    *(5, 1, same_seed, 300),
  ),
  _killed('kill_step', 'SIGKILL in a step', 'step', STEPS, 30, 1),
  _killed('kill_save', 'SIGKILL in a save', 'save', SAVES, 30, 1),
  _killed(
    *('kill_evaluation', 'SIGKILL in an evaluation', 'evaluation'),
    *(EVALUATIONS, 20, 0),
  ),
  rows.Row(
    *('kill_preparation', 'SIGKILL while a shard is written'),
    'the same command goes on; the data set has the same bytes',
    *(20, 2, functools.partial(prepared, moment='shard'), 300),
  ),
  rows.Row(
    *('orphans', 'SIGKILL of a preparation with two workers'),
    'no worker is left after ten seconds; repeated, the bytes are the same',
    *(10, 1, functools.partial(prepared, moment='workers'), 300),
  ),
  rows.Row(
    *('signals', 'SIGTERM or SIGINT: start-up, steps, saves, evaluations'),
    f'exit code 128 + number, one last line that says so; {EQUAL}',
    *(50, 1, signalled, 600),
  ),
  rows.Row(
    *('two_owners', 'a second command in the same work directory'),
    'it is refused in one line; the first ends as if it were alone',
    *(10, 1, two_owners, 600),
  ),
]
