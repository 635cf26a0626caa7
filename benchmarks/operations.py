r"""Where the time of a whole train step goes: its slowest operations in a trace.

    python -m benchmarks.operations [--quick] [--batch=32] [--dtype=float32]
        [--steps=5] [--top=20] [--trace_dir=DIR]

The paper's net under JAX's profiler: milliseconds of every operation in a step, and
the layer that it comes from. XLA fuses neighbours into one operation, which has the
name of one of them. On CPU, convolutions and large products run in threads that the
trace does not contain; the last row says what no operation has. --trace_dir keeps
the trace, for TensorBoard or Perfetto.
"""

import collections
import contextlib
import os
import pathlib
import re
import sys
import tempfile
import time

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()
  # Inside the command buffers of a GPU, operations lose their names.
  xla_flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{xla_flags} --xla_gpu_enable_command_buffer='

import jax

from benchmarks import harness
from benchmarks import synthetic

FLAGS = harness.FLAGS


def seconds_by_operation(folder: str) -> dict[str, float]:
  """Seconds of every operation, the slowest first, in the trace in a folder."""
  found = collections.Counter()
  (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get('hlo_op')
        if name is None and line.name == 'XLA Ops':  # TPU: '%name = ...'.
          name = event.name.partition(' ')[0].removeprefix('%')
        if name is not None:
          found[name] += event.duration_ns / 1e9
  return dict(found.most_common())


def sources(program: str) -> dict[str, str]:
  """The source of every operation in the text of a compiled program."""
  named = re.compile(r'^ *(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', re.M)
  return dict(named.findall(program))


def layer(source: str) -> str:
  """'conv1', 'conv1 backward', ... of a source; '' if it names no layer."""
  found = re.search(r'\b(conv|fc)\d\b', source)
  direction = ' backward' if 'transpose(' in source else ''
  return found[0] + direction if found else ''


def trace(batch: int, steps: int, folder: str) -> tuple[float, list[dict]]:
  """Seconds of a step, and its operations, from a trace of some steps."""
  step = synthetic.create_step(batch, FLAGS.dtype, narrow=FLAGS.quick)
  source_of = sources(step.compile())
  step(3)
  with jax.profiler.trace(folder):
    began = time.perf_counter()
    step(steps)
    whole = (time.perf_counter() - began) / steps
  return whole, [
    {'name': name, 'seconds': s / steps, 'source': source_of.get(name, '')}
    for name, s in seconds_by_operation(folder).items()
  ]


def measure() -> harness.Outcome:
  batch, steps = (4, 2) if FLAGS.quick else (FLAGS.batch, FLAGS.steps)
  with contextlib.ExitStack() as stack:
    folder = FLAGS.trace_dir
    if not folder:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    elif any(pathlib.Path(folder).rglob('*.xplane.pb')):
      sys.exit(f'--trace_dir={folder} has a trace; name an empty folder')
    whole, operations = trace(batch, steps, folder)
  if not operations:
    sys.exit('the trace names no operation; TensorBoard may: --trace_dir=DIR')
  line = '{:9.1f} ms {:6.1%}  {:16}{:36} {}'.format
  for one in operations[: FLAGS.top]:
    seconds, source = one['seconds'], one['source']
    cells = layer(source), one['name'], source[-60:]
    print(line(1e3 * seconds, seconds / whole, *cells))
  rest = whole - sum(one['seconds'] for one in operations)
  print(line(1e3 * rest, rest / whole, 'in no operation', '', ''))
  verdict = f'{FLAGS.dtype}, batch {batch}, {steps} steps of {whole:.3f} s'
  figures = {'step_seconds': whole, 'operations': operations}
  return harness.Outcome(figures, f'{synthetic.SEEDS}\n{verdict}')


if __name__ == '__main__':
  harness.run(
    measure,
    quick='A narrow net, two steps of four small images.',
    batch=(32, 'Images of a step.'),
    dtype=('float32', 'Dtype of the activations.'),
    steps=(5, 'Number of traced steps.'),
    top=(20, 'Number of operations to print.'),
    trace_dir=('', 'Empty folder to keep the trace in.'),
  )
