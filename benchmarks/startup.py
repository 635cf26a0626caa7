r"""From the command to its first finished step, on the quick start.

    python -m benchmarks.startup [--rounds=3] [--quick] [--check]

Starts `python -m alexnet_jax.main --config=configs/quickstart.py`, as the README
has it, and ends it once it has printed that its first step is done. Each round
runs it three times: as on a fresh machine, where the digits are not prepared and
nothing is compiled; again with an empty compilation cache; and again with the
cache of the first time. Seconds are those of the wall from starting the process
to reading that line; beside them what the command itself says, which begins only
after the imports, and the CPU-seconds of the process. `--check` asks for the
first of the three in under 20 seconds.

Where the time goes: the same parts one after another in a process of their own,
cold. The command may do some of them at once, so they need not add up to it.

Not measured: installing, and reading Python's packages from the disk, which an
untimed import before has done.
"""

from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from absl import flags
import jax
import numpy as np

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax.runtime import processes
from benchmarks import report
from configs import quickstart

BAR = 20.0  # Seconds, cold, nothing prepared, two cores.
LIMIT = 600  # Seconds after which a command that says nothing is given up.
CONFIG = 'configs/quickstart.py'
ROOT = pathlib.Path(quickstart.__file__).parents[1]
FRESH, COLD, WARM = (
  'cold, digits not prepared',
  'cold, digits prepared',
  'warm, digits prepared',
)
_FIRST_STEP = re.compile(r'first step done ([\d.]+) s after the start')


def first_step(arguments: Sequence[str]) -> dict[str, float]:
  """Runs a command up to its first step, and ends it there.

  Returns:
    Seconds to the line that says so, those that the line itself names, and
    CPU-seconds of the process.
  """
  before, began = _children_cpu(), time.perf_counter()
  with contextlib.ExitStack() as stack:
    errors = stack.enter_context(tempfile.TemporaryFile('w+'))
    process = stack.enter_context(
      subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
      )
    )
    stack.callback(process.kill)
    timer = threading.Timer(LIMIT, process.kill)
    stack.callback(timer.cancel)
    timer.start()
    for line in process.stdout:
      if said := _FIRST_STEP.search(line):
        seconds = time.perf_counter() - began
        break
    else:
      process.wait()
      errors.seek(0)
      lines = errors.read().strip().splitlines() or ['it printed nothing']
      sys.exit(f'the command ended before its first step: {lines[-1]}')
  return {
    'seconds': seconds,
    'said_seconds': float(said[1]),
    'cpu_seconds': _children_cpu() - before,
  }


def _children_cpu():
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def quick_start(
  folder: pathlib.Path, workdir: str, cache: str, *flags: str
) -> list[str]:
  """The command, with everything that it writes inside `folder`."""
  return [
    *(sys.executable, '-m', 'alexnet_jax.main', f'--config={CONFIG}'),
    f'--workdir={folder / workdir}',
    f'--config.input.data_dir={folder / "data"}',
    f'--compilation_cache_dir={folder / cache}',
    *flags,
  ]


def one_round(quick: bool, *flags: str) -> dict[str, dict[str, float]]:
  """The figures of `first_step`, of each way to start; `quick`: without COLD."""
  with tempfile.TemporaryDirectory() as name:
    run = lambda *names: first_step(
      quick_start(pathlib.Path(name), *names, *flags)
    )
    figures = {FRESH: run('fresh', 'cache')}
    if not quick:
      figures[COLD] = run('cold', 'empty')
    figures[WARM] = run('warm', 'cache')
  return figures


def compile_step(run: run_lib.Run) -> None:
  """Compiles the train step from shapes alone."""
  inputs = run.config.input
  rows = mesh_lib.shardings(run.mesh, mesh_lib.batch_spec())
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(
    (inputs.batch_size, *shape), dtype, sharding=rows
  )
  batch = {
    'image': array(np.uint8, *run.dataset.mean_image.shape),
    'label': array(np.int32),
    'mask': array(np.bool_),
  }
  scalar = jax.ShapeDtypeStruct((), np.float32)
  train.train_step_of(run).lower(
    train_state.state_template(run),
    batch,
    run.statistics,
    jax.random.key(0),
    dict.fromkeys(optimizer.RATE_KEYS, scalar),
    scalar,
  ).compile()


def print_parts(folder: str) -> None:
  """Prints the seconds of each part as JSON; called in a process of its own."""
  config, seconds = quickstart.get_config(), {}
  config.input.data_dir = f'{folder}/data'

  def timed(name, part):
    began = time.perf_counter()
    result = jax.block_until_ready(part())
    seconds[name] = time.perf_counter() - began
    return result

  run = timed(
    'preparing and opening the data set',
    lambda: run_lib.open_run(config, f'{folder}/parts'),
  )
  timed('state: compiled, made', lambda: train_state.create_train_state(run))
  timed('train step: compiled', lambda: compile_step(run))
  print(json.dumps(seconds))


def parts() -> dict[str, float]:
  """Seconds of each part of a start in a process of its own, cold."""
  python = lambda code: (
    subprocess.run(
      [sys.executable, '-c', code],
      cwd=ROOT,
      check=True,
      stdout=subprocess.PIPE,
      text=True,
      env={k: v for k, v in os.environ.items() if 'COMPILATION_CACHE' not in k},
    ).stdout
  )
  began = time.perf_counter()
  python('import alexnet_jax.main')
  seconds = {'Python and imports': time.perf_counter() - began}
  with tempfile.TemporaryDirectory() as folder:
    text = python(
      f'from benchmarks import startup; startup.print_parts({folder!r})'
    )
  return seconds | json.loads(text.splitlines()[-1])


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('quick', False, 'One round of two starts: a minute.')
  flags.DEFINE_bool('check', False, f'Fail from {BAR:g} s on, cold.')
  flags.DEFINE_integer('rounds', 3, 'Of the three starts, in turn.', 1)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  rounds = 1 if FLAGS.quick else FLAGS.rounds
  subprocess.run(
    [sys.executable, '-c', 'import alexnet_jax.main'], cwd=ROOT, check=True
  )
  found = [one_round(FLAGS.quick) for _ in range(rounds)]
  starts = {name: [figures[name] for figures in found] for name in found[0]}
  of_parts = parts()
  print(f'{CONFIG}, {rounds} rounds; seconds: median (least to most)')
  print('| start | to the first step | as the command says | CPU-seconds |')
  print('|---|---|---|---|')
  for name, figures in starts.items():
    cells = [
      shown([one[key] for one in figures])
      for key in ('seconds', 'said_seconds', 'cpu_seconds')
    ]
    print(f'| {name} | {" | ".join(cells)} |')
  print('\nparts of a cold start, one after another, once:')
  for name, seconds in of_parts.items():
    print(f'{name:36} {seconds:6.2f} s')
  print(f'seed {quickstart.get_config().seed}')
  report.print_environment()
  report.write(FLAGS.output, {'bar': BAR, 'starts': starts, 'parts': of_parts})
  figure = statistics.median(one['seconds'] for one in starts[FRESH])
  print(
    f'command to first step, {FRESH}: {figure:.1f} s on {processes.available_cores()} cores,'
    f' bar {BAR:g} s'
  )
  if FLAGS.check and figure >= BAR:
    sys.exit(1)


def shown(values: Sequence[float]) -> str:
  """Median, least and most."""
  return (
    f'{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})'
  )


if __name__ == '__main__':
  define_flags()
  report.run(main)
