"""One stored image: how it is encoded and decoded.

Preparation encodes images of 256x256 pixels (section 2 of the paper). The input
pipeline decodes them in every epoch, so decoding has to be fast.
"""

import io
import math
import warnings
import zlib

import numpy as np
import PIL
from PIL import Image
from PIL import UnidentifiedImageError
from PIL import features
import simplejpeg

PNG_SIZE = 96  # Up to this size PNG is stored: lossless and hardly larger.
LOSSLESS_FORMATS = ('PNG', 'BMP', 'PPM')
# The exceptions that Pillow raises for images that it cannot read.
ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Larger images are not decoded; Pillow warns above this limit.
MAX_PIXELS = 89_478_485
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
_JPEG_SIGNATURE = b'\xff\xd8'
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
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
    encoded: the image, in any format that Pillow reads.
    size: height and width of the result in pixels.
    quality: JPEG quality, 1 to 100.

  Returns:
    The encoded result and its uncompressed pixels, uint8 [size, size, 3].

  Raises:
    OSError, ValueError, SyntaxError, Image.DecompressionBombError: if Pillow
      cannot read the image.
  """
  try:
    return _encode(encoded, size, quality)
  except MemoryError:
    raise
  except Exception:  # Pillow may raise anything for damaged metadata.
    if encoded.startswith(_PNG_SIGNATURE):
      essential = _png_without_metadata(encoded)
    elif encoded.startswith(_JPEG_SIGNATURE):
      essential = _jpeg_without_metadata(encoded)
    else:
      raise
    try:
      return _encode(essential, size, quality)
    except MemoryError:
      raise
    except Exception:
      pass
    raise  # The first error, since the pixels are damaged, too.


def _encode(encoded, size, quality):
  try:
    with warnings.catch_warnings():
      # Images above the limit of this warning are refused below.
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      opened = Image.open(io.BytesIO(encoded))
  except UnidentifiedImageError as error:
    # Pillow's message contains a memory address, which differs in every run.
    raise ValueError('not an image that Pillow can read') from error
  with opened:
    if opened.width * opened.height > MAX_PIXELS:
      raise ValueError(f'{opened.width} x {opened.height} pixels are too many')
    file_format, mode, stored_size = opened.format, opened.mode, opened.size
    transposition = _transposition(opened)
    image = _to_rgb(opened)
    if transposition is not None:
      image = image.transpose(transposition)
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


def _png_without_metadata(encoded: bytes) -> bytes:
  """The chunks of a PNG that its pixels and its orientation need.

  Pillow refuses an image for a text, a colour profile or a checksum of either
  that is damaged. The structure is that of the PNG specification, section 5.
  """
  kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
  while start + 12 <= len(encoded):  # Length, type, data and checksum.
    end = start + 12 + int.from_bytes(encoded[start : start + 4])
    chunk = encoded[start:end]
    kind, checksum = chunk[4:8], int.from_bytes(chunk[-4:])
    # The types of the chunks that pixels need begin with a capital.
    is_exif = kind == b'eXIf' and zlib.crc32(chunk[4:-4]) == checksum
    if kind[:1].isupper() or is_exif:
      kept.append(chunk)
    start = end
  return b''.join(kept)


def _jpeg_without_metadata(encoded: bytes) -> bytes:
  """The segments of a JPEG that its pixels and its orientation need.

  Pillow refuses an image for a colour profile that is too short. The structure
  is that of the JPEG standard, B.1.1.
  """
  kept, start = [_JPEG_SIGNATURE], len(_JPEG_SIGNATURE)
  while encoded[start : start + 1] == b'\xff':
    kind = encoded[start + 1 : start + 2]
    if kind == b'\xda':  # The scan: all that follows are pixels.
      break
    end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4])
    is_metadata = b'\xe0' <= kind <= b'\xef' or kind == b'\xfe'
    # JFIF and Adobe (APP0, APP14) tell the colour space, EXIF (APP1) the
    # orientation.
    shortest = {b'\xe0': 14, b'\xe1': 0, b'\xee': 12}.get(kind, math.inf)
    if not is_metadata or end - start - 4 >= shortest:
      kept.append(encoded[start:end])
    start = end
  return b''.join([*kept, encoded[start:]])


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
  if encoded.startswith(_JPEG_SIGNATURE):
    pixels = simplejpeg.decode_jpeg(encoded, colorspace='RGB', buffer=out)
  else:
    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
  if pixels.shape != out.shape:
    raise ValueError(f'its shape is {pixels.shape}, not {out.shape}')
  if not np.may_share_memory(pixels, out):
    np.copyto(out, pixels, casting='no')
