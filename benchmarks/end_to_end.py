r"""A real run against its two halves; with --saving, what a save costs it.

    python -m benchmarks.end_to_end [--config=FILE] [--config.KEY=VALUE ...]
        [--steps=N] [--saving] [--quick] [--check] [--output=FILE]

In turn, in segments of --steps steps, nothing buffered before:

* real: `train.run_steps` on batches from the host, as in `train_and_evaluate`;
* synthetic: on one of these batches again and again: the device alone;
* host alone: the same host batches, dropped, nothing put on the device.

--check asks for real / the slower of synthetic and host alone of at least 0.95. On
a CPU host and device share the cores: real falls below synthetic by what the host
takes even where nothing waits; a line says by how much, by arithmetic.

--saving saves the train state of the paper's net (parameters and v, 488 MB) as the
train loop does, then changes it by a program that is given it, as a step is. The
save returns when it has the state on the host; where the device is the host that
is at once, and the step makes the copy, as it may not overwrite what is still to
be written. So both are timed, and the program without a save. --check asks that
the save returns within the time of 1.5 copies of the state.
"""

from collections.abc import Iterator
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

from absl import flags
import jax
from jaxtyping import PyTree
from ml_collections import config_flags
import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import digits
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax import train_step
from alexnet_jax.runtime import command
from alexnet_jax.runtime import processes
from benchmarks import harness
from benchmarks import plots
from benchmarks import synthetic

BAR = 0.95
REAL, SYNTHETIC, HOST = 'real', 'synthetic', 'host alone'
# Grain holds 2 batches and makes one, the device 2: more than all of these.
DRAIN = 6
COPY, BLOCKED, WHOLE = 'copy to the host', 'save returns', 'save is written'
AFTER, WITHOUT = 'change after a save', 'change without one'
SAVING_BAR = 1.5  # Seconds until a save returns over those of a copy.
FLAGS = flags.FLAGS


class Loop:
  """The train loop, which goes on with its state on any batches."""

  def __init__(self, run: run_lib.Run):
    table = train_step.make_timetable(run)
    arguments = train_step.StepArguments(run, table)(0)
    self._arguments, self._done = arguments, 0
    self._silent = mock.create_autospec(metrics.Progress, instance=True)
    self._state = train_state.create_train_state(run)
    self._step = train_step.compile_train_step(run, self._state, arguments)
    self.batch_size = run.config.input.batch_size

  def __call__(self, batches: Iterator[PyTree], steps: int) -> dict[str, float]:
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
  cpu_seconds: float  # Of all threads, for an image.
  waited: float  # Fraction of the time, for a batch; 0 without a device.


def trained(loop: Loop, batches: Iterator[PyTree], steps: int) -> Segment:
  """`steps` steps on what comes after all that was buffered."""
  loop(batches, DRAIN)
  cpu = time.process_time()
  found = loop(batches, steps)
  cpu = (time.process_time() - cpu) / (steps * loop.batch_size)
  rate, waited = 'train/images_per_second', 'train/input_wait_fraction'
  return Segment(found[rate], cpu, found[waited])


def drained(batches: Iterator[input_pipeline.Batch], steps: int) -> Segment:
  """As many batches, each dropped."""
  for _ in itertools.islice(batches, DRAIN):
    pass
  cpu, began = time.process_time(), time.perf_counter()
  images = sum(len(b['label']) for b in itertools.islice(batches, steps))
  seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
  return Segment(images / seconds, cpu / images, 0.0)


def measure_kinds(
  run: run_lib.Run, steps: int, rounds: int
) -> dict[str, list[Segment]]:
  """The segments of each kind, in turn."""
  inputs, settings = (
    run.config.input,
    {'seed': run.config.seed, 'start_step': 0},
  )
  with contextlib.ExitStack() as stack:
    opened = lambda batches: stack.enter_context(contextlib.closing(batches))
    placed = opened(run.train_batches(0))
    settings['batch_size'] = inputs.batch_size
    alone = input_pipeline.train_batches(
      run.dataset, inputs.train_split, **settings
    )
    loop, same, alone = Loop(run), itertools.repeat(next(placed)), opened(alone)
    kinds = {
      REAL: functools.partial(trained, loop, placed),
      SYNTHETIC: functools.partial(trained, loop, same),
      HOST: functools.partial(drained, alone),
    }
    found = {name: [] for name in kinds}
    for number, name in harness.turns(list(kinds), rounds):
      harness.wait_until_idle(time.process_time)
      segment = kinds[name](steps if number else 1)
      if number:
        found[name].append(segment)
  return found


def judge(rates: dict[str, list[float]], shared: bool) -> tuple[float, str]:
  """The figure of `--check`, and a line that says which side is the limit.

  Args:
    rates: images/s of each round, by name.
    shared: whether host and device are the same cores.
  """
  over = harness.ratio(rates[HOST], rates[SYNTHETIC])['median']
  limit = SYNTHETIC if over >= 1 else HOST
  if shared:
    line = (
      'host and device share the cores, which are the limit; alone the host'
    )
    line += f' delivers {over:.2f} times what the device alone takes'
  elif over >= 1:
    line = 'the device is the limit: the host alone delivers'
    line += f' {over:.2f} times what it takes'
  else:
    line = 'the host is the limit: the device alone takes'
    line += f' {1 / over:.2f} times what it delivers'
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
  """Real, synthetic and host alone."""
  with command.one_line_config_errors(sys.argv):
    seed = FLAGS.config.seed  # The file's errors may wait for the first use.
  config, steps, rounds = FLAGS.config, FLAGS.steps, FLAGS.rounds
  if FLAGS.quick:
    steps, rounds = min(steps, 40), min(rounds, 3)
  with command.one_line_errors('nothing is kept'):
    digits.prepare_if_missing(config)
    found = measure_kinds(run_lib.open_run(config), steps, rounds)
  print(
    f'{config.input.dataset}, batch {config.input.batch_size}, seed {seed},'
  )
  print(f'{rounds} rounds of {steps} steps')
  rates = {n: [one.images_per_second for one in found[n]] for n in found}
  rows = [('', 'images/s', 'waited', 'CPU-ms/image', 'over synthetic')]
  for name, segments in found.items():
    waited = statistics.median(one.waited for one in segments)
    cpu = statistics.median(one.cpu_seconds for one in segments)
    over = harness.shown(harness.ratio(rates[name], rates[SYNTHETIC]), '.3f')
    shown = harness.shown(rates[name], '.1f')
    rows.append((name, shown, f'{waited:.1%}', f'{1e3 * cpu:.3f}', over))
  harness.print_table(rows)
  on_cpu = jax.default_backend() == 'cpu'
  figure, line = judge(rates, on_cpu)
  if on_cpu:
    share = sharing(found, processes.available_cores())
    print(
      'by arithmetic, from the CPU-seconds of the host alone, on these cores'
    )
    print(f'real / synthetic is {share:.3f}')
  segments = {n: list(map(dataclasses.asdict, found[n])) for n in found}
  line += f'\nreal / the slower of synthetic and host {figure:.3f}, bar {BAR}'
  figures = {'steps': steps, 'segments': segments, 'figure': figure}
  return harness.Outcome(figures, line, figure >= BAR)


@functools.partial(jax.jit, donate_argnums=0)
def change(state: PyTree) -> PyTree:
  """The state plus one, in the same memory unless a save still needs it."""
  return jax.tree.map(lambda x: x + 1, state)


def one_save(state: PyTree) -> tuple[dict[str, float], PyTree]:
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
  """Saves of the paper's net."""
  rounds, taken = 2 if FLAGS.quick else FLAGS.rounds, []
  net = synthetic.network('towers', None)
  create = functools.partial(synthetic.create_state, net, 224)
  _, state = one_save(jax.jit(create)(jax.random.key(0)))
  for _ in range(rounds):
    seconds, state = one_save(state)
    taken.append(seconds)
  megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  print(f'{megabytes:.0f} MB, {rounds} saves, seed of the state 0; seconds')
  for name in taken[0]:
    print(f'{name:20} {harness.shown([one[name] for one in taken], ".3f")}')
  costs = [one[BLOCKED] + one[AFTER] - one[WITHOUT] for one in taken]
  lost = statistics.median(costs)
  print(f'a training loses {lost:.3f} s to a save')
  waited = statistics.median(one[BLOCKED] / one[COPY] for one in taken)
  figures = {'megabytes': megabytes, 'saves': taken, 'lost': lost}
  verdict = f'save returns / copy {waited:.3f}, bar {SAVING_BAR}'
  return harness.Outcome(figures, verdict, waited <= SAVING_BAR)


def measure() -> harness.Outcome:
  return measure_saving() if FLAGS.saving else measure_run()


def panels(figures):
  """Images/s of the real run, the synthetic one, and the host alone."""
  rates = {
    name: [one['images_per_second'] for one in segments]
    for name, segments in figures['segments'].items()
  }
  title = 'A real run against its two halves'
  return title, [plots.Panel('images/s', {'': rates})]


if __name__ == '__main__':
  with command.one_line_config_errors(sys.argv):  # It reads the default.
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
