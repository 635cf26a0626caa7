"""A data set of some images of another one."""

from collections.abc import Mapping, Sequence
import pathlib
import shutil

import tensorflow_datasets as tfds

from alexnet_jax import dataset as dataset_lib
from alexnet_jax.prepare import prepare as prepare_lib


def prepare(
  dataset: dataset_lib.Dataset,
  limits: Mapping[str, int | None],
  classes: Sequence[str],
  name: str,
  output: pathlib.Path,
) -> None:
  """Prepares the data set `name` in `output`/data, unless it is there.

  The images of a class are the first ones of the data set, whose order is
  random.

  Args:
    dataset: the data set that has the images.
    limits: the most images of each class, None for all, of its training split
      and of the split that becomes 'validation', by name, in this order.
    classes: names of the classes to keep.
    name: name of the new data set; its splits are 'train' and 'validation'.
    output: folder.
  """
  if dataset_lib.dataset_path(output / 'data', name).exists():
    return
  images = output / 'images' / name
  for part, (split, limit) in zip(
    ('train', 'val'), limits.items(), strict=True
  ):
    _write_images(dataset, split, classes, limit, images / part)
  size = dataset.image_size
  prepare_lib.prepare(f'folder:{images}', name, output / 'data', size=size)
  shutil.rmtree(images)


def _write_images(dataset, split, classes, limit, path):
  """Writes the first `limit` images of each of the classes as class folders."""
  examples = tfds.builder_from_directory(dataset.path).as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  number = dict.fromkeys(classes, 0)
  for name in classes:
    (path / name).mkdir(parents=True, exist_ok=True)
  for example in examples:
    name = dataset.class_names[example['label']]
    if name in number and number[name] != limit:
      (path / name / f'{number[name]:05d}').write_bytes(example['image'])
      number[name] += 1
