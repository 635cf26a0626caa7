"""Pictures for TensorBoard: image grids, conv1's kernels, the first inputs."""

import contextlib
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree
import numpy as np

from alexnet_jax import input_pipeline
from alexnet_jax import placement
from alexnet_jax import run as run_lib
from alexnet_jax import train_step
from alexnet_jax.runtime import compilation

KERNEL_COLUMNS = 16  # At most, of `kernel_grid` by default.


def conv1(params: PyTree) -> np.ndarray:
  """The kernels of conv1, see `kernel_grid`."""
  return kernel_grid(placement.fetch(params['conv1']['kernel']))


def first_inputs(run: run_lib.Run, number: int) -> np.ndarray:
  """The first `number` training inputs, without subtracting the mean image.

  Returns:
    A uint8 grid [height, width, 3].
  """
  inputs = run.config.input
  indices = np.arange(min(number, inputs.batch_size))
  batches = input_pipeline.train_batches(
    run.dataset,
    inputs.train_split,
    batch_size=inputs.batch_size,
    seed=run.config.seed,
    start_step=0,
    batch_indices=indices,
    max_bad_records=inputs.max_bad_records,
  )
  with contextlib.closing(batches):
    images = next(batches)['image']
  step_key = jax.random.fold_in(jax.random.key(run.config.seed), 0)
  random_views = jax.jit(
    functools.partial(run.random_views, channel_stds=()),
    compiler_options=compilation.fast_compile_options(),
  )
  views = random_views(
    jax.random.fold_in(step_key, train_step.AUGMENT),
    jnp.asarray(images),
    jnp.asarray(indices),
    jnp.zeros(images.shape[1:]),  # The mean image is not subtracted.
    jnp.asarray(placement.fetch(run.statistics.directions)),
    run.config.augment.color_std,
  )
  return image_grid(placement.fetch(views), columns=8)


def image_grid(
  images: Float[np.ndarray, 'images height width 3'], columns: int
) -> np.ndarray:
  """A uint8 picture [height, width, 3] of images (0..255), with white lines."""
  count, height, width, _ = images.shape
  rows = -(-count // columns)
  grid = np.full((rows, columns, height + 1, width + 1, 3), 255, np.uint8)
  flat = grid.reshape(rows * columns, height + 1, width + 1, 3)
  flat[:count, :height, :width] = np.clip(np.round(images), 0, 255)
  picture = grid.transpose(0, 2, 1, 3, 4)
  return picture.reshape(rows * (height + 1), columns * (width + 1), 3)


def kernel_grid(
  kernels: Float[np.ndarray, 'height width 3 features'],
  zoom: int = 4,
  columns: int = KERNEL_COLUMNS,
) -> np.ndarray:
  """Picture of conv1's kernels as in Figure 3: tower 0 above tower 1.

  Each kernel is scaled to 0..255; `zoom` is the side of a weight in pixels, and
  a row has at most `columns` kernels.
  """
  images = kernels.transpose(3, 0, 1, 2)
  low = images.min((1, 2, 3), keepdims=True)
  high = images.max((1, 2, 3), keepdims=True)
  images = 255 * (images - low) / np.maximum(high - low, 1e-12)
  images = images.repeat(zoom, 1).repeat(zoom, 2)
  half = len(images) // 2
  columns = min(half, columns)
  upper, lower = (
    image_grid(part, columns) for part in (images[:half], images[half:])
  )
  return np.concatenate([upper, np.full_like(upper[:zoom], 255), lower])
