"""The train state: created, restored from a checkpoint, or pretrained."""

from collections.abc import Callable
import dataclasses
import functools
import logging

from clu import parameter_overview
import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import recorded_config
from alexnet_jax import run as run_lib
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes; nothing in it is random.

  Fields are trees of arrays, or of what stands for them (specs, shapes).
  """

  step: PyTree  # int32 scalar: steps done.
  params: PyTree
  opt_state: PyTree  # v of the paper.


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
  """What a checkpoint holds beside the train state.

  Attributes:
    config: values by dotted key.
    dataset: fingerprint of the data set.
    metrics: the newest row, by tag.
    plateau: the controller of the schedule 'plateau'.
    stuck_steps: steps near the loss of chance, see `chance_loss.ChanceLossWarning`.
    wall_seconds: time of the run so far, without what kills lost.
  """

  config: dict[str, object]
  dataset: str
  metrics: dict[str, float]
  plateau: optimizer.Plateau = optimizer.Plateau()
  stuck_steps: int = 0
  wall_seconds: float = 0.0


def initial_state(
  net: model.AlexNet,
  make_optimizer: Callable,
  crop_size: int,
  key: Key[Array, ''],
) -> TrainState:
  """The state of a network before any step, for a single device.

  Args:
    net: with `tower_devices` and `fc_devices` 1.
    make_optimizer: makes the optimiser from learning rates.
    crop_size: side of the crops in pixels.
    key: of the initial weights.
  """
  params = net.init(key, jnp.zeros((1, crop_size, crop_size, 3)))['params']
  opt_state = make_optimizer({}).init(params)
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def create_train_state(run: run_lib.Run) -> TrainState:
  """The state before the first step, placed on the mesh."""
  options = compilation.fast_compile_options()
  create = jax.jit(_creator(run), compiler_options=options)
  state = create(jax.random.key(run.config.seed))
  return placement.place(state, run.mesh, run.param_specs(state))


def state_template(
  run: run_lib.Run, num_classes: int | None = None
) -> TrainState:
  """Shapes, dtypes and shardings of the state, without its arrays.

  Args:
    run: whose config describes the network.
    num_classes: classes of the network; None for those of the config.
  """
  shapes = jax.eval_shape(_creator(run, num_classes), jax.random.key(0))
  shardings = mesh_lib.shardings(run.mesh, run.param_specs(shapes))
  return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, shardings)


def _creator(run, num_classes=None):
  settings = dict(run.config.model)
  if num_classes is not None:
    settings['num_classes'] = num_classes
  return functools.partial(
    initial_state,
    model.AlexNet(**settings),
    run.make_optimizer,
    run.config.input.crop_size,
  )


def create_or_restore(
  run: run_lib.Run,
  checkpoints: checkpoint.Checkpoints,
  create: Callable[[run_lib.Run], TrainState] = create_train_state,
) -> tuple[TrainState, CheckpointMetadata]:
  """The state of the newest readable checkpoint, else a new one.

  Args:
    run: whose state.
    checkpoints: of its work directory.
    create: makes the new state.

  Raises:
    ValueError: if the checkpoint was made with another config or data set, or
      if none can be read.
  """
  restored = checkpoints.restore_latest(
    state_template(run), functools.partial(check_metadata, run)
  )
  if restored is None:
    state = create(run)
    params = placement.fetch(state.params)
    if processes.is_first():
      table = parameter_overview.get_parameter_overview(
        params, include_stats=True
      )
      log.info('Parameters:\n%s', table)
    config = config_lib.flatten(run.config)
    fingerprint = run.dataset.fingerprint
    return state, CheckpointMetadata(config, fingerprint, metrics={})
  state, metadata = restored
  log.info(
    'Restored the checkpoint of step %d.', int(placement.fetch(state.step))
  )
  plateau = optimizer.Plateau(**metadata['plateau'])
  return state, CheckpointMetadata(**metadata | {'plateau': plateau})


def check_metadata(
  run: run_lib.Run,
  metadata: dict,
  may_change: frozenset[str] = recorded_config.MAY_CHANGE,
) -> None:
  """Raises ValueError if a checkpoint is not of this config and data set."""
  recorded_config.check_unchanged(
    run.config,
    recorded_config.upgrade(metadata['config']),
    'the checkpoint',
    may_change,
  )
  if metadata['dataset'] != run.dataset.fingerprint:
    raise ValueError(
      f'the checkpoint was made with other images than {run.dataset.path} now'
      ' holds; use a fresh --workdir'
    )
