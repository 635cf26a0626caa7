"""Device half of the input pipeline: from stored images to network inputs.

Random crops, horizontal reflections, colour noise along the principal
components of the training set's RGB values, and the views of test time (section
4.1); subtraction of the training set's mean image (section 2). Pure functions,
to be called under jit.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
import numpy as np


def color_directions(
  covariance: Float[np.ndarray, '3 3'], square_root: bool = False
) -> Float[np.ndarray, '3 3']:
  """Columns `p_i * l_i`: the change of a pixel (0..255) per unit of `a_i`.

  Section 4.1 adds `[p1 p2 p3][a1 l1, a2 l2, a3 l3]^T`, with p and l the
  eigenvectors and eigenvalues of the covariance of the RGB values. The paper
  does not give the scale of the values. On 0..255 the noise would have a
  standard deviation of over a thousand grey levels, so l is taken from values
  in [0, 1], and the sum is scaled back to 0..255: l_255 / 255 ** 2 * 255.

  Args:
    covariance: covariance of the training set's RGB values, scale of 0..255.
    square_root: whether l is the square roots of the eigenvalues, the standard
      deviations along p. Deviation S7: as in the original source.
  """
  eigenvalues, eigenvectors = np.linalg.eigh(covariance)
  if square_root:
    scales = np.sqrt(np.maximum(eigenvalues, 0))  # Rounding may leave -1e-9.
  else:
    scales = eigenvalues / 255
  return (eigenvectors * scales).astype(np.float32)


def constant_mean_image(
  size: int, channel_means: Sequence[float]
) -> Float[np.ndarray, 'size size 3']:
  """The image of the means of R, G and B, 0..255, in place of a mean image."""
  return np.full((size, size, 3), channel_means, np.float32)


def random_views(
  key: Key[Array, ''],
  images: UInt8[Array, 'batch size size 3'],
  batch_indices: Int[Array, 'batch'],
  mean_image: Float[Array, 'size size 3'],
  directions: Float[Array, '3 3'],
  color_std: float | Float[Array, ''],
  *,
  crop_size: int,
  flip: bool,
  color_divide: bool = False,
  central_mean: bool = False,
  channel_stds: Sequence[float] = (),
) -> Float[Array, 'batch crop crop 3']:
  """One random training view of each image: 0..255 minus the mean image.

  A view depends only on the key and on the image's index in the global batch.

  Args:
    key: random key of this step.
    images: stored images, 0..255.
    batch_indices: index of each image in the global batch.
    mean_image: mean of the training set, 0..255; cropped like the image.
    directions: directions of the colour noise, from `color_directions`.
    color_std: standard deviation of the a_i, 0.1 in section 4.1; 0 for none.
      They are drawn once per image and step.
    crop_size: side of the crop in pixels; every offset is equally likely.
    flip: whether to reflect each image left to right with probability 1/2.
    color_divide: whether to divide the view by `1 + color_std`. Deviation S7:
      the original source does, to keep the scale of test images.
    central_mean: whether to subtract the central crop of the mean image, not
      reflected, for every crop. Deviation S8: the original source does.
    channel_stds: what R, G and B are divided by at last; () for nothing.
      Deviation S8: the standard deviations in torchvision.
  """
  offsets = images.shape[1] - crop_size + 1

  def view(image, index):
    crop_key, flip_key, color_key = jax.random.split(
      jax.random.fold_in(key, index), 3
    )
    y, x = jax.random.randint(crop_key, (2,), 0, offsets)
    reflected = jax.random.bernoulli(flip_key) if flip else False
    out = _view(image, mean_image, (y, x, reflected), crop_size, central_mean)
    noise = directions @ (color_std * jax.random.normal(color_key, (3,)))
    out += noise[None, None]
    out = out / (1 + color_std) if color_divide else out
    return _divide(out, channel_stds)

  return jax.vmap(view)(images, batch_indices)


def view_offsets(
  image_size: int, crop_size: int, *, many: bool, flip: bool
) -> Int[np.ndarray, 'views 3']:
  """The views (y, x, reflected) that are averaged at test time.

  Args:
    image_size: side of the stored images in pixels.
    crop_size: side of the crops in pixels.
    many: the four corners and the centre (section 4.1), not only the centre.
    flip: with `many`, also their reflections: ten views instead of five.
  """
  end = image_size - crop_size
  centre = (end // 2, end // 2)
  if not many:
    return np.array([(*centre, 0)], np.int32)
  places = [(0, 0), (0, end), (end, 0), (end, end), centre]
  return np.array(
    [(*place, f) for f in range(1 + flip) for place in places], np.int32
  )


def view_at(
  images: UInt8[Array, 'batch size size 3'],
  mean_image: Float[Array, 'size size 3'],
  offset: Int[Array, '3'],
  crop_size: int,
  central_mean: bool = False,
  channel_stds: Sequence[float] = (),
) -> Float[Array, 'batch crop crop 3']:
  """The view (y, x, reflected) of every image, minus the mean image.

  The mean image, `central_mean`, `channel_stds` and the scale are as in
  `random_views`.
  """
  view = lambda image: _view(image, mean_image, offset, crop_size, central_mean)
  return _divide(jax.vmap(view)(images), channel_stds)


def _view(image, mean_image, offset, size, central_mean):
  y, x, reflected = offset
  out = _crop(image, y, x, size)
  if central_mean:
    centre = (mean_image.shape[0] - size) // 2
    return _reflect(out, reflected) - _crop(mean_image, centre, centre, size)
  return _reflect(out - _crop(mean_image, y, x, size), reflected)


def _divide(views, channel_stds):
  if not channel_stds:
    return views
  stds = jnp.asarray(channel_stds, views.dtype)
  return views / stds.reshape((1,) * (views.ndim - 1) + (3,))


def _crop(image, y, x, size):
  crop = lax.dynamic_slice(image, (y, x, 0), (size, size, 3))
  return crop.astype(jnp.float32)


def _reflect(image, reflected):
  return jnp.where(reflected, image[:, ::-1], image)
