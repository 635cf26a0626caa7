"""The images of a split in memory, and the order in which training takes them.

As in cuda-convnet: a fixed order, in batches of 10,000 images, each of which is
cut into minibatches of 128 and a last one of 16.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math

from jaxtyping import Int, PyTree, UInt8
import numpy as np

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import placement
from alexnet_jax import records

BATCH, MINIBATCH = 10_000, 128  # Images.


@dataclasses.dataclass(frozen=True)
class Part:
  """Up to `BATCH` images that are trained on in order, with one rate.

  Attributes:
    start: its first example in the training split.
    stop: the example after its last.
    step: number of minibatches of the training up to its end.
    epoch: passes through the training images up to its end.
    rate: learning rate of the weights.
  """

  start: int
  stop: int
  step: int
  epoch: float
  rate: float

  @property
  def steps(self) -> int:
    """Its number of minibatches."""
    return math.ceil((self.stop - self.start) / MINIBATCH)


def parts(
  stages: Sequence[tuple[float, float, float]], num_examples: int
) -> list[Part]:
  """The parts of a training, in order.

  Args:
    stages: (epochs, rate of the weights, share of the training split) of each
      stage; the epochs are rounded to whole parts, at least one.
    num_examples: number of examples of the training split.
  """
  result, step, before = [], 0, 0.0
  for epochs, rate, share in stages:
    examples = round(share * num_examples)
    starts = range(0, examples, BATCH)
    for i in range(max(1, round(epochs * len(starts)))):
      start = starts[i % len(starts)]
      stop = min(start + BATCH, examples)
      step += math.ceil((stop - start) / MINIBATCH)
      epoch = before + (i + 1) / len(starts)
      result.append(Part(start, stop, step, epoch, rate))
    before = result[-1].epoch
  return result


@dataclasses.dataclass(frozen=True)
class Images:
  """The decoded images and labels of a split, on the host."""

  images: UInt8[np.ndarray, 'examples size size 3']
  labels: Int[np.ndarray, ' examples']

  def first(self, number: int) -> 'Images':
    """The first `number` examples; all if it is 0."""
    stop = number or None
    return Images(self.images[:stop], self.labels[:stop])

  def minibatches(self, size: int, start: int, stop: int) -> Iterator[PyTree]:
    """Examples `start` to `stop` - 1, `size` at a time, on the device.

    The last minibatch is padded and masked.
    """
    for first in range(start, stop, size):
      rows = slice(first, min(first + size, stop))
      number = rows.stop - first
      batch = (self.images[rows], self.labels[rows], np.ones(number, bool))
      padded = [
        np.pad(x, [(0, size - number)] + [(0, 0)] * (x.ndim - 1)) for x in batch
      ]
      named = dict(zip(('image', 'label', 'mask'), padded, strict=True))
      yield placement.place_batch(named, None)


def read(dataset: dataset_lib.Dataset, split: str) -> Images:
  """Decodes a whole split, in stored order; remembers the last two.

  Raises:
    ValueError: if the data set is damaged.
  """
  return _read(dataset.path, split, dataset.fingerprint)


@functools.lru_cache(maxsize=2)
def _read(path, split, fingerprint):
  del fingerprint  # Other images in the same folder are decoded anew.
  dataset = dataset_lib.open_dataset(path.parents[1], path.parent.name)
  source = records.Records(dataset, split)
  images = np.zeros((len(source), *dataset.mean_image.shape), np.uint8)
  labels = [source.decode(row, images[row]) for row in range(len(source))]
  return Images(images, np.array(labels, np.int32))
