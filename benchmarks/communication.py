r"""Every collective of the compiled train step, beside the paper's pattern.

    python -m benchmarks.communication [--quick] [--check] [--batch=256]

The paper's GPUs exchange the maps that conv3, fc6, fc7 and fc8 read (section
3.5), and their gradients; here also the logits. Over the data axis the gradients
are summed, each device those of its own tower. In the layout 'one_weird_trick'
fc6, fc7 and fc8 read the features of all devices, the logits return to the device
of each example, and only the gradients of the convolutions are summed. `--check`
fails on anything more or less in the program that XLA compiles for virtual CPUs.
"""

import collections
from collections.abc import Iterator
import dataclasses
import functools

import jax

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from benchmarks import collectives
from benchmarks import harness
from benchmarks import plots
from benchmarks import synthetic

# (layout, config.mesh.towers, devices)
MESHES = [('towers', 1, 1), ('towers', 1, 2)] + [
  (layout, 'auto', n) for layout in mesh_lib.LAYOUTS for n in (2, 4, 8)
]
GATHERS = ('conv3', 'fc6', 'fc7', 'fc8')  # Section 3.5.
FLAGS = harness.FLAGS


def expected(net: model.AlexNet) -> collections.Counter:
  """Counts of (kind, layer, direction, axis) in the layout's pattern."""
  pattern = collections.Counter()

  def both_ways(forward, backward, layers, axis):
    for layer in layers:
      pattern[forward, layer, 'forward', axis] += 1
      pattern[backward, layer, 'backward', axis] += 1

  if net.tower_devices > 1:
    both_ways('all-gather', 'reduce-scatter', GATHERS, 'tower')
    pattern['all-gather', 'logits', 'forward', 'tower'] += 1
  if net.fc_devices > 1:
    sharded = net.layers_sharded_over_data
    both_ways('all-gather', 'reduce-scatter', sharded, 'data')
    resharded = 'logits' if 'fc8' in sharded else 'fc8'
    both_ways('all-to-all', 'all-to-all', (resharded,), 'data')
  return pattern


def gradient_bytes(net: model.AlexNet, mesh, crop_size: int) -> int:
  """Bytes of the gradients that a device sums with other devices."""
  if mesh is None or mesh.shape['data'] == 1:
    return 0
  create = functools.partial(synthetic.create_state, net, crop_size)
  params = jax.eval_shape(create, jax.random.key(0)).params
  specs = mesh_lib.param_specs(params, mesh, net.layers_sharded_over_data)
  num_bytes = lambda x, spec: 0 if 'data' in spec else 4 * x.size
  total = sum(jax.tree.leaves(jax.tree.map(num_bytes, params, specs)))
  return total // mesh.shape['tower']


def problems(found, net: model.AlexNet, summed_bytes: int) -> Iterator[str]:
  """Yields how a step differs; `summed_bytes` are its `gradient_bytes`."""
  moving = [c for c in found if c.group_size > 1]
  sums = [c for c in moving if c.kind == 'all-reduce']
  rest = collections.Counter(
    (c.kind, c.layer, c.direction, c.axis) for c in moving if c not in sums
  )
  for which, count in (rest - expected(net)).items():
    yield f'{count} more: {", ".join(which)}'
  for which, count in (expected(net) - rest).items():
    yield f'{count} missing: {", ".join(which)}'
  for collective in sums:
    if collective.axis != 'data':
      yield f'all-reduce over {collective.axis}: {collective.layer}'
  # Metrics are summed as well: loss, two errors, the count.
  extra = sum(c.operand_bytes for c in sums) - summed_bytes
  if not 0 <= extra <= 64:
    yield f'all-reduces of {extra:+d} bytes beside the gradients'


def measure() -> harness.Outcome:
  figures, wrong = [], []
  for layout, towers, number in MESHES:
    if FLAGS.quick and number != 2:
      continue
    mesh = mesh_lib.create_mesh(layout, towers, jax.devices()[:number])
    net = synthetic.network(layout, mesh)
    compiled = synthetic.compile_step(net, mesh, batch_size=FLAGS.batch)
    found = collectives.read(compiled.as_text(), mesh)
    shape = 'x'.join(map(str, mesh.shape.values())) if mesh else '1x1'
    received = sum(c.received_bytes for c in found)
    print(f'\n{layout}, mesh {shape} (data x tower), {FLAGS.batch} images')
    print(f'{received / 1e6:.1f} MB received per device and step')
    for c in found:
      sizes = f'{c.operand_bytes / 1e6:9.3f} MB, receives {c.received_bytes / 1e6:.3f}'
      print(f'{c.layer:20} {c.direction:9} {c.kind:15} {c.axis:7} {sizes}')
    differences = problems(found, net, gradient_bytes(net, mesh, 224))
    wrong += [f'{layout} {shape}: {problem}' for problem in differences]
    row = {'layout': layout, 'mesh': shape, 'received_bytes': received}
    row['collectives'] = [dataclasses.asdict(c) for c in found]
    figures.append(row)
  verdict = f'differences from the pattern of each layout {len(wrong)}, bar 0'
  return harness.Outcome(figures, '\n'.join([*wrong, verdict]), not wrong)


def panels(figures):
  rows = {
    f'{one["layout"]} {one["mesh"]}': [one['received_bytes'] / 1e6]
    for one in figures
    if one['received_bytes']
  }
  label = 'MB, from the compiled program; rows: layout and mesh, data x tower'
  return 'Received by each device in a step', [plots.Panel(label, {'': rows})]


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
  harness.run(
    measure,
    quick='Only meshes of two devices.',
    check='Fail on any difference from the pattern.',
    batch=(256, 'Images of a step, over all devices.'),
  )
