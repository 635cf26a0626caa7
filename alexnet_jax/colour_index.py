"""The colour index of conv1's kernels: 0 for grey ones, 1 for pure colours.

Figure 3 shows two towers of which one learns colour-agnostic kernels, the other
mostly colour-specific ones. This index says so in one number per kernel; both
TensorBoard and experiments/ use it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


def colour_index(
  kernels: Float[Array | np.ndarray, 'height width 3 features'],
) -> Float[Array, 'features']:
  """The share of each kernel's energy that is outside the grey axis.

  The weights at one pixel of a kernel are a vector (r, g, b). Its energy is its
  squared length, of which (r + g + b) ** 2 / 3 lies along the grey axis, where
  r = g = b. The index is 1 minus the quotient of both, summed over the pixels.

  Args:
    kernels: the kernels of conv1, RGB.

  Returns:
    One value in [0, 1] per kernel: 0 if it only sees brightness, 1 if it
    ignores brightness, 2/3 on average for independent random weights. A kernel
    of zeros has 0.
  """
  energy = jnp.square(kernels).sum((0, 1, 2))
  grey = jnp.square(kernels.sum(2)).sum((0, 1)) / 3
  share = (energy - grey) / jnp.where(energy > 0, energy, 1)
  return jnp.clip(share, 0, 1)  # Rounding may leave it.
