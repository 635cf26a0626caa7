"""The files that describe a prepared data set: statistics and tfds metadata.

Training reads both through `alexnet_jax.dataset`. Only this module writes the
metadata of tfds.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib

from jaxtyping import Float
import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax import dataset as dataset_lib


class SplitTotals:
  """Counts and sums over all shards of one split; exact, in integers.

  Attributes:
    shard_lengths: number of examples of each shard.
    num_bytes: total size of the records in bytes.
  """

  def __init__(self, size: int):
    """`size` is the height and width of the images in pixels."""
    self.shard_lengths = []
    self.num_bytes = 0
    self._pixel_sum = np.zeros((size, size, 3), np.int64)
    self._product_sum = np.zeros((3, 3), np.int64)

  @property
  def num_examples(self) -> int:
    return sum(self.shard_lengths)

  def add(self, sums: Mapping[str, np.ndarray]) -> None:
    """Adds one shard: what `shards.write` returned."""
    self.shard_lengths.append(int(sums['count']))
    self.num_bytes += int(sums['num_bytes'])
    self._pixel_sum += sums['pixel_sum']
    self._product_sum += sums['product_sum']

  def mean_image(self) -> Float[np.ndarray, 'size size 3']:
    """Mean of the images, 0..255."""
    return (self._pixel_sum / self.num_examples).astype(np.float32)

  def rgb_covariance(self) -> Float[np.ndarray, '3 3']:
    """Covariance of the RGB values of all pixels, on the scale of 0..255."""
    height, width, _ = self._pixel_sum.shape
    num_pixels = self.num_examples * height * width
    mean = self._pixel_sum.sum((0, 1)) / num_pixels
    return self._product_sum / num_pixels - np.outer(mean, mean)


def write_statistics(
  folder: pathlib.Path, train: SplitTotals, identity: Sequence[object]
) -> None:
  """Writes the statistics of the training split, and the fingerprint.

  Args:
    folder: folder of the data set.
    train: totals of the training split, which has examples.
    identity: JSON values that tell the data set from others. The fingerprint
      is a digest of them and the mean image.
  """
  mean_image = train.mean_image()
  identity = json.dumps(list(identity)).encode()
  fingerprint = hashlib.sha256(identity + mean_image.tobytes()).hexdigest()
  np.savez(
    folder / dataset_lib.STATISTICS_FILE,
    mean_image=mean_image,
    fingerprint=fingerprint[:16],
    rgb_covariance=train.rgb_covariance(),
  )


def write_tfds_metadata(
  folder: pathlib.Path,
  name: str,
  splits: Mapping[str, SplitTotals],
  *,
  size: int,
  class_names: Sequence[str],
  description: str,
) -> None:
  """Makes `folder`, with its shards, the tfds data set `name`.

  Args:
    folder: folder of the data set.
    name: name of the data set.
    splits: totals by split.
    size: height and width of the stored images in pixels.
    class_names: one name per label.
    description: text for people.
  """
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(size, size, 3)),
      'label': tfds.features.ClassLabel(names=list(class_names)),
      'file_name': tfds.features.Text(),
    }
  )
  split_infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=totals.shard_lengths,
      num_bytes=totals.num_bytes,
      filename_template=tfds.core.ShardedFileTemplate(
        dataset_name=name,
        data_dir=folder,
        split=split,
        filetype_suffix='array_record',
      ),
    )
    for split, totals in splits.items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=split_infos,
    version=dataset_lib.VERSION,
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
    description=description,
  )
