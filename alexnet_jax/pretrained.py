"""Fine-tuning: a new train state with the parameters of another net."""

import contextlib
import logging
import pathlib

import jax
from jaxtyping import PyTree

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_files
from alexnet_jax import checkpoint_path
from alexnet_jax import config as config_lib
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import placement
from alexnet_jax import recorded_config
from alexnet_jax import run as run_lib
from alexnet_jax import shipped_nets
from alexnet_jax import train_state
from alexnet_jax import weights as weights_lib
from alexnet_jax import workdir as workdir_lib

log = logging.getLogger(__name__)


def check(run: run_lib.Run) -> None:
  """Checks what config.train.init_from names, before anything is written.

  Raises:
    ValueError: if its network differs in more than its classes, or its latest
      checkpoint or its file cannot be read.
    FileNotFoundError: if there is none.
  """
  path, where = _source(run)
  if _is_file(path):
    _load_weights(run, path, where)
  else:
    _open_checkpoints(run, path, where).close()


def create_train_state(run: run_lib.Run) -> train_state.TrainState:
  """A new state with the parameters that config.train.init_from names.

  They are those of a .safetensors file, the latest of a work directory, or those
  of one of its checkpoints: WORKDIR/checkpoints/STEP. The classifier, fc8, is
  new, because its classes may differ (section 6); only that of a checkpoint
  which is named, and was trained on the same data set, is kept.

  Raises:
    ValueError: if they cannot be read, or are those of another network.
    FileNotFoundError: if there are none.
  """
  state = train_state.create_train_state(run)
  path, where = _source(run)
  if _is_file(path):
    params, keeps_fc8 = _load_weights(run, path, where), False
    log.info('All layers but fc8 start from %s.', where)
  else:
    step, params, keeps_fc8 = _restore(run, path, where)
    log.info(
      'All layers%s start from step %d of %s.',
      *('' if keeps_fc8 else ' but fc8', step, where),
    )
  if not keeps_fc8:
    params |= {'fc8': state.params['fc8']}
  placed = placement.place(params, run.mesh, run.param_specs(params))
  return state.replace(params=placed)


def _source(run):
  """The path of config.train.init_from, and how messages name it."""
  path = run.config.train.init_from
  found = pathlib.Path(shipped_nets.find(path))
  return found, f'config.train.init_from={path}'


def _split(path):
  """The work directory, and the step if `path` is one of its checkpoints."""
  if path.parent.name == checkpoint.FOLDER and path.name.isdecimal():
    return path.parents[1], int(path.name)
  return path, None


def _is_file(path):
  return path.is_file() or path.suffix == weights_lib.SUFFIX


def _load_weights(run, path, where) -> PyTree:
  if not path.exists():
    raise FileNotFoundError(
      f'{where}: there is no such file; name a .safetensors file or the'
      ' --workdir of another run'
    )
  try:
    weights = weights_lib.load(path)
  except ValueError as error:
    raise ValueError(f'config.train.init_from: {error}') from error
  recorded = config_lib.flatten(weights.config)
  recorded_config.check_same_network(run.config, recorded, where)
  return weights.params


def _open_checkpoints(run, path, where) -> checkpoint.Checkpoints:
  """The checkpoints of a work directory; that which is named can be read."""
  workdir, step = _split(path)
  checkpoint_path.check(workdir)
  for name in (workdir_lib.CONFIG_FILE, checkpoint.FOLDER):
    if not (workdir / name).exists():
      raise FileNotFoundError(
        f'{where}: there is no {workdir / name}{shipped_nets.nor_a_net(workdir)};'
        ' name the --workdir of another run or a .safetensors file'
      )
  recorded_config.check_same_network(
    run.config, config_lib.flatten(workdir_lib.read_config(workdir)), where
  )
  with contextlib.ExitStack() as stack:
    try:
      checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
      stack.callback(checkpoints.close)
      if step is not None and step not in checkpoints.steps():
        raise FileNotFoundError('there is no such checkpoint')
      step = step or checkpoints.step_of('latest')
      metadata = checkpoints.read_metadata(step)
      checkpoint_files.parse(train_state.CheckpointMetadata, metadata)
    except FileNotFoundError as error:
      raise FileNotFoundError(f'{where}: {error}') from error
    except checkpoint.DamagedError as error:
      raise _damaged(path, where, error) from error
    stack.pop_all()  # All is well: they stay open.
  return checkpoints


def _damaged(path, where, error):
  which = 'it' if _split(path)[1] else 'its latest checkpoint'
  return ValueError(
    f'{where}: {which} cannot be read ({error}); name another'
    ' run, or continue that one (--mode=train), which sets damaged checkpoints'
    ' aside'
  )


def _restore(run, path, where) -> tuple[int, PyTree, bool]:
  """The step, its parameters, and whether to keep those of fc8."""
  with contextlib.closing(_open_checkpoints(run, path, where)) as checkpoints:
    named = _split(path)[1]
    step = named or checkpoints.step_of('latest')
    try:
      metadata = checkpoints.read_metadata(step)
      # Replicated, as the devices may not divide the other number of classes.
      replicated = mesh_lib.shardings(run.mesh, mesh_lib.REPLICATED)
      template = jax.tree.map(
        lambda x: x.update(sharding=replicated),
        train_state.state_template(
          run, recorded_config.upgrade(metadata['config'])['model.num_classes']
        ),
      )
      is_same = metadata['dataset'] == run.dataset.fingerprint
      params = checkpoints.restore(template, step).params
      return step, params, named is not None and is_same
    except checkpoint.DamagedError as error:
      raise _damaged(path, where, error) from error
