"""The train state: created, restored from a checkpoint, or pretrained."""

from collections.abc import Callable
import dataclasses
import functools
import logging

from clu import parameter_overview
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_files
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
  """Everything that a train step updates; it holds no random state.

  Fields are trees of arrays, or of their shapes or partition specs.
  """

  step: PyTree  # int32 scalar: number of completed steps.
  params: PyTree
  opt_state: PyTree  # The paper's momentum variable v, by parameter.


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
  """Metadata that a checkpoint stores with the train state.

  Attributes:
    config: config values by dotted key.
    dataset: fingerprint of the data set.
    metrics: the newest row of metrics, by tag.
    plateau: state of the schedule 'plateau'.
    stuck_steps: number of steps at chance level, see `chance_loss`.
    lowest_loss: lowest loss of a row so far, see `rising_loss`.
    steady_step: first step of the newest row whose loss did not rise away.
    wall_seconds: duration of the run so far, less work lost to interruptions.
    unfinished: sums of the row of metrics that a stop has interrupted, see
      `metrics.Totals`; empty if the row of this step was written.
  """

  config: dict[str, object]
  dataset: str
  metrics: dict[str, float]
  plateau: optimizer.Plateau = optimizer.Plateau()
  stuck_steps: int = 0
  lowest_loss: float = float('inf')
  steady_step: int = 0
  wall_seconds: float = 0.0
  unfinished: dict[str, float] = dataclasses.field(default_factory=dict)

  def rows_until(self, step: int) -> int:
    """The last of `step` steps that has a row of metrics, once resumed.

    The unfinished row is written when it ends, also if it was written before.
    """
    return max(step - 1, 1) if self.unfinished else step


def initial_state(
  net: nn.Module, make_optimizer: Callable, crop_size: int, key: Key[Array, '']
) -> TrainState:
  """The state of a network before any step, for a single device.

  Args:
    net: network with the interface of `model.AlexNet`, for a single device.
    make_optimizer: function that makes the optimiser from the learning rates.
    crop_size: side of the crops in pixels.
    key: random key of the initial weights.
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
  """Shapes, dtypes and shardings of the train state.

  Args:
    run: the opened run.
    num_classes: number of classes; None for config.model.num_classes.
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
  """The state of the newest readable checkpoint; a new one if there is none.

  Args:
    run: the opened run.
    checkpoints: checkpoints of its work directory.
    create: function that creates the new state.

  Raises:
    ValueError: if the checkpoint was made with another config or data set, or
      if no checkpoint can be read.
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
  state, record = restored
  log.info(
    'Restored the checkpoint of step %d.', int(placement.fetch(state.step))
  )
  return state, checkpoint_files.parse(CheckpointMetadata, record)


def check_metadata(
  run: run_lib.Run,
  metadata: dict,
  may_change: frozenset[str] = recorded_config.MAY_CHANGE,
) -> None:
  """Checks that a checkpoint has this config and data set.

  Args:
    run: the opened run.
    metadata: metadata of the checkpoint, see `CheckpointMetadata`.
    may_change: config keys that may differ.

  Raises:
    ValueError: if it has others.
    DamagedError: if its metadata are not those of a checkpoint.
  """
  checkpoint_files.parse(CheckpointMetadata, metadata)
  recorded_config.check_unchanged(
    run.config,
    recorded_config.upgrade(metadata['config']),
    'the checkpoint',
    may_change,
  )
  if metadata['dataset'] != run.dataset.fingerprint:
    raise ValueError(
      'the checkpoint was made with other images than are now in'
      f' {run.dataset.path}; use a fresh --workdir'
    )
