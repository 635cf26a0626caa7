r"""Every collective of the compiled train step, beside the paper's pattern.

    python -m benchmarks.communication [--check] [--batch=256]

The paper's GPUs exchange the maps that conv3, fc6, fc7 and fc8 read (section
3.5), and their gradients on the way back; here also the logits, since every
device computes the loss. Over the data axis the gradients are summed, each
device those of its own tower. In the layout 'one_weird_trick' fc6, fc7 and fc8
read the units of all devices, the logits go back to the device of each example,
and only the gradients of the convolutions are summed. `--check` fails on
anything more or less.

Read from the program that XLA compiles for virtual CPU devices; compilers for
other backends may fuse or rename collectives. Bytes received are those of ring
algorithms, per device and step.
"""

import collections
from collections.abc import Iterator
import dataclasses
import functools
import math
import os
import re
import sys

# Before JAX starts: eight devices, for a mesh of 4x2.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if __name__ == '__main__':
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
  )

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from benchmarks import report
from configs import paper

# (layout, towers, devices)
MESHES = (
  ('towers', '1', 1),
  ('towers', '2', 2),
  ('towers', '1', 2),
  ('towers', '2', 4),
  ('towers', '2', 8),
  ('data', 'auto', 2),
  ('data', 'auto', 4),
  ('data', 'auto', 8),
  ('one_weird_trick', 'auto', 2),
  ('one_weird_trick', 'auto', 4),
  ('one_weird_trick', 'auto', 8),
)
GATHERS = ('conv3', 'fc6', 'fc7', 'fc8')  # Section 3.5.
DTYPE_BYTES = {'pred': 1, 'u8': 1, 's8': 1, 'bf16': 2, 'f16': 2, 'f64': 8}
_COLLECTIVE = re.compile(
  r'= (?P<shape>\(.*?\)|\S+) (?P<kind>all-gather|all-reduce|reduce-scatter'
  r'|collective-permute|all-to-all|collective-broadcast)(?:-start)?\('
)
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction of a compiled program.

  Attributes:
    kind: XLA's name of it, such as 'all-gather'.
    layer: whose input, or its gradient, it moves; or 'logits', or 'gradients,
      metrics' for a sum.
    direction: 'forward' or 'backward'.
    axis: mesh axis over which it runs, such as 'tower'; 'none' for groups of
      one device.
    group_size: devices that take part together.
    operand_bytes: of one device.
  """

  kind: str
  layer: str
  direction: str
  axis: str
  group_size: int
  operand_bytes: int

  @property
  def received_bytes(self) -> int:
    """Bytes that one device receives, by a ring algorithm."""
    others = self.group_size - 1
    return {
      'all-gather': others * self.operand_bytes,
      'reduce-scatter': others * self.operand_bytes // self.group_size,
      'all-reduce': 2 * others * self.operand_bytes // self.group_size,
      'all-to-all': others * self.operand_bytes // self.group_size,
    }.get(self.kind, self.operand_bytes)


def collectives(
  program: str, mesh: jax.sharding.Mesh | None
) -> list[Collective]:
  """The collectives in the text of a compiled program.

  Args:
    program: `compiled.as_text()`.
    mesh: that it was compiled for; None for one device.
  """
  found = []
  for line in program.splitlines():
    if match := _COLLECTIVE.search(line):
      axis, group_size = _axis(line, mesh)
      scale = {'all-gather': 1 / group_size, 'reduce-scatter': group_size}
      op_name = re.search(r'op_name="([^"]*)"', line)
      path = op_name[1] if op_name else ''
      found.append(
        Collective(
          match['kind'],
          _layer(path, match['kind']),
          'backward' if 'transpose(' in path else 'forward',
          axis,
          group_size,
          round(_num_bytes(match['shape']) * scale.get(match['kind'], 1)),
        )
      )
  return found


def _layer(path, kind):
  if kind == 'all-reduce':
    return 'gradients, metrics'  # XLA combines them as it likes.
  names = (*model.CONVS, 'fc6', 'fc7', 'fc8', 'logits')
  scopes = [part for part in path.split('/') if part in names]
  return scopes[-1] if scopes else '?'


def _num_bytes(shape):
  sizes = [
    DTYPE_BYTES.get(dtype, 4)
    * math.prod(map(int, filter(None, dims.split(','))))
    for dtype, dims in _ARRAY.findall(shape)
  ]
  return sum(sizes)


def _axis(line, mesh):
  """(name of the mesh axis, devices in a group), in both print styles."""
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', line):
    sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", named[1])}
    axes = re.findall(r"'(\w+)'", named[2])
    size = math.prod(sizes[axis] for axis in axes)
    return (' and '.join(axes), size) if size > 1 else ('none', 1)
  groups = {frozenset(group) for group in _groups(line)}
  size = len(next(iter(groups)))
  if size == 1:
    return 'none', 1
  ids = np.vectorize(lambda device: device.id)(mesh.devices)
  ways = {'tower': ids, 'data': ids.T, 'data and tower': ids.reshape(1, -1)}
  for axis, rows in ways.items():
    if groups == {frozenset(row.tolist()) for row in rows}:
      return axis, size
  return 'other devices', size


def _groups(line):
  if listed := re.search(r'replica_groups=\{(\{[\d,{} ]*\})\}', line):
    return [
      [int(number) for number in group.split(',')]
      for group in re.findall(r'\{([\d, ]+)\}', listed[1])
    ]
  # Iota style: [groups,size]<=[dims]T(permutation).
  shape, dims, order = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line
  ).groups()
  numbers = lambda text: [int(number) for number in text.split(',')]
  ids = np.arange(math.prod(numbers(dims))).reshape(numbers(dims))
  ids = ids.transpose(numbers(order)) if order else ids
  return ids.reshape(numbers(shape)).tolist()


def expected(net: model.AlexNet) -> collections.Counter:
  """Counts of (kind, layer, direction, axis) of the layout's pattern."""
  pattern = collections.Counter()

  def both_ways(forward, backward, layers, axis):
    for layer in layers:
      pattern[forward, layer, 'forward', axis] += 1
      if backward:
        pattern[backward, layer, 'backward', axis] += 1

  if net.tower_devices > 1:
    both_ways('all-gather', 'reduce-scatter', GATHERS, 'tower')
    both_ways('all-gather', None, ('logits',), 'tower')
  if net.fc_devices > 1:
    both_ways(
      'all-gather', 'reduce-scatter', net.layers_sharded_over_data, 'data'
    )
    home = 'logits' if 'fc8' in net.layers_sharded_over_data else 'fc8'
    both_ways('all-to-all', 'all-to-all', (home,), 'data')
  return pattern


def problems(
  found: list[Collective], net: model.AlexNet, gradient_bytes: int
) -> Iterator[str]:
  """What in `found` is not as it should be.

  Args:
    found: collectives of a train step.
    net: that it trains.
    gradient_bytes: that a device sums with others, see `compile_step`.
  """
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
  # Beside the gradients: loss, two errors, the count, and the like.
  extra = sum(c.operand_bytes for c in sums) - gradient_bytes
  if not 0 <= extra <= 64:
    yield f'all-reduces of {extra:+d} bytes beside the gradients'


def compile_step(
  net: model.AlexNet,
  mesh: jax.sharding.Mesh | None,
  *,
  batch_size: int,
  image_size: int,
  crop_size: int,
) -> tuple[jax.stages.Compiled, int]:
  """The compiled train step, and bytes that a device has to sum.

  These are the gradients of the parameters that it shares with other devices.
  Nothing is computed: shapes alone are compiled.
  """
  step = train.make_train_step(
    net, mesh, crop_size=crop_size, flip=True, momentum=0.9, weight_decay=5e-4
  )

  def placed(tree, specs):
    shardings = mesh_lib.shardings(mesh, specs)
    return jax.tree.map(lambda x, s: x.update(sharding=s), tree, shardings)

  every = lambda tree, spec: jax.tree.map(lambda _: spec, tree)
  array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  key = jax.eval_shape(lambda: jax.random.key(0))
  create = functools.partial(
    train_state.initial_state,
    net.clone(tower_devices=1, fc_devices=1),
    crop_size,
  )
  state = jax.eval_shape(create, key)
  batch = {
    'image': array(batch_size, image_size, image_size, 3, dtype=jnp.uint8),
    'label': array(batch_size, dtype=jnp.int32),
    'mask': array(batch_size, dtype=bool),
  }
  rest = (
    run_lib.Statistics(array(image_size, image_size, 3), array(3, 3)),
    key,
    {name: array() for name in optimizer.RATE_KEYS},
    array(),
  )
  lowered = step.lower(
    placed(
      state, mesh_lib.param_specs(state, mesh, net.layers_sharded_over_data)
    ),
    placed(batch, every(batch, mesh_lib.batch_spec())),
    *placed(rest, every(rest, mesh_lib.REPLICATED)),
  )
  gradient_bytes = 0
  if mesh is not None and mesh.shape['data'] > 1:
    specs = mesh_lib.param_specs(
      state.params, mesh, net.layers_sharded_over_data
    )
    shared = jax.tree.map(
      lambda x, s: 0 if 'data' in s else 4 * x.size // mesh.shape['tower'],
      state.params,
      specs,
    )
    gradient_bytes = sum(jax.tree.leaves(shared))
  return lowered.compile(), gradient_bytes


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('check', False, 'Fail on anything beside the pattern.')
  flags.DEFINE_bool('quick', False, 'Two devices alone.')
  flags.DEFINE_integer('batch', 256, 'Images of a step, over all devices.')
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  config = paper.get_config()
  figures, wrong = [], []
  for layout, per_net, number in MESHES:
    if FLAGS.quick and number != 2:
      continue
    mesh = mesh_lib.create_mesh(layout, per_net, jax.devices()[:number])
    net = model.AlexNet(
      **config.model, **mesh_lib.model_parallel_sizes(layout, mesh)
    )
    compiled, gradient_bytes = compile_step(
      net,
      mesh,
      batch_size=FLAGS.batch,
      image_size=config.input.image_size,
      crop_size=config.input.crop_size,
    )
    found = collectives(compiled.as_text(), mesh)
    shape = 'x'.join(map(str, mesh.shape.values())) if mesh else '1x1'
    received = sum(c.received_bytes for c in found)
    print(
      f'\nlayout {layout}, mesh {shape} (data x tower), {FLAGS.batch} images:'
      f' {received / 1e6:.1f} MB received per device and step'
    )
    print(
      '| layer | direction | collective | axis | operand MB | received MB |'
    )
    print('|---|---|---|---|---|---|')
    for c in found:
      print(
        f'| {c.layer} | {c.direction} | {c.kind} | {c.axis}'
        f' | {c.operand_bytes / 1e6:.3f} | {c.received_bytes / 1e6:.3f} |'
      )
    wrong += [
      f'{layout} {shape}: {p}' for p in problems(found, net, gradient_bytes)
    ]
    figures.append(
      {
        'layout': layout,
        'mesh': shape,
        'received_bytes': received,
        'collectives': [dataclasses.asdict(c) for c in found],
      }
    )
  print()
  report.print_environment()
  report.write(FLAGS.output, figures)
  for problem in wrong:
    print(problem)
  print(f'differences from the pattern of each layout {len(wrong)}, bar 0')
  if FLAGS.check and wrong:
    sys.exit(1)


if __name__ == '__main__':
  define_flags()
  report.run(main)
