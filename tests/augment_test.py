"""Augmentation on the device: crops, reflections, colour noise and test views.

Images whose pixels are their own coordinates show where a crop was taken and
whether it was reflected. The covariance of the colour noise follows from
section 4.1: if C is the covariance of pixels on 0..255, with eigenvalues l and
eigenvectors p, the noise is the sum of p * (a * l / 255) with a of standard
deviation s, and its covariance is (s / 255) ** 2 * C @ C.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment

# ImageNet's training set, from the original source's run log.
RGB_STD = np.array([19.72, 37.09, 121.78])
RGB_VECTORS = np.array(
  [
    [0.4180, -0.7126, -0.5635],
    [-0.8170, -0.0235, -0.5762],
    [0.3973, 0.7012, -0.5920],
  ]
)
COVARIANCE = (RGB_VECTORS * RGB_STD**2) @ RGB_VECTORS.T

_views = jax.jit(
  augment.random_views,
  static_argnames=(
    'crop_size',
    'flip',
    'color_divide',
    'central_mean',
    'channel_stds',
  ),
)


def _painted(count, size):
  """`count` images whose pixels are (y, x, number of the image)."""
  y, x = np.mgrid[:size, :size]
  place = np.stack([y, x, 0 * y], -1).astype(np.uint8)
  images = np.tile(place, (count, 1, 1, 1))
  images[..., 2] = np.arange(count)[:, None, None] % 256
  return images


def _random_image(size):
  return np.random.default_rng(9).integers(0, 256, (size, size, 3), np.uint8)


def _draw(
  images,
  *,
  key=0,
  batch_indices=None,
  mean=None,
  color_std=0.0,
  directions=None,
  crop_size=8,
  **kwargs,
):
  size = images.shape[1]
  indices = np.arange(len(images), dtype=np.int32)
  views = _views(
    jax.random.key(key),
    images,
    indices if batch_indices is None else batch_indices,
    (np.zeros((size, size, 3)) if mean is None else mean).astype(np.float32),
    augment.color_directions(COVARIANCE) if directions is None else directions,
    np.float32(color_std),
    crop_size=crop_size,
    **{'flip': False, **kwargs},
  )
  return np.asarray(views)


@functools.cache
def _many():
  """4,096 crops of painted 40-pixel images, and which are reflected."""
  views = _draw(_painted(4096, 40), flip=True)
  return views, views[:, 0, 0, 1] > views[:, 0, -1, 1]


def test_crop_offsets_are_uniform_from_0_to_32():
  views, reflected = _many()
  y, x = views[..., 0].min((1, 2)), views[..., 1].min((1, 2))
  for offset in (y, x):
    assert set(offset) == set(range(33))
    expected = len(offset) / 33
    counts = np.bincount(offset.astype(int))
    # Chi-square with 32 degrees of freedom exceeds 62.5 once in 1,000 draws.
    assert ((counts - expected) ** 2 / expected).sum() < 62.5
  # Correlations of independent draws have a standard error of 1 / sqrt(4096).
  correlation = np.corrcoef([y, x, reflected])
  assert np.abs(correlation - np.eye(3)).max() < 4 / np.sqrt(4096)


def test_a_crop_is_a_window_of_its_own_image():
  images = np.stack([np.roll(_random_image(40), i, 0) for i in range(64)])
  place = _draw(_painted(64, 40))[:, 0, 0].astype(int)
  assert (place[:, 2] == np.arange(64)).all()
  for image, view, (y, x, _) in zip(images, _draw(images), place, strict=True):
    np.testing.assert_array_equal(view, image[y : y + 8, x : x + 8])


def test_half_of_the_crops_are_reflected():
  _, reflected = _many()
  assert abs(reflected.mean() - 0.5) < 4 * 0.5 / np.sqrt(4096)  # 4 sigma.


def test_without_flip_no_crop_is_reflected():
  views = _draw(_painted(64, 40))
  assert (np.diff(views[..., 1], axis=2) == 1).all()


def test_a_reflected_crop_is_the_mirror_of_the_unreflected_one():
  images, mean = _painted(64, 40), _random_image(40)
  plain = _draw(images, mean=mean)
  flipped = _draw(images, mean=mean, flip=True)
  is_plain = (flipped == plain).all((1, 2, 3))
  is_mirror = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
  assert is_plain.any() and is_mirror.any()
  assert (is_plain ^ is_mirror).all()


@pytest.mark.parametrize('flip', [False, True])
def test_the_mean_image_is_subtracted_at_the_place_of_the_crop(flip):
  image = _random_image(40)
  views = _draw(np.stack([image] * 64), mean=image, flip=flip)
  np.testing.assert_array_equal(views, 0)


def test_colour_noise_has_the_covariance_of_section_4_1():
  count = 20_000
  black = np.zeros((count, 1, 1, 3), np.uint8)
  noise = _draw(black, crop_size=1, color_std=0.1)[:, 0, 0]
  sample = np.cov(noise.T)
  expected = (0.1 / 255) ** 2 * COVARIANCE @ COVARIANCE
  # In units of the expected deviations along the eigenvectors, which gives all
  # directions the same weight. The standard error of a sample variance is
  # sqrt(2 / count) = 1%; five of them are allowed.
  eigenvalues, eigenvectors = np.linalg.eig(expected)
  whiten = eigenvectors / np.sqrt(eigenvalues)
  np.testing.assert_allclose(whiten.T @ sample @ whiten, np.eye(3), atol=0.05)
  assert np.abs(noise.mean(0) @ whiten).max() < 5 / np.sqrt(count)


def test_colour_noise_of_imagenet_has_the_documented_deviations():
  directions = augment.color_directions(COVARIANCE)
  assert directions.dtype == np.float32
  std = 0.1 * np.linalg.norm(directions, axis=0)
  # 0.1 * l / 255, documented with two digits.
  np.testing.assert_allclose(sorted(std), [0.15, 0.54, 5.8], rtol=0.02)


def test_the_directions_of_the_source_are_its_published_deviations():
  directions = augment.color_directions(COVARIANCE, square_root=True)
  assert directions.dtype == np.float32
  lengths = np.linalg.norm(directions, axis=0)
  order = np.argsort(lengths)
  # Published with four digits.
  np.testing.assert_allclose(lengths[order], RGB_STD, rtol=2e-4)
  cosines = (directions / lengths)[:, order].T @ RGB_VECTORS
  np.testing.assert_allclose(np.abs(cosines), np.eye(3), atol=2e-4)
  # 0.1 * sqrt(l), documented with two or three digits.
  np.testing.assert_allclose(0.1 * lengths[order], [2.0, 3.7, 12.2], rtol=0.02)


def test_colour_noise_of_the_source_has_the_covariance_of_the_pixels():
  count = 20_000
  black = np.zeros((count, 1, 1, 3), np.uint8)
  directions = augment.color_directions(COVARIANCE, square_root=True)
  noise = _draw(black, crop_size=1, color_std=0.1, directions=directions)
  sample = np.cov(noise[:, 0, 0].T)
  whiten = RGB_VECTORS / (0.1 * RGB_STD)
  # Five standard errors, as above.
  np.testing.assert_allclose(whiten.T @ sample @ whiten, np.eye(3), atol=0.05)


def test_grey_images_have_one_direction_which_is_grey():
  # The other eigenvalues are 0, but for rounding -9e-13 or 9e-13.
  grey = np.full((3, 3), 1234.5)  # Pixels (g, g, g); variance of g.
  directions = np.abs(augment.color_directions(grey, square_root=True))
  largest = directions[:, directions.sum(0).argmax()]
  np.testing.assert_allclose(largest, np.sqrt(1234.5), rtol=1e-6)  # float32
  np.testing.assert_allclose(directions.sum(), largest.sum(), rtol=1e-6)


@pytest.mark.parametrize('color_std', [0.0, 0.1, 0.5])
def test_colour_divide_divides_the_view_by_one_plus_the_std(color_std):
  options = {'mean': _random_image(40), 'flip': True, 'color_std': color_std}
  views = _draw(_painted(64, 40), **options)
  divided = _draw(_painted(64, 40), color_divide=True, **options)
  # A rounding of float32.
  np.testing.assert_allclose(divided, views / (1 + color_std), rtol=3e-7)
  assert (np.abs(views) > 1).mean() > 0.9


def test_a_colour_std_of_zero_gives_no_noise():
  images = _painted(64, 40)
  views = _draw(images, color_std=0.0)
  np.testing.assert_array_equal(views, views.round())  # Pixels as in the image.
  assert (views[..., 2] == np.arange(64)[:, None, None]).all()


def test_the_central_mean_is_that_of_the_central_crop_wherever_the_crop_is():
  images, mean = _painted(64, 40), _random_image(40)
  views = _draw(images, mean=mean, central_mean=True)
  centre = mean[16:24, 16:24]
  # Without a mean, the first pixel of a crop is its place.
  y, x, _ = _draw(images)[:, 0, 0].astype(int).T
  assert len(set(y)) > 10 and len(set(x)) > 10
  for i, view in enumerate(views):
    crop = images[i, y[i] : y[i] + 8, x[i] : x[i] + 8].astype(float)
    np.testing.assert_array_equal(view, crop - centre)


def test_the_central_mean_of_an_odd_margin_is_up_and_left_of_the_middle():
  mean, offset = _random_image(41), jnp.array([0, 5, 0])
  black = jnp.zeros((1, 41, 41, 3), jnp.uint8)
  view = augment.view_at(black, jnp.asarray(mean, jnp.float32), offset, 8, True)
  np.testing.assert_array_equal(-view[0], mean[16:24, 16:24])


def test_each_channel_has_its_mean_and_is_divided_by_its_deviation():
  images, means, stds = _painted(8, 40), (5.0, 7.5, 1.25), (2.0, 4.0, 8.0)
  mean = np.full((40, 40, 3), means, np.float32)
  options = {'flip': True, 'color_std': 0.1}
  views = _draw(images, mean=mean, channel_stds=stds, **options)
  # The colours are noisy before they are divided. A rounding of float32.
  expected = (_draw(images, **options) - means) / np.float32(stds)
  np.testing.assert_allclose(views, expected, rtol=1e-5, atol=1e-5)
  # Whether the mean image is the central one makes no difference.
  central = _draw(
    images, mean=mean, channel_stds=stds, central_mean=True, **options
  )
  np.testing.assert_array_equal(central, views)
  offset = jnp.array([3, 4, 1])
  view = augment.view_at(
    jnp.asarray(images), jnp.asarray(mean), offset, 8, False, stds
  )
  expected = (images[:, 3:11, 4:12][:, :, ::-1] - means) / np.float32(stds)
  np.testing.assert_allclose(view, expected, rtol=1e-6)


def test_the_switches_of_the_source_do_not_change_what_is_drawn():
  images, mean = _painted(64, 40), _random_image(40)
  plain = _draw(images, flip=True, color_std=0.1)
  source = _draw(
    images,
    mean=mean,
    flip=True,
    color_std=0.1,
    color_divide=True,
    central_mean=True,
  )
  difference = plain - 1.1 * source.astype(float)
  # The mean image is not reflected. float32 rounds values up to 255 by 3e-5.
  mean = np.broadcast_to(mean[16:24, 16:24], difference.shape)
  np.testing.assert_allclose(difference, mean, atol=1e-3)
  flips = plain[:, 0, 0, 1] > plain[:, 0, -1, 1]
  assert flips.any() and not flips.all()


def test_colour_noise_is_one_colour_per_image():
  images = _painted(64, 40)
  noise = _draw(images, flip=True, color_std=0.1) - _draw(images, flip=True)
  # float32 rounds values up to 255 by 255 * 2 ** -23 = 3e-5.
  np.testing.assert_allclose(np.ptp(noise, axis=(1, 2)), 0, atol=1e-4)
  assert len(np.unique(noise[:, 0, 0].round(3), axis=0)) == 64


def test_a_draw_depends_only_on_the_index_in_the_global_batch():
  options = {'flip': True, 'color_std': 0.1, 'mean': _random_image(40)}
  images = _painted(96, 40)
  indices = np.arange(96, dtype=np.int32)
  first = _draw(images[:64], batch_indices=indices[:64], **options)
  last = _draw(images[32:], batch_indices=indices[32:], **options)
  np.testing.assert_array_equal(first[32:], last[:32])
  assert (first[:32] != last[:32]).any((1, 2, 3)).all()


def test_another_key_draws_other_crops_reflections_and_noise():
  images = _painted(64, 40)
  one, two = (_draw(images, key=k, flip=True, color_std=0.1) for k in (0, 1))
  # The third channel is the number of the image, everywhere in a crop.
  assert ((one - two)[:, 0, 0, 2] != 0).all()
  one, two = (_draw(images, key=k, flip=True) for k in (0, 1))
  for channel in (0, 1):  # 32 of 33 differ on average.
    places = [v[..., channel].min((1, 2)) for v in (one, two)]
    assert (places[0] != places[1]).mean() > 0.9
  flips = [v[:, 0, 0, 1] > v[:, 0, -1, 1] for v in (one, two)]
  assert 0.25 < (flips[0] != flips[1]).mean() < 0.75  # 4 sigma of 64.


@pytest.mark.parametrize(
  ('many', 'flip', 'expected'),
  [(True, True, 10), (True, False, 5), (False, True, 1), (False, False, 1)],
)
def test_test_time_views_are_corners_centre_and_their_reflections(
  many, flip, expected
):
  image = jnp.asarray(_painted(1, 256))  # 224 of 256: offsets 0, 16 and 32.
  corners = {(0, 0), (0, 32), (32, 0), (32, 32)}
  no_mean = jnp.zeros((256, 256, 3))
  places = {(16, 16)} | (corners if many else set())
  seen = set()
  offsets = augment.view_offsets(256, 224, many=many, flip=flip)
  for offset in offsets:
    view = augment.view_at(image, no_mean, jnp.array(offset), 224)[0]
    reflected = bool(view[0, 0, 1] > view[0, -1, 1])
    y, x = view[0, -1 if reflected else 0, :2]
    crop = image[0, int(y) : int(y) + 224, int(x) : int(x) + 224]
    np.testing.assert_array_equal(view, crop[:, ::-1] if reflected else crop)
    seen.add((int(y), int(x), reflected))
  both = (False, True) if many and flip else (False,)
  assert seen == {(*place, reflected) for place in places for reflected in both}
  assert len(offsets) == expected


@pytest.mark.parametrize('reflected', [0, 1])
def test_a_test_time_view_subtracts_the_mean_at_its_place(reflected):
  image = jnp.asarray(_random_image(40))
  offset = jnp.array([1, 3, reflected])
  view = augment.view_at(image[None], image.astype(jnp.float32), offset, 8)
  np.testing.assert_array_equal(view, np.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize('reflected', [0, 1])
@pytest.mark.parametrize('corner', [(0, 0), (32, 0), (16, 16)])
def test_a_test_time_view_can_subtract_the_central_mean(corner, reflected):
  image, mean = _random_image(40), _random_image(40)[::-1]
  view = augment.view_at(
    jnp.asarray(image[None]),
    jnp.asarray(mean, jnp.float32),
    jnp.array([*corner, reflected]),
    8,
    central_mean=True,
  )
  y, x = corner
  expected = image[y : y + 8, x : x + 8].astype(float)
  expected = expected[:, ::-1] if reflected else expected
  expected = expected - mean[16:24, 16:24]
  np.testing.assert_array_equal(view[0], expected)


def test_views_are_float32():
  images = _painted(64, 40)
  assert _draw(images, flip=True, color_std=0.1).dtype == np.float32
  offset, no_mean = jnp.array([0, 0, 1]), jnp.zeros((40, 40, 3))
  view = augment.view_at(jnp.asarray(images), no_mean, offset, 8)
  assert view.dtype == np.float32
