r"""What XLA compiles the train step to, for devices that this machine does not have.

    pip install --no-deps --target=DIR jax-cuda13-pjrt==VERSION_OF_JAX
    python -m experiments.compile_for --target=FILE
        --plugin=DIR/jax_plugins/xla_cuda13/xla_cuda_plugin.so
        [--layout=towers] [--devices=1] [--batch=128] [--dtype=float32]

    pip install libtpu
    python -m experiments.compile_for --target=v5e:1x1 [--layout=towers] ...

FILE describes a GPU: one of xla/backends/gpu/target_config/specs of
github.com/openxla/xla, such as a100_sxm_80.txtpb; v5e:1x1, v5e:2x2, ... are TPUs.
The command prints the memory that the compiled program needs, how many kernels and
collectives of each kind it has, and the largest: by the sizes of their operands and
results, and for TPUs by the cycles that the compiler estimates. Nothing is run, and
for GPUs nothing is autotuned, because CUDA's libraries are not there: this says
nothing about speed. The whole net takes 10 s for a GPU and minutes for a TPU.
"""

import collections
import math
import os
import pathlib
import re
import sys
import time
from unittest import mock

from absl import flags
import jax
from jax._src import xla_bridge  # JAX 0.10 has no public function for it.
from jax.experimental import topologies

from alexnet_jax import mesh as mesh_lib
from alexnet_jax.runtime import command
from benchmarks import synthetic

# Instructions that move no data, as '...-done', which waits for '...-start'.
FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')
DTYPE_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2}
DTYPE_BYTES |= {'s32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8}


def gpu_devices(
  plugin: str, target_config: str, number: int
) -> list[jax.Device]:
  """Devices of one host, to compile for.

  Args:
    plugin: path of the library of JAX's CUDA plugin.
    target_config: text of a `GpuTargetConfigProto`.
    number: number of devices.
  """
  xla_bridge.register_plugin('cuda', library_path=plugin, options={})
  shape = f'1x1x{number}'
  topology = topologies.get_topology_desc(
    shape, 'cuda', target_config=target_config, topology=shape
  )
  return topology.devices


def tpu_devices(topology: str) -> list[jax.Device]:
  """Devices of a topology such as 'v5e:1x1', to compile for.

  Raises:
    RuntimeError: if libtpu is missing or does not know the topology.
  """
  # It would ask Google Cloud which TPUs this machine has.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  return topologies.get_topology_desc(topology, 'tpu').devices


def num_bytes(shape: str) -> int:
  """Bytes of a shape, or of a tuple of shapes, in the text of a program."""
  arrays = re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', shape)
  return sum(
    DTYPE_BYTES[dtype] * math.prod(int(n) for n in dims.split(',') if n)
    for dtype, dims in arrays
  )


def kernels(program: str) -> list[tuple[int, int, str, str]]:
  """(cycles, bytes of operands and results, kind, source), the largest first.

  Cycles are the TPU compiler's estimate; 0 where it gives none.

  Args:
    program: text of a compiled program.
  """
  entry = program[program.index('\nENTRY') :]
  shapes, found = {}, []
  line = re.compile(r'^ *(?:ROOT )?(%[\w.-]+) = (.*?) ([\w-]+)\((.*)', re.M)
  for name, shape, kind, rest in line.findall(entry):
    shapes[name] = shape
    if kind in FREE or kind.endswith('-done'):
      continue
    operands = re.findall(r'%[\w.-]+', rest.partition('), ')[0])
    accessed = num_bytes(shape)
    accessed += sum(num_bytes(shapes.get(o, '')) for o in operands)
    target = re.search(r'custom_call_target="([^"]*)"', rest)
    source = re.search(r'op_name="([^"]*)"', rest)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
    kind = target[1] if target else kind
    found.append(
      (
        int(cycles[1]) if cycles else 0,
        accessed,
        kind,
        source[1] if source else '',
      )
    )
  return sorted(found, reverse=True)


def print_program(compiled: jax.stages.Compiled) -> None:
  """Prints the memory and the kernels of a compiled program."""
  memory = compiled.memory_analysis()
  print(
    f'MB on a device: arguments {memory.argument_size_in_bytes / 1e6:.0f}, of'
    f' which {memory.alias_size_in_bytes / 1e6:.0f} are reused for the results;'
    f' temporaries {memory.temp_size_in_bytes / 1e6:.0f}'
  )
  found = kernels(compiled.as_text())
  cycles, accessed = (sum(row[i] for row in found) for i in (0, 1))
  print(
    f'{len(found)} kernels and collectives access {accessed / 1e9:.2f} GB',
    end='',
  )
  print(f', estimated at {cycles / 1e6:.1f} million cycles:' if cycles else ':')
  kinds = collections.Counter(kind for _, _, kind, _ in found)
  for kind, number in kinds.most_common():
    print(f'  {number:4} {kind}')
  for cycles, size, kind, source in found[:20]:
    estimate = f'{cycles / 1e6:6.2f} M cycles' if cycles else ''
    print(f'{estimate}  {size / 1e6:6.0f} MB  {kind:32} {source[-60:]}')


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_string(
    'target', None, 'File that describes the GPU, or v5e:1x1.', required=True
  )
  flags.DEFINE_string('plugin', '', "For a GPU: library of JAX's CUDA plugin.")
  flags.DEFINE_enum(
    'layout', 'towers', mesh_lib.LAYOUTS, 'What is split over the devices.'
  )
  flags.DEFINE_integer('devices', 1, 'Number of GPUs, on one host.', 1)
  flags.DEFINE_integer('batch', 128, 'Batch size, over all devices.', 1)
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Dtype of the activations.'
  )


def target_devices() -> tuple[str, list[jax.Device]]:
  """'tpu' or 'gpu', and the devices that the flags ask for."""
  if ':' in FLAGS.target:
    try:
      return 'tpu', tpu_devices(FLAGS.target)
    except RuntimeError as error:
      reason = str(error).splitlines()[0]
      sys.exit(f'--target={FLAGS.target} cannot be compiled for: {reason}')
  for name in ('target', 'plugin'):
    if not os.path.isfile(path := FLAGS[name].value):
      sys.exit(f'--{name}={path} is not a file')
  config = pathlib.Path(FLAGS.target).read_text()
  return 'gpu', gpu_devices(FLAGS.plugin, config, FLAGS.devices)


def main(_) -> None:
  command.quiet_libraries()
  backend, devices = target_devices()
  with (
    mock.patch.object(jax, 'local_devices', lambda: devices),
    mock.patch.object(jax, 'default_backend', lambda: backend),
  ):
    mesh = mesh_lib.create_mesh(FLAGS.layout, 'auto', devices)
    net = synthetic.network(FLAGS.layout, mesh, dtype=FLAGS.dtype)
    began = time.perf_counter()
    compiled = synthetic.compile_step(net, mesh, batch_size=FLAGS.batch)
  print(f'compiled in {time.perf_counter() - began:.0f} s')
  print_program(compiled)


if __name__ == '__main__':
  define_flags()
  command.run(main)
