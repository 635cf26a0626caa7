"""One stored image: how it is encoded and decoded.

Preparation encodes images of 256x256 pixels (section 2 of the paper). The input
pipeline decodes them in every epoch, so decoding has to be fast.
"""

import functools
import io
import os
import pathlib
import warnings

import numpy as np
import PIL
from PIL import Image
from PIL import UnidentifiedImageError
from PIL import features
import simplejpeg

from alexnet_jax import image_metadata
from alexnet_jax.runtime import files

AnyImage = str | os.PathLike | Image.Image | np.ndarray
PNG_SIZE = 96  # Up to this size PNG is stored: lossless and hardly larger.
LOSSLESS_FORMATS = ('PNG', 'BMP', 'PPM')
# The formats that preparation reads, by Pillow's names. The decoders of others
# are not tried: some, as of PostScript, start programs.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000')
if 'avif' in features.modules:  # As of Pillow 11.3.
  FORMATS += ('AVIF',)
# The exceptions that `decode` and `read_pixels` raise.
ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Larger images are not decoded; Pillow warns above this limit.
MAX_PIXELS = 89_478_485
MAX_BYTES = 2**30  # Larger image files are refused without reading them.
# Each scan of a progressive JPEG passes over all pixels; encoders write about
# ten. Without a limit a small file could keep a decoder busy for hours.
MAX_SCANS = 100
_ORIENTATION = 0x0112  # The EXIF tag "Orientation" (CIPA DC-008, 4.6.4 A).
# The transposition that each value of the tag asks for.
_TRANSPOSITIONS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# The bytes of an encoded image depend on its pixels and on these versions.
ENCODER = f'Pillow {PIL.__version__}, libjpeg {features.version("jpg")}'


# The reasons why `encode` refuses an image enter the fingerprint of the data
# set: rewording one changes the fingerprint.
def encode(encoded: bytes, size: int, quality: int) -> tuple[bytes, np.ndarray]:
  """Resizes and crops an image, and encodes it for storage.

  EXIF rotation is applied. Grey (also of 16 bits), palette and CMYK images
  become RGB, and transparent images lose their alpha channel; only the first
  frame of an image is used. The shorter side is resized to `size` (bicubic,
  antialiased), then the central square is cropped. The result is stored as PNG
  if `size` is small or the image is in one of `LOSSLESS_FORMATS` and keeps its
  size, as the original bytes if a JPEG needs no change and is not damaged, and
  otherwise as JPEG. Damaged metadata, such as EXIF, is ignored.

  Args:
    encoded: the image, in one of `FORMATS`.
    size: height and width of the result in pixels.
    quality: JPEG quality, 1 to 100.

  Returns:
    The encoded result and its uncompressed pixels, uint8 [size, size, 3].

  Raises:
    OSError, ValueError, SyntaxError, Image.DecompressionBombError: if Pillow
      cannot read the image.
  """
  pixels = functools.partial(_encode, size=size, quality=quality)
  return _without_damaged_metadata(pixels, encoded)


def read_pixels(image: AnyImage, size: int) -> np.ndarray:
  """The pixels that preparation would store of an image, uint8 [size, size, 3].

  They are resized and cropped as in `encode`, but not compressed.

  Args:
    image: path of an image file, a Pillow image, or an RGB array, uint8
      [height, width, 3].
    size: height and width of the result in pixels.

  Raises:
    OSError: if there is no such file.
    ValueError: if it is not an image that Pillow can read; the message names
      the file.
    TypeError: if an array has another dtype or shape.
  """
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise TypeError(
        f'an image has dtype {image.dtype} and shape {list(image.shape)}, but'
        ' must be uint8 [height, width, 3], RGB of 0..255'
      )
    if image.shape[:2] == (size, size):
      return image
    image = Image.fromarray(image)
  if isinstance(image, Image.Image):
    return _resized(_upright(image)[0], size)
  path = pathlib.Path(image)
  encoded = files.read_bytes(path, MAX_BYTES)
  try:
    return _without_damaged_metadata(
      lambda encoded: _resized(_open(encoded)[0], size), encoded
    )
  except Exception as error:  # Pillow may raise anything for a damaged file.
    raise ValueError(f'{path}: {str(error) or type(error).__name__}') from error


def shorter_side(path: str | os.PathLike) -> int:
  """Pixels of the shorter side of an image file; only its header is read.

  Raises:
    OSError, ValueError, SyntaxError, Image.DecompressionBombError: if it is not
      an image in one of `FORMATS`.
  """
  with files.open_regular(path) as file:
    image_metadata.check_limits(file.read(30), MAX_PIXELS, MAX_SCANS)
    file.seek(0)
    with Image.open(file, formats=FORMATS) as im:
      return min(im.size)


def reported_damage(encoded: bytes) -> str:
  """What libjpeg reports of a JPEG that Pillow has read; '' if nothing.

  Pillow drops these reports. Only an eighth of the resolution is decoded, which
  takes a sixth of the time of `encode`, for photographs of 500 x 375 pixels.
  """
  if not encoded.startswith(image_metadata.JPEG_SIGNATURE):
    return ''
  try:
    simplejpeg.decode_jpeg(
      encoded, 'GRAY', min_height=1, min_width=1, min_factor=8
    )
  except ValueError as error:
    return str(error)
  return ''


def _without_damaged_metadata(read, encoded):
  """`read(encoded)`; if that fails, of the image without its metadata."""
  result, error = _attempt(read, encoded)
  if error and (essential := image_metadata.remove(encoded)) is not None:
    result, also = _attempt(read, essential)
    error = also and error  # The first one, if the pixels are damaged, too.
  if error:
    raise error
  return result


def _attempt(read, encoded):
  """`read(encoded)`, and what it raised or None; a MemoryError is raised."""
  try:
    return read(encoded), None
  except MemoryError:
    raise
  except Exception as error:  # Pillow may raise anything for damaged metadata.
    return None, error


def _open(encoded):
  """The upright RGB image, and its format, mode, size and transposition."""
  image_metadata.check_limits(encoded, MAX_PIXELS, MAX_SCANS)
  try:
    with warnings.catch_warnings():
      # Images above the limit of this warning are refused below.
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      opened = Image.open(io.BytesIO(encoded), formats=FORMATS)
  except UnidentifiedImageError as error:
    # Pillow's message contains a memory address, which differs in every run.
    raise ValueError('not an image that Pillow can read') from error
  with opened:
    if opened.width * opened.height > MAX_PIXELS:
      raise ValueError(f'{opened.width} x {opened.height} pixels are too many')
    stored = opened.format, opened.mode, opened.size
    image, transposition = _upright(opened)
  if sorted(image.size) != sorted(stored[2]):  # Its pixels are read by now.
    raise ValueError(f'{stored[2]} pixels became {image.size} when read')
  return image, *stored, transposition


def _upright(image):
  """The RGB image that EXIF asks for, and the transposition to it."""
  transposition = _transposition(image)
  image = _to_rgb(image)
  if transposition is not None:
    image = image.transpose(transposition)
  return image, transposition


def _resized(image, size):
  if image.size != (size, size):
    image = _resize_and_crop(image, size)
  return np.asarray(image)


def _encode(encoded, size, quality):
  image, file_format, mode, stored_size, transposition = _open(encoded)
  keeps_size = stored_size == (size, size)
  if not keeps_size:
    image = _resize_and_crop(image, size)
  pixels = np.asarray(image)
  if (
    keeps_size
    and file_format == 'JPEG'
    and mode == 'RGB'
    and transposition is None
    and size > PNG_SIZE
    and _is_decodable(encoded, np.empty_like(pixels))
  ):
    return encoded, pixels
  image.info = {}  # Pillow would store a colour profile with every PNG.
  buffer = io.BytesIO()
  if size <= PNG_SIZE or keeps_size and file_format in LOSSLESS_FORMATS:
    image.save(buffer, 'PNG')
  else:
    image.save(buffer, 'JPEG', quality=quality)
  return buffer.getvalue(), pixels


def _transposition(image: Image.Image) -> Image.Transpose | None:
  """What EXIF asks for; None if the image is upright or EXIF is damaged."""
  if image.format == 'PNG':
    image.load()  # EXIF may follow the pixels. Their damage is an error.
  try:
    return _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION))
  except MemoryError:
    raise
  except Exception:  # Pillow may raise anything for damaged metadata.
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
  """The decoded image in mode RGB."""
  if image.mode == 'F':
    raise ValueError('floating-point pixels have no known range')
  if image.mode.startswith('I'):  # 16 bits; Pillow would clip them at 255.
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
      raise ValueError('32-bit pixels have no known range')
    image = Image.fromarray((grey // 257).astype(np.uint8))
  if 'transparency' in image.info:  # A transparent palette needs this step.
    image = image.convert('RGBA')
  if image.mode != 'RGB':
    return image.convert('RGB')
  image.load()  # `Image.open` has read the header only.
  return image


def _resize_and_crop(image, size):
  """Resizes the central square, whose margins may end in half pixels."""
  width, height = image.size
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  return image.resize(
    (size, size),
    Image.Resampling.BICUBIC,
    box=(left, top, left + side, top + side),
  )


def _is_decodable(encoded, out):
  """Whether `decode`, which tolerates less damage than Pillow, accepts it."""
  try:
    decode(encoded, out)
  except ERRORS:
    return False
  return True


def decode(encoded: bytes, out: np.ndarray) -> None:
  """Decodes a JPEG or PNG into `out`, uint8 [size, size, 3].

  Raises:
    OSError, ValueError, SyntaxError: if the image is damaged or has another
      shape.
  """
  if encoded.startswith(image_metadata.JPEG_SIGNATURE):
    pixels = simplejpeg.decode_jpeg(encoded, colorspace='RGB', buffer=out)
  else:
    with Image.open(io.BytesIO(encoded), formats=('PNG',)) as image:
      if image.size != out.shape[1::-1]:  # Larger ones are not decoded.
        raise ValueError(f'it has {image.size} pixels, not {out.shape[1::-1]}')
      pixels = np.asarray(image)
  if pixels.shape != out.shape:
    raise ValueError(f'its shape is {pixels.shape}, not {out.shape}')
  if not np.may_share_memory(pixels, out):
    np.copyto(out, pixels, casting='no')
