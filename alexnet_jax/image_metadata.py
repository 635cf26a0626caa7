"""Images without their metadata: damage there must not cost the pixels."""

import math
import re
import zlib

JPEG_SIGNATURE = b'\xff\xd8'
# In a scan, 0xff stands before 0, a restart marker, or the marker of a segment.
_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


def remove(encoded: bytes) -> bytes | None:
  """A PNG or JPEG with what its pixels and its orientation need, and no more.

  None for other formats.
  """
  if encoded.startswith(PNG_SIGNATURE):
    return _png_without_metadata(encoded)
  if encoded.startswith(JPEG_SIGNATURE):
    return _jpeg_without_metadata(encoded)
  return None


def check_limits(encoded: bytes, max_pixels: int, max_scans: int) -> None:
  """Raises ValueError for what must be refused before Pillow opens it.

  Args:
    encoded: an image file, or its first bytes.
    max_pixels: limit of the pixels of a WebP.
    max_scans: limit of the scans of a JPEG.
  """
  if (size := webp_size(encoded)) and math.prod(size) > max_pixels:
    raise ValueError('{} x {} pixels are too many'.format(*size))
  is_jpeg = encoded.startswith(JPEG_SIGNATURE)
  if is_jpeg and (scans := num_scans(encoded)) > max_scans:
    raise ValueError(f'{scans} scans of a JPEG are too many')


def webp_size(encoded: bytes) -> tuple[int, int] | None:
  """Width and height of a WebP by its first bytes; None for other formats.

  Pillow's decoder allocates the canvas as soon as it opens the file. The
  structure is that of RFC 9649, sections 2.5 to 2.7.
  """
  if encoded[:4] != b'RIFF' or encoded[8:12] != b'WEBP':
    return None
  number = lambda start, end: int.from_bytes(encoded[start:end], 'little')
  match encoded[12:16]:
    case b'VP8X':
      return number(24, 27) + 1, number(27, 30) + 1
    case b'VP8L':
      bits = number(21, 25)
      return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF  # VP8.


def num_scans(jpeg: bytes) -> int:
  """The number of scans of a JPEG, up to the end of the image.

  Phones append films to photographs, which may hold any bytes. The structure is
  that of the JPEG standard, B.1.1.
  """
  scans, start = 0, len(JPEG_SIGNATURE)
  while jpeg[start : start + 1] == b'\xff':
    kind = jpeg[start + 1 : start + 2]
    if kind == b'\xd9':  # The end of the image.
      break
    start += 2 + int.from_bytes(jpeg[start + 2 : start + 4])
    if kind == b'\xda':
      scans += 1
      marker = _MARKER.search(jpeg, start)
      start = marker.start() if marker else len(jpeg)
  return scans


def _png_without_metadata(encoded: bytes) -> bytes:
  """The chunks of a PNG that its pixels and its orientation need.

  Pillow refuses an image for a text, a colour profile or a checksum of either
  that is damaged. The structure is that of the PNG specification, section 5.
  """
  kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
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
  kept, start = [JPEG_SIGNATURE], len(JPEG_SIGNATURE)
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
