r"""A real run against its two halves; with --saving, what a save costs it.

    python -m benchmarks.end_to_end [--config=FILE] [--config.KEY=VALUE ...]
        [--steps=N] [--saving] [--quick] [--check] [--output=FILE]

In turn, in segments of --steps steps, nothing buffered before: real, the steps of
`train.run_steps` as in a run's second epoch, with config.input.cache; synthetic, on
one of these batches again and again, which is the device alone; and the host alone,
whose batches are placed on the devices and dropped. Where there is a cache, two more
of at most one epoch: the first epoch, which fills it, and uncached, without one.

--check asks for real / the slower of synthetic and host alone of at least 0.95. On
a CPU both share the cores: real falls below synthetic by what the host takes even
where nothing waits; a line says by how much, by arithmetic.

--saving saves the train state of the paper's net (488 MB) as the train loop does,
then changes it by a program that is given it, as a step is. The save returns when
it has the state on the host; where the device is the host that is at once, and the
step makes the copy. So both are timed, and the program without a save. --check asks
that the save returns within the time of 1.5 copies of the state.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import statistics
import sys
import tempfile
import time
from unittest import mock

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':  # As main.py.
  huge_pages.reexec_with_huge_pages()

import jax
from ml_collections import config_flags
import numpy as np

from alexnet_jax import cache
from alexnet_jax import checkpoint
from alexnet_jax import digits
from alexnet_jax import progress
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax import train_step
from alexnet_jax.runtime import command
from alexnet_jax.runtime import config_file
from alexnet_jax.runtime import processes
from benchmarks import harness
from benchmarks import plots
from benchmarks import synthetic

BAR = 0.95
REAL, SYNTHETIC, HOST = 'real', 'synthetic', 'host alone'
FIRST, UNCACHED = 'first epoch', 'uncached'
# Grain holds 2 batches and makes one, the device 2: more than all of these.
DRAIN = 6
COPY, BLOCKED, WHOLE = 'copy to the host', 'save returns', 'save is written'
AFTER, WITHOUT = 'change after a save', 'change without one'
SAVING_BAR = 1.5  # Seconds until a save returns over those of a copy.
FLAGS = harness.FLAGS


class Loop:
  """The train loop; every call continues from its state, on any batches."""

  def __init__(self, run: run_lib.Run):
    table = train_step.make_timetable(run)
    arguments = train_step.StepArguments(run, table)(0)
    self._arguments, self._done = arguments, 0
    self._silent = mock.create_autospec(progress.Progress, instance=True)
    self._state = train_state.create_train_state(run)
    self._step = train_step.compile_train_step(run, self._state, arguments)
    self.batch_size = run.config.input.batch_size

  def __call__(self, batches, steps: int) -> dict[str, float]:
    """Takes so many steps; returns the metrics of `train.run_steps`."""
    inputs = itertools.repeat(self._arguments, steps)
    self._state, found = train.run_steps(
      self._step, self._state, batches, inputs, self._done, self._silent
    )
    self._done += steps
    return found


@dataclasses.dataclass(frozen=True)
class Segment:
  """Some steps of one kind, in their steady state."""

  images_per_second: float
  cpu_seconds: float  # Of all threads, per image.
  waited: float  # Fraction of the time, for a batch; 0 without a device.


def trained(loop: Loop, batches, steps: int) -> Segment:
  """`steps` steps on what comes after all that was buffered."""
  loop(batches, DRAIN)
  cpu = time.process_time()
  found = loop(batches, steps)
  cpu = (time.process_time() - cpu) / (steps * loop.batch_size)
  rate, waited = 'train/images_per_second', 'train/input_wait_fraction'
  return Segment(found[rate], cpu, found[waited])


def drained(batches, steps: int) -> Segment:
  """Reads and drops `steps` batches."""
  for _ in itertools.islice(batches, DRAIN):
    pass
  cpu, began = time.process_time(), time.perf_counter()
  images = sum(len(b['label']) for b in itertools.islice(batches, steps))
  seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
  return Segment(images / seconds, cpu / images, 0.0)


def started(loop: Loop, run: run_lib.Run, mode: str, steps: int) -> Segment:
  """`trained` within the first epoch of a run that begins, with a new cache."""
  split = run.config.input.train_split
  caches = cache.open_caches(mode, run.dataset, [split], run.mesh)
  epoch = run.dataset.num_examples[split] // loop.batch_size
  batches = dataclasses.replace(run, caches=caches).train_batches(0)
  with contextlib.closing(batches):
    return trained(loop, batches, max(1, min(steps, epoch - DRAIN)))


def measure_kinds(run: run_lib.Run, steps, rounds) -> dict[str, list[Segment]]:
  """The segments of each kind, in turn."""
  with contextlib.ExitStack() as stack:
    placed, alone = run.train_batches(0), run.train_batches(0)
    stack.callback(placed.close)
    stack.callback(alone.close)
    inputs = run.config.input
    if run.caches:  # Filled, as in the second epoch.
      examples = run.dataset.num_examples[inputs.train_split]
      for _ in range(examples // inputs.batch_size + 1):
        next(placed)
    loop, same = Loop(run), itertools.repeat(next(placed))
    kinds = {
      REAL: functools.partial(trained, loop, placed),
      SYNTHETIC: functools.partial(trained, loop, same),
      HOST: functools.partial(drained, alone),
    }
    if run.caches:
      kinds[FIRST] = functools.partial(started, loop, run, inputs.cache)
      kinds[UNCACHED] = functools.partial(started, loop, run, 'none')
    found = {name: [] for name in kinds}
    for number, name in harness.turns(list(kinds), rounds):
      harness.wait_until_idle(time.process_time)
      segment = kinds[name](steps if number else 1)
      if number:
        found[name].append(segment)
  return found


def judge(rates: dict[str, list[float]], shared: bool) -> tuple[float, str]:
  """The figure of `--check`, and a line that says which side is the limit.

  `rates` are images/s by name; `shared`: host and device are the same cores.
  """
  over = harness.ratio(rates[HOST], rates[SYNTHETIC])['median']
  limit = SYNTHETIC if over >= 1 else HOST
  if shared:
    line = 'host and device share the cores, the limit of both; alone the host'
    line += f' delivers {over:.2f} times what the device alone takes'
  elif over >= 1:
    line = f'the device is the limit: the host alone delivers {over:.2f} times'
    line += ' what it takes'
  else:
    line = f'the host is the limit: the device alone takes {1 / over:.2f} times'
    line += ' what it delivers'
  return harness.ratio(rates[REAL], rates[limit])['median'], line


def sharing(found: dict[str, list[Segment]], cores: int) -> float:
  """Real over synthetic by arithmetic, if both sides share busy cores.

  The host's CPU-seconds are then added to every image's time on the device.
  """
  host = statistics.median(segment.cpu_seconds for segment in found[HOST])
  rates = [segment.images_per_second for segment in found[SYNTHETIC]]
  device = 1 / statistics.median(rates)
  return device / (device + host / cores)


def measure_run() -> harness.Outcome:
  with config_file.one_line_errors(sys.argv):
    seed = FLAGS.config.seed  # The file's errors may wait for the first use.
  config, steps, rounds = FLAGS.config, FLAGS.steps, FLAGS.rounds
  if FLAGS.quick:
    steps, rounds = min(steps, 40), min(rounds, 3)
  with command.one_line_errors('nothing is kept'):
    digits.prepare_if_missing(config)
    found = measure_kinds(run_lib.open_run(config), steps, rounds)
  inputs, on_cpu = config.input, jax.default_backend() == 'cpu'
  print(f'{inputs.dataset}, batch {inputs.batch_size}, seed {seed}', end=', ')
  print(f'{rounds} rounds of {steps} steps')
  rates = {n: [one.images_per_second for one in found[n]] for n in found}
  segments = {n: list(map(dataclasses.asdict, found[n])) for n in found}
  harness.print_figures(segments)
  for name in (REAL, HOST):
    ratio = harness.ratio(rates[name], rates[SYNTHETIC])
    harness.print_figures(ratio, f'{name} / {SYNTHETIC}')
  if FIRST in rates:
    ratio = harness.ratio(rates[FIRST], rates[UNCACHED])
    harness.print_figures(ratio, f'{FIRST} / {UNCACHED}')
  if on_cpu:
    share = sharing(found, processes.available_cores())
    harness.print_figures(share, f'{REAL} / {SYNTHETIC}, by arithmetic')
  figure, line = judge(rates, on_cpu)
  line += f'\nreal / the slower of synthetic and host {figure:.3f}, bar {BAR}'
  figures = {'steps': steps, 'segments': segments, 'figure': figure}
  return harness.Outcome(figures, line, figure >= BAR)


@functools.partial(jax.jit, donate_argnums=0)
def change(state):
  """The state plus one, in the same memory unless a save still needs it."""
  return jax.tree.map(lambda x: x + 1, state)


def one_save(state) -> tuple[dict[str, float], object]:
  """Seconds of a save into a new folder and of what comes after; the state."""
  seconds = {}

  def timed(name, function, *args):
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    seconds[name] = time.perf_counter() - began
    return result

  state = jax.block_until_ready(change(state))
  timed(COPY, lambda: jax.tree.map(np.array, state))
  state = timed(WITHOUT, change, state)
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = checkpoint.Checkpoints(pathlib.Path(folder))
    began = time.perf_counter()
    timed(BLOCKED, checkpoints.save, 1, state, {}, None)
    state = timed(AFTER, change, state)
    checkpoints.close()
    seconds[WHOLE] = time.perf_counter() - began
  return seconds, state


def measure_saving() -> harness.Outcome:
  rounds, taken = 2 if FLAGS.quick else FLAGS.rounds, []
  net = synthetic.network('towers', None)
  create = functools.partial(synthetic.create_state, net, 224)
  _, state = one_save(jax.jit(create)(jax.random.key(0)))
  for _ in range(rounds):
    seconds, state = one_save(state)
    taken.append(seconds)
  megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  costs = [one[BLOCKED] + one[AFTER] - one[WITHOUT] for one in taken]
  lost = statistics.median(costs)
  figures = {'megabytes': megabytes, 'saves': taken, 'lost': lost}
  print(f'{rounds} saves, seed of the state 0')
  harness.print_figures(figures)
  waited = statistics.median(one[BLOCKED] / one[COPY] for one in taken)
  verdict = f'save returns / copy {waited:.3f}, bar {SAVING_BAR}'
  return harness.Outcome(figures, verdict, waited <= SAVING_BAR)


def measure() -> harness.Outcome:
  return measure_saving() if FLAGS.saving else measure_run()


def panels(figures):
  rates = {
    name: [one['images_per_second'] for one in segments]
    for name, segments in figures['segments'].items()
  }
  panel = plots.Panel('images/s', {'': rates})
  return 'A real run against its two halves', [panel]


if __name__ == '__main__':
  with config_file.one_line_errors(sys.argv):  # It reads the default.
    config_flags.DEFINE_config_file(
      'config', 'configs/quickstart.py', 'See configs/.', lock_config=True
    )
  harness.run(
    measure,
    quick='Few short rounds, for small nets; two saves.',
    check=f'Fail below {BAR}; with --saving above {SAVING_BAR}.',
    rounds=7,
    steps=(100, 'Steps of a segment.'),
    saving=(False, "Measure saves of the paper's net instead."),
  )
