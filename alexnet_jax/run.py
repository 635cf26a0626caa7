"""What training and evaluation share: a checked run, its state, its record.

`open_run` finds every mistake of a user before anything is compiled.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib

from clu import parameter_overview
import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree
import ml_collections
import numpy as np

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import compilation
from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import prepare
from alexnet_jax import processes
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
  may_change: frozenset[str]

  @property
  def network(self) -> model.AlexNet:
    """The network, for use on this mesh (inside `towers.shard`)."""
    sharing = towers.sharing(self.config.mesh.layout, self.mesh)
    return model.AlexNet(**self.config.model, **sharing)

  def param_specs(self, tree: PyTree) -> PyTree:
    """`towers.param_specs` of the network's parameters, or the train state."""
    return towers.param_specs(tree, self.mesh, self.network.data_split)

  def local_rows(self, batch_size: int) -> Int[np.ndarray, 'rows']:
    """Rows of the global batch that this process reads."""
    return towers.local_rows(batch_size, self.mesh)

  def place_batch(self, batch: input_pipeline.Batch) -> PyTree:
    """The global batch, split over the mesh, from the rows of this process."""
    return towers.place_batch(batch, self.mesh)


def open_run(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  may_change: frozenset[str] = config_lib.MAY_CHANGE,
) -> Run:
  """Checks config, work directory and data set, in this order.

  The digits, which need no download, are prepared on first use.

  Args:
    config: with the keys of configs/paper.py.
    workdir: is only looked at.
    may_change: keys in which an earlier command on `workdir` may differ.

  Raises:
    ValueError: if one is wrong, or if they do not fit each other.
    FileNotFoundError: if the data set has not been prepared.
  """
  config_lib.check(config, jax.device_count())
  workdir = config_lib.check_workdir(workdir, config, may_change)
  inputs = config.input
  path = input_pipeline.dataset_path(inputs.data_dir, inputs.dataset)
  if inputs.dataset == 'digits':
    _prepare_digits(path, inputs)
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
  processes.check_same(
    {
      'the config': json.dumps(config_lib.flatten(config), sort_keys=True),
      '--workdir': str(workdir),
      f'the data set {path}': dataset.fingerprint,
    }
  )
  mesh = towers.create_mesh(
    config.mesh.layout,
    config.mesh.towers,
    jax.devices(),
    config.model.num_towers,
  )
  log.info(
    'Devices: %d x %s.', jax.device_count(), jax.devices()[0].device_kind
  )
  directions = augment.color_directions(
    dataset.rgb_covariance, config.augment.color_square_root
  )
  statistics = towers.place(Statistics(dataset.mean_image, directions), mesh)
  run = Run(config, workdir, dataset, mesh, statistics, may_change)
  if not (workdir / checkpoint.FOLDER).exists() and config.train.init_workdir:
    _open_pretrained(run).close()
  return run


def _prepare_digits(path, inputs):
  for its_turn in (processes.is_first(), True):
    if its_turn and not path.exists():
      prepare.prepare(
        'digits', 'digits', inputs.data_dir, size=inputs.image_size
      )
    processes.wait('digits')  # Other hosts may share the folder, or not.


@contextlib.contextmanager
def owned_workdir(run: Run) -> Iterator[None]:
  """Makes the work directory and records the config; holds it for this run.

  Raises:
    ValueError: if it cannot be written, another run holds it, or not all hosts
      see it.
  """
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      run.workdir.mkdir(parents=True, exist_ok=True)
      stack.enter_context(files.locked(run.workdir))
      config_lib.open_workdir(run.workdir, run.config)
    processes.wait('work directory')
    unseen = not (run.workdir / config_lib.CONFIG_FILE).exists()
    if processes.any_of(unseen):
      raise ValueError(
        f'--workdir={run.workdir} must lie on a file system that all hosts share:'
        ' process 0 has written to it, and another does not see it'
      )
    yield


@flax.struct.dataclass
class TrainState:
  """All that a step changes: nothing random is in it.

  Fields are trees of arrays, or of what stands for them (specs, shapes).
  """

  step: PyTree  # int32 scalar: steps done.
  params: PyTree
  opt_state: PyTree  # v of the paper.


def initial_state(
  net: model.AlexNet, crop_size: int, key: Key[Array, '']
) -> TrainState:
  """The state of a network, made for one device, before any step."""
  params = net.init(key, jnp.zeros((1, crop_size, crop_size, 3)))['params']
  opt_state = optimizer.paper_sgd({}, 0.0, 0.0).init(params)
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def create_train_state(run: Run) -> TrainState:
  """The state before the first step, placed on the mesh."""
  options = compilation.once_options()
  create = jax.jit(_creator(run), compiler_options=options)
  state = create(jax.random.key(run.config.seed))
  return towers.place(state, run.mesh, run.param_specs(state))


def state_template(run: Run, num_classes: int | None = None) -> TrainState:
  """Shapes, dtypes and shardings of the state, without its arrays.

  Args:
    run: whose config has the network.
    num_classes: classes of the network; None for those of the config.
  """
  shapes = jax.eval_shape(_creator(run, num_classes), jax.random.key(0))
  shardings = towers.shardings(run.mesh, run.param_specs(shapes))
  return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, shardings)


def _open_pretrained(run: Run) -> checkpoint.Checkpoints:
  """The checkpoints that config.train.init_workdir names, if they fit.

  Raises:
    ValueError: if they are of another network, but for its classes.
    FileNotFoundError: if there are none.
  """
  workdir = pathlib.Path(run.config.train.init_workdir).expanduser()
  where = f'config.train.init_workdir={run.config.train.init_workdir}'
  for name in (config_lib.CONFIG_FILE, checkpoint.FOLDER):
    if not (workdir / name).exists():
      raise FileNotFoundError(
        f'{where} has no {name}; name the --workdir of a training'
      )
  config_lib.check_same_network(
    run.config, config_lib.flatten(config_lib.read_config(workdir)), where
  )
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    checkpoints.step_of('latest')
  except FileNotFoundError as error:
    checkpoints.close()
    raise FileNotFoundError(f'{where}: {error}') from error
  return checkpoints


def _pretrained(run: Run, state: TrainState) -> TrainState:
  """The new state with the parameters of config.train.init_workdir.

  The classifier, fc8, stays new: its classes may be others (section 6).
  """
  where = f'config.train.init_workdir={run.config.train.init_workdir}'
  with contextlib.closing(_open_pretrained(run)) as checkpoints:
    step = checkpoints.step_of('latest')
    try:
      config = checkpoints.read_record(step)['config']
      # Whole on every device: towers may not divide the other classes.
      whole = towers.shardings(run.mesh, towers.REPLICATED)
      template = jax.tree.map(
        lambda x: x.update(sharding=whole),
        state_template(run, config['model.num_classes']),
      )
      params = checkpoints.restore(template, step).params
    except checkpoint.DamagedError as error:
      raise ValueError(
        f'{where}: the checkpoint of step {step} cannot be read ({error});'
        ' --mode=train there goes on from the one before'
      ) from error
  log.info('All layers but fc8 begin with those of step %d of %s.', step, where)
  params |= {'fc8': state.params['fc8']}
  placed = towers.place(params, run.mesh, run.param_specs(params))
  return state.replace(params=placed)


def _creator(run, num_classes=None):
  settings = dict(run.config.model)
  if num_classes is not None:
    settings['num_classes'] = num_classes
  net = model.AlexNet(**settings)
  return functools.partial(initial_state, net, run.config.input.crop_size)


@dataclasses.dataclass(frozen=True)
class Record:
  """What a checkpoint holds beside the train state."""

  config: dict[str, object]  # By dotted key.
  dataset: str  # Its fingerprint.
  metrics: dict[str, float]  # The newest row, by tag.
  plateau: optimizer.Plateau = optimizer.Plateau()
  stuck_steps: int = 0  # Up to this checkpoint, see train.PlateauGuard.
  wall_seconds: float = 0.0  # Up to this checkpoint, less what kills lost.


def create_or_restore(
  run: Run, checkpoints: checkpoint.Checkpoints
) -> tuple[TrainState, Record]:
  """The state of the newest readable checkpoint, else a new one.

  Raises:
    ValueError: if the checkpoint was made with another config or data set, or
      if none can be read.
  """
  restored = checkpoints.restore_latest(
    state_template(run), functools.partial(check_record, run)
  )
  if restored is None:
    state = create_train_state(run)
    if run.config.train.init_workdir:
      state = _pretrained(run, state)
    params = metrics.fetch(state.params)
    if processes.is_first():
      table = parameter_overview.get_parameter_overview(
        params, include_stats=True
      )
      log.info('Parameters:\n%s', table)
    config = config_lib.flatten(run.config)
    return state, Record(config, run.dataset.fingerprint, metrics={})
  state, record = restored
  log.info(
    'Restored the checkpoint of step %d.', int(metrics.fetch(state.step))
  )
  plateau = optimizer.Plateau(**record['plateau'])
  return state, Record(**record | {'plateau': plateau})


def check_record(run: Run, record: dict) -> None:
  """Raises ValueError if a checkpoint is not of this config and data set."""
  config_lib.check_unchanged(
    run.config, record['config'], 'the checkpoint', run.may_change
  )
  if record['dataset'] != run.dataset.fingerprint:
    raise ValueError(
      f'the checkpoint was made with other images than {run.dataset.path} now'
      ' holds; use a fresh --workdir'
    )
