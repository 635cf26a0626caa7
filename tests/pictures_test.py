"""Pictures against pixels worked out by hand."""

import numpy as np

from alexnet_jax import pictures


def test_image_grid_puts_images_in_rows_with_white_lines_between():
  grays = np.array([10, 20.6, 300, -5, 40], np.float32)  # Rounded and clipped.
  images = np.ones((5, 2, 3, 3), np.float32) * grays[:, None, None, None]
  picture = pictures.image_grid(images, 3)
  line = [255]
  row = lambda a, b, c: [a] * 3 + line + [b] * 3 + line + [c] * 3 + line
  white = [255] * 12
  upper, lower = row(10, 21, 255), row(0, 40, 255)
  expected = np.array([upper, upper, white, lower, lower, white], np.uint8)
  assert picture.dtype == np.uint8
  np.testing.assert_array_equal(picture, np.stack([expected] * 3, -1))


def test_kernel_grid_shows_tower_0_above_tower_1_each_kernel_at_full_range():
  # One bright pixel per kernel, each in another place and on another scale.
  kernels = np.zeros((2, 2, 3, 4), np.float32)
  places = [(0, 0), (0, 1), (1, 0), (1, 1)]
  for feature, (y, x) in enumerate(places):
    kernels[..., feature] = -feature
    kernels[y, x, :, feature] = 10**feature
  picture = pictures.kernel_grid(kernels, zoom=1)[..., 0]
  # Each row has two kernels with a line to the right of and below each. Between
  # the towers is a line of `zoom` pixels.
  expected = [
    [255, 0, 255, 0, 255, 255],
    [0, 0, 255, 0, 0, 255],
    [255] * 6,
    [255] * 6,
    [0, 0, 255, 0, 0, 255],
    [255, 0, 255, 0, 255, 255],
    [255] * 6,
  ]
  np.testing.assert_array_equal(picture, expected)


def test_kernel_grid_zooms_every_weight_to_a_square_of_its_color():
  kernels = np.zeros((1, 2, 3, 2), np.float32)
  kernels[0, 0] = [[1, 1], [0.5, 0.5], [0, 0]]
  picture = pictures.kernel_grid(kernels, zoom=2)
  left = [255, 128, 0]  # 127.5 rounds to even.
  np.testing.assert_array_equal(picture[:2, :2], np.full((2, 2, 3), left))
  np.testing.assert_array_equal(picture[:2, 2:4], np.zeros((2, 2, 3)))


def test_kernel_grid_of_equal_weights_is_finite():
  assert (
    pictures.kernel_grid(np.ones((1, 1, 3, 2), np.float32), 1)[0, 0, 0] == 0
  )
