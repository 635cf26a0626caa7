"""A trained net: the checkpoint of a work directory, opened for use."""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib

from jaxtyping import PyTree
import ml_collections
import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import evaluator
from alexnet_jax import model
from alexnet_jax import predictions as predictions_lib
from alexnet_jax import recorded_config
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)


class TrainedNet:
  """A trained net with its parameters, preprocessing, classes and config.

  Attributes:
    run: config, data set and mesh.
    workdir: folder of the training.
    which: 'best' or 'latest'.
    step: training steps of the checkpoint.
  """

  def __init__(self, run: run_lib.Run, workdir: pathlib.Path, which: str):
    """Finds the checkpoint; its parameters are restored on first use.

    Raises:
      ValueError: if it cannot be read, or does not belong to the run's config
        and data set.
      FileNotFoundError: if there is none.
    """
    self.run, self.workdir, self.which = run, workdir, which
    with self._checkpoints() as checkpoints:
      self.step = checkpoints.step_of(which)
      processes.check_same({f'the {which} checkpoint': str(self.step)})
      metadata = checkpoints.read_metadata(self.step)
      train_state.check_metadata(
        run, metadata, recorded_config.EVALUATION_MAY_CHANGE
      )
    # Its metrics and times identify the training.
    content = json.dumps(metadata, sort_keys=True).encode()
    self._training = hashlib.sha256(content).hexdigest()
    self._evaluator = evaluator.Evaluator(run)

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The config of the training."""
    return self.run.config

  @property
  def network(self) -> model.AlexNet:
    """The network, to be called on the mesh of the run."""
    return self.run.network

  @property
  def statistics(self) -> run_lib.Statistics:
    """The statistics of the training set, on the devices."""
    return self.run.statistics

  @property
  def class_names(self) -> tuple[str, ...]:
    """One name per label."""
    return self.run.dataset.class_names

  @functools.cached_property
  def params(self) -> PyTree:
    """The parameters of the network, on the devices."""
    with self._checkpoints() as checkpoints:
      template = train_state.state_template(self.run)
      return checkpoints.restore(template, self.step).params

  def release(self) -> None:
    """Frees the parameters; they are restored again on the next use."""
    self.__dict__.pop('params', None)

  @contextlib.contextmanager
  def _checkpoints(self) -> Iterator[checkpoint.Checkpoints]:
    try:
      with contextlib.closing(
        checkpoint.Checkpoints(self.workdir, read_only=True)
      ) as checkpoints:
        yield checkpoints
    except checkpoint.DamagedError as error:
      raise ValueError(
        f'the {self.which} checkpoint in {self.workdir / checkpoint.FOLDER}'
        f' cannot be read ({error}). If a training is running there, try again;'
        ' else try the other --checkpoint, or --mode=train, which sets damaged'
        ' ones aside'
      ) from error

  def predict_step(self, layers: tuple[str, ...] = ()):
    """The compiled step of `evaluator.make_predict_step` for this net."""
    return evaluator.make_predict_step(
      self.network,
      self.run.mesh,
      self.config.input.crop_size,
      self.config.augment.central_mean,
      layers,
    )

  def predict_split(
    self, many: bool, folder: pathlib.Path | None = None
  ) -> predictions_lib.Predictions:
    """Predictions for the evaluation split, stored or computed and stored.

    Args:
      many: average ten views (five if the config does not flip), not one.
      folder: of the stored predictions; None for `predictions/` of the work
        directory. Another folder may be that of several nets.
    """
    split = self.config.input.eval_split
    many_views = 'ten' if self.config.augment.flip else 'five'
    made_from = {
      'training': self._training,
      'step': str(self.step),
      'split': split,
      'views': many_views if many else 'one',
    }
    name = f'{split}.{made_from["views"]}_view.npz'
    if folder is None:
      path = self.workdir / predictions_lib.FOLDER / name
    else:
      path = folder / f'{self._training[:12]}.{name}'
    # Many processes compute together, or not at all.
    if processes.is_single_process():
      found = predictions_lib.load(path, made_from)
      if found is not None:
        log.info('Predictions of step %d are in %s.', self.step, path)
        return found
    batches = []
    self._evaluator(self.params, many=many, predictions=batches)
    log_probs, labels = map(np.concatenate, zip(*batches, strict=True))
    made = predictions_lib.Predictions(log_probs, labels, made_from)
    if processes.is_first():
      made.save(path)
    return made


def open_net(
  workdir: str | os.PathLike,
  which: str = 'best',
  *,
  config: ml_collections.ConfigDict | None = None,
  split: str | None = None,
  data_dir: str | None = None,
) -> TrainedNet:
  """Opens a checkpoint of a work directory; writes nothing there.

  Args:
    workdir: folder of a training.
    which: 'best' (lowest validation error) or 'latest' checkpoint.
    config: of the training, with other values where evaluation allows them;
      None for the recorded one.
    split: instead of config.input.eval_split.
    data_dir: instead of config.input.data_dir.

  Raises:
    ValueError: if config, data set and work directory do not fit.
    FileNotFoundError: if there is no data set or no checkpoint.
  """
  path = check_is_training(workdir)
  config = read_config(path, config, split, data_dir)
  run = run_lib.open_run(config)
  processes.check_same({'--workdir': str(path)})
  return TrainedNet(run, path, which)


def check_is_training(workdir: str | os.PathLike) -> pathlib.Path:
  """The absolute path of a work directory that has checkpoints.

  Raises:
    FileNotFoundError: if it has none.
  """
  path = pathlib.Path(workdir).expanduser().absolute()
  if not (path / checkpoint.FOLDER).is_dir():
    raise FileNotFoundError(
      f'no {path / checkpoint.FOLDER}; train first: --mode=train'
    )
  return path


def read_config(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict | None = None,
  split: str | None = None,
  data_dir: str | None = None,
) -> ml_collections.ConfigDict:
  """The config to open a trained net with; the arguments are `open_net`'s.

  Raises:
    ValueError: if `config` is not that of the training.
    FileNotFoundError: if there is none.
  """
  file = workdir / workdir_lib.CONFIG_FILE
  if config is None:
    config = workdir_lib.read_config(workdir)
  config = ml_collections.ConfigDict(config)
  if split:
    config.input.eval_split = split
  if data_dir:
    config.input.data_dir = data_dir
  if file.exists():
    recorded_config.check_unchanged(
      config,
      config_lib.flatten(workdir_lib.read_config(workdir)),
      str(file),
      recorded_config.EVALUATION_MAY_CHANGE,
    )
  return config.lock()
