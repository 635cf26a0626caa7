"""Two processes of one run: one dies, hangs, never comes, or has other code.

The rows about the link between them need network namespaces.
"""

import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import time

import psutil

from benchmarks.faults import damage
from benchmarks.faults import nursery as nursery_lib
from benchmarks.faults import rows
from benchmarks.faults import runs
from benchmarks.faults import victim

HEARTBEAT = 5  # Seconds; --heartbeat_seconds.
MARGIN = 20  # Seconds to notice, print and end, on two busy cores.
LOST = os.EX_TEMPFAIL  # The exit code for 'repeat the command'.
ROOT = pathlib.Path(__file__).parents[2]
check = rows.check


class Pair:
  """Starts both processes of a run."""

  def __init__(self, shared, nurseries, host='127.0.0.1'):
    self._shared, self._nurseries, self._host = shared, nurseries, host
    self.uninterrupted = shared / f'pair_{host}'

  def start(
    self, workdir, hurts=(None, None), start_seconds=120, only=(0, 1)
  ) -> list[nursery_lib.Command]:
    """Starts the processes `only`, each with what hurts it."""
    cluster = runs.cluster(2, self._host)
    return [
      self._nurseries[index].start(
        [
          *runs.flags(self._shared, workdir),
          *cluster[index],
          f'--heartbeat_seconds={HEARTBEAT}',
          f'--start_seconds={start_seconds}',
        ],
        hurts[index],
      )
      for index in only
    ]

  def run(self, workdir) -> None:
    """Runs both to their end, which must be a good one."""
    for process in self.start(workdir):
      ended = process.wait()
      check(ended.code == 0, f'exit code {ended.code}: {ended.printed[-400:]}')
      check(not ended.survivors, f'{ended.survivors} processes are left')


def check_lost(process: nursery_lib.Command) -> None:
  """Raises Broken unless a process soon ends as one that has lost the other."""
  ended = process.wait(HEARTBEAT + MARGIN)
  lines = ended.printed.splitlines() or ['']
  check(ended.code == LOST, f'exit code {ended.code}: {lines[-3:]}')
  check('is lost' in lines[-1], f'the last line is {lines[-1]}')
  check('continue' in lines[-1], f'no way out in {lines[-1]}')


@contextlib.contextmanager
def on_loopback(shared):
  """A pair on this host, and the results of its uninterrupted run."""
  with contextlib.closing(nursery_lib.Nursery()) as nursery:
    yield with_results(shared, Pair(shared, [nursery] * 2))


def with_results(shared, pair):
  """The pair, and a function that compares a run with an uninterrupted one."""
  once = runs.made_once(pair.uninterrupted, pair.run)
  expected = runs.results(shared, once)

  def check_same(workdir):
    found = runs.results(shared, workdir)
    for name, value in expected.items():
      check(found[name] == value, f'{name} differ from the uninterrupted run')

  return pair, check_same


@contextlib.contextmanager
def lost(shared, number):
  """One of the processes gets a signal that it cannot handle."""
  with on_loopback(shared) as (pair, check_same):

    def trial(rng, folder):
      hurts, index = [None, None], int(rng.integers(2))
      call = int(rng.integers(20))
      hurts[index] = victim.Hurt('step', call, 0.1 * rng.random(), number)
      processes = pair.start(folder / 'run', hurts)
      while damage.is_running(processes[index].pid):
        time.sleep(0.02)
      check_lost(processes[1 - index])
      processes[index].kill()
      pair.run(folder / 'run')
      check_same(folder / 'run')
      return f'ended by process {1 - index}, equal'

    yield trial


@contextlib.contextmanager
def missing(shared):
  """The other process is never started."""
  with contextlib.closing(nursery_lib.Nursery()) as nursery:
    pair = Pair(shared, [nursery] * 2)

    def trial(rng, folder):
      index = int(rng.integers(2))
      (process,) = pair.start(folder / 'run', start_seconds=3, only=[index])
      ended = process.wait(3 + MARGIN)
      last = ended.printed.splitlines()[-1]
      is_said = ended.code == 1 and 'have connected' in last
      is_said = is_said and '--start_seconds' in ended.printed
      check(is_said, f'exit code {ended.code}: {last}')
      check('Traceback' not in ended.printed, ended.printed[-400:])
      check(not (folder / 'run').exists(), 'a work directory was made')
      return f'process {index} ended'

    yield trial


@contextlib.contextmanager
def other_code(shared):
  """One process has one other line in one module of the package."""
  copy = runs.new_folder(shared)
  for name in ('alexnet_jax', 'benchmarks', 'configs'):
    damage.copy(ROOT / name, copy / name)
  modules = sorted((copy / 'alexnet_jax').rglob('[a-z]*.py'))
  with contextlib.closing(nursery_lib.Nursery()) as own:

    def trial(rng, folder):
      module = damage.choose(modules, rng)
      before = module.read_text()
      module.write_text(f'{before}\n# Another version.\n')
      try:
        with contextlib.closing(nursery_lib.Nursery(cwd=copy)) as other:
          index = int(rng.integers(2))
          nurseries = [own, own]
          nurseries[index] = other
          ends = [
            process.wait()
            for process in Pair(shared, nurseries).start(folder / 'run')
          ]
      finally:
        module.write_text(before)
      name = str(module.relative_to(copy))
      for ended in ends:
        check(ended.code == 1, f'{name}: exit code {ended.code}')
        check(name in ended.printed, f'{name}: {ended.printed[-400:]}')
        check('Traceback' not in ended.printed, ended.printed[-400:])
      check(not (folder / 'run').exists(), 'a work directory was made')
      return 'refused by both, by name'

    yield trial


HOSTS = ('10.213.77.1', '10.213.77.2')


@contextlib.contextmanager
def namespaces(shared):
  """Two hosts with a cable; yields their nurseries, and a switch for it.

  Raises:
    Unavailable: if this user may not make network namespaces.
  """
  names = [f'alexnet-{os.getpid()}-{end}' for end in 'ab']
  hosts = shared / 'hosts'
  lines = [f'{a} {n}\n' for a, n in zip(HOSTS, names, strict=True)]
  hosts.write_text(f'127.0.0.1 localhost\n{"".join(lines)}')

  def ip(*words):
    done = subprocess.run(['ip', *words], capture_output=True, text=True)
    if done.returncode:
      raise rows.Unavailable(f'no network namespaces: {done.stderr.strip()}')

  def switch(state):
    ip('-n', names[0], 'link', 'set', 'cable', state)

  with contextlib.ExitStack() as stack:
    try:
      for left in pathlib.Path('/run/netns').glob('alexnet-*-*'):
        if not psutil.pid_exists(int(left.name.split('-')[1])):
          ip('netns', 'delete', left.name)  # Its process was killed.
      for name in names:
        ip('netns', 'add', name)
        stack.callback(ip, 'netns', 'delete', name)
      end = ('type', 'veth', 'peer', 'name', 'cable', 'netns', names[1])
      ip('link', 'add', 'cable', 'netns', names[0], *end)
      for name, address in zip(names, HOSTS, strict=True):
        ip('-n', name, 'address', 'add', f'{address}/24', 'dev', 'cable')
        for link in ('cable', 'lo'):
          ip('-n', name, 'link', 'set', link, 'up')
    except FileNotFoundError as error:
      raise rows.Unavailable('no network namespaces: no command ip') from error
    # Gloo connects by the names of the hosts.
    begin = 'hostname $0 && mount --bind $1 /etc/hosts && shift && exec "$@"'
    found = []
    for name in names:
      prefix = ['ip', 'netns', 'exec', name, 'unshare', '--uts', '--mount']
      prefix += ['sh', '-c', begin, name, str(hosts)]
      nursery = nursery_lib.Nursery(prefix)
      found.append(stack.enter_context(contextlib.closing(nursery)))
    yield found, switch


@contextlib.contextmanager
def cut_link(shared, seconds):
  """The link between two hosts is cut, for some seconds or for good (None)."""
  with namespaces(shared) as (nurseries, switch):
    pair, check_same = with_results(shared, Pair(shared, nurseries, HOSTS[0]))

    def trial(rng, folder):
      stop = victim.Hurt('step', int(rng.integers(20)), 0, 0)
      processes = pair.start(folder / 'run', (stop, None))
      processes[0].wait_for(victim.HURT)
      switch('down')
      if seconds is not None:
        time.sleep(seconds)
        switch('up')
        for process in processes:
          ended = process.wait()
          check(ended.code == 0, f'{ended.code}: {ended.printed[-400:]}')
        check_same(folder / 'run')
        return 'went on, equal'
      for process in processes:
        check_lost(process)
      switch('up')
      pair.run(folder / 'run')
      check_same(folder / 'run')
      return 'ended by both, equal'

    yield trial


GOES_ON = (
  f'within --heartbeat_seconds the other ends with exit code {LOST} and a last'
  ' line that names the lost process; the same commands go on and end with the'
  ' results of the uninterrupted pair, bit by bit'
)


def _row(name, injected, promise, full, quick, opened, **settings):
  opened = functools.partial(opened, **settings) if settings else opened
  return rows.Row(name, injected, promise, full, quick, opened, 900)


ROWS = [
  _row(
    *('peer_dead', 'SIGKILL of one of two processes in a step', GOES_ON),
    *(10, 1, lost),
    number=signal.SIGKILL,
  ),
  _row(  # It and a cut link end as a dead peer does, which --quick has.
    *('peer_hung', 'SIGSTOP of one of two processes in a step', GOES_ON),
    *(10, 0, lost),
    number=signal.SIGSTOP,
  ),
  _row(
    *('peer_missing', 'one of two processes is never started'),
    'the other says that it waits, and ends in one line after --start_seconds;'
    ' nothing is written',
    *(10, 1, missing),
  ),
  _row(
    *('other_code', 'one of two processes has another line in one module'),
    'both refuse before training, in one line that names the module',
    *(5, 1, other_code),
  ),
  _row(
    *('cut_link', 'the link between two hosts is cut in a step', GOES_ON),
    *(5, 0, cut_link),
    seconds=None,
  ),
  _row(
    *('shaky_link', 'the link between two hosts is down for two seconds'),
    'both go on, with the results of the uninterrupted pair, bit by bit',
    *(5, 0, cut_link),
    seconds=2,
  ),
]
