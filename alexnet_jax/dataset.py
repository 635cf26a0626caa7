"""A prepared data set: its metadata, and whether they match a config.

`python -m alexnet_jax.prepare` writes data sets; `input_pipeline` reads their
images.
"""

from collections.abc import Mapping
import dataclasses
import errno
import functools
import logging
import os
import pathlib
import shlex
import zipfile

from jaxtyping import Float
import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.runtime import digests
from alexnet_jax.runtime import files

log = logging.getLogger(__name__)

DATA_DIR, DATA_DIR_KEY = '~/alexnet_jax_data', 'config.input.data_dir'
VERSION = '1.0.0'  # Version of the layout that preparation writes.
STATISTICS_FILE = 'statistics.npz'


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The metadata of a prepared data set.

  Attributes:
    path: folder of the data set.
    class_names: one name per label.
    num_examples: number of examples by split.
    image_size: side of the stored images in pixels.
    mean_image: mean of the training split, [size, size, 3], 0..255.
    rgb_covariance: covariance of the RGB values of the training split, on the
      scale of 0..255.
    fingerprint: digest of the examples, their order and how they were stored.
  """

  path: pathlib.Path
  class_names: tuple[str, ...]
  num_examples: dict[str, int]
  image_size: int
  mean_image: Float[np.ndarray, 'size size 3']
  rgb_covariance: Float[np.ndarray, '3 3']
  fingerprint: str


def dataset_path(
  data_dir: str | os.PathLike, name: str, key: str = DATA_DIR_KEY
) -> pathlib.Path:
  """Folder of the prepared data set `name`, which need not exist.

  Raises:
    ValueError: if `data_dir` is not a path, see `files.local_path`; the message
      names `key`.
  """
  return files.local_path(data_dir, key) / name / VERSION


def open_dataset(
  data_dir: str | os.PathLike, name: str, image_size: int = 256
) -> Dataset:
  """Reads the metadata of a prepared data set.

  Args:
    data_dir: folder of the prepared data sets.
    name: name of the data set.
    image_size: side of the images in pixels to prepare it with, for the message
      if it is missing.

  Raises:
    FileNotFoundError: if there is no data set of that name.
    ValueError: if it is damaged, or its statistics do not match its images.
    PermissionError: if this user may not read it.
  """
  path = dataset_path(data_dir, name)
  if not (path / STATISTICS_FILE).exists():
    source, where = 'folder:DIR', ', DIR being the folder of its images'
    if name == 'imagenet2012':
      source = 'imagenet:DIR'
    elif name == 'digits':
      source, where = 'digits', ''
    raise FileNotFoundError(
      f'no prepared data set config.input.dataset={name} under'
      f' config.input.data_dir={data_dir}{_prepared_there(data_dir)}; prepare'
      f' it: python -m alexnet_jax.prepare --source={source}'
      f' --name={shlex.quote(name)} --size={image_size}'
      f' --data_dir={shlex.quote(str(data_dir))}{where}'
    )
  # tfds takes a file without permission for a missing one.
  for file in path.iterdir():
    files.check_regular(file)
    if not os.access(file, os.R_OK):
      raise PermissionError(errno.EACCES, 'Permission denied', str(file))
  _check_digests(path)
  try:
    info = tfds.builder_from_directory(path).info
    image_shape = info.features['image'].shape
  except Exception as error:  # tfds and its readers may raise anything.
    raise ValueError(
      f'{path} is damaged ({error}); remove it and prepare it again'
    ) from error
  return Dataset(
    path=path,
    class_names=tuple(info.features['label'].names),
    num_examples={s: i.num_examples for s, i in info.splits.items()},
    image_size=image_shape[0],
    **_statistics(path / STATISTICS_FILE, image_shape),
  )


def _check_digests(path):
  """Compares the sizes of all files, and the content of all but the shards."""
  found = ((file.name, file.stat()) for file in path.iterdir())
  # A write changes the last of these, whatever time it sets.
  stamp = [(name, s.st_ino, s.st_size, s.st_ctime_ns) for name, s in found]
  if problems := _problems(path, frozenset(stamp)):
    raise ValueError(
      f'{path} is not as it was prepared: {problems[0]}'
      f'{f", and {len(problems) - 1} more" if problems[1:] else ""}; restore it'
      ' from a copy, or remove it and prepare it again (without'
      f' {digests.FILE} it opens as it is)'
    )


@functools.lru_cache(maxsize=16)
def _problems(path, stamp):
  """The problems of a folder whose files have this `stamp`: compared once."""
  del stamp
  try:
    recorded = digests.read(path) or {}  # Earlier versions wrote none.
    return digests.problems(
      path, recorded, is_read=lambda name: '.array_record-' not in name
    )
  except ValueError as error:
    return [str(error)]


def _prepared_there(data_dir):
  """The names of the data sets in a folder, in brackets; '' without any."""
  folder = files.local_path(data_dir, DATA_DIR_KEY)
  found = sorted(folder.glob(f'*/{VERSION}/{STATISTICS_FILE}'))
  names = [file.parents[1].name for file in found[:10]]
  return f' (it holds {", ".join(names)})' if names else ''


def _statistics(file, image_shape):
  """Mean image, RGB covariance and fingerprint, by attribute of `Dataset`."""
  try:
    with np.load(file) as stored:
      found = {
        'mean_image': stored['mean_image'],
        'rgb_covariance': stored['rgb_covariance'],
        'fingerprint': str(stored['fingerprint']),
      }
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{file} is damaged ({error}); remove the data set and prepare it again'
    ) from error
  mean, covariance = found['mean_image'], found['rgb_covariance']
  if mean.shape != image_shape or covariance.shape != (3, 3):
    raise ValueError(
      f'{file} has a mean image of shape {mean.shape} and a covariance of shape'
      f' {covariance.shape}, but the images have shape {image_shape}; remove'
      ' the data set and prepare it again'
    )
  if not (
    0 <= mean.min() and mean.max() <= 255 and np.isfinite(covariance).all()
  ):
    raise ValueError(
      f'{file} has values that images of 0..255 cannot give; remove the data'
      ' set and prepare it again'
    )
  return found


def check_dataset(
  dataset: Dataset,
  *,
  image_size: int,
  num_classes: int,
  splits: Mapping[str, str],
) -> None:
  """Raises one ValueError that lists every mismatch of config and data set.

  Args:
    dataset: the prepared data set.
    image_size: config.input.image_size.
    num_classes: config.model.num_classes.
    splits: names of the splits that will be read, by config key.
  """
  problems = []
  if dataset.image_size != image_size:
    again = f'prepare the data set again with --size={image_size}'
    if dataset.path.parent.name == 'digits':  # Commands prepare them.
      again = 'repeat this command'
    problems.append(
      f'config.input.image_size={image_size}, but {dataset.path} holds images'
      f' of {dataset.image_size} pixels; set it to {dataset.image_size}, or'
      f' remove that folder and {again}'
    )
  if len(dataset.class_names) != num_classes:
    problems.append(
      f'config.model.num_classes={num_classes}, but {dataset.path} has'
      f' {len(dataset.class_names)} classes; set it to that number'
    )
  empty = [k for k, s in splits.items() if not dataset.num_examples.get(s)]
  if empty:
    others = [name for name, n in dataset.num_examples.items() if n]
    given = ' and '.join(f'{key}={splits[key]}' for key in empty)
    problems.append(
      f'{given}: no examples in {dataset.path}; use one of its splits'
      f' {", ".join(others)}'
    )
  if problems:
    raise ValueError('\n'.join(problems))


def warn_of_sizes(
  dataset: Dataset,
  *,
  train_split: str,
  train_batch_size: int,
  eval_split: str,
  eval_batch_size: int,
) -> None:
  """Logs a warning for each size with which training makes little sense."""
  if len(dataset.class_names) == 1:
    log.warning(
      '%s has one class: with config.model.num_classes=1 the loss is 0 whatever'
      ' the net does; prepare a data set of two classes or more',
      dataset.path,
    )
  number = dataset.num_examples[train_split]
  if train_batch_size > number:
    log.warning(
      'config.input.batch_size=%d exceeds the %d examples of'
      ' config.input.train_split=%s: a batch has examples more than once, and a'
      ' step is more than an epoch; set it to at most %d, or lower for several'
      ' steps per epoch',
      *(train_batch_size, number, train_split, number),
    )
  number = dataset.num_examples[eval_split]
  if eval_batch_size >= 2 * number:
    log.warning(
      'config.eval.batch_size=%d is far above the %d examples of'
      ' config.input.eval_split=%s, and the rest of the batch is computed in'
      ' vain; set it to about %d',
      *(eval_batch_size, number, eval_split, number),
    )
