"""A trained net: the checkpoint of a work directory, opened for use."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib

import jax
from jaxtyping import Array, Float, PyTree
import ml_collections
import numpy as np

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_path
from alexnet_jax import config as config_lib
from alexnet_jax import evaluator
from alexnet_jax import model
from alexnet_jax import placement
from alexnet_jax import predictions as predictions_lib
from alexnet_jax import recorded_config
from alexnet_jax import records
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)


class TrainedNet:
  """A trained net with its parameters, statistics, class names and config.

  Attributes:
    run: the opened run: config, data set and mesh.
    workdir: work directory of the training run.
    which: checkpoint of the net, 'best' or 'latest'.
    step: number of training steps at the checkpoint.
  """

  def __init__(
    self, run: run_lib.Run, workdir: pathlib.Path | None, which: str
  ):
    """Finds the checkpoint; its parameters are restored on first use.

    Raises:
      ValueError: if it cannot be read, or was made with another config or data
        set than the run's.
      FileNotFoundError: if there is none.
    """
    self.run, self.workdir, self.which = run, workdir, which
    self.step, self._digest = self._identify()
    self._evaluator = evaluator.Evaluator(run)
    self._predict_steps = {}  # By the names of the layers.

  def _identify(self):
    """The step, and a digest of what the predictions depend on."""
    return checkpoint_path.read_again(self._read_metadata, self._steps)

  def _steps(self):
    return checkpoint.saved_steps(self.workdir)

  def _read_metadata(self):
    with self._checkpoints() as checkpoints:
      step = checkpoints.step_of(self.which)
      processes.check_same({f'the {self.which} checkpoint': str(step)})
      metadata = checkpoints.read_metadata(step)
      train_state.check_metadata(
        self.run, metadata, recorded_config.EVALUATION_MAY_CHANGE
      )
    # Metrics and times in the metadata identify the training run.
    content = json.dumps(metadata, sort_keys=True).encode()
    return step, hashlib.sha256(content).hexdigest()

  @property
  def path(self) -> pathlib.Path:
    """Where the net is: the work directory."""
    return self.workdir

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The config of the training run."""
    return self.run.config

  @property
  def network(self) -> model.AlexNet:
    """The network for the mesh of the run; call it inside `mesh.shard_map`."""
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
    return checkpoint_path.read_again(self._restore, self._steps).params

  def _restore(self):
    if processes.is_single_process() and self.step not in self._steps():
      self.step, self._digest = self._identify()  # A run has saved others.
    with self._checkpoints() as checkpoints:
      template = train_state.state_template(self.run)
      return checkpoints.restore(template, self.step)

  def release(self) -> None:
    """Frees the parameters; the next use restores them."""
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
        f' cannot be read ({error}). If a run is training there, try again;'
        ' otherwise try the other --checkpoint, or --mode=train, which sets'
        ' damaged checkpoints aside'
      ) from error

  def predict_batch(
    self, images: np.ndarray, *, many: bool = False, layers: Sequence[str] = ()
  ) -> tuple[Float[Array, 'batch classes'], dict[str, Array]]:
    """Log-probabilities and named activations of a batch of stored images.

    Args:
      images: uint8 [batch, size, size, 3], with `size` config.input.image_size.
        The mesh axis 'data' must divide the batch. With many processes, each
        passes its part of the batch.
      many: average ten views (five if the config does not flip), not one.
      layers: names of the activations to return, see `model.AlexNet.__call__`.

    Returns:
      The logarithms of the softmax outputs averaged over the views, and the
      activations [views, batch, ...] by name; all on the devices.

    Raises:
      KeyError: if the network has no such activation.
    """
    config, mesh = self.config, self.run.mesh
    sizes = (config.input.image_size, config.input.crop_size)
    offsets = augment.view_offsets(*sizes, many=many, flip=config.augment.flip)
    return self._predict_step(tuple(layers))(
      self.params,
      placement.place_batch(images, mesh),
      self.statistics.mean_image,
      placement.place(offsets, mesh),
    )

  def _predict_step(self, layers):
    if layers not in self._predict_steps:
      self._predict_steps[layers] = evaluator.make_predict_step(
        self.network,
        self.run.mesh,
        self.config.input.crop_size,
        self.config.augment.central_mean,
        layers,
        self.config.input.channel_stds,
      )
    return self._predict_steps[layers]

  def predict_split(
    self, many: bool, folder: pathlib.Path | None = None
  ) -> predictions_lib.Predictions:
    """Predictions for the evaluation split: loaded, or computed and saved.

    Args:
      many: whether to average ten views (five if the config does not flip), not
        one.
      folder: folder of the saved predictions, which several nets may share;
        None for `predictions/` in the work directory. Without either they are
        not saved.
    """
    split = self.config.input.eval_split
    path, made_from = self._saved_predictions(many, folder)
    # Several processes must all compute, or none: they do not load.
    if path and processes.is_single_process():
      found = predictions_lib.load(path, made_from)
      if found is not None:
        log.info('Predictions of this net are in %s.', path)
        return found
    batches, params = [], self.params  # Perhaps those of a newer step.
    path, made_from = self._saved_predictions(many, folder)
    self._evaluator(params, many=many, predictions=batches)
    log_probs, labels = map(np.concatenate, zip(*batches, strict=True))
    if not path or not processes.is_first():  # Saved ones alone have names.
      return predictions_lib.Predictions(log_probs, labels, made_from)
    stored = records.Records(self.run.dataset, split)
    names = [stored.name(row) for row in stored.rows(len(labels))]
    made = predictions_lib.Predictions(log_probs, labels, made_from, names)
    made.save(path)
    return made

  def _saved_predictions(self, many, folder):
    """The path of saved predictions, if any, and what they are made from."""
    split, flips = self.config.input.eval_split, self.config.augment.flip
    views = ('ten' if flips else 'five') if many else 'one'
    step = str(self.step)
    made_from = {'training': self._digest, 'step': step, 'split': split}
    name = f'{split}.{views}_view.npz'
    path = None
    if folder is not None:
      path = folder / f'{self._digest[:12]}.{name}'
    elif self.workdir is not None:
      path = self.workdir / predictions_lib.FOLDER / name
    return path, made_from | {'views': views}


def open_net(
  workdir: str | os.PathLike,
  which: str = 'best',
  *,
  config: ml_collections.ConfigDict | None = None,
  split: str | None = None,
  data_dir: str | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> TrainedNet:
  """Opens a checkpoint of a work directory; writes nothing there.

  Args:
    workdir: work directory of a training run.
    which: 'best' (lowest validation error) or 'latest' checkpoint.
    config: config of the run, except for the keys in
      `recorded_config.EVALUATION_MAY_CHANGE`; None for the recorded config.
    split: name of a split that replaces config.input.eval_split.
    data_dir: folder that replaces config.input.data_dir.
    devices: devices of the net; None for all.

  Raises:
    ValueError: if config, data set and work directory do not match.
    FileNotFoundError: if there is no data set or no checkpoint.
  """
  path = check_trained_workdir(workdir)
  config = read_config(path, config, split, data_dir)
  run = run_lib.open_run(config, trains=False, devices=devices)
  processes.check_same({'--workdir': str(path)})
  return TrainedNet(run, path, which)


def check_trained_workdir(workdir: str | os.PathLike) -> pathlib.Path:
  """The absolute path of a work directory that has checkpoints.

  Raises:
    FileNotFoundError: if it has none.
  """
  path = files.local_path(workdir, '--workdir')
  checkpoint_path.check(path)
  if not (path / checkpoint.FOLDER).is_dir():
    raise FileNotFoundError(
      f'no {path / checkpoint.FOLDER}; train there first: python -m'
      ' alexnet_jax.main --mode=train'
    )
  return path


def read_config(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict | None = None,
  split: str | None = None,
  data_dir: str | None = None,
) -> ml_collections.ConfigDict:
  """The config to open a trained net with; for the arguments see `open_net`.

  Raises:
    ValueError: if `config` differs from the recorded one.
    FileNotFoundError: if there is neither.
  """
  file = workdir / workdir_lib.CONFIG_FILE
  if config is None:
    config = workdir_lib.read_config(workdir)
    config.input.cache = 'auto'  # This machine may have less memory.
  config = config.copy_and_resolve_references().unlock()
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
