"""The two towers: the device mesh, and what runs inside one tower.

The paper (section 3.5) puts half of the kernels of every layer on each of two
GPUs, which communicate only where a layer reads the maps of both: into conv3,
fc6 and fc7, and for the logits. Here a tower is one half of every layer's
output channels, `[tower 0 | tower 1]` on the last axis of each parameter, so
one parameter tree serves every mesh:

* no mesh (one device): both towers run side by side on it;
* mesh ('data', 'tower'): the network runs under `jax.shard_map`, each device
  holds its tower of the parameters and its rows of the batch, and `gather` is
  the only communication of the forward pass.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

REPLICATED = P()


def mesh_shape(
  layout: str, towers: str | int, num_devices: int, num_towers: int = 2
) -> tuple[int, int]:
  """Sizes of the axes ('data', 'tower') for `num_devices` devices.

  Args:
    layout: 'towers' or 'data'; 'data' keeps all towers on every device.
    towers: devices that share one network: 1, 2, or 'auto', which takes 2
      where there are two towers and `num_devices` is even. Ignored by the
      layout 'data'.
    num_devices: devices at hand.
    num_towers: of the network; 2, one per GPU, in section 3.5.

  Raises:
    ValueError: if an odd number of devices, or one tower, is to be split.
  """
  if layout == 'data':
    return num_devices, 1
  if towers == 'auto':
    tower = 1 if num_devices % num_towers else num_towers
  else:
    tower = int(towers)
  if tower > num_towers:
    raise ValueError(
      f'config.mesh.towers={towers} needs a network of two towers, but'
      f" config.model.num_towers={num_towers}; use config.mesh.towers=1 or 'auto'"
    )
  if num_devices % tower:
    raise ValueError(
      f'config.mesh.towers={towers} needs an even number of devices, here '
      f"are {num_devices}; use config.mesh.towers=1 or 'auto'"
    )
  return num_devices // tower, tower


def create_mesh(
  layout: str,
  towers: str | int,
  devices: Sequence[jax.Device],
  num_towers: int = 2,
) -> Mesh | None:
  """The mesh ('data', 'tower') over `devices`; None for a single device.

  Raises:
    ValueError: as `mesh_shape`, which has the arguments.
  """
  shape = mesh_shape(layout, towers, len(devices), num_towers)
  if len(devices) == 1:
    return None
  return Mesh(
    mesh_utils.create_device_mesh(shape, devices),
    ('data', 'tower'),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def tower_devices(mesh: Mesh | None) -> int:
  """Number of devices that share one network: 1 or 2."""
  return 1 if mesh is None else mesh.shape['tower']


def param_specs(tree: PyTree, mesh: Mesh | None) -> PyTree:
  """Specs of a tree of parameters, or of the train state.

  Every leaf is split over the towers on its last axis; scalars are not.
  """
  split = tower_devices(mesh) > 1
  return jax.tree.map(
    lambda x: P(*[None] * (x.ndim - 1), 'tower') if split and x.ndim else P(),
    tree,
  )


def batch_spec() -> P:
  """Spec of a batch: its rows are split over the axis 'data'."""
  return P('data')


def shardings(mesh: Mesh | None, specs: PyTree) -> PyTree:
  """The specs on the mesh; without one, the device."""
  if mesh is None:
    device = SingleDeviceSharding(jax.local_devices()[0])
    make = lambda _: device
  else:
    make = lambda spec: NamedSharding(mesh, spec)
  return jax.tree.map(make, specs, is_leaf=lambda x: isinstance(x, P))


def place(
  tree: PyTree, mesh: Mesh | None, specs: PyTree = REPLICATED
) -> PyTree:
  """Puts a tree on the device, or on the mesh as `specs` (a prefix) say."""
  return jax.device_put(tree, shardings(mesh, specs))


def shard(
  fn: Callable, mesh: Mesh | None, in_specs: PyTree, out_specs: PyTree
) -> Callable:
  """`fn` on every device of the mesh; `fn` itself where there is no mesh."""
  if mesh is None:
    return fn
  return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def global_rows(num_local: int, mesh: Mesh | None) -> Int[Array, 'batch']:
  """Rows of the global batch that this device holds (call inside `shard`)."""
  rows = jnp.arange(num_local)
  return rows if mesh is None else rows + lax.axis_index('data') * num_local


def local_towers(num_towers: int, num_devices: int) -> Int[Array, 'towers']:
  """Numbers of the towers on this device, `num_devices` sharing the net."""
  towers = jnp.arange(num_towers // num_devices)
  if num_devices == 1:
    return towers
  return towers + lax.axis_index('tower') * towers.size


def gather(
  x: Float[Array, '... features'], num_devices: int, to: str = 'varying'
) -> Float[Array, '... all_features']:
  """The maps of both towers, on the device of each: where the GPUs talk.

  With `to='varying'` the backward pass is a reduce-scatter; the logits take
  'invarying', since the loss computed from them is the same on both devices.
  """
  if num_devices == 1:
    return x
  return lax.all_gather(x, 'tower', axis=x.ndim - 1, tiled=True, to=to)


def grouped_conv(
  x: Float[Array, 'batch height width in_features'],
  kernel: Float[Array, 'kernel_height kernel_width group_in features'],
  stride: int,
  padding: Sequence[tuple[int, int]],
  groups: int,
) -> Float[Array, 'batch out_height out_width features']:
  """Convolution whose output group i reads input group i alone.

  The groups are split by hand: XLA's `feature_group_count` is 25 times slower
  in the weight gradient on CPU, and makes the partitioner gather weights.
  """
  parts = [
    lax.conv_general_dilated(
      part,
      part_kernel,
      (stride, stride),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    for part, part_kernel in zip(
      jnp.split(x, groups, axis=-1),
      jnp.split(kernel, groups, axis=-1),
      strict=True,
    )
  ]
  return jnp.concatenate(parts, axis=-1)


def add_bias(
  x: Float[Array, '... features'], bias: Float[Array, 'features']
) -> Float[Array, '... features']:
  """`x + bias`, with the gradient of the bias taken as a matrix product.

  As a plain sum, XLA on CPU fuses the whole backward chain of the layer into
  that reduction; the product with ones stops it (12% of the train step).
  """
  missing = tuple(jax.typeof(x).mat.varying - jax.typeof(bias).mat.varying)
  # Inside shard_map a custom gradient must vary over the axes its primal does.
  return _add_bias(
    x, lax.pcast(bias, missing, to='varying') if missing else bias
  )


@jax.custom_vjp
def _add_bias(x, bias):
  return x + bias[(None,) * (x.ndim - 1)]


def _add_bias_fwd(x, bias):
  return _add_bias(x, bias), None


def _add_bias_bwd(_, g):
  flat = g.reshape(-1, g.shape[-1])
  ones = jnp.ones((8, flat.shape[0]), g.dtype)  # 8 rows: one vector register.
  return g, jnp.matmul(ones, flat, precision=lax.Precision.HIGHEST)[0]


_add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
