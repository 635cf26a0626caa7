"""Fine-tuning: a new train state with the parameters of another run."""

import contextlib
import logging

import jax

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_path
from alexnet_jax import config as config_lib
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import placement
from alexnet_jax import recorded_config
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files

log = logging.getLogger(__name__)


def open_pretrained(run: run_lib.Run) -> checkpoint.Checkpoints:
  """Opens the checkpoints of config.train.init_workdir; the caller closes them.

  Raises:
    ValueError: if their network differs in more than its classes, or the latest
      cannot be read.
    FileNotFoundError: if there are none.
  """
  where = f'config.train.init_workdir={run.config.train.init_workdir}'
  # Orbax accepts only absolute paths.
  folder = files.local_path(
    run.config.train.init_workdir, 'config.train.init_workdir'
  )
  checkpoint_path.check(folder)
  for name in (workdir_lib.CONFIG_FILE, checkpoint.FOLDER):
    if not (folder / name).exists():
      raise FileNotFoundError(
        f'{where}: there is no {folder / name}; name the --workdir of another'
        ' run'
      )
  recorded_config.check_same_network(
    run.config, config_lib.flatten(workdir_lib.read_config(folder)), where
  )
  with contextlib.ExitStack() as stack:
    try:
      checkpoints = checkpoint.Checkpoints(folder, read_only=True)
      stack.callback(checkpoints.close)
      checkpoints.read_metadata(checkpoints.step_of('latest'))
    except FileNotFoundError as error:
      raise FileNotFoundError(f'{where}: {error}') from error
    except checkpoint.DamagedError as error:
      raise _damaged(where, error) from error
    stack.pop_all()  # All is well: they stay open.
  return checkpoints


def _damaged(where, error):
  return ValueError(
    f'{where}: its latest checkpoint cannot be read ({error}); name another'
    ' run, or continue that one (--mode=train), which sets damaged checkpoints'
    ' aside'
  )


def create_train_state(run: run_lib.Run) -> train_state.TrainState:
  """A new state with the latest parameters of config.train.init_workdir.

  The classifier, fc8, is new, because its classes may differ (section 6).

  Raises:
    ValueError: if the checkpoint cannot be read, or has another network.
    FileNotFoundError: if there is none.
  """
  state = train_state.create_train_state(run)
  where = f'config.train.init_workdir={run.config.train.init_workdir}'
  with contextlib.closing(open_pretrained(run)) as checkpoints:
    step = checkpoints.step_of('latest')
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
      params = checkpoints.restore(template, step).params
    except checkpoint.DamagedError as error:
      raise _damaged(where, error) from error
  log.info('All layers but fc8 start from step %d of %s.', step, where)
  params |= {'fc8': state.params['fc8']}
  placed = placement.place(params, run.mesh, run.param_specs(params))
  return state.replace(params=placed)
