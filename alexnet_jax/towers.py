"""The two towers: the device mesh, and what runs inside one tower.

The paper (section 3.5) puts half of the kernels of every layer on each of two
GPUs, which communicate only where a layer reads the maps of both: into conv3,
fc6 and fc7, and for the logits. Here a tower is one half of every layer's
output channels, `[tower 0 | tower 1]` on the last axis of each parameter, so
one parameter tree serves every mesh and layout. One device has no mesh: both
towers run side by side on it. On the mesh ('data', 'tower') the network runs
under `jax.shard_map`, each device with its rows of the batch, and

* layout 'towers': its tower of the parameters. `gather` is the only
  communication of the forward pass;
* layout 'data': all parameters. There is none;
* layout 'one_weird_trick' (Krizhevsky 2014, arXiv:1404.5997): all parameters of
  the convolutions, an equal share of the units of fc6, fc7 and fc8. fc6 gathers
  the maps of all examples, and the logits go back to the device of each.
"""

from collections.abc import Callable, Sequence
import functools

import jax
from jax import lax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree
import numpy as np

REPLICATED = P()
LAYOUTS = ('towers', 'data', 'one_weird_trick')


def mesh_shape(
  layout: str, towers: str | int, num_devices: int, num_towers: int = 2
) -> tuple[int, int]:
  """Sizes of the axes ('data', 'tower') for `num_devices` devices.

  Args:
    layout: one of `LAYOUTS`; all but 'towers' take every device for 'data'.
    towers: devices that share one network: 1, 2, or 'auto', which takes 2
      where there are two towers and `num_devices` is even. Of the layout
      'towers' alone.
    num_devices: devices at hand.
    num_towers: of the network; 2, one per GPU, in section 3.5.

  Raises:
    ValueError: if an odd number of devices, or one tower, is to be split.
  """
  if layout != 'towers':
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
    # A slice of TPUs may have no physical axis of two, for the towers.
    mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    ),
    ('data', 'tower'),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def tower_devices(mesh: Mesh | None) -> int:
  """Number of devices that share one network: 1 or 2."""
  return 1 if mesh is None else mesh.shape['tower']


def sharing(layout: str, mesh: Mesh | None) -> dict[str, int]:
  """The arguments of `model.AlexNet` that say how devices share a network."""
  spread = mesh is not None and layout == 'one_weird_trick'
  return {
    'tower_devices': tower_devices(mesh),
    'fc_devices': mesh.shape['data'] if spread else 1,
  }


def param_specs(
  tree: PyTree, mesh: Mesh | None, data_split: Sequence[str] = ()
) -> PyTree:
  """Specs of a tree of parameters, or of the train state.

  Args:
    tree: whose kernels and biases lie under the names of their layers.
    mesh: where two devices share a network, every leaf is split over them on
      its last axis.
    data_split: layers that are split so over the axis 'data', see
      `model.AlexNet.data_split`.
  """

  def spec(path, x):
    if len(path) > 1 and getattr(path[-2], 'key', None) in data_split:
      return P(*[None] * (x.ndim - 1), 'data')
    if tower_devices(mesh) > 1 and x.ndim:
      return P(*[None] * (x.ndim - 1), 'tower')
    return P()

  return jax.tree.map_with_path(spec, tree)


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
  """Puts a tree on the device, or on the mesh as `specs` (a prefix) say.

  With many processes each has the whole tree, and puts what its devices need.
  """
  if mesh is None or not mesh.is_multi_process:
    return jax.device_put(tree, shardings(mesh, specs))
  full = jax.tree.broadcast(specs, tree, is_leaf=lambda x: isinstance(x, P))
  return jax.tree.map(functools.partial(_put_parts, mesh), tree, full)


def _put_parts(mesh, x, spec):
  # `jax.device_put` would let all processes compare their values each time.
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(
      _put_parts(mesh, jax.random.key_data(x), spec)
    )
  x = np.asarray(x)
  return _assemble(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


def local_rows(batch_size: int, mesh: Mesh | None) -> Int[np.ndarray, 'rows']:
  """Rows of the global batch that the devices of this process need."""
  rows = np.arange(batch_size)
  if mesh is None:
    return rows
  return rows.reshape(mesh.shape['data'], -1)[_local_blocks(mesh)].reshape(-1)


def place_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
  """The global batch on the devices, from this process's `local_rows` of it."""
  if mesh is None or not mesh.is_multi_process:
    return place(batch, mesh, batch_spec())
  sharding, blocks = NamedSharding(mesh, batch_spec()), _local_blocks(mesh)

  def put(x):
    size = len(x) // len(blocks)

    def block(index):
      first = np.searchsorted(blocks, (index[0].start or 0) // size) * size
      return x[first : first + size]

    shape = (size * mesh.shape['data'], *x.shape[1:])
    return _assemble(shape, sharding, block)

  return jax.tree.map(put, batch)


def _assemble(shape, sharding, block):
  with jax.transfer_guard('allow'):  # Which does not know that it is asked for.
    return jax.make_array_from_callback(shape, sharding, block)


def _local_blocks(mesh):
  """Places on the axis 'data' where this process has a device, ascending."""
  process = np.vectorize(lambda device: device.process_index)(mesh.devices)
  return np.flatnonzero((process == jax.process_index()).any(axis=1))


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


def gather(
  x: Float[Array, '...'], axis_name: str, axis: int, to: str = 'varying'
) -> Float[Array, '...']:
  """The parts of all devices of a mesh axis, on each: where the GPUs talk.

  With `to='varying'` the backward pass is a reduce-scatter; the logits take
  'invarying', where the loss computed from them is the same on all devices.
  """
  return lax.all_gather(x, axis_name, axis=axis, tiled=True, to=to)


def send_rows_home(
  x: Float[Array, 'all_rows features'],
) -> Float[Array, 'rows all_features']:
  """From some features of all examples to all features of this device's rows."""
  return lax.all_to_all(x, 'data', split_axis=0, concat_axis=1, tiled=True)


def grouped_conv(
  x: Float[Array, 'batch height width in_features'],
  kernel: Float[Array, 'kernel_height kernel_width group_in features'],
  stride: int,
  padding: Sequence[tuple[int, int]],
  groups: int,
) -> Float[Array, 'batch out_height out_width features']:
  """Convolution whose output group i reads input group i alone.

  Computed in the dtype of `x`. The groups are split by hand: XLA's
  `feature_group_count` is 25 times slower in the weight gradient on CPU, and
  makes the partitioner gather weights.
  """
  kernel = vary_as(kernel, x).astype(x.dtype)
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


def vary_as(x: Array, other: Array) -> Array:
  """`x`, inside `shard` of the type that varies over the axes `other` does.

  Its gradient is summed over the devices here, in the dtype of `x`.
  """
  missing = tuple(jax.typeof(other).mat.varying - jax.typeof(x).mat.varying)
  return lax.pcast(x, missing, to='varying') if missing else x


def add_bias(
  x: Float[Array, '... features'], bias: Float[Array, 'features']
) -> Float[Array, '... features']:
  """`x + bias`; on CPU the gradient of the bias is taken as a matrix product.

  As a plain sum, XLA on CPU fuses the whole backward chain of the layer into
  that reduction; the product with ones stops it (12% of the train step).
  Elsewhere it is the sum: compiled for an A100, the step with the product moves
  14% more memory (experiments/LOG.md). `x` may be of less precision than the
  bias and its gradient.
  """
  # Inside shard_map a custom gradient must vary over the axes its primal does.
  return _add_bias(x, vary_as(bias, x))


@jax.custom_vjp
def _add_bias(x, bias):
  return x + bias.astype(x.dtype)[(None,) * (x.ndim - 1)]


def _add_bias_fwd(x, bias):
  return _add_bias(x, bias), None


def _add_bias_bwd(_, g):
  dtype = jnp.promote_types(g.dtype, jnp.float32)
  if jax.default_backend() != 'cpu':
    return g, g.astype(dtype).sum(tuple(range(g.ndim - 1)))
  flat = g.reshape(-1, g.shape[-1])
  ones = jnp.ones((8, flat.shape[0]), g.dtype)  # 8 rows: one vector register.
  sums = jnp.matmul(
    ones, flat, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
  )
  return g, sums[0]


_add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
