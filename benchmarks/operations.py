r"""Where the time of a whole train step goes: its slowest operations in a trace.

    python -m benchmarks.operations [--quick] [--batch=32] [--dtype=float32]
        [--steps=5] [--top=20] [--trace_dir=DIR]

The paper's net under JAX's profiler, after steps that compile and warm up:
milliseconds of every operation of the compiled program in a step, and the layer
that it comes from ("backward" if it belongs to a gradient). XLA fuses neighbours
into one operation, which then has the name of one of them. With --trace_dir the
trace is kept, for TensorBoard's profile plugin or Perfetto.

Operations overlap. On CPU, convolutions and large products run in threads that
the trace does not contain: their rows have the time that it takes to begin them,
and the last row says what no operation has. On a GPU the step runs without
command buffers, in which operations lose their names, and is slower than in
benchmarks.train_step, which has a table of every layer on its own.
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
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_enable_command_buffer='
  )

from absl import flags
import jax

from benchmarks import harness
from benchmarks import synthetic

FLAGS = flags.FLAGS


def seconds_by_operation(folder: str) -> dict[str, float]:
  """Seconds of every operation in a trace, the slowest first.

  Args:
    folder: of `jax.profiler.trace`, with a single trace.
  """
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
  if found is None:
    return ''
  return found[0] + (' backward' if 'transpose(' in source else '')


def define_flags() -> None:
  flags.DEFINE_integer('batch', 32, 'Images of a step.', 1)
  flags.DEFINE_string('dtype', 'float32', 'Dtype of the activations.')
  flags.DEFINE_integer('steps', 5, 'Number of traced steps.', 1)
  flags.DEFINE_integer('top', 20, 'Number of operations to print.', 1)
  flags.DEFINE_string('trace_dir', None, 'Empty folder to keep the trace in.')


def trace(batch: int, dtype: str, steps: int, folder: str):
  """(seconds of a step, seconds by operation, sources) of traced steps."""
  net = synthetic.network('towers', None, dtype=dtype)
  step = synthetic.TrainStep(net, None, batch)
  program = sources(step.compile())
  step(3)
  with jax.profiler.trace(folder):
    began = time.perf_counter()
    step(steps)
    whole = (time.perf_counter() - began) / steps
  return whole, seconds_by_operation(folder), program


def measure() -> harness.Outcome:
  batch, steps = (4, 2) if FLAGS.quick else (FLAGS.batch, FLAGS.steps)
  with contextlib.ExitStack() as stack:
    folder = FLAGS.trace_dir
    if folder is None:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    elif any(pathlib.Path(folder).rglob('*.xplane.pb')):
      sys.exit(f'--trace_dir={folder} has a trace; name an empty folder')
    whole, found, program = trace(batch, FLAGS.dtype, steps, folder)
  if not found:
    sys.exit(
      'the trace names no operation of the program; look at it in TensorBoard:'
      ' --trace_dir=DIR'
    )
  rows = [
    {'name': name, 'seconds': seconds / steps, 'source': program.get(name, '')}
    for name, seconds in found.items()
  ]
  for row in rows[: FLAGS.top]:
    print(
      f'{1e3 * row["seconds"]:9.1f} ms {row["seconds"] / whole:6.1%}'
      f'  {layer(row["source"]):16}{row["name"]:36} {row["source"][-60:]}'
    )
  rest = whole - sum(row['seconds'] for row in rows)
  print(
    f'{1e3 * rest:9.1f} ms {rest / whole:6.1%}  in no operation of the trace'
  )
  return harness.Outcome(
    {'step_seconds': whole, 'operations': rows},
    f'{synthetic.SEEDS}\n{FLAGS.dtype}, batch {batch}, {steps} steps of'
    f' {1e3 * whole:.0f} ms',
  )


if __name__ == '__main__':
  harness.run(
    measure, quick='Two steps of four images.', define_flags=define_flags
  )
