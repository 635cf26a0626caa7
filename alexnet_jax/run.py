"""What training and evaluation share: a checked run, its state, its record.

`open_run` finds every mistake of a user before anything is compiled.
"""

import dataclasses
import logging
import os
import pathlib

from clu import parameter_overview
import flax
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import prepare
from alexnet_jax import towers

log = logging.getLogger(__name__)


@flax.struct.dataclass
class Statistics:
  """The training set's statistics, on the device."""

  mean_image: PyTree  # float32 [size, size, 3], 0..255
  directions: PyTree  # float32 [3, 3], see augment.color_directions


@dataclasses.dataclass(frozen=True)
class Run:
  """A checked config with its work directory, data set and devices."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  dataset: input_pipeline.Dataset
  mesh: jax.sharding.Mesh | None
  statistics: Statistics

  @property
  def network(self) -> model.AlexNet:
    """The network, for use on this mesh (inside `towers.shard`)."""
    num_devices = towers.tower_devices(self.mesh)
    return model.AlexNet(**self.config.model, tower_devices=num_devices)

  def place_batch(self, batch: input_pipeline.Batch) -> PyTree:
    """The batch, its rows split over the mesh."""
    return towers.place(batch, self.mesh, towers.batch_spec())


def open_run(
  config: ml_collections.ConfigDict, workdir: str | os.PathLike
) -> Run:
  """Checks config, data set and work directory, in this order.

  The digits, which need no download, are prepared on first use.

  Raises:
    ValueError: if one is wrong, or if they do not fit each other.
    FileNotFoundError: if the data set has not been prepared.
  """
  config_lib.check(config, jax.device_count())
  inputs = config.input
  path = input_pipeline.dataset_path(inputs.data_dir, inputs.dataset)
  if inputs.dataset == 'digits' and not path.exists():
    prepare.prepare('digits', 'digits', inputs.data_dir, size=inputs.image_size)
  dataset = input_pipeline.open_dataset(inputs.data_dir, inputs.dataset)
  input_pipeline.check_dataset(
    dataset,
    image_size=inputs.image_size,
    num_classes=config.model.num_classes,
    splits={
      'config.input.train_split': inputs.train_split,
      'config.input.eval_split': inputs.eval_split,
    },
  )
  workdir = config_lib.open_workdir(workdir, config)
  mesh = towers.create_mesh(
    config.mesh.layout, config.mesh.towers, jax.devices()
  )
  directions = augment.color_directions(dataset.rgb_covariance)
  statistics = towers.place(Statistics(dataset.mean_image, directions), mesh)
  return Run(config, workdir, dataset, mesh, statistics)


@flax.struct.dataclass
class TrainState:
  """All that a step changes: nothing random is in it.

  Fields are trees of arrays, or of what stands for them (specs, shapes).
  """

  step: PyTree  # int32 scalar: steps done.
  params: PyTree
  opt_state: PyTree  # v of the paper.


def create_train_state(run: Run) -> TrainState:
  """The state before the first step, placed on the mesh."""
  net = model.AlexNet(**run.config.model)
  crop = run.config.input.crop_size

  def create(key):
    params = net.init(key, jnp.zeros((1, crop, crop, 3)))['params']
    opt_state = optimizer.paper_sgd(0.0, 0.0, 0.0).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

  state = jax.jit(create)(jax.random.key(run.config.seed))
  return towers.place(state, run.mesh, towers.param_specs(state, run.mesh))


@dataclasses.dataclass(frozen=True)
class Record:
  """What a checkpoint holds beside the train state."""

  config: dict[str, object]  # By dotted key.
  metrics: dict[str, float]  # The newest row, by tag.
  plateau: optimizer.Plateau = optimizer.Plateau()
  wall_seconds: float = 0.0  # Of all commands so far.


def create_or_restore(
  run: Run, checkpoints: checkpoint.Checkpoints, step: int | None = None
) -> tuple[TrainState, Record]:
  """The state of the newest checkpoint (or of `step`), else a new one.

  Raises:
    ValueError: if the checkpoint was made with another config, or is damaged.
  """
  state = create_train_state(run)
  if step is None:
    restored = checkpoints.restore_latest(state)
  else:
    restored = checkpoints.restore(state, step)
  if restored is None:
    table = parameter_overview.get_parameter_overview(
      state.params, include_stats=True
    )
    log.info('Parameters:\n%s', table)
    return state, Record(config_lib.flatten(run.config), {})
  state, record = restored
  record = Record(
    **record | {'plateau': optimizer.Plateau(**record['plateau'])}
  )
  config_lib.check_unchanged(run.config, record.config, 'the checkpoint')
  log.info(
    'Restored the checkpoint of step %d.', int(metrics.fetch(state.step))
  )
  return state, record
