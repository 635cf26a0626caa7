r"""What XLA makes of the train step for GPUs that are not there.

    pip install --no-deps --target=DIR jax-cuda13-pjrt==VERSION_OF_JAX
    python -m experiments.compile_for_gpu --target=FILE
        --plugin=DIR/jax_plugins/xla_cuda13/xla_cuda_plugin.so
        [--layout=towers] [--devices=1] [--batch=128] [--dtype=float32]

FILE describes a GPU: one of xla/backends/gpu/target_config/specs of
github.com/openxla/xla, such as a100_sxm_80.txtpb. Printed are the bytes of the
compiled program, its kernels and collectives by kind, and the kernels that touch
most memory, by the sizes of their operands and results. Nothing runs, and nothing
is tuned: no library of CUDA is asked, so speed is another question.
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
from jax._src import xla_bridge  # As of JAX 0.10: nothing public does it.
from jax.experimental import topologies

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from benchmarks import communication
from benchmarks import report
from configs import paper

# What moves no data; nor does '...-done', which waits for what does.
FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
BYTES |= {'f16': 2, 's64': 8, 'u64': 8}


def gpus(plugin: str, target: str, number: int) -> list[jax.Device]:
  """Devices to compile for, of one host.

  Args:
    plugin: the library of JAX's CUDA plugin.
    target: text of a `GpuTargetConfigProto`.
    number: of devices.
  """
  xla_bridge.register_plugin('cuda', library_path=plugin, options={})
  shape = f'1x1x{number}'
  topology = topologies.get_topology_desc(
    shape, 'cuda', target_config=target, topology=shape
  )
  return topology.devices


def size(shape: str) -> int:
  """Bytes of a shape, or of a tuple of shapes, in the text of a program."""
  found = re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', shape)
  return sum(
    BYTES[dtype] * math.prod(int(n) for n in sides.split(',') if n)
    for dtype, sides in found
  )


def kernels(text: str) -> list[tuple[int, str, str]]:
  """(bytes of operands and results, kind, source), the largest first."""
  entry = text[text.index('\nENTRY') :]
  shapes, found = {}, []
  line = re.compile(r'^ *(?:ROOT )?(%[\w.-]+) = (.*?) ([\w-]+)\((.*)', re.M)
  for name, shape, kind, rest in line.findall(entry):
    shapes[name] = shape
    if kind in FREE or kind.endswith('-done'):
      continue
    operands = re.findall(r'%[\w.-]+', rest.partition('), ')[0])
    touched = size(shape) + sum(size(shapes.get(o, '')) for o in operands)
    target = re.search(r'custom_call_target="([^"]*)"', rest)
    source = re.search(r'op_name="([^"]*)"', rest)
    kind = target[1] if target else kind
    found.append((touched, kind, source[1] if source else ''))
  return sorted(found, reverse=True)


FLAGS = flags.FLAGS


def main(_) -> None:
  for name in ('target', 'plugin'):
    if not os.path.isfile(path := FLAGS[name].value):
      sys.exit(f'--{name}={path} is no file')
  target = pathlib.Path(FLAGS.target).read_text()
  devices = gpus(FLAGS.plugin, target, FLAGS.devices)
  inputs = paper.get_config().input
  settings = dict(paper.get_config().model) | {'dtype': FLAGS.dtype}
  with (
    mock.patch.object(jax, 'local_devices', lambda: devices),
    mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
  ):
    mesh = mesh_lib.create_mesh(FLAGS.layout, 'auto', devices)
    net = model.AlexNet(
      **settings, **mesh_lib.model_parallel_sizes(FLAGS.layout, mesh)
    )
    began = time.perf_counter()
    compiled, _ = communication.compile_step(
      net,
      mesh,
      batch_size=FLAGS.batch,
      image_size=inputs.image_size,
      crop_size=inputs.crop_size,
    )
  print(f'compiled in {time.perf_counter() - began:.0f} s')
  memory = compiled.memory_analysis()
  print(
    f'MB on a device: arguments {memory.argument_size_in_bytes / 1e6:.0f}, of'
    f' which the result takes the place of {memory.alias_size_in_bytes / 1e6:.0f};'
    f' in between {memory.temp_size_in_bytes / 1e6:.0f}'
  )
  found = kernels(compiled.as_text())
  touched = sum(row[0] for row in found)
  print(f'{len(found)} kernels and collectives touch {touched / 1e9:.2f} GB:')
  kinds = collections.Counter(kind for _, kind, _ in found)
  for kind, number in kinds.most_common():
    print(f'  {number:4} {kind}')
  for number, kind, source in found[:20]:
    print(f'  {number / 1e6:6.0f} MB  {kind:32} {source[-60:]}')


if __name__ == '__main__':
  flags.DEFINE_string('target', None, 'File about the GPU.', required=True)
  flags.DEFINE_string('plugin', None, "JAX's, for CUDA.", required=True)
  flags.DEFINE_enum('layout', 'towers', mesh_lib.LAYOUTS, 'Of the devices.')
  flags.DEFINE_integer('devices', 1, 'GPUs of one host.', 1)
  flags.DEFINE_integer('batch', 128, 'Images of a step, over all devices.', 1)
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of the activations.'
  )
  report.run(main)
