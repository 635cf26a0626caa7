"""Reads the collectives in the text of a program that XLA has compiled."""

import dataclasses
import math
import re

import jax
import numpy as np

from alexnet_jax import model

LAYERS = (*model.CONVS, 'fc6', 'fc7', 'fc8', 'logits')  # Scopes of the network.
DTYPE_BYTES = {'pred': 1, 'u8': 1, 's8': 1, 'bf16': 2, 'f16': 2, 'f64': 8}
_COLLECTIVE = re.compile(
  r'= (?P<shape>\(.*?\)|\S+) (?P<kind>all-gather|all-reduce|reduce-scatter'
  r'|collective-permute|all-to-all|collective-broadcast)(?:-start)?\('
)
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction of a compiled program."""

  kind: str  # XLA's name for it, such as 'all-gather'.
  # Layer whose input or gradient is sent; 'gradients, metrics' for their sums.
  layer: str
  direction: str  # 'forward' or 'backward'.
  axis: str  # Mesh axis, such as 'tower'; 'none' for groups of one device.
  group_size: int  # Number of devices that take part together.
  operand_bytes: int  # On one device.

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


def read(program: str, mesh: jax.sharding.Mesh | None) -> list[Collective]:
  """The collectives of `compiled.as_text()`; `mesh` is None for one device."""
  found = []
  for line in program.splitlines():
    if match := _COLLECTIVE.search(line):
      kind = match['kind']
      axis, group_size = _axis(line, mesh)
      scale = {'all-gather': 1 / group_size, 'reduce-scatter': group_size}
      op_name = re.search(r'op_name="([^"]*)"', line)
      path = op_name[1] if op_name else ''
      direction = 'backward' if 'transpose(' in path else 'forward'
      size = round(_num_bytes(match['shape']) * scale.get(kind, 1))
      layer = _layer(path, kind)
      found.append(Collective(kind, layer, direction, axis, group_size, size))
  return found


def _layer(path, kind):
  if kind == 'all-reduce':
    return 'gradients, metrics'  # XLA combines them as it likes.
  scopes = [part for part in path.split('/') if part in LAYERS]
  return scopes[-1] if scopes else '?'


def _numbers(text):
  return [int(number) for number in text.split(',') if number]


def _num_bytes(shape):
  return sum(
    DTYPE_BYTES.get(dtype, 4) * math.prod(_numbers(sizes))
    for dtype, sizes in _ARRAY.findall(shape)
  )


def _axis(line, mesh):
  """(name of the mesh axis, devices in a group), in every print style."""
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
    return map(_numbers, re.findall(r'\{([\d, ]+)\}', listed[1]))
  # The style [groups,size]<=[sizes]T(permutation).
  shape, sizes, order = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line
  ).groups()
  ids = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
  ids = ids.transpose(_numbers(order)) if order else ids
  return ids.reshape(_numbers(shape)).tolist()
