r"""From the command to its first finished step, on the quick start.

    python -m benchmarks.startup [--rounds=3] [--quick] [--check]

Runs the README's command until it prints that its first step is done, three times
a round: as on a fresh machine, with nothing prepared or compiled; again with an
empty compilation cache; and with the cache of the first time. `--check` asks for
the first start in under 20 s. Python's packages are in the page cache. The parts of
a cold start are timed one after another; the command may do some of them at once.
"""

from collections.abc import Sequence
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import jax

from alexnet_jax import digits
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step
from benchmarks import harness
from benchmarks import plots
from configs import quickstart

BAR = 20.0  # Seconds, cold, nothing prepared, two cores.
LIMIT = 600  # Seconds after which a command that says nothing is given up.
CONFIG, DATA_DIR = 'configs/quickstart.py', '--config.input.data_dir'
ROOT = pathlib.Path(quickstart.__file__).parents[1]
IMPORTS = [sys.executable, '-c', 'import alexnet_jax.main']
FRESH = 'cold, digits not prepared'
COLD, WARM = 'cold, digits prepared', 'warm, digits prepared'
KEYS = ('seconds', 'said_seconds', 'cpu_seconds')
_FIRST_STEP = re.compile(r'first step done ([\d.]+) s after the start')
FLAGS = harness.FLAGS


def first_step(arguments: Sequence[str]) -> dict[str, float]:
  """Runs a command up to its first step, and ends it there.

  'seconds' are those to the line that says so, 'said_seconds' those in the line.
  """
  before, began = _children_cpu(), time.perf_counter()
  with (
    tempfile.TemporaryFile('w+') as errors,
    subprocess.Popen(
      arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process,
  ):
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    said = next(filter(None, map(_FIRST_STEP.search, process.stdout)), None)
    seconds = time.perf_counter() - began
    timer.cancel()
    process.kill() if said else process.wait()
    errors.seek(0)
    lines = errors.read().splitlines() or ['it printed nothing']
  if said is None:
    sys.exit(f'the command ended before its first step: {lines[-1]}')
  values = seconds, float(said[1]), _children_cpu() - before
  return dict(zip(KEYS, values, strict=True))


def _children_cpu():
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def quick_start(folder: pathlib.Path, workdir: str, cache: str) -> list[str]:
  """The command, with everything that it writes inside `folder`."""
  words = ['-m', 'alexnet_jax.main', f'--config={CONFIG}']
  words += [f'--workdir={folder}/{workdir}', f'{DATA_DIR}={folder}/data']
  return [sys.executable, *words, f'--compilation_cache_dir={folder}/{cache}']


def one_round(quick: bool) -> dict[str, dict[str, float]]:
  """The figures of `first_step` by kind of start; `quick` leaves out COLD."""
  with tempfile.TemporaryDirectory() as name:
    run = lambda *names: first_step(quick_start(pathlib.Path(name), *names))
    figures = {FRESH: run('fresh', 'cache')}
    if not quick:
      figures[COLD] = run('cold', 'empty')
    figures[WARM] = run('warm', 'cache')
  return figures


def time_parts(folder: str) -> None:
  """The work of a worker: answers with the seconds of each part of a start."""
  jax.config.update('jax_enable_compilation_cache', False)
  config, seconds = quickstart.get_config(), {}
  config.input.data_dir = f'{folder}/data'

  def timed(name, part, *args):
    began = time.perf_counter()
    result = jax.block_until_ready(part(*args))
    seconds[name] = time.perf_counter() - began
    return result

  def prepare_and_open():
    digits.prepare_if_missing(config)
    return run_lib.open_run(config)

  run = timed('preparing and opening the data set', prepare_and_open)
  table, template = (
    train_step.make_timetable(run),
    train_state.state_template(run),
  )
  arguments = run, template, train_step.StepArguments(run, table)(0)
  timed('state: compiled, made', train_state.create_train_state, run)
  timed('train step: compiled', train_step.compile_train_step, *arguments)
  harness.answer(seconds)


def parts() -> dict[str, float]:
  """Seconds of each part of a cold start."""
  began = time.perf_counter()
  subprocess.run(IMPORTS, cwd=ROOT, check=True)
  found = {'Python and imports': time.perf_counter() - began}
  with tempfile.TemporaryDirectory() as folder:
    command = harness.command_line('startup.time_parts', folder)
    return found | harness.ask(command)


def measure() -> harness.Outcome:
  rounds = 1 if FLAGS.quick else FLAGS.rounds
  subprocess.run(IMPORTS, cwd=ROOT, check=True)
  found = [one_round(FLAGS.quick) for _ in range(rounds)]
  starts = {name: [figures[name] for figures in found] for name in found[0]}
  figures = {'bar': BAR, 'starts': starts, 'parts': parts()}
  print(f'{CONFIG}, seed {quickstart.get_config().seed}, {rounds} rounds')
  harness.print_figures(figures)
  figure = statistics.median(one['seconds'] for one in starts[FRESH])
  verdict = f'command to first step, {FRESH}: {figure:.1f} s, bar {BAR:g} s'
  return harness.Outcome(figures, verdict, figure < BAR)


def panels(figures):
  starts = {
    name: [one['seconds'] for one in found]
    for name, found in figures['starts'].items()
  }
  parts = {name: [seconds] for name, seconds in figures['parts'].items()}
  return 'Quick start: from the command to the first step', [
    plots.Panel('seconds', {'': starts}, figures['bar']),
    plots.Panel('seconds of the parts of a cold start', {'': parts}),
  ]


if __name__ == '__main__':
  harness.run(
    measure,
    quick='One round of two starts: a minute.',
    check=f'Fail from {BAR:g} s on, cold.',
    rounds=3,
  )
