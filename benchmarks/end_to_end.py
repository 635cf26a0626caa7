r"""A real run against the same run on one batch that stays on the device.

    python -m benchmarks.end_to_end [--config=FILE] [--config.KEY=VALUE ...]
        [--steps=N] [--quick] [--check] [--output=FILE]

The train loop's own `train.run_steps`, on the config's net, data set and batch:

* real: host batches through `prefetch_to_device`, as in `train_and_evaluate`;
* synthetic: one of these batches again and again, on the device: what the device
  alone can take;
* host alone: the same host batches, dropped, nothing put on the device.

They run in turn in one process, the others idle, in segments of --steps steps.
Before it is timed, each takes a few steps, so that nothing buffered is left: the
steady state. Images/s of real and synthetic are those that `run_steps` itself
reports; it fetches the metrics of every step. Ratios are of one round.

--check asks for real / the slower of synthetic and host alone of at least 0.95:
where the host can deliver what the device takes, that is the run against
synthetic data; where it cannot, the host is the limit, and the run is held
against the host alone. On a CPU host and device share the cores: what the host
takes, the device lacks, and real falls below synthetic by that even where nothing
waits. A line says by how much, by arithmetic; --check makes no allowance for it.

Not measured: evaluation, checkpoints, metrics files and compilation; the rates
are those of the first epoch. The digits are prepared if they are not there, any
other data set must be.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':  # As main.py.
  huge_pages.reexec_with_huge_pages()

from absl import app
from absl import flags
import jax
from jaxtyping import PyTree
from ml_collections import config_flags

from alexnet_jax import input_pipeline
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import metrics
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax.runtime import command
from alexnet_jax.runtime import processes
from benchmarks import interleaved
from benchmarks import report

BAR = 0.95
REAL, SYNTHETIC, HOST = 'real', 'synthetic', 'host alone'
# Grain holds 2 batches and makes one, the device 2: more than all of these.
DRAIN = 6


class Loop:
  """The train loop, which goes on with its state on any batches."""

  def __init__(self, run: run_lib.Run, batch: PyTree):
    """Compiles the step as training does; `batch` is on the device."""
    key = mesh_lib.place(jax.random.key(run.config.seed), run.mesh)
    schedule = train.rate_schedule(run.config.optimizer)
    self._fixed = train.step_arguments(run, schedule, key, epoch=0.0)
    self._state, self._done = train_state.create_train_state(run), 0
    lowered = train.train_step_of(run).lower(self._state, batch, *self._fixed)
    self._step = lowered.compile()
    self.batch_size = run.config.input.batch_size

  def __call__(self, batches: Iterator[PyTree], steps: int) -> dict[str, float]:
    """Takes so many steps; the metrics of `train.run_steps`."""
    stop = self._done + steps
    progress = metrics.Progress(self._done, stop, time.time(), silent=True)
    with contextlib.closing(progress):
      self._state, found = train.run_steps(
        self._step,
        self._state,
        batches,
        self._fixed,
        self._done,
        stop,
        progress,
      )
    self._done = stop
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
  images = steps * loop.batch_size
  return Segment(
    found['train/images_per_second'],
    (time.process_time() - cpu) / images,
    found['train/input_wait_fraction'],
  )


def drained(batches: Iterator[input_pipeline.Batch], steps: int) -> Segment:
  """As many batches, each dropped."""
  for _ in itertools.islice(batches, DRAIN):
    pass
  images, cpu, began = 0, time.process_time(), time.perf_counter()
  for batch in itertools.islice(batches, steps):
    images += len(batch['label'])
  seconds = time.perf_counter() - began
  cpu = time.process_time() - cpu
  return Segment(images / seconds, cpu / images, 0.0)


def measure(
  run: run_lib.Run, steps: int, rounds: int
) -> dict[str, list[Segment]]:
  """The segments of each kind, in turn; one round before is not kept."""
  with contextlib.ExitStack() as stack:
    opened = lambda thing: stack.enter_context(contextlib.closing(thing))
    placed = opened(
      input_pipeline.prefetch_to_device(
        train.host_batches(run, 0), run.place_batch
      )
    )
    alone, batch = opened(train.host_batches(run, 0)), next(placed)
    loop, same = Loop(run, batch), itertools.repeat(batch)
    kinds = {
      REAL: lambda steps: trained(loop, placed, steps),
      SYNTHETIC: lambda steps: trained(loop, same, steps),
      HOST: lambda steps: drained(alone, steps),
    }
    found = {name: [] for name in kinds}
    for number in range(rounds + 1):
      for name in list(kinds)[:: 1 if number % 2 else -1]:
        interleaved.wait_until_idle(time.process_time)
        segment = kinds[name](steps if number else 1)
        if number:
          found[name].append(segment)
  return found


def judge(rates: dict[str, list[float]], shared: bool) -> tuple[float, str]:
  """The figure of `--check`, and a line that says which is the limit.

  Args:
    rates: images/s of each round, by name.
    shared: whether host and device are the same cores.
  """
  over = interleaved.ratio(rates[HOST], rates[SYNTHETIC])['median']
  limit = SYNTHETIC if over >= 1 else HOST
  figure = interleaved.ratio(rates[REAL], rates[limit])['median']
  if shared:
    return figure, (
      'host and device share the cores, which are the limit; alone the host'
      f' delivers {over:.2f} times what the device alone takes'
    )
  if over >= 1:
    line = f'the device is the limit: the host alone delivers {over:.2f} times'
    return figure, f'{line} what it takes'
  line = f'the host is the limit: the device alone takes {1 / over:.2f} times'
  return figure, f'{line} what it delivers'


def sharing(found: dict[str, list[Segment]], cores: int) -> float:
  """Real over synthetic by arithmetic, if both sides share busy cores.

  The host's CPU-seconds are then added to every image's time on the device.
  """
  host = statistics.median(segment.cpu_seconds for segment in found[HOST])
  device = 1 / statistics.median(images_per_second(found)[SYNTHETIC])
  return device / (device + host / cores)


def print_table(found: dict[str, list[Segment]]) -> None:
  """Medians and ranges, and the ratio to synthetic."""
  rates = images_per_second(found)
  print(f'{"images/s, median (range)":40} waited  CPU-ms/image  over synthetic')
  for name, segments in found.items():
    values = rates[name]
    shown = f'{statistics.median(values):.1f}'
    shown += f' ({min(values):.1f} to {max(values):.1f})'
    waited = statistics.median(segment.waited for segment in segments)
    cpu = statistics.median(segment.cpu_seconds for segment in segments)
    over = interleaved.ratio(values, rates[SYNTHETIC])
    print(
      f'{name:12}{shown:28} {waited:6.1%} {1e3 * cpu:13.3f}'
      f'  {over["median"]:.3f}'
      f' ({over["least"]:.3f} to {over["most"]:.3f})'
    )


def images_per_second(found: dict[str, list[Segment]]):
  """Of each round, by name."""
  return {
    name: [segment.images_per_second for segment in segments]
    for name, segments in found.items()
  }


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  config_flags.DEFINE_config_file(
    'config', 'configs/quickstart.py', 'See configs/.', lock_config=True
  )
  flags.DEFINE_integer('steps', 100, 'Of a segment.', lower_bound=2)
  flags.DEFINE_integer('rounds', 7, 'Of all, in turn.', lower_bound=1)
  flags.DEFINE_bool('quick', False, 'Few short rounds, for small nets.')
  flags.DEFINE_bool('check', False, f'Fail below {BAR}.')
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with one line in place of a traceback for a wrong config."""
  with command.one_line_config_errors(argv):
    rest = app.parse_flags_with_usage(argv)
    _ = FLAGS.config.seed  # The file's own errors may wait for the first use.
  return rest


def main(_) -> None:
  config = FLAGS.config
  steps, rounds = FLAGS.steps, FLAGS.rounds
  if FLAGS.quick:
    steps, rounds = min(steps, 40), min(rounds, 3)
  with (
    command.one_line_errors('nothing is kept'),
    tempfile.TemporaryDirectory() as workdir,
  ):
    run = run_lib.open_run(config, workdir)
    found = measure(run, steps, rounds)
  print(
    f'{config.input.dataset}, batch {config.input.batch_size}, {rounds} rounds'
    f' of {steps} steps, seed {config.seed}'
  )
  print_table(found)
  report.print_environment()
  on_cpu = jax.default_backend() == 'cpu'
  figure, line = judge(images_per_second(found), on_cpu)
  segments = {
    name: [dataclasses.asdict(segment) for segment in values]
    for name, values in found.items()
  }
  report.write(
    FLAGS.output, {'steps': steps, 'segments': segments, 'figure': figure}
  )
  if on_cpu:
    print(
      'host and device share the cores: by arithmetic, from the CPU-seconds of'
      f' the host alone, real / synthetic is {sharing(found, processes.available_cores()):.3f}'
    )
  print(line)
  print(f'real / the slower of synthetic and host {figure:.3f}, bar {BAR}')
  if FLAGS.check and figure < BAR:
    sys.exit(1)


if __name__ == '__main__':
  # The keys of the default are read here.
  with command.one_line_config_errors(sys.argv):
    define_flags()
  report.run(main, flags_parser=parse_flags)
