"""What the benchmarks share: the command, turns, worker processes, the record.

A benchmark is a module whose `measure` prints its tables and returns an
`Outcome`; it ends with `harness.run(measure, ...)`. If it has a function
`panels`, `benchmarks.plots` draws its record with it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import time

from absl import app
from absl import flags
import jax

from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import command
from alexnet_jax.runtime import processes

FLAGS = flags.FLAGS
TURN = 2, 0.5  # A turn of a variant has at least so many steps and seconds.
ANSWER = 'answer '  # Begins the lines that a worker process prints for us.
# Libraries whose versions a figure may depend on, if they are installed.
LIBRARIES = (
  'jax jaxlib flax numpy grain array-record simplejpeg pillow torch'.split()
)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a benchmark found.

  Attributes:
    figures: for the record, as JSON has them.
    verdict: the last line: the figure that counts, and its bar if it has one.
    passed: whether the bar is met.
  """

  figures: object
  verdict: str
  passed: bool = True


def run(
  measure: Callable[[], Outcome],
  *,
  quick: str,
  check: str | None = None,
  rounds: int | None = None,
  define_flags: Callable[[], None] = lambda: None,
) -> None:
  """Runs the command of a benchmark.

  Args:
    measure: measures what the flags ask for, and prints its tables.
    quick: description of the flag --quick.
    check: description of the flag --check; None for a benchmark without a bar.
    rounds: default of the flag --rounds; None for a benchmark without rounds.
    define_flags: defines the benchmark's other flags.
  """
  flags.DEFINE_bool('quick', False, quick)
  flags.DEFINE_string('output', None, 'File to write the figures to, as JSON.')
  if check is not None:
    flags.DEFINE_bool('check', False, check)
  if rounds is not None:
    flags.DEFINE_integer('rounds', rounds, 'Number of timed rounds.', 1)

  def main(argv):
    if len(argv) > 1:
      sys.exit(f'{argv[1]} is not a flag; flags have the form --name=value')
    command.quiet_libraries()
    finish(measure(), FLAGS.output, check is not None and FLAGS.check)

  with command.one_line_config_errors(sys.argv):
    define_flags()  # A flag for a config reads its default.
  app.run(main, flags_parser=_parse_flags)


def _parse_flags(argv):
  with command.one_line_config_errors(argv):
    return app.parse_flags_with_usage(argv)


def finish(outcome: Outcome, output: str | None, check: bool) -> None:
  """Prints and writes an outcome; exits with 1 if `check` and it has failed."""
  print(', '.join(f'{key} {value}' for key, value in environment().items()))
  if output is not None:
    content = {'environment': environment(), 'figures': outcome.figures}
    pathlib.Path(output).write_text(json.dumps(content, indent=1) + '\n')
  print(outcome.verdict)
  if check and not outcome.passed:
    sys.exit(1)


def environment() -> dict[str, object]:
  """The machine, the versions and the commit of a benchmark."""
  return {
    'machine': _processor(),
    'cores': processes.available_cores(),
    'devices': sorted({device.device_kind for device in jax.devices()}),
    'python': platform.python_version(),
    **_versions(),
    'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', ''),
    'commit': workdir_lib.current_commit(),
    'command': ' '.join(['python -m', _module(), *map(_public, sys.argv[1:])]),
  }


def _versions():
  found = {}
  for name in LIBRARIES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def _processor():
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  except OSError:
    pass  # Not Linux.
  return platform.processor() or platform.machine()


def _public(argument):
  """A flag without the path of its folder, which means nothing elsewhere."""
  return re.sub('=[/~].*', '=DIR', argument)


def _module():
  spec = sys.modules['__main__'].__spec__
  return spec.name if spec else sys.argv[0]


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
  """Yields (round, name): every name once in each of rounds 0 ... `rounds`.

  Round 0 is to warm up. The order is reversed in every second round. Ratios of
  measurements from one round are not affected by how fast the machine is that
  hour.
  """
  for number in range(rounds + 1):
    for name in list(names)[:: 1 if number % 2 else -1]:
      yield number, name


def seconds(
  variants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of the calls in rounds 1 ... `rounds`, by variant.

  Args:
    variants: each does the work once and returns when it is done; if it returns
      a float, those seconds count instead of the wall time of the call.
    rounds: number of timed rounds, see `turns`.
  """
  taken = {name: [] for name in variants}
  for number, name in turns(list(variants), rounds):
    began = time.perf_counter()
    own = variants[name]()
    wall = time.perf_counter() - began
    if number:
      taken[name].append(own if isinstance(own, float) else wall)
  return taken


def mean_seconds(work: Callable[[int], object], steps_per_call: int) -> float:
  """Mean seconds of a step over a turn.

  Args:
    work: takes a number of steps, and returns when they are done.
    steps_per_call: the number of steps to ask for at a time.
  """
  steps, began = 0, time.perf_counter()
  least, duration = TURN
  while steps < least or time.perf_counter() - began < duration:
    work(steps_per_call)
    steps += steps_per_call
  return (time.perf_counter() - began) / steps


def steps_per_wait() -> int:
  """How many steps (or calls) are timed by one wait for the device.

  A GPU computes many a layer faster than the host can ask for it.
  """
  return 1 if jax.default_backend() == 'cpu' else 50


def wait_until_idle(cpu: Callable[[], float]) -> None:
  """Returns when `cpu`, in CPU-seconds, hardly grows any more."""
  before = -1.0
  while cpu() - before > 0.02:
    before = cpu()
    time.sleep(0.1)


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
  """Median and range of the ratios of measurements from the same round."""
  pairs = [a / b for a, b in zip(numerator, denominator, strict=True)]
  return {
    'median': statistics.median(pairs),
    'least': min(pairs),
    'most': max(pairs),
  }


def shown(values: Sequence[float] | Mapping[str, float], spec: str) -> str:
  """'median (least to most)' of some values, or of a `ratio`."""
  if isinstance(values, Mapping):
    values = list(values.values())  # Their median, least and most are the same.
  found = statistics.median(values), min(values), max(values)
  return '{} ({} to {})'.format(*(format(value, spec) for value in found))


def print_table(rows: Sequence[Sequence[str]]) -> None:
  """Prints a table in Markdown; the first row is its head."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [[f'{cell:{w}}' for cell, w in zip(row, widths)] for row in rows]
  lines.insert(1, ['-' * width for width in widths])
  for line in lines:
    print(f'| {" | ".join(line)} |')


class Worker:
  """A process of its own; a call sends it a line and returns its answer."""

  def __init__(self, arguments: Sequence[str], **env: str):
    """Starts the program `arguments` with more environment variables."""
    self._process = subprocess.Popen(
      arguments,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | env,
    )
    self.pid = self._process.pid

  def __call__(self, line: str = 'go') -> object:
    self.send(line)
    return self.receive()

  def send(self, line: str) -> None:
    """Sends a line without waiting for the answer."""
    with contextlib.suppress(BrokenPipeError):  # `receive` will report it.
      print(line, file=self._process.stdin, flush=True)

  def receive(self) -> object:
    """The next answer; ends the command if the process has ended."""
    for line in self._process.stdout:  # Libraries may print there as well.
      if line.startswith(ANSWER):
        return json.loads(line.removeprefix(ANSWER))
    sys.exit('a worker ended without an answer; its error is above')

  def close(self) -> None:
    """Kills the process: one that others wait for would not end by itself."""
    self._process.kill()
    with contextlib.suppress(BrokenPipeError):
      self._process.communicate()


def command_line(function: str, *args: object) -> list[str]:
  """The command line for a `Worker` that calls a function of a benchmark.

  Args:
    function: such as 'scaling.take_steps'.
    *args: what JSON can carry.
  """
  module = function.partition('.')[0]
  code = f'import json; from benchmarks import {module}; '
  code += f'{function}(*json.loads({json.dumps(args)!r}))'
  return [sys.executable, '-c', code]


def answer(value: object) -> None:
  """Prints what `Worker.receive` will return."""
  print(ANSWER + json.dumps(value), flush=True)


def peak_bytes() -> int:
  """Peak resident memory of this process so far, as the system counts it."""
  try:
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
      if line.startswith('VmHWM'):  # ru_maxrss includes the parent's, by exec.
        return int(line.split()[1]) * 1024
  except OSError:
    pass  # Not Linux.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def jpeg_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
  """All JPEG files below a folder, in order."""
  paths = sorted(pathlib.Path(folder).resolve().rglob('*.*'))
  return [p for p in paths if p.suffix.lower() in ('.jpeg', '.jpg')]
