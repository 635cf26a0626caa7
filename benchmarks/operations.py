r"""Where the time of a whole train step goes: its slowest operations in a trace.

    python -m benchmarks.operations [--quick] [--batch=32] [--dtype=float32]
        [--steps=5] [--top=20] [--trace_dir=DIR]

The paper's net under the profiler of JAX, after steps that compile and warm up:
milliseconds of every operation of the compiled program in a step, and the layer
that it comes from ("backward" where it belongs to a gradient). XLA joins
neighbours into one operation, which then has the name of one of them. With
--trace_dir the trace stays there, for TensorBoard's profile plugin or Perfetto.

Operations overlap. On CPU, convolutions and large products run in threads of
which the trace does not know: their rows have the time that it takes to begin
them, and the last line says what no row has. On a GPU the step goes without
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

from absl import flags
import jax

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()
  # Inside the command buffers of a GPU, operations lose their names.
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_enable_command_buffer='
  )

from benchmarks import report
from benchmarks import towers
from configs import paper


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
  """Where every operation of a compiled program, as text, comes from."""
  named = re.compile(r'^ *(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', re.M)
  return dict(named.findall(program))


def layer(source: str) -> str:
  """'conv1', 'conv1 backward', ... of a source; '' where it names no layer."""
  found = re.search(r'\b(conv|fc)\d\b', source)
  if found is None:
    return ''
  return found[0] + (' backward' if 'transpose(' in source else '')


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('quick', False, 'Two steps of four images.')
  flags.DEFINE_integer('batch', 32, 'Images of a step.', 1)
  flags.DEFINE_string('dtype', 'float32', 'Of the activations.')
  flags.DEFINE_integer('steps', 5, 'In the trace.', 1)
  flags.DEFINE_integer('top', 20, 'Operations to print.', 1)
  flags.DEFINE_string('trace_dir', None, 'Folder to keep the trace in; empty.')
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  batch, steps = (4, 2) if FLAGS.quick else (FLAGS.batch, FLAGS.steps)
  settings = dict(paper.get_config().model) | {'dtype': FLAGS.dtype}
  with contextlib.ExitStack() as stack:
    folder = FLAGS.trace_dir
    if folder is None:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    elif any(pathlib.Path(folder).rglob('*.xplane.pb')):
      sys.exit(f'--trace_dir={folder} has a trace; name an empty folder')
    step = towers.Variant(settings, 1, batch)
    program = sources(step.compile())
    for _ in range(3):
      step()
    with jax.profiler.trace(folder):
      began = time.perf_counter()
      step(steps)
      whole = (time.perf_counter() - began) / steps
    found = seconds_by_operation(folder)
  if not found:
    sys.exit(
      'the trace names no operation of the program; look at it in TensorBoard:'
      ' --trace_dir=DIR'
    )
  rows = [
    {'name': name, 'seconds': seconds / steps, 'source': program.get(name, '')}
    for name, seconds in found.items()
  ]
  print(
    f'{FLAGS.dtype}, batch {batch}, a step of {1e3 * whole:.0f} ms, {steps} steps'
  )
  for row in rows[: FLAGS.top]:
    print(
      f'{1e3 * row["seconds"]:9.1f} ms {row["seconds"] / whole:6.1%}'
      f'  {layer(row["source"]):16}{row["name"]:36} {row["source"][-60:]}'
    )
  rest = whole - sum(row['seconds'] for row in rows)
  print(
    f'{1e3 * rest:9.1f} ms {rest / whole:6.1%}  in no operation of the trace'
  )
  print('seeds: weights and images 0, draws 1')
  report.print_environment()
  report.write(FLAGS.output, {'step_seconds': whole, 'operations': rows})


if __name__ == '__main__':
  define_flags()
  report.run(main)
