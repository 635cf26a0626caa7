"""One image as it is stored: how it is made, and how it is read.

Preparation writes 256x256 images (section 2 of the paper); the input pipeline
reads them, far more often, so decoding is the part that must be fast.
"""

import io
import warnings

import numpy as np
import PIL
from PIL import Image
from PIL import UnidentifiedImageError
from PIL import features
import simplejpeg

PNG_SIZE = 96  # Up to this size PNG is stored: lossless, and hardly larger.
LOSSLESS_FORMATS = ('PNG', 'BMP', 'PPM')
# What Pillow raises for what it cannot read.
ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Larger images are not decoded; Pillow's own bound of concern.
MAX_PIXELS = 89_478_485
# What the values of EXIF's tag "Orientation" ask for (CIPA DC-008, 4.6.4 A).
TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# What the bytes of an encoded image depend on beside its pixels.
ENCODER = f'Pillow {PIL.__version__}, libjpeg {features.version("jpg")}'


def encode(encoded: bytes, size: int, quality: int) -> tuple[bytes, np.ndarray]:
  """One image as it is stored, and its pixels before compression.

  The pixels are [size, size, 3] of 0..255.

  EXIF rotation is applied; grey (16 bits too), palette and CMYK images become
  RGB, transparent ones by leaving their alpha out; of a multi-frame image the
  first frame counts. The shorter side is scaled to `size` (bicubic,
  antialiased), then the central square is cut out. Stored as PNG where one of
  `LOSSLESS_FORMATS` needs no scaling or `size` is small, as the original bytes
  where a JPEG needs no change and is whole, otherwise as JPEG.

  Raises:
    OSError, ValueError, SyntaxError, Image.DecompressionBombError: if Pillow
      cannot read the image.
  """
  try:
    with warnings.catch_warnings():
      # Of a decompression bomb: refused below.
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      opened = Image.open(io.BytesIO(encoded))
  except UnidentifiedImageError as error:  # Whose words hold an address.
    raise ValueError('not an image that Pillow can read') from error
  with opened:
    if opened.width * opened.height > MAX_PIXELS:
      raise ValueError(f'{opened.width} x {opened.height} pixels are too many')
    kind, mode, stored_size = opened.format, opened.mode, opened.size
    turn = TURNS.get(opened.getexif().get(0x0112))  # The tag "Orientation".
    image = _rgb(opened)
    if turn is not None:
      image = image.transpose(turn)
  same = stored_size == (size, size)
  if not same:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    image = image.resize(
      (size, size),
      Image.Resampling.BICUBIC,
      box=(left, top, left + side, top + side),
    )
  pixels = np.asarray(image)
  image.info = {}  # Else a colour profile is stored with every PNG.
  if (
    same
    and kind == 'JPEG'
    and mode == 'RGB'
    and turn is None
    and size > PNG_SIZE
    and _decodes(encoded, np.empty_like(pixels))
  ):
    return encoded, pixels
  buffer = io.BytesIO()
  if size <= PNG_SIZE or same and kind in LOSSLESS_FORMATS:
    image.save(buffer, 'PNG')
  else:
    image.save(buffer, 'JPEG', quality=quality)
  return buffer.getvalue(), pixels


def _decodes(encoded, out):
  """Whether `decode` takes it: it forgives less damage than Pillow does."""
  try:
    decode(encoded, out)
  except ERRORS:
    return False
  return True


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode == 'F':
    raise ValueError('floating-point pixels have no known range')
  if image.mode.startswith('I'):  # 16 bits; Pillow would cut off at 255.
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
      raise ValueError('32-bit pixels have no known range')
    image = Image.fromarray((grey // 257).astype(np.uint8))
  if 'transparency' in image.info:  # A palette with it wants this step.
    image = image.convert('RGBA')
  if image.mode != 'RGB':
    return image.convert('RGB')
  image.load()  # A file is not decoded before.
  return image


def decode(encoded: bytes, out: np.ndarray) -> None:
  """Decodes a JPEG or PNG into `out`, uint8 [size, size, 3].

  Raises:
    OSError, ValueError, SyntaxError: if it cannot, or its size is another.
  """
  if encoded.startswith(b'\xff\xd8'):
    pixels = simplejpeg.decode_jpeg(encoded, colorspace='RGB', buffer=out)
  else:
    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
  if pixels.shape != out.shape:
    raise ValueError(f'its shape is {pixels.shape}, not {out.shape}')
  if not np.may_share_memory(pixels, out):
    np.copyto(out, pixels, casting='no')
