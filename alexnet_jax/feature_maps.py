"""Sizes of the feature maps of AlexNet, from its geometry."""

import itertools
import math


def conv1_size(
  crop_size: int, kernel: int, stride: int, padding: int, ceil_mode: bool = True
) -> int:
  """Side of the maps of conv1 in pixels; 0 if it has no output.

  With `ceil_mode` conv1 covers its whole input: if the stride does not divide
  it, the last window extends beyond the right and bottom edges (the original
  source's rule, which gives the paper's 55 from 224 pixels, and 55 from 227 as
  well). Without it conv1 has only whole windows (torchvision). Deviation S1.
  """
  covered = crop_size + 2 * padding - kernel
  windows = math.ceil if ceil_mode else math.floor
  return 1 + windows(covered / stride) if covered >= 0 else 0


def sizes(
  crop_size: int,
  conv1_kernel: int,
  conv1_stride: int,
  conv1_padding: int,
  pool_size: int = 3,
  conv1_ceil_mode: bool = True,
) -> dict[str, int]:
  """Side of the feature maps by layer, in pixels; below 1 if they are empty.

  Convolutions other than conv1 keep the size. Pooling has stride 2 and only
  whole windows, (n - pool_size) // 2 + 1, so windows of 3 and of 2 pixels give
  maps of equal size at 224 pixels, as in section 3.4. (Deviation S12: the
  source rounds up.)
  """
  geometry = (conv1_kernel, conv1_stride, conv1_padding, conv1_ceil_mode)
  found = {'conv1': conv1_size(crop_size, *geometry)}
  for before, after in itertools.pairwise(('conv1', 'pool1', 'pool2', 'pool5')):
    found[after] = (found[before] - pool_size) // 2 + 1
  return found
