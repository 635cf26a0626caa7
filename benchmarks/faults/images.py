"""Hostile images: each is refused by name, or decoded within limits."""

import contextlib
import io
import struct
import zlib

import numpy as np
from PIL import Image

from alexnet_jax import image_metadata
from alexnet_jax import images
from benchmarks import harness
from benchmarks.faults import damage
from benchmarks.faults import rows

SIZE = 32
MAX_GROWTH = 1.8e9  # Bytes of memory for one image; see SECURITY.md.
check = rows.check


def corpus() -> dict[str, bytes]:
  """Whole images of all kinds, and programs that pretend to be images."""
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (48, 40, 3), np.uint8)
  rgb = Image.fromarray(noise)
  found = {}

  def add(name, image, kind, **options):
    buffer = io.BytesIO()
    with contextlib.suppress(OSError, KeyError):  # A codec may be missing.
      image.save(buffer, kind, **options)
      found[name] = buffer.getvalue()

  exif = Image.Exif()
  exif[0x0112] = 6
  add('jpeg', rgb, 'JPEG', exif=exif, icc_profile=b'x' * 200)
  add('progressive', rgb, 'JPEG', progressive=True)
  add('restarts', rgb, 'JPEG', restart_marker_blocks=1)
  for mode in ('L', 'CMYK'):
    add(f'jpeg {mode}', rgb.convert(mode), 'JPEG')
  for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA'):
    add(f'png {mode}', rgb.convert(mode), 'PNG', exif=exif)
  add('png 16', Image.fromarray(noise[..., 0].astype(np.uint16) * 257), 'PNG')
  add('gif', rgb.convert('P'), 'GIF', save_all=True, append_images=[rgb] * 2)
  for compression in ('raw', 'tiff_lzw', 'tiff_deflate', 'jpeg', 'packbits'):
    add(f'tiff {compression}', rgb, 'TIFF', compression=compression)
  add('tiff F', Image.fromarray(np.ones((9, 9), np.float32)), 'TIFF')
  for kind in ('BMP', 'PPM', 'WEBP', 'JPEG2000', 'AVIF'):
    add(kind.lower(), rgb, kind)
  for kind in ('EPS', 'PCX', 'TGA', 'ICO', 'SGI', 'PDF', 'DDS', 'MPO'):
    add(f'other {kind.lower()}', rgb, kind)
  found['other ps'] = b'%!PS\n{} loop\n%%EOF\n'
  found['other eps'] = (
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n'
  )
  found['other svg'] = (
    b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>'
  )
  found['other mvg'] = b'push graphic-context\nimage over 0,0 0,0 "|id"\n'
  found['other pickle'] = b"cos\nsystem\n(S'id'\ntR."
  found['other zip'] = b'PK\x03\x04' + bytes(60)
  found['other zeros'], found['other empty'] = bytes(5000), b''
  found |= bombs(found['progressive'])
  return found


def bombs(progressive: bytes) -> dict[str, bytes]:
  """Small files that ask for much memory or time."""
  found = {}
  for side in (9_000, 20_000, 60_000, 2**31 - 1):
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(bytes(10**6)))]
    chunks.append((b'IEND', b''))
    content = b'\x89PNG\r\n\x1a\n'
    for kind, data in chunks:
      checksum = zlib.crc32(kind + data)
      content += struct.pack('>I', len(data)) + kind + data
      content += struct.pack('>I', checksum)
    found[f'bomb png {side}'] = content
  found['bomb ppm'] = b'P6 99999 99999 255\n' + bytes(100)
  found['bomb bmp'] = (
    b'BM'
    + struct.pack('<IHHIIiiHH', 0, 0, 0, 54, 40, 2**30, 2**30, 1, 24)
    + bytes(64)
  )
  found['bomb gif'] = b'GIF89a\xff\xff\xff\xff\x00\x00\x00,' + bytes(50)
  scan = progressive[progressive.index(b'\xff\xda') : -2]
  found['bomb scans'] = progressive[:-2] + scan * 300 + b'\xff\xd9'
  return found


def mutate(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
  """A few changes of a file, half of them in its first 200 bytes."""
  changed = bytearray(content)
  for _ in range(rng.geometric(0.6)):
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
    at, kind = rng.integers(end + 1), rng.integers(8)
    if kind == 0 and end:
      changed[at % end] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      changed[at : at + 4] = rng.bytes(4)
    elif kind == 2:  # Sizes and counts.
      value = damage.choose((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 2**16, 10**5), rng)
      changed[at : at + 4] = struct.pack('<>'[rng.integers(2)] + 'I', value)
    elif kind == 3:
      del changed[at:]
    elif kind == 4:
      del changed[at : at + int(rng.integers(1, 50))]
    elif kind == 5:
      changed[at:at] = changed[at : at + int(rng.integers(1, 500))]
    elif kind == 6:
      start = rng.integers(len(other) + 1)
      changed[at:at] = other[start : start + int(rng.integers(1, 500))]
    else:
      changed[at:] = other[rng.integers(len(other) + 1) :]
  if rng.random() < 0.3 and changed.startswith(b'\x89PNG'):
    return with_checksums(bytes(changed))
  return bytes(changed)


def with_checksums(png: bytes) -> bytes:
  """The file with right checksums, so that the decoder sees its chunks."""
  found, at = bytearray(png), 8
  while at + 8 <= len(found):
    (length,) = struct.unpack('>I', found[at : at + 4])
    end = at + 8 + length
    if end + 4 > len(found):
      break
    checksum = zlib.crc32(found[at + 4 : end])
    found[end : end + 4] = struct.pack('>I', checksum)
    at = end + 4
  return bytes(found)


@contextlib.contextmanager
def hostile(shared):
  """Reads files as preparation and prediction do, and stored ones as a run."""
  del shared
  whole = corpus()
  names = sorted(whole)
  base = harness.peak_bytes()

  def trial(rng, folder):
    name, other = (damage.choose(names, rng) for _ in range(2))
    content = whole[name]
    if rng.random() < 0.97:
      content = mutate(content, whole[other], rng)
    path = folder / 'image.jpg'
    path.write_bytes(content)
    with damage.nothing_is_run():
      seen = read_file(path)
      read_stored(content)
      is_jpeg = content.startswith(image_metadata.JPEG_SIGNATURE)
      if is_jpeg and seen == 'decoded':
        images.reported_damage(content)
    growth = harness.peak_bytes() - base
    check(growth < MAX_GROWTH, f'{name}: {growth / 1e9:.1f} GB of memory')
    return seen

  yield trial


def read_file(path) -> str:
  """Reads an image file, and encodes it."""
  try:
    pixels = images.read_pixels(path, SIZE)
  except ValueError as error:
    check(str(path) in str(error), f'the file is not named: {error}')
    return 'refused by name'
  check(
    pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8,
    f'{pixels.dtype} {pixels.shape}',
  )
  encoded, found = images.encode(path.read_bytes(), SIZE, 95)
  check(np.array_equal(found, pixels), 'stored pixels differ from those read')
  out = np.zeros_like(pixels)
  images.decode(encoded, out)
  check(np.array_equal(out, pixels), 'PNG has changed the pixels')
  return 'decoded'


def read_stored(content) -> None:
  """Decodes the content as a stored image, which must be 48 x 40 pixels."""
  out = np.zeros((SIZE, SIZE, 3), np.uint8)
  with contextlib.suppress(*images.ERRORS):
    images.decode(content, out)


ROWS = [
  rows.Row(
    'images',
    'hostile image files: mutated ones of all formats, programs, bombs',
    'refused with the name of the file, or decoded to uint8 [size, size, 3],'
    ' within 60 s and 1.8 GB; nothing is run',
    *(50_000, 500, hostile),
  )
]
