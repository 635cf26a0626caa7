"""What the benchmarks share: the command, turns, worker processes, the record.

A benchmark is a module whose `measure` prints its tables and returns an
`Outcome`; it ends with `harness.run(measure, ...)`. If it has a function
`panels`, `benchmarks.plots` draws its record with it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
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
from alexnet_jax.runtime import config_file
from alexnet_jax.runtime import files
from alexnet_jax.runtime import jax_settings
from alexnet_jax.runtime import processes

FLAGS = flags.FLAGS
TURN = 2, 0.5  # A turn of a variant has at least so many steps and seconds.
ANSWER = 'answer '  # Begins the lines of a worker's stdout that are for us.
# Libraries whose versions a figure may depend on, if they are installed.
LIBRARIES = 'jax jaxlib flax numpy grain array-record simplejpeg pillow torch'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a benchmark found."""

  figures: object  # For the record: anything that JSON can hold.
  verdict: str  # The last line: the figure that counts, and its bar.
  passed: bool = True  # Whether the bar is met.


def run(measure, *, quick, check=None, rounds=None, **more) -> None:
  """Runs the command of a benchmark.

  Args:
    measure: returns the `Outcome` of what the flags ask for.
    quick: description of --quick.
    check: description of --check; None for a benchmark without a bar.
    rounds: default of --rounds; None for a benchmark without rounds.
    **more: (default, description) of other flags, by name. The default gives
      the type; a number must be above 0 unless its default is 0, for 'not set';
      a type in place of a default makes the flag required.
  """
  more['quick'] = False, quick
  more['output'] = '', 'File to write the figures to, as JSON.'
  if check is not None:
    more['check'] = False, check
  if rounds is not None:
    more['rounds'] = rounds, 'Number of timed rounds.'
  for name, (default, description) in more.items():
    whole = functools.partial(flags.DEFINE_integer, lower_bound=bool(default))
    define = {bool: flags.DEFINE_bool, int: whole, list: flags.DEFINE_list}
    if isinstance(default, type):
      flags.DEFINE_string(name, None, description, required=True)
    else:
      define = define.get(type(default), flags.DEFINE_string)
      define(name, default, description)

  def main(_):
    global TURN
    if FLAGS.quick:
      TURN = 1, 0.0
    command.quiet_libraries()
    jax_settings.pin()
    finish(measure(), FLAGS.output, check is not None and FLAGS.check)

  def parse_flags(argv):
    with config_file.one_line_errors(argv):
      return command.parse_flags(argv)

  app.run(main, flags_parser=parse_flags)


def finish(outcome: Outcome, output: str, check: bool) -> None:
  """Prints and writes an outcome; exits with 1 if `check` and it has failed."""
  print(', '.join(f'{key} {value}' for key, value in environment().items()))
  if output:
    write_record(output, outcome.figures)
  print(outcome.verdict)
  if check and not outcome.passed:
    sys.exit(1)


def write_record(output: str, figures: object) -> None:
  """Writes figures, and where they are from, to a JSON file."""
  content = {'environment': environment(), 'figures': figures}
  files.write_json(pathlib.Path(output), content)


def environment() -> dict[str, object]:
  """The machine, the versions and the commit of a benchmark."""
  versions, machine = {}, platform.processor() or platform.machine()
  for name in LIBRARIES.split():
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  with contextlib.suppress(OSError, TypeError):  # Only Linux has it.
    text = pathlib.Path('/proc/cpuinfo').read_text()
    machine = re.search(r'model name\s*: *(.*\S)', text)[1]
  spec = sys.modules['__main__'].__spec__
  name = spec.name.removesuffix('.__main__') if spec else sys.argv[0]
  words = ['python -m', name]
  # The path of a folder means nothing elsewhere.
  words += [re.sub('=[/~].*', '=DIR', argument) for argument in sys.argv[1:]]
  return {
    'machine': machine,
    'cores': processes.available_cores(),
    'devices': sorted({device.device_kind for device in jax.devices()}),
    'python': platform.python_version(),
    **versions,
    'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', ''),
    'commit': workdir_lib.current_commit(),
    'command': ' '.join(words),
  }


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
  """Yields (round, name): every name once in each of rounds 0 ... `rounds`.

  Round 0 is for warming up; every second round has the reverse order. A ratio
  within a round does not depend on how fast the machine is that hour.
  """
  for number in range(rounds + 1):
    for name in list(names)[:: 1 if number % 2 else -1]:
      yield number, name


def seconds(variants: Mapping, rounds: int) -> dict[str, list[float]]:
  """Seconds of the calls in rounds 1 ... `rounds` of `turns`, by variant.

  If a variant returns a float, those seconds count instead of the wall's.
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
  """Mean seconds of a step over a turn; `work` takes a number of steps."""
  steps, began = 0, time.perf_counter()
  least, duration = TURN
  while steps < least or time.perf_counter() - began < duration:
    work(steps_per_call)
    steps += steps_per_call
  return (time.perf_counter() - began) / steps


def steps_per_wait() -> int:
  """How many steps share one wait: a GPU is faster than the host can ask."""
  return 1 if jax.default_backend() == 'cpu' else 20


def wait_until_idle(cpu: Callable[[], float]) -> None:
  """Returns when `cpu`, in CPU-seconds, hardly grows any more."""
  before = -1.0
  while cpu() - before > 0.02:
    before = cpu()
    time.sleep(0.1)


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
  """Median and range of the ratios of measurements of the same round."""
  pairs = [a / b for a, b in zip(over, under, strict=True)]
  median = statistics.median(pairs)
  return {'median': median, 'least': min(pairs), 'most': max(pairs)}


def shown(values: Sequence[float]) -> str:
  """'median (least to most)' of some values."""
  found = statistics.median(values), min(values), max(values)
  return '{:.4g} ({:.4g} to {:.4g})'.format(*found)


def print_figures(figures: object, *path: str) -> None:
  """Prints figures, a line each, after their keys; rounds as `shown`."""
  if isinstance(figures, list) and isinstance(figures[0], dict):
    figures = {key: [one[key] for one in figures] for key in figures[0]}
  if isinstance(figures, dict) and 'median' in figures:  # A `ratio`.
    figures = list(figures.values())  # The same median, least and most.
  if isinstance(figures, dict):
    for key, value in figures.items():
      print_figures(value, *path, str(key))
  else:
    cell = shown(figures) if isinstance(figures, list) else f'{figures:.4g}'
    print(f'{" > ".join(path):70} {cell}')


class Worker:
  """Processes that work together; a call sends a line, and returns an answer."""

  def __init__(self, *commands: Sequence[str], **env: str):
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    env = os.environ | env
    self._processes = [subprocess.Popen(c, env=env, **pipes) for c in commands]
    self.pid = self._processes[0].pid

  def __call__(self, line: str = 'go') -> object:
    for process in self._processes:
      with contextlib.suppress(BrokenPipeError):  # `receive` will report it.
        print(line, file=process.stdin, flush=True)
    return self.receive()

  def receive(self) -> object:
    """The next answer of the last process, once all have answered."""
    for process in self._processes:
      for line in process.stdout:  # Libraries may print there as well.
        if line.startswith(ANSWER):
          break
      else:
        sys.exit('a worker ended without an answer; its error is above')
    return json.loads(line.removeprefix(ANSWER))

  def close(self) -> None:
    """Kills the processes: one that waits for others would not end by itself."""
    for process in reversed(self._processes):  # The others wait for the first.
      process.kill()
      with contextlib.suppress(BrokenPipeError):
        process.communicate()


def command_line(function: str, *args: object) -> list[str]:
  """The command of a `Worker` that calls 'MODULE.FUNCTION' of benchmarks/."""
  call = f'{function}(*json.loads({json.dumps(args)!r}))'
  module = function.partition('.')[0]
  code = f'import json; from benchmarks import harness, {module}'
  code += f'; harness.jax_settings.pin(); {call}'
  return [sys.executable, '-c', code]


def answer(value: object) -> None:
  """Prints what `Worker.receive` will return."""
  print(ANSWER + json.dumps(value), flush=True)


def ask(command: Sequence[str]) -> object:
  """The only answer of a worker."""
  with contextlib.closing(Worker(command)) as worker:
    return worker.receive()


def peak_bytes() -> int:
  """Peak resident memory of this process so far, as the system counts it."""
  with contextlib.suppress(OSError):  # ru_maxrss may be that before an exec.
    text = pathlib.Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s*(\d+)', text)[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def jpeg_files(folder: str, flag: str = '') -> list[pathlib.Path]:
  """All JPEG files below a folder, in order; a flag without any is an error."""
  paths = sorted(pathlib.Path(folder).resolve().rglob('*.*'))
  paths = [p for p in paths if p.suffix.lower() in ('.jpeg', '.jpg')]
  if flag and not paths:
    sys.exit(f'--{flag}={folder} holds no JPEG')
  return paths
