"""One stored image: geometry, colours, encodings and decoding.

The oracles are images of known colours, and Pillow's resize, crop and decoder.
"""

import io
import struct
import subprocess
import zlib

import numpy as np
from PIL import Image
import pytest

from alexnet_jax import image_metadata
from alexnet_jax import images

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _smooth(size):
  """A colour gradient, which JPEG stores without visible block edges."""
  y, x = np.mgrid[:size, :size] * 255 // (size - 1)
  return np.stack([y, x, 255 - y], -1).astype(np.uint8)


def _bytes(image, kind='PNG', **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def _decoded(stored):
  image = Image.open(io.BytesIO(stored))
  assert image.mode == 'RGB' and not image.getexif()
  return np.asarray(image)


@pytest.mark.parametrize('shape', [(240, 180), (180, 240), (120, 120)])
def test_the_shorter_side_is_resized_then_the_central_square_cropped(shape):
  width, height = shape
  image = Image.fromarray(_random(height, width, 3))
  _, pixels = images.encode(_bytes(image), 60, 95)
  scale = 60 / min(shape)
  resized = image.resize(
    (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC
  )
  left, top = (resized.width - 60) // 2, (resized.height - 60) // 2
  expected = resized.crop((left, top, left + 60, top + 60))
  np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize(
  'shape', [(201, 143), (143, 201), (255, 101), (61, 60), (41, 30)]
)
def test_pixels_of_odd_sizes_come_from_their_positions(shape):
  width, height = shape
  y, x = np.mgrid[:height, :width].astype(np.uint8)
  image = Image.fromarray(np.stack([x, y, 0 * y], -1))  # Its coordinates.
  _, pixels = images.encode(_bytes(image), 60, 95)
  scale = min(shape) / 60
  centre = (np.arange(60) + 0.5) * scale
  for channel, side, axis in ((0, width, 1), (1, height, 0)):
    expected = (side - 60 * scale) / 2 + centre - 0.5
    inner = slice(4, -4)  # At the border bicubic distorts a ramp.
    found = pixels[inner, inner, channel].astype(float)
    # The ramp rises one level per pixel, and each of the two passes rounds to a
    # level.
    assert np.abs(found.mean(1 - axis) - expected[inner]).max() <= 1
    assert np.ptp(found, axis=1 - axis).max() <= 1


@pytest.mark.parametrize('size', [30, 120])
@pytest.mark.parametrize(
  ('mode', 'kind', 'colour', 'expected'),
  [
    ('L', 'PNG', 90, (90, 90, 90)),
    ('I;16', 'PNG', 90 * 257, (90, 90, 90)),
    ('1', 'PNG', 1, (255, 255, 255)),
    ('LA', 'PNG', (90, 128), (90, 90, 90)),
    ('RGBA', 'PNG', (10, 200, 30, 128), (10, 200, 30)),
    ('CMYK', 'TIFF', (255, 0, 0, 0), (0, 255, 255)),
    ('CMYK', 'JPEG', (255, 0, 0, 0), (0, 255, 255)),
  ],
)
def test_every_mode_becomes_rgb(mode, kind, colour, expected, size):
  image = Image.new(mode, (120, 120), colour)
  stored, pixels = images.encode(_bytes(image, kind), size, 95)
  np.testing.assert_array_equal(
    pixels, np.broadcast_to(np.uint8(expected), (size, size, 3))
  )
  # JPEG rounds the values of its own colour space.
  np.testing.assert_allclose(_decoded(stored).astype(int), pixels, atol=3)


@pytest.mark.parametrize('transparency', [None, 0, bytes([128, 255])])
def test_a_palette_image_becomes_rgb(transparency):
  image = Image.new('P', (20, 20), 0)
  image.putpalette([*RED, *BLUE])
  image.paste(1, (10, 0, 20, 20))
  options = {} if transparency is None else {'transparency': transparency}
  _, pixels = images.encode(_bytes(image, **options), 20, 95)
  assert (pixels[:, :10] == RED).all() and (pixels[:, 10:] == BLUE).all()


def test_only_the_first_frame_is_used():
  frames = [Image.new('RGB', (20, 20), colour) for colour in (RED, BLUE)]
  encoded = _bytes(frames[0], 'GIF', save_all=True, append_images=frames[1:])
  _, pixels = images.encode(encoded, 20, 95)
  assert (pixels == RED).all()


@pytest.mark.parametrize(
  ('orientation', 'place'),
  [(1, 'left'), (2, 'right'), (3, 'right'), (6, 'top'), (8, 'bottom')],
)
@pytest.mark.parametrize('shape', [(120, 120), (160, 120)])
def test_exif_rotation_is_applied_once(orientation, place, shape):
  image = Image.new('RGB', shape, BLUE)
  image.paste(RED, (0, 0, shape[0] // 2, shape[1]))
  exif = Image.Exif()
  exif[0x0112] = orientation
  encoded = _bytes(image, 'JPEG', quality=95, exif=exif)
  stored, pixels = images.encode(encoded, 120, 95)
  edges = {
    'left': np.s_[:, :40],
    'right': np.s_[:, 80:],
    'top': np.s_[:40],
    'bottom': np.s_[80:],
  }
  for found in (pixels, np.asarray(Image.open(io.BytesIO(stored)))):
    # Far from the edge between the colours JPEG errs by a few levels.
    assert np.abs(found[edges[place]].astype(int) - RED).max() < 10
  assert Image.open(io.BytesIO(stored)).getexif().get(0x0112, 1) == 1


def test_a_jpeg_of_the_right_size_keeps_its_bytes():
  encoded = _bytes(Image.fromarray(_random(120, 120, 3)), 'JPEG', quality=70)
  stored, pixels = images.encode(encoded, 120, 95)
  assert stored == encoded
  np.testing.assert_array_equal(pixels, _decoded(encoded))


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'PPM'])
def test_a_lossless_image_of_the_right_size_stays_lossless(kind):
  original = _random(120, 120, 3)
  encoded = _bytes(Image.fromarray(original), kind)
  stored, pixels = images.encode(encoded, 120, 95)
  np.testing.assert_array_equal(pixels, original)
  np.testing.assert_array_equal(_decoded(stored), original)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('shape', [(120, 150), (96, 96)])
def test_small_images_are_stored_as_png(kind, shape):
  encoded = _bytes(Image.fromarray(_random(*shape, 3)), kind)
  stored, pixels = images.encode(encoded, 96, 95)
  assert Image.open(io.BytesIO(stored)).format == 'PNG'
  np.testing.assert_array_equal(_decoded(stored), pixels)


def test_a_scaled_image_is_stored_as_jpeg_of_the_given_quality():
  encoded = _bytes(Image.fromarray(_random(120, 150, 3)))
  stored = [images.encode(encoded, 97, quality)[0] for quality in (50, 95)]
  tables = [Image.open(io.BytesIO(s)).quantization[0] for s in stored]
  # The standard table begins with 16; quality 50 uses it unchanged, quality 95
  # divides it by ten.
  assert [table[0] for table in tables] == [16, 2]


def test_png_decodes_to_the_pixels_encoded():
  pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  out = np.empty_like(pixels)
  images.decode(_bytes(Image.fromarray(pixels), 'PNG'), out)
  np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:0'])
def test_jpeg_decodes_as_in_pillow(subsampling):
  image = Image.fromarray(_smooth(64))
  encoded = _bytes(image, 'JPEG', quality=95, subsampling=subsampling)
  out = np.empty((64, 64, 3), np.uint8)
  images.decode(encoded, out)
  expected = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
  # Two builds of libjpeg may round the inverse DCT and the colour upsampling
  # differently, by a grey level each; the conversion to RGB adds these up.
  assert np.abs(out - expected).max() <= 3


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('shape', [(1, 1), (8, 8), (8, 32), (32, 32)])
def test_an_image_of_another_size_is_refused(kind, shape):
  out = np.empty((16, 16, 3), np.uint8)
  encoded = _bytes(Image.fromarray(np.zeros((*shape, 3), np.uint8)), kind)
  with pytest.raises(ValueError):
    images.decode(encoded, out)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_exif_orientation_is_undone(orientation):
  upright = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  )
  # The sides of the displayed image at which row 0 and column 0 of the stored
  # image lie (CIPA DC-008).
  rows, columns = {
    1: ('top', 'left'),
    2: ('top', 'right'),
    3: ('bottom', 'right'),
    4: ('bottom', 'left'),
    5: ('left', 'top'),
    6: ('right', 'top'),
    7: ('right', 'bottom'),
    8: ('left', 'bottom'),
  }[orientation]
  stored = np.asarray(upright)
  if 'right' in (rows, columns):
    stored = stored[:, ::-1]
  if 'bottom' in (rows, columns):
    stored = stored[::-1]
  if rows in ('left', 'right'):
    stored = stored.transpose(1, 0, 2)
  exif = Image.Exif()
  exif[0x0112] = orientation
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(stored)).save(buffer, 'PNG', exif=exif)
  _, pixels = images.encode(buffer.getvalue(), 8, 95)
  np.testing.assert_array_equal(pixels, np.asarray(upright))


def test_an_image_of_too_many_pixels_is_not_decoded():
  # Above `MAX_PIXELS`, but below the limit at which Pillow raises an error.
  buffer = io.BytesIO()
  Image.new('1', (10_000, 10_000)).save(buffer, 'PNG')
  with pytest.raises(ValueError, match='10000 x 10000 pixels are too many'):
    images.encode(buffer.getvalue(), 8, 95)


@pytest.mark.parametrize('lossless', [True, False])
@pytest.mark.parametrize('exif', [b'', b'Exif\0\0II*\0\x08\0\0\0\0\0'])
def test_the_size_of_a_webp_is_read_from_its_first_bytes(lossless, exif):
  buffer = io.BytesIO()
  image = Image.new('RGB', (300, 17))
  image.save(buffer, 'WEBP', lossless=lossless, exif=exif)
  assert image_metadata.webp_size(buffer.getvalue()[:30]) == (300, 17)


def test_a_webp_of_too_many_pixels_gets_no_canvas(tmp_path, monkeypatch):
  size = (16382).to_bytes(3, 'little')
  body = b'WEBPVP8X' + (10).to_bytes(4, 'little') + bytes(4) + size + size
  file = tmp_path / 'x.webp'
  file.write_bytes(b'RIFF' + len(body).to_bytes(4, 'little') + body)
  monkeypatch.setattr(Image, 'open', None)  # It would allocate the canvas.
  for read in (
    lambda: images.encode(file.read_bytes(), 8, 95),
    lambda: images.read_pixels(file, 8),
    lambda: images.shorter_side(file),
  ):
    with pytest.raises(ValueError, match='16383 x 16383 pixels are too many'):
      read()


@pytest.mark.parametrize('value', [-1, 65536])
def test_integers_beyond_16_bits_are_refused(value):
  buffer = io.BytesIO()
  Image.fromarray(np.full((9, 9), value, np.int32)).save(buffer, 'TIFF')
  with pytest.raises(ValueError, match='no known range'):
    images.encode(buffer.getvalue(), 8, 95)


def test_a_damaged_jpeg_that_pillow_tolerates_is_encoded_again():
  encoded = bytearray(_bytes(Image.fromarray(_random(120, 120, 3)), 'JPEG'))
  encoded[len(encoded) // 2 + 5] = 0
  out = np.empty((120, 120, 3), np.uint8)
  with pytest.raises(ValueError, match='Corrupt JPEG data'):
    images.decode(bytes(encoded), out)
  stored, pixels = images.encode(bytes(encoded), 120, 95)
  images.decode(stored, out)
  # JPEG stores noise badly; the bound only excludes a different image.
  assert np.abs(out.astype(int) - pixels).mean() < 30


def test_no_colour_profile_is_stored():
  encoded = _bytes(
    Image.new('RGB', (20, 20)), 'JPEG', icc_profile=bytes(_random(9999))
  )
  assert len(images.encode(encoded, 20, 95)[0]) < 999


def _chunk(kind, data, checksum=None):
  """A chunk of a PNG, by default with the right checksum."""
  checksum = zlib.crc32(kind + data) if checksum is None else checksum
  return (
    struct.pack('>I4s', len(data), kind) + data + struct.pack('>I', checksum)
  )


def _insert(encoded, chunk, after_pixels):
  """A PNG with a further chunk: behind its header, or before its end."""
  place = len(encoded) - 12 if after_pixels else 33
  return encoded[:place] + chunk + encoded[place:]


PNG_METADATA = [
  (b'eXIf', b'garbage'),
  (b'eXIf', b'II*\0\xff\xff\xff\xff'),
  (b'tEXt', b'Raw profile type exif\0not hexadecimal'),
  (b'tEXt', b'Raw profile type exif\0\nexif\n 4\nzz'),
  (b'zTXt', b'key\0\1'),
  (b'zTXt', b'key\0\0' + zlib.compress(bytes(2**21))),  # Pillow's limit: 2**20.
  (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0garbage'),
  (b'iCCP', b'profile\0\1'),
  (b'iCCP', b''),
  (b'pHYs', b'1'),
  (b'gAMA', b''),
  (b'cHRM', b'1'),
  (b'sRGB', b''),
  (b'tRNS', b'1'),
  (b'acTL', b''),
  (b'fcTL', b''),
  (b'fdAT', b''),
]


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('checksum', [None, 7], ids=['', 'checksum'])
@pytest.mark.parametrize('after_pixels', [False, True])
def test_damaged_metadata_of_a_png_does_not_cost_its_pixels(
  after_pixels, checksum
):
  original = _random(9, 9, 3)
  encoded = _bytes(Image.fromarray(original))
  for kind, data in PNG_METADATA:
    chunk = _chunk(kind, data, checksum)
    damaged = _insert(encoded, chunk, after_pixels)
    _, pixels = images.encode(damaged, 9, 95)
    np.testing.assert_array_equal(pixels, original, err_msg=repr(chunk[:30]))


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('dpi', [(0, 0), (72, 72)])
def test_damaged_metadata_of_a_jpeg_does_not_cost_its_pixels(dpi):
  encoded = _bytes(Image.fromarray(_random(9, 9, 3)), 'JPEG', dpi=dpi)
  _, expected = images.encode(encoded, 9, 95)
  for kind, data in (
    (0xE0, b'JFIF'),
    (0xE1, b'Exif\0\0garbage'),
    (0xE1, b'Exif\0\0II*\0\xff\xff\xff\xff'),
    (0xE2, b'ICC_PROFILE\0'),
    (0xE2, b'ICC_PROFILE\0garbage'),
    (0xE2, b'MPF\0II*\0\xff\xff\xff\xff'),
    (0xED, b'Photoshop 3.0\x008BIM'),
    (0xEE, b'Adobe'),
  ):
    segment = struct.pack('>BBH', 0xFF, kind, len(data) + 2) + data
    damaged = encoded[:2] + segment + encoded[2:]
    _, pixels = images.encode(damaged, 9, 95)
    np.testing.assert_array_equal(pixels, expected, err_msg=repr(segment))


@pytest.mark.parametrize('exif', [b'garbage', b'Exif\0\0garbage'])
def test_damaged_exif_of_a_webp_does_not_cost_its_pixels(exif):
  original = _random(9, 9, 3)
  encoded = _bytes(Image.fromarray(original), 'WEBP', lossless=True, exif=exif)
  np.testing.assert_array_equal(images.encode(encoded, 9, 95)[1], original)


def _exif_for_a_half_turn():
  exif = Image.Exif()
  exif[0x0112] = 3
  return exif


@pytest.mark.parametrize(
  ('kind', 'damage'),
  [
    ('PNG', lambda png: _insert(png, _chunk(b'tEXt', b'a\0b', 7), False)),
    ('PNG', lambda png: _insert(png, _chunk(b'iCCP', b''), True)),
    ('JPEG', lambda jpeg: jpeg[:2] + b'\xff\xe2\0\x0eICC_PROFILE\0' + jpeg[2:]),
  ],
)
def test_the_orientation_is_kept_beside_other_damaged_metadata(kind, damage):
  encoded = _bytes(
    Image.fromarray(_smooth(64)), kind, exif=_exif_for_a_half_turn()
  )
  damaged = damage(encoded)
  with pytest.raises((OSError, SyntaxError, IndexError)):
    Image.open(io.BytesIO(damaged)).load()
  found = images.encode(damaged, 64, 95)[1]
  np.testing.assert_array_equal(found, images.encode(encoded, 64, 95)[1])
  # JPEG stores a gradient within a few levels.
  error = found.astype(int) - _smooth(64)[::-1, ::-1]
  assert np.abs(error).max() < 16


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_damaged_pixels_are_refused_whatever_the_metadata(kind):
  whole = _bytes(Image.fromarray(_random(99, 99, 3)), kind)
  reasons = []
  for metadata in (False, True):
    damaged = whole[: len(whole) // 2]
    if metadata and kind == 'PNG':
      damaged = _insert(damaged, _chunk(b'tEXt', b'a\0b'), False)
    elif metadata:
      damaged = damaged[:2] + b'\xff\xfe\0\4no' + damaged[2:]
    with pytest.raises(OSError, match='truncated') as error:
      images.encode(damaged, 9, 95)
    reasons.append(str(error.value).split(' (')[0])
  assert reasons[0] == reasons[1]


def test_running_out_of_memory_is_not_taken_for_damage(monkeypatch):
  def no_memory(*_):
    raise MemoryError

  encoded = _bytes(Image.new('RGB', (9, 9)))
  monkeypatch.setattr(Image.Image, 'getexif', no_memory)
  with pytest.raises(MemoryError):
    images.encode(encoded, 9, 95)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 120 120
%%EndComments
showpage
"""


@pytest.mark.parametrize('kind', ['EPS', 'PDF', 'TGA', 'ICNS', 'PSD', 'WMF'])
def test_other_formats_are_never_opened(tmp_path, monkeypatch, kind):
  """Pillow starts Ghostscript for EPS; the formats here are not tried at all."""
  content = EPS
  if kind != 'EPS':
    content = {
      'PDF': b'%PDF-1.4\n',
      'PSD': b'8BPS\0\1' + bytes(99),
      'WMF': b'\xd7\xcd\xc6\x9a' + bytes(99),
    }.get(kind) or _bytes(Image.new('RGB', (128, 128)), kind)

  def start(*_, **__):
    raise AssertionError('a program was started')

  monkeypatch.setattr(subprocess, 'Popen', start)
  monkeypatch.setattr(subprocess, 'check_call', start)
  with pytest.raises(ValueError, match='not an image that Pillow can read'):
    images.encode(content, 60, 95)
  (tmp_path / 'x.jpg').write_bytes(content)
  with pytest.raises(ValueError, match='x.jpg: not an image'):
    images.read_pixels(tmp_path / 'x.jpg', 60)
  with pytest.raises(images.ERRORS):
    images.shorter_side(tmp_path / 'x.jpg')
  with pytest.raises(images.ERRORS):
    images.decode(content, np.empty((60, 60, 3), np.uint8))


@pytest.mark.parametrize('kind', ['GIF', 'BMP', 'TIFF', 'PPM', 'WEBP'])
def test_stored_images_are_jpeg_or_png_alone(kind):
  content = _bytes(Image.fromarray(_random(60, 60, 3)), kind)
  assert images.encode(content, 60, 95)[1].shape == (60, 60, 3)
  with pytest.raises(images.ERRORS):
    images.decode(content, np.empty((60, 60, 3), np.uint8))


def test_a_stored_image_of_another_size_is_refused_before_it_is_decoded():
  out = np.empty((60, 60, 3), np.uint8)
  header = b'IHDR' + struct.pack('>II', 60_000, 60_000) + b'\x08\2\0\0\0'
  chunk = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
  with pytest.raises(images.ERRORS):
    images.decode(b'\x89PNG\r\n\x1a\n' + chunk, out)
  # Its pixels are missing: with a decoder it would be another error.
  header = b'IHDR' + struct.pack('>II', 61, 60) + b'\x08\2\0\0\0'
  chunk = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
  data = struct.pack('>I', 9) + b'IDAT' + bytes(13)
  with pytest.raises(ValueError, match=r'\(61, 60\) pixels, not \(60, 60\)'):
    images.decode(b'\x89PNG\r\n\x1a\n' + chunk + data, out)
  large = _bytes(Image.fromarray(_random(90, 90, 3)), 'JPEG')
  with pytest.raises(ValueError):
    images.decode(large, out)


def test_a_jpeg_of_very_many_scans_is_refused():
  encoded = _bytes(Image.fromarray(_smooth(64)), 'JPEG', progressive=True)
  scan = encoded.rindex(b'\xff\xda')
  again = encoded[scan:-2]
  assert images.encode(encoded, 60, 95)[1].any()
  with pytest.raises(ValueError, match='scans of a JPEG are too many'):
    images.encode(encoded[:-2] + 500 * again + encoded[-2:], 60, 95)


def test_damage_that_pillow_does_not_mention_is_reported():
  encoded = _bytes(Image.fromarray(_smooth(200)), 'JPEG', quality=90)
  damaged = encoded[: len(encoded) * 2 // 3] + b'\xff\xd9'  # Ends too early.
  images.encode(damaged, 60, 95)
  assert images.reported_damage(encoded) == ''
  assert 'premature end' in images.reported_damage(damaged)
  for mode in ('L', 'CMYK'):
    other = _bytes(Image.new(mode, (90, 90)), 'JPEG')
    assert images.reported_damage(other) == ''


@pytest.mark.parametrize('error', [RecursionError, struct.error, MemoryError])
def test_whatever_an_image_raises_names_its_file(tmp_path, monkeypatch, error):
  def fail(*_, **__):
    raise error

  (tmp_path / 'x.png').write_bytes(_bytes(Image.new('RGB', (9, 9))))
  monkeypatch.setattr(Image, 'open', fail)
  with pytest.raises(ValueError, match=f'x.png: {error.__name__}'):
    images.read_pixels(tmp_path / 'x.png', 8)


def test_scans_are_counted_up_to_the_end_of_the_image(tmp_path):
  encoded = io.BytesIO()
  noise = Image.effect_noise((64, 64), 80).convert('RGB')
  noise.save(encoded, 'JPEG', progressive=True, comment=b'\xff\xd9\xff\xda')
  jpeg = encoded.getvalue()
  scans = image_metadata.num_scans(jpeg)
  assert 5 < scans < 15  # libjpeg writes ten for colours.
  film = b'\xff\xda' * 1000  # As phones append one to a photograph.
  assert image_metadata.num_scans(jpeg + film) == scans
  assert image_metadata.num_scans(jpeg[:-2]) == scans  # Truncated.
  path = tmp_path / 'photograph.jpg'
  path.write_bytes(jpeg + film)
  assert images.read_pixels(str(path), 16).shape == (16, 16, 3)
