"""The picture of the README against its parts."""

import numpy as np

from alexnet_jax import image_files
from alexnet_jax import pictures as pictures_lib
from alexnet_jax import sheet
from experiments import front_picture


def test_the_kernels_stand_above_five_images_with_their_predictions(
  tiny_net, pictures, monkeypatch
):
  drawn = {}

  def keep(module, name):
    original = getattr(module, name)

    def kept(*args):
      drawn[name] = args[0], original(*args)
      return drawn[name][1]

    monkeypatch.setattr(module, name, kept)

  keep(pictures_lib, 'kernel_grid')
  keep(sheet, 'of_predictions')
  files = [pictures / 'ant', pictures / 'bee', pictures / 'e.png'] * 2
  sources = image_files.find([str(file) for file in files], '')
  whole = np.asarray(front_picture.draw(tiny_net, sources))
  shown, images = drawn['of_predictions']
  bars = min(front_picture.CLASSES, len(tiny_net.class_names))
  assert [len(picture.bars) for picture in shown] == [bars] * 4
  kernels, grid = drawn['kernel_grid']
  assert kernels is tiny_net.params['conv1']['kernel']
  height, width, _ = grid.shape
  assert whole.shape[1] == images.width and width > images.width / 2
  left, top = (images.width - width) // 2, front_picture.MARGIN
  np.testing.assert_array_equal(
    whole[top : top + height, left : left + width], grid
  )
  np.testing.assert_array_equal(whole[top + height :], np.asarray(images))
