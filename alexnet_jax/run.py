"""A run: a checked config with its data set and devices.

`open_run` reports every mistake in them before anything is compiled. Modules
below this one take values, not the config.
"""

from collections.abc import Callable, Generator, Sequence
import dataclasses
import functools
import json
import logging

import flax
import jax
from jaxtyping import PyTree
import ml_collections

from alexnet_jax import augment
from alexnet_jax import cache as cache_lib
from alexnet_jax import config as config_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import input_pipeline
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import recorded_config
from alexnet_jax.runtime import jax_settings
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)


@flax.struct.dataclass
class Statistics:
  """Statistics of the training set, on the devices."""

  mean_image: PyTree  # float32 [size, size, 3], 0..255
  directions: PyTree  # float32 [3, 3], see augment.color_directions


@dataclasses.dataclass(frozen=True)
class Run:
  """A checked and resolved config with its data set and devices."""

  config: ml_collections.ConfigDict
  dataset: dataset_lib.Dataset
  mesh: jax.sharding.Mesh | None  # None for a single device.
  statistics: Statistics
  caches: dict[str, cache_lib.Cache]  # By split, of those that are cached.

  @property
  def network(self) -> model.AlexNet:
    """The network for this mesh; call it inside `mesh.shard_map`."""
    sizes = mesh_lib.model_parallel_sizes(self.config.mesh.layout, self.mesh)
    return model.AlexNet(**self.config.model, **sizes)

  @property
  def random_views(self) -> Callable:
    """`augment.random_views` with the settings of the config."""
    return functools.partial(
      augment.random_views,
      crop_size=self.config.input.crop_size,
      flip=self.config.augment.flip,
      color_divide=self.config.augment.color_divide,
      central_mean=self.config.augment.central_mean,
      channel_stds=self.config.input.channel_stds,
    )

  @property
  def make_optimizer(self) -> Callable:
    """`optimizer.paper_sgd` of the rates, with the settings of the config."""
    return functools.partial(
      optimizer.paper_sgd,
      momentum=self.config.optimizer.momentum,
      weight_decay=self.config.optimizer.weight_decay,
      decay_biases=self.config.optimizer.decay_biases,
      frozen_layers=self.config.optimizer.frozen_layers,
    )

  def param_specs(self, tree: PyTree) -> PyTree:
    """Partition specs of a tree of parameters, or of the train state."""
    return mesh_lib.param_specs(
      tree, self.mesh, self.network.layers_sharded_over_data
    )

  def train_batches(self, step: int) -> Generator[PyTree]:
    """Endless training batches from step `step` on, on the devices."""
    inputs = self.config.input
    make = functools.partial(
      input_pipeline.train_batches, seed=self.config.seed, start_step=step
    )
    return self._batches(make, inputs.train_split, inputs.batch_size)

  def eval_batches(self) -> Generator[PyTree]:
    """Every example of the evaluation split once, on the devices."""
    split, size = self.config.input.eval_split, self.config.eval.batch_size
    return self._batches(input_pipeline.eval_batches, split, size)

  def _batches(self, make, split, batch_size):
    cache = self.caches.get(split)

    def put(batch):
      if 'row' in batch:
        return cache.gather(batch['row'], batch_size, self.mesh)
      return placement.place_batch(batch, self.mesh)

    batches = make(
      self.dataset,
      split,
      batch_size=batch_size,
      batch_indices=placement.local_batch_indices(batch_size, self.mesh),
      cache=cache,
      max_bad_records=self.config.input.max_bad_records,
    )
    return input_pipeline.prefetch_to_device(batches, put)


def open_run(
  config: ml_collections.ConfigDict,
  *,
  trains: bool = True,
  devices: Sequence[jax.Device] | None = None,
) -> Run:
  """Starts JAX, checks the config, opens its data set, and creates its mesh.

  Args:
    config: a config with the keys of configs/paper.py.
    trains: whether the training split will be read, or only that of evaluation.
    devices: devices of the run; None for all.

  Raises:
    ValueError: if the config or the data set is invalid, or they do not match.
    FileNotFoundError: if the data set has not been prepared.
  """
  jax_settings.start()
  devices = devices or jax.devices()
  config_lib.check(config, len(devices))
  inputs = config.input
  dataset = dataset_lib.open_dataset(
    inputs.data_dir, inputs.dataset, inputs.image_size
  )
  config = recorded_config.resolve(config, len(dataset.class_names))
  config_lib.check(config, len(devices))
  dataset_lib.check_dataset(
    dataset,
    image_size=inputs.image_size,
    num_classes=config.model.num_classes,
    splits={
      'config.input.train_split': inputs.train_split,
      'config.input.eval_split': inputs.eval_split,
    },
  )
  processes.check_same(
    {
      'the config': json.dumps(config_lib.flatten(config), sort_keys=True),
      f'the data set {dataset.path}': dataset.fingerprint,
    }
  )
  mesh = mesh_lib.create_mesh(
    config.mesh.layout, config.mesh.towers, devices, config.model.num_towers
  )
  log.info('Devices: %d x %s.', len(devices), devices[0].device_kind)
  directions = augment.color_directions(
    dataset.rgb_covariance, config.augment.color_square_root
  )
  mean_image = dataset.mean_image
  if inputs.channel_means:
    mean_image = augment.constant_mean_image(
      inputs.image_size, inputs.channel_means
    )
  statistics = Statistics(mean_image, directions)
  splits = {inputs.train_split, inputs.eval_split}
  if not trains:
    splits = {inputs.eval_split}
  caches = cache_lib.open_caches(inputs.cache, dataset, sorted(splits), mesh)
  return Run(config, dataset, mesh, placement.place(statistics, mesh), caches)
