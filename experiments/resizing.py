r"""Compares the resizing of `images.encode` with Pillow's and OpenCV's.

    python -m experiments.resizing --folder=DIR [--size=256]

DIR holds photographs. `images.encode` resizes and crops in one step: the
shorter side becomes `size`, bicubic with a filter as wide as the reduction, and
the central square ends in half pixels where the margin is odd. It is compared
with two separate steps in Pillow, in either order, and with OpenCV's area and
bicubic resizing of the central square, whose filters are narrower. OpenCV is
not among the requirements: `pip install opencv-python-headless`.

A ramp, in which the value of each pixel is its coordinate, shows where each
filter places the centres of the output pixels: at (i + 0.5) * scale - 0.5 in
all three.
"""

import io
import pathlib

from absl import flags
import numpy as np
from PIL import Image

from alexnet_jax import images
from alexnet_jax.runtime import command


def central_square(image: Image.Image) -> Image.Image:
  """The largest central square; odd margins are larger at right and bottom."""
  side = min(image.size)
  left, top = ((length - side) // 2 for length in image.size)
  return image.crop((left, top, left + side, top + side))


def by_pillow(image: Image.Image, size: int) -> np.ndarray:
  """Resizes the whole image, then crops its central square."""
  scale = size / min(image.size)
  scaled = [max(size, round(length * scale)) for length in image.size]
  whole = image.resize(scaled, Image.Resampling.BICUBIC)
  return np.asarray(central_square(whole))


def by_opencv(image: Image.Image, size: int, filter_name: str) -> np.ndarray:
  """Crops the central square and resizes it with OpenCV."""
  import cv2

  square = np.asarray(central_square(image))
  interpolation = getattr(cv2, f'INTER_{filter_name}')
  return cv2.resize(square, (size, size), interpolation=interpolation)


def differences(path: pathlib.Path, size: int) -> dict[str, np.ndarray]:
  """Absolute differences from `images.encode` in grey levels, by method.

  'ours moved by half a pixel' compares the result of `images.encode` with
  itself, shifted by half a stored pixel: the error of a wrong geometry.
  """
  encoded = path.read_bytes()
  _, ours = images.encode(encoded, size, quality=95)
  with Image.open(io.BytesIO(encoded), formats=images.FORMATS) as opened:
    image = opened.convert('RGB')
  square = central_square(image)
  others = {
    'Pillow, crop then resize': np.asarray(
      square.resize((size, size), Image.Resampling.BICUBIC)
    ),
    'Pillow, resize then crop': by_pillow(image, size),
    'OpenCV area': by_opencv(image, size, 'AREA'),
    'OpenCV bicubic (no antialiasing)': by_opencv(image, size, 'CUBIC'),
  }
  found = {
    name: np.abs(other.astype(int) - ours) for name, other in others.items()
  }
  if (image.width - image.height) % 2 == 0:  # The square ends in whole pixels.
    found['Pillow, crop then resize, even margins'] = found[
      'Pillow, crop then resize'
    ]
  moved = (ours[:, 1:].astype(int) + ours[:, :-1]) // 2
  found['ours moved by half a pixel'] = np.abs(moved - ours[:, 1:])
  return found


def ramp_differences(size: int) -> dict[str, float]:
  """Largest error in the position of an output pixel, in output pixels.

  It is measured on a ramp of 1.5 times `size`, without the ends, where the
  filters are truncated.
  """
  import cv2

  side = 3 * size // 2
  ramp = np.tile(np.arange(side, dtype=np.float32), (side, 1))
  positions = (np.arange(size) + 0.5) * side / size - 0.5
  by_pillow = np.asarray(
    Image.fromarray(ramp).resize((size, size), Image.Resampling.BICUBIC)
  )
  results = {'Pillow bicubic': by_pillow}
  for name in ('AREA', 'CUBIC'):
    interpolation = getattr(cv2, f'INTER_{name}')
    results[f'OpenCV {name.lower()}'] = cv2.resize(
      ramp, (size, size), interpolation=interpolation
    )
  inner = slice(4, -4)
  return {
    name: float(np.abs(result[0] - positions)[inner].max() * size / side)
    for name, result in results.items()
  }


FLAGS = flags.FLAGS


def main(_) -> None:
  paths = sorted(
    p for p in pathlib.Path(FLAGS.folder).rglob('*') if p.is_file()
  )
  paths = [p for p in paths if p.suffix.lower() in ('.jpeg', '.jpg', '.png')]
  if not paths:
    raise ValueError(f'--folder={FLAGS.folder} contains no JPEG or PNG images')
  for name, distance in ramp_differences(FLAGS.size).items():
    print(f'{name}: positions within {distance:.3f} of an output pixel')
  means, most = {}, {}
  for path in paths:
    for name, difference in differences(path, FLAGS.size).items():
      means.setdefault(name, []).append(difference.mean())
      most.setdefault(name, []).append(difference.max())
  print(
    f'{len(paths)} photographs resized to {FLAGS.size} pixels, differences in'
    ' grey levels of 0..255'
  )
  print('| images.encode against | mean | largest mean of an image | largest |')
  print('|---|---|---|---|')
  for name, values in means.items():
    print(
      f'| {name} | {np.mean(values):.2f} | {max(values):.2f}'
      f' | {max(most[name])} |'
    )


if __name__ == '__main__':
  flags.DEFINE_string(
    'folder',
    None,
    'Folder of photographs, searched recursively.',
    required=True,
  )
  flags.DEFINE_integer(
    'size', 256, 'Height and width of the results in pixels.'
  )
  command.run(main)
