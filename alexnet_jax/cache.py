"""Decoded examples in memory, so that hardly any image is decoded twice.

A cache holds a whole split. The input pipeline fills it during the first epoch,
in the order in which the examples are read; from then on a batch is a copy. In
the mode 'device' the split then moves to the devices, each of which gathers its
part of a batch by index: only indices cross. The batches are the same to the
bit in all modes.
"""

import collections
from collections.abc import Callable, Sequence
from concurrent import futures
import logging
import math
import threading

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, UInt8
import numpy as np

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import records
from alexnet_jax.runtime import huge_pages
from alexnet_jax.runtime import memory
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

MODES = ('none', 'host', 'device', 'auto')
PADDING = -1  # As a row.
SHARE = 0.5  # The most that 'auto' takes of the free memory.

# Reads the example of a row: decodes its image into an array, returns its label.
Read = Callable[[int, UInt8[np.ndarray, 'size size 3']], int]


class Cache:
  """The decoded examples of one split, by row: their index in stored order."""

  def __init__(
    self, num_examples: int, image_size: int, devices: Sequence[jax.Device] = ()
  ):
    """Creates an empty cache.

    Args:
      num_examples: number of examples of the split.
      image_size: side of the images in pixels.
      devices: devices of this process that will get the examples; none to keep
        them on the host.
    """
    shape = (num_examples, image_size, image_size, 3)
    pages = huge_pages.allocate(math.prod(shape))  # Mapped when written.
    self._images = np.frombuffer(pages, np.uint8).reshape(shape)
    self._labels = np.zeros(num_examples, np.int32)
    self._is_decoded = np.zeros(num_examples, bool)
    self._devices, self._gather = devices, None
    self._num_unread = num_examples
    self._lock = threading.Lock()

  def read(
    self, read: Read, row: int, out: UInt8[np.ndarray, 'size size 3']
  ) -> int:
    """Does what `read` does, from memory if the row has been decoded."""
    # Threads that read the same row at the same time decode it into their own
    # `out`, and then write the same bytes here.
    if self._is_decoded[row]:
      out[:] = self._images[row]
    else:
      self._labels[row] = read(row, out)
      self._images[row] = out
      self._is_decoded[row] = True
    return int(self._labels[row])

  def take(
    self,
    rows: Sequence[int],
    images: UInt8[np.ndarray, 'batch size size 3'],
    labels: Int[np.ndarray, 'batch'],
  ) -> bool:
    """Copies decoded examples; returns False if one is not decoded yet."""
    if not self._is_decoded[rows].all():
      return False
    # NumPy copies straight into `out` unless mode is 'raise'.
    np.take(self._images, rows, axis=0, out=images, mode='clip')
    np.take(self._labels, rows, out=labels, mode='clip')
    return True

  def load(
    self, rows: Int[np.ndarray, 'rows'], load: Callable, read: Read
  ) -> dict[str, np.ndarray]:
    """A batch from `load(rows)`; only {'row': rows} where `gather` makes it.

    The devices get the split when all of it has been read once. With several
    processes some rows were read only by others; these are decoded first.
    """
    with self._lock:  # Training and evaluation may read the same split.
      if self._devices and self._gather is None and self._num_unread <= 0:
        missing = np.flatnonzero(~self._is_decoded).tolist()
        with futures.ThreadPoolExecutor(processes.available_cores()) as threads:
          fill = lambda row: self.read(read, row, self._images[row])
          collections.deque(threads.map(fill, missing), 0)
        self._gather = _Gather(self._images, self._labels, self._devices)
        self._images = self._labels = None
      if self._gather is not None:
        return {'row': rows}
      self._num_unread -= len(rows)
      return load(rows)

  def gather(
    self, rows: Int[np.ndarray, 'rows'], batch_size: int, mesh: Mesh | None
  ) -> dict[str, Array]:
    """The batch that `placement.place_batch` would put on the devices.

    Args:
      rows: rows of the global batch, without padding.
      batch_size: number of examples with padding.
      mesh: mesh over which the batch is sharded.
    """
    return self._gather(rows, batch_size, mesh)


class _Gather:
  """Gathers batches on the devices of this process, which have the split.

  Each process runs this program by itself, on its own devices.
  """

  def __init__(self, images, labels, devices):
    self._devices = devices
    local_mesh = Mesh(devices, ('device',))
    self._sharding = NamedSharding(local_mesh, P('device'))

    shape = images.shape[1:]

    def take(flat, labels, rows):
      labels = jnp.take(labels, rows, mode='clip')
      mask = (rows != PADDING) & (labels != records.MASKED)
      pixels = jnp.take(flat, rows, axis=0, mode='clip')
      pixels = jnp.where(mask[:, None], pixels, 0)
      return {
        'image': pixels.reshape(-1, *shape),
        'label': jnp.where(mask, labels, 0),
        'mask': mask,
      }

    specs = (P(), P(), P('device'))
    self._take = jax.jit(
      jax.shard_map(
        take, mesh=local_mesh, in_specs=specs, out_specs=P('device')
      )
    )
    # A TPU pads the last two axes to whole tiles: here there are only two.
    flat = images.reshape(len(images), -1)
    replicated = NamedSharding(local_mesh, P())
    self._examples = jax.device_put((flat, labels), replicated)

  def __call__(self, rows, batch_size, mesh):
    padding = (0, batch_size - len(rows))
    rows = np.pad(rows.astype(np.int32), padding, constant_values=PADDING)
    sharding = _batch_sharding(mesh)
    parts = sharding.addressable_devices_indices_map(rows.shape)
    local = np.concatenate([rows[parts[device]] for device in self._devices])
    batch = self._take(*self._examples, jax.device_put(local, self._sharding))

    def assemble(x):
      shape = (len(rows), *x.shape[1:])
      shards = [shard.data for shard in x.addressable_shards]
      return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    return jax.tree.map(assemble, batch)


def open_caches(
  mode: str,
  dataset: dataset_lib.Dataset,
  splits: Sequence[str],
  mesh: Mesh | None,
) -> dict[str, Cache]:
  """Empty caches by split; none if the mode is, or comes to, 'none'.

  All processes must call it; all choose the same.

  Args:
    mode: config.input.cache, one of `MODES`.
    dataset: data set to read.
    splits: names of the splits that will be read.
    mesh: mesh over which batches are sharded.

  Raises:
    ValueError: if the splits do not fit where the mode asks for them.
  """
  if mode == 'none':
    return {}
  size, num_examples = dataset.image_size, dataset.num_examples
  bytes_each = 3 * size**2 + 4  # With its label.
  needed = bytes_each * sum(num_examples[split] for split in splits)
  host, device = memory.of_each_process(), memory.of_each_device()
  chosen = choose(mode, needed, host, device)
  where = {'none': 'not cached', 'host': 'cached in host memory'}
  log.info(
    'Decoded images of %s: %s (config.input.cache=%s); they take %s, of %s that'
    ' are free%s.',
    ' and '.join(splits),
    where.get(chosen, 'cached on the devices'),
    mode,
    _mib(needed),
    _mib(host),
    '' if device is None else f' on the host, and {_mib(device)} on a device',
  )
  if chosen == 'none':
    return {}
  devices = ()
  if chosen == 'device':
    devices = _batch_sharding(mesh).addressable_devices
    devices = sorted(devices, key=lambda device: device.id)
  return {s: Cache(num_examples[s], size, devices) for s in splits}


def _batch_sharding(mesh):
  return mesh_lib.shardings(mesh, mesh_lib.batch_spec())


def choose(mode: str, needed: int, host: int, device: int | None) -> str:
  """The mode that 'auto' comes to; another mode itself, if the set fits.

  On its way to the devices the set is filled on the host.

  Args:
    mode: config.input.cache.
    needed: bytes of the decoded set.
    host: free bytes of the host, for each process.
    device: free bytes of each accelerator; None if unknown, as on CPU.

  Raises:
    ValueError: if the set does not fit where the mode asks for it.
  """
  if mode == 'auto':
    if needed > SHARE * host:
      return 'none'
    fits_devices = device is not None and needed <= SHARE * device
    return 'device' if fits_devices else 'host'
  places = {'of the host for each process': host}
  if mode == 'device' and device is not None:
    places['of each device'] = device
  for place, free in places.items():
    if needed > free:
      raise ValueError(
        f'config.input.cache={mode}: the decoded images take {_mib(needed)},'
        f' but of the memory {place} {_mib(free)} are free; use'
        " config.input.cache='auto', which takes what fits"
      )
  return mode


def _mib(number):
  return f'{number / 2**20:,.0f} MiB'
