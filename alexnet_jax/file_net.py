"""A net in a .safetensors file, opened to evaluate it on a prepared data set.

The file may be of any origin, see `convert`. The data set is not that of its
training, so it must have the same classes in the same order.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import shlex

import jax
from jaxtyping import PyTree
import ml_collections

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import placement
from alexnet_jax import run as run_lib
from alexnet_jax import trained_net
from alexnet_jax import weights as weights_lib
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes


class FileNet(trained_net.TrainedNet):
  """A net in a file, with the interface of a net in a work directory.

  `workdir` and `step` are None.
  """

  def __init__(self, run: run_lib.Run, path: pathlib.Path, params: PyTree):
    self._file, self._params = path, params
    super().__init__(run, None, 'file')

  @property
  def path(self) -> pathlib.Path:
    """Where the net is: the file."""
    return self._file

  def _identify(self):
    """No step; a digest of the file and of the data set."""
    with files.open_regular(self.path) as file:
      found = hashlib.file_digest(file, 'sha256')
    found.update(self.run.dataset.fingerprint.encode())
    processes.check_same({str(self.path): found.hexdigest()})
    return None, found.hexdigest()

  @functools.cached_property
  def params(self) -> PyTree:
    """The parameters of the network, on the devices."""
    specs = self.run.param_specs(self._params)
    return placement.place(self._params, self.run.mesh, specs)


def config_for(
  weights: weights_lib.Weights,
  *,
  dataset: str | None = None,
  split: str | None = None,
  data_dir: str | None = None,
) -> ml_collections.ConfigDict:
  """The config to evaluate a net with, on all devices.

  Args:
    weights: the net.
    dataset: name of the prepared data set; None for that of its config.
    split: name of the split; None for config.input.eval_split.
    data_dir: folder of the prepared data sets; None for config.input.data_dir.
  """
  config = weights.config.copy_and_resolve_references()
  with config.unlocked():
    config.input.dataset = dataset or config.input.dataset
    config.input.data_dir = data_dir or config.input.data_dir
    config.input.eval_split = split or config.input.eval_split
    config.input.train_split = config.input.eval_split  # The other is not read.
    config.input.cache = 'auto'
    config.mesh.layout = 'data'
    for section in (config.input, config.eval):  # A multiple of the devices.
      section.batch_size += -section.batch_size % jax.device_count()
  return config


def open_net(
  path: pathlib.Path,
  weights: weights_lib.Weights,
  config: ml_collections.ConfigDict,
) -> FileNet:
  """Opens the net in a file on the data set of a config.

  Args:
    path: the file.
    weights: what it holds.
    config: config from `config_for`.

  Raises:
    ValueError: if the data set has other classes, images of another size, or no
      such split.
    FileNotFoundError: if it has not been prepared.
  """
  inputs = config.input
  try:
    dataset = dataset_lib.open_dataset(
      inputs.data_dir, inputs.dataset, inputs.image_size
    )
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{error}; or name another: --dataset=NAME'
    ) from error
  _check(path, weights, dataset, inputs)
  run = run_lib.open_run(config, trains=False)
  mean_image = placement.place(weights.subtracted, run.mesh)
  statistics = run.statistics.replace(mean_image=mean_image)
  run = dataclasses.replace(run, statistics=statistics)
  return FileNet(run, path, weights.params)


def _check(path, weights, dataset, inputs):
  """Raises ValueError unless the data set fits the net."""
  where = f'{path} on --dataset={inputs.dataset}'
  if dataset.image_size != inputs.image_size:
    raise ValueError(
      f'{where}: the net takes images of {inputs.image_size} pixels, but'
      f' {dataset.path} holds images of {dataset.image_size}; prepare them again,'
      f' --size={inputs.image_size} and another --name, and name that --dataset'
    )
  if not dataset.num_examples.get(inputs.eval_split):
    raise ValueError(
      f'{where} --split={inputs.eval_split}: there are no examples; use one of'
      f' the splits {", ".join(dataset.num_examples)}'
    )
  pairs = enumerate(
    itertools.zip_longest(weights.class_names, dataset.class_names)
  )
  differ = [(label, *pair) for label, pair in pairs if pair[0] != pair[1]]
  if differ:
    label, ours, theirs = differ[0]
    way_out = 'name a data set of its classes: --dataset=NAME'
    if {*weights.class_names} & {*dataset.class_names}:
      data_dir = ''
      if inputs.data_dir != dataset_lib.DATA_DIR:
        data_dir = f' --data_dir={shlex.quote(str(inputs.data_dir))}'
      way_out = (
        'if only the order differs, or one has further classes, this compares'
        f' names: python -m alexnet_jax.predict --weights={shlex.quote(str(path))}'
        f' {shlex.quote(f"{inputs.dataset}/{inputs.eval_split}")}{data_dir}'
      )
    raise ValueError(
      f'{where}: {len(differ)} labels mean other classes, such as {label}:'
      f' {ours!r} in the net, {theirs!r} in the data set\n{way_out}'
    )
