"""Preparing a data set: geometry, statistics, bad images, interruption.

The oracles are images painted by hand, Pillow's own resize and crop, NumPy
over the source images, and the uninterrupted preparation.
"""

import io
import itertools
import json
import logging
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
from PIL import Image
import psutil
import pytest

from alexnet_jax import files
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax import prepare
from alexnet_jax import shards

SIZE = 8


def _write_source(root, *, train=10, val=3):
  """Class folders of random images of SIZE; returns training's pixels."""
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, (train + val, SIZE, SIZE, 3), np.uint8)
  for i, image in enumerate(pixels):
    part = 'train' if i < train else 'val'
    path = root / part / f'class{i % 2}' / f'{i:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  return pixels[:train]


@pytest.fixture
def source(tmp_path):
  _write_source(tmp_path / 'images')
  return f'folder:{tmp_path / "images"}'


@pytest.fixture
def small_shards(monkeypatch):
  monkeypatch.setattr(prepare, 'SHARD_EXAMPLES', 3)


def _prepare(source, data_dir, **options):
  return prepare.prepare(source, 'set', data_dir, **{'size': SIZE, **options})


def _tree(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def _interrupt(monkeypatch, after):
  """The encoder is interrupted, as by Ctrl-C, after some images."""
  calls = itertools.count()
  encode = images.encode

  def interrupted(*args):
    if next(calls) == after:
      raise KeyboardInterrupt
    return encode(*args)

  monkeypatch.setattr(images, 'encode', interrupted)


def test_statistics_are_those_of_the_training_pixels(tmp_path, small_shards):
  pixels = _write_source(tmp_path / 'images')
  path = _prepare(f'folder:{tmp_path / "images"}', tmp_path)
  with np.load(path / input_pipeline.STATISTICS_FILE) as statistics:
    # Stored as float32: 24 bits.
    np.testing.assert_allclose(
      statistics['mean_image'], pixels.astype(float).mean(0), rtol=2**-23
    )
    rgb = pixels.reshape(-1, 3).T.astype(float)
    np.testing.assert_allclose(
      statistics['rgb_covariance'], np.cov(rgb, bias=True), rtol=1e-9
    )


def test_examples_are_stored_shuffled_with_their_labels(tmp_path, source):
  _prepare(source, tmp_path)
  dataset = input_pipeline.open_dataset(tmp_path, 'set')
  batches = input_pipeline.eval_batches(dataset, 'train', batch_size=10)
  labels = next(batches)['label'].tolist()
  batches.close()
  assert sorted(labels) == [0] * 5 + [1] * 5
  assert labels != sorted(labels)


@pytest.fixture
def in_processes(monkeypatch):
  """However few the images are, they are spread over processes."""
  monkeypatch.setattr(prepare, 'ALONE', 0)


def test_many_processes_leave_no_trace(
  tmp_path, source, small_shards, in_processes
):
  bad = _add_bad_images(tmp_path)
  trees = []
  for workers in (1, 2):
    out = _prepare(source, tmp_path / str(workers), workers=workers, max_bad=2)
    trees.append(_tree(out))
  assert trees[0] == trees[1]
  record = json.loads(trees[0]['preparation.json'])
  assert [line.split(':')[0] for line in record['skipped']] == bad


def test_many_processes_stop_at_too_many_unreadable_images(
  tmp_path, source, small_shards, in_processes
):
  bad = _add_bad_images(tmp_path)
  with pytest.raises(RuntimeError, match='more than --max_bad=1') as error:
    _prepare(source, tmp_path, workers=2, max_bad=1)
  assert all(name in str(error.value) for name in bad)


def _saved(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def _photograph(mode, colour=None, shape=(12, 9)):
  return Image.new(mode, shape, colour)


def _bomb():
  """A PNG of 450 bytes that asks for 10 GB of pixels."""
  whole = _saved(_photograph('RGB', RED), 'PNG')
  header = b'IHDR' + struct.pack('>II', 60_000, 60_000) + whole[24:29]
  checksum = struct.pack('>I', zlib.crc32(header))
  return whole[:12] + header + checksum + whole[33:]


def _rotated():
  """Red above blue, stored lying on its side."""
  image = _photograph('RGB', RED, (20, 20))
  image.paste(BLUE, (0, 0, 10, 20))
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned clockwise by a quarter.
  return _saved(image, 'PNG', exif=exif)


def _damaged_exif():
  """A tag of EXIF whose values lie far beyond its end."""
  exif = Image.Exif()
  exif[0x0112] = 6
  exif[0x010F] = 'a maker of cameras with a long name'
  whole = _saved(_photograph('RGB', RED), 'JPEG', exif=exif)
  return whole[:30] + bytes([255] * 20) + whole[50:]


RED, BLUE = (255, 0, 0), (0, 0, 255)
CYAN_INK = (255, 0, 0, 0)
# File name, content, and the colour of its first pixel when stored; None for
# what is skipped.
INPUTS = [
  ('empty.jpg', lambda: b'', None),
  ('text.jpg', lambda: b'<html>404</html>', None),
  (
    'short.jpg',
    lambda: _saved(_photograph('RGB', RED, (300, 300)), 'JPEG')[:900],
    None,
  ),
  (
    'short.png',
    lambda: _saved(Image.effect_noise((30, 30), 50), 'PNG')[:500],
    None,
  ),
  (
    'deep.tiff',
    lambda: _saved(Image.fromarray(np.full((9, 9), 70_000, np.int32)), 'TIFF'),
    None,
  ),
  ('float.tiff', lambda: _saved(_photograph('F', 0.5), 'TIFF'), None),
  ('bomb.png', _bomb, None),
  ('exif.jpg', lambda: _damaged_exif(), RED),
  ('grey.jpg', lambda: _saved(_photograph('L', 80), 'JPEG'), (80, 80, 80)),
  (
    'grey16.png',
    lambda: _saved(_photograph('I;16', 80 * 257), 'PNG'),
    (80, 80, 80),
  ),
  (
    'palette.png',
    lambda: _saved(_photograph('RGB', RED).quantize(2), 'PNG'),
    RED,
  ),
  ('rgba.png', lambda: _saved(_photograph('RGBA', (*RED, 128)), 'PNG'), RED),
  (
    'cmyk.jpg',
    lambda: _saved(_photograph('CMYK', CYAN_INK), 'JPEG'),
    (0, 255, 255),
  ),
  (
    'animated.gif',
    lambda: _saved(
      _photograph('RGB', RED),
      'GIF',
      save_all=True,
      append_images=[_photograph('RGB', BLUE)],
    ),
    RED,
  ),
  ('rotated.png', _rotated, BLUE),
  ('pixel.png', lambda: _saved(_photograph('RGB', RED, (1, 1)), 'PNG'), RED),
  ('line.png', lambda: _saved(_photograph('RGB', RED, (900, 1)), 'PNG'), RED),
  (
    'huge.jpg',
    lambda: _saved(_photograph('L', 80, (6000, 4000)), 'JPEG'),
    (80,) * 3,
  ),
  ('png_named.JPEG', lambda: _saved(_photograph('RGB', BLUE), 'PNG'), BLUE),
]


@pytest.mark.parametrize(
  ('name', 'content', 'colour'), INPUTS, ids=[name for name, *_ in INPUTS]
)
def test_an_odd_image_is_stored_right_or_skipped_and_listed(
  tmp_path, source, name, content, colour
):
  (tmp_path / 'images/val/class1' / name).write_bytes(content())
  path = _prepare(source, tmp_path, max_bad=1)
  skipped = json.loads((path / 'preparation.json').read_text())['skipped']
  dataset = input_pipeline.open_dataset(tmp_path, 'set')
  if colour is None:
    assert [line.split(':')[0] for line in skipped] == [f'val/class1/{name}']
    assert dataset.num_examples['validation'] == 3
    with pytest.raises(RuntimeError, match=f'--max_bad=0 unre.*\n.*{name}'):
      _prepare(source, tmp_path / 'strict', max_bad=0)
    return
  assert skipped == []
  (batch,) = input_pipeline.eval_batches(dataset, 'validation', batch_size=4)
  # The others are noise: the pixels of this one are alike, but for JPEG's
  # rounding, and for the lower half of the rotated one.
  upper = batch['image'][:, :2].reshape(4, -1, 3).astype(int)
  assert (np.abs(upper - colour).max((1, 2)) <= 3).sum() == 1


def _die(*_):
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_error_and_the_rest_is_kept(
  tmp_path, source, small_shards, in_processes, monkeypatch
):
  uninterrupted = _prepare(source, tmp_path / 'once', workers=1)
  with monkeypatch.context() as patch:
    patch.setattr(prepare, '_write_in_worker', _die)
    with pytest.raises(
      RuntimeError, match='killed, perhaps for want of memory'
    ):
      _prepare(source, tmp_path / 'again', workers=2)
  again = _prepare(source, tmp_path / 'again', workers=2)
  assert _tree(again) == _tree(uninterrupted)


_PREPARE = """
import sys
from absl import app
from alexnet_jax import prepare
prepare.ALONE, prepare.SHARD_EXAMPLES = 0, 10
prepare.define_flags()
app.run(prepare.main, sys.argv)
"""


def _start_until_a_shard_is_there(root):
  """The command on two processes of its own, half-way; and these two."""
  flags = [f'--source=folder:{root}/photos', '--name=set', f'--data_dir={root}']
  command = [sys.executable, '-c', _PREPARE, *flags, '--workers=2', '--size=8']
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  work = root / 'set/1.0.0.incomplete'
  whole = lambda: set(work.glob('*.array_record-*')) - set(work.glob('*.tmp'))
  before = whole()
  while whole() == before:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.01)
  children = psutil.Process(process.pid).children()
  workers = [p for p in children if 'spawn_main' in ' '.join(p.cmdline())]
  assert len(workers) == 2
  return process, workers


def test_ctrl_c_and_a_kill_end_all_processes_and_the_command_continues(
  tmp_path, in_processes, monkeypatch
):
  photograph = tmp_path / 'photograph.jpg'  # Ten milliseconds to encode.
  Image.effect_noise((1200, 800), 50).save(photograph)
  for part, count in (('train', 80), ('val', 1)):
    folder = tmp_path / 'photos' / part / 'class'
    folder.mkdir(parents=True)
    for i in range(count):
      (folder / f'{i:02d}.jpg').symlink_to(photograph)
  for number, line in (
    (signal.SIGINT, 'interrupted; the same command continues'),
    (signal.SIGKILL, ''),
  ):
    process, workers = _start_until_a_shard_is_there(tmp_path)
    process.send_signal(number)
    # Ctrl-C waits for the images at hand; of a kill the workers learn at once.
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert process.wait(10) in (1, -number)
    assert process.stderr.read().strip().endswith(line)
    process.stderr.close()
  assert not (tmp_path / 'set/1.0.0').exists()
  monkeypatch.setattr(prepare, 'SHARD_EXAMPLES', 10)
  source = f'folder:{tmp_path}/photos'
  again = _prepare(source, tmp_path, workers=1)
  once = _prepare(source, tmp_path / 'once', workers=1)
  assert _tree(again) == _tree(once)


def test_a_name_is_given_to_what_is_on_the_disk(
  tmp_path, source, small_shards, monkeypatch
):
  synced, named = set(), []
  fsync, replace = os.fsync, os.replace

  def noting_fsync(descriptor):
    synced.add(os.path.realpath(f'/proc/self/fd/{descriptor}'))
    fsync(descriptor)

  def checking_replace(old, new):
    old = pathlib.Path(old)
    parts = old.iterdir() if old.is_dir() else [old]
    assert {str(part) for part in parts} <= synced
    if old.name.endswith('.tmp'):
      synced.add(str(new))
    named.append(pathlib.Path(new).name)
    replace(old, new)

  monkeypatch.setattr(os, 'fsync', noting_fsync)
  monkeypatch.setattr(os, 'replace', checking_replace)
  _prepare(source, tmp_path)
  assert {'set-train.array_record-00000-of-00004', '1.0.0'} <= set(named)


def _add_bad_images(tmp_path):
  """An image cut short in train/, one that is text in val/; their names."""
  folder = tmp_path / 'images'
  whole = (folder / 'train/class0/00.png').read_bytes()
  (folder / 'train/class0/short.png').write_bytes(whole[: len(whole) // 2])
  (folder / 'val/class1/text.jpg').write_text('<html>404</html>')
  return ['train/class0/short.png', 'val/class1/text.jpg']


def test_unreadable_images_are_skipped_counted_and_listed(
  tmp_path, source, caplog
):
  bad = _add_bad_images(tmp_path)
  with caplog.at_level(logging.INFO, 'alexnet_jax'):
    path = _prepare(source, tmp_path, max_bad=2)
  skipped = json.loads((path / 'preparation.json').read_text())['skipped']
  assert [line.split(':')[0] for line in skipped] == bad
  assert 'truncated' in skipped[0]  # Why.
  assert '0x' not in skipped[1]  # No address, another in every run.
  assert [f'skipped {line}' for line in skipped] == caplog.messages[:2]
  assert caplog.messages[2] == (
    f'{path}: 10 train + 3 validation examples, 2 unreadable images skipped.'
  )
  dataset = input_pipeline.open_dataset(tmp_path, 'set')
  assert dataset.num_examples == {'train': 10, 'validation': 3}


@pytest.mark.parametrize('shard_examples', [3, 100])
def test_too_many_unreadable_images_fail_and_a_larger_max_bad_continues(
  tmp_path, source, monkeypatch, shard_examples
):
  monkeypatch.setattr(prepare, 'SHARD_EXAMPLES', shard_examples)
  for i in range(4):
    (tmp_path / f'images/train/class0/bad{i}.jpg').write_text('no image')
  with pytest.raises(RuntimeError) as error:
    _prepare(source, tmp_path / 'again', max_bad=1)
  message = str(error.value)
  first, *bad, last = message.splitlines()
  assert first == 'more than --max_bad=1 unreadable images:'
  assert len(bad) == 2 and all(b.startswith('train/class0/bad') for b in bad)
  assert last.startswith('With a larger --max_bad the same command continues')
  assert not input_pipeline.dataset_path(tmp_path / 'again', 'set').exists()
  continued = _prepare(source, tmp_path / 'again', max_bad=4)
  at_once = _prepare(source, tmp_path / 'once', max_bad=4)
  assert _tree(continued) == _tree(at_once)


def test_a_shard_may_lose_all_its_images(tmp_path, source, small_shards):
  for path in list((tmp_path / 'images' / 'val').rglob('*.png')):
    path.write_text('no image')
  for i in range(3):
    (tmp_path / f'images/val/class0/{i}.jpg').write_text('no image')
  good = tmp_path / 'images/train/class1/01.png'
  (tmp_path / 'images/val/class1/good.png').write_bytes(good.read_bytes())
  _prepare(source, tmp_path, max_bad=6)
  dataset = input_pipeline.open_dataset(tmp_path, 'set')
  (batch,) = input_pipeline.eval_batches(dataset, 'validation', batch_size=2)
  assert batch['mask'].tolist() == [True, False]
  assert batch['label'][0] == 1


def test_a_source_without_a_readable_training_image_is_refused(tmp_path):
  for part in ('train', 'val'):
    (tmp_path / 'images' / part / 'cat').mkdir(parents=True)
    (tmp_path / 'images' / part / 'cat' / '1.png').write_text('no image')
  with pytest.raises(ValueError, match='no readable training image'):
    _prepare(f'folder:{tmp_path / "images"}', tmp_path)


def test_an_interrupted_preparation_continues_to_the_same_bytes(
  tmp_path, source, small_shards, monkeypatch
):
  uninterrupted = _prepare(source, tmp_path / 'once')
  out = input_pipeline.dataset_path(tmp_path / 'again', 'set')
  with monkeypatch.context() as patch:
    _interrupt(patch, after=7)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path / 'again')
  assert not out.exists()
  work = out.with_name('1.0.0.incomplete')
  shards = list(work.glob('*.array_record-?????-of-?????'))
  assert len(shards) == 2  # Of 3, 3, 2 and 2 examples, 7 were encoded.
  written = {shard.name: shard.stat().st_mtime_ns for shard in shards}
  assert _prepare(source, tmp_path / 'again') == out
  for name, changed in written.items():
    assert (out / name).stat().st_mtime_ns == changed
  assert _tree(out) == _tree(uninterrupted)
  assert not work.exists()


def test_nothing_appears_under_the_final_name_before_the_end(
  tmp_path, source, small_shards, monkeypatch
):
  out = input_pipeline.dataset_path(tmp_path, 'set')
  seen = []

  def watch(module, name):
    function = getattr(module, name)

    def watched(*args, **kwargs):
      seen.append(out.exists())
      return function(*args, **kwargs)

    monkeypatch.setattr(module, name, watched)

  watch(images, 'encode')
  watch(shards, 'ArrayRecordWriter')
  watch(prepare.np, 'savez')
  watch(prepare.tfds.folder_dataset, 'write_metadata')
  assert _prepare(source, tmp_path) == out
  # 13 images in 5 shards with their sums, the statistics, the metadata.
  assert seen == [False] * (13 + 5 + 5 + 1 + 1)
  assert out.exists()


def test_a_preparation_killed_at_its_last_move_continues(
  tmp_path, source, monkeypatch
):
  uninterrupted = _prepare(source, tmp_path / 'once')
  replace = prepare.os.replace

  def interrupted(old, new):
    if old.is_dir():
      raise KeyboardInterrupt
    replace(old, new)

  with monkeypatch.context() as patch:
    patch.setattr(prepare.os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path / 'again')
  assert _tree(_prepare(source, tmp_path / 'again')) == _tree(uninterrupted)


def test_a_preparation_killed_while_it_writes_sums_continues(
  tmp_path, source, monkeypatch
):
  uninterrupted = _prepare(source, tmp_path / 'once')

  def interrupted(path, **arrays):
    path.write_bytes(b'PK')
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(prepare.np, 'savez', interrupted)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path / 'again')
  assert _tree(_prepare(source, tmp_path / 'again')) == _tree(uninterrupted)


@pytest.mark.parametrize(
  ('options', 'keys'),
  [
    ({'size': 9}, 'size 8 there, 9 here'),
    ({'quality': 80}, 'jpeg_quality 95 there, 80 here'),
    ({'seed': 1, 'size': 9}, 'size 8 there, 9 here; seed 0 there, 1 here'),
  ],
)
def test_an_unfinished_preparation_of_other_arguments_is_refused(
  tmp_path, source, monkeypatch, options, keys
):
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  with pytest.raises(ValueError) as error:
    _prepare(source, tmp_path, **options)
  work = tmp_path / 'set' / '1.0.0.incomplete'
  assert str(error.value) == (
    f'{work} was made with other arguments ({keys});'
    ' remove it, or repeat its command'
  )


def test_an_unfinished_preparation_of_other_images_is_refused(
  tmp_path, source, monkeypatch
):
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  old = tmp_path / 'images/train/class0/00.png'
  old.rename(old.with_name('renamed.png'))
  with pytest.raises(
    ValueError, match='other arguments .sha256 .*repeat its command'
  ):
    _prepare(source, tmp_path)


def test_a_finished_preparation_is_left_alone(tmp_path, source, caplog):
  path = _prepare(source, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'set').rglob('*')}
  with caplog.at_level(logging.INFO, 'alexnet_jax'):
    assert _prepare(source, tmp_path) == path
  assert caplog.messages == [f'{path} exists: nothing to do.']
  after = {p: p.stat().st_mtime_ns for p in (tmp_path / 'set').rglob('*')}
  assert after == before


def test_a_finished_preparation_of_another_size_is_refused(tmp_path, source):
  path = _prepare(source, tmp_path)
  with pytest.raises(ValueError) as error:
    _prepare(source, tmp_path, size=9)
  assert str(error.value) == (
    f'{path} was made with other arguments (size 8 there, 9 here);'
    ' remove it, or use another name than set'
  )


def test_two_preparations_of_one_data_set_are_refused(tmp_path, source):
  (tmp_path / 'set').mkdir()
  with files.locked(tmp_path / 'set'):
    with pytest.raises(ValueError, match='another process is at work in'):
      _prepare(source, tmp_path)
  _prepare(source, tmp_path)  # The lock ends with its holder.


@pytest.mark.parametrize(
  'options', [{'size': 9}, {'quality': 80}, {'seed': 1}, {}]
)
def test_the_fingerprint_tells_data_sets_apart(tmp_path, source, options):
  fingerprints = set()
  for folder, arguments in (('a', {}), ('b', options)):
    _prepare(source, tmp_path / folder, **arguments)
    dataset = input_pipeline.open_dataset(tmp_path / folder, 'set')
    fingerprints.add(dataset.fingerprint)
  assert len(fingerprints) == (2 if options else 1)


def test_all_wrong_arguments_are_listed_at_once(tmp_path):
  with pytest.raises(ValueError) as error:
    prepare.prepare(
      'digits', 'my-set', tmp_path, size=0, quality=101, max_bad=-1, workers=-2
    )
  assert re.findall(r'--\w+=\S+', str(error.value)) == [
    '--name=my-set',
    '--size=0',
    '--quality=101',
    '--max_bad=-1',
    '--workers=-2',
  ]
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['', 'a/b', '..', 'my-set', 'été'])
def test_a_name_that_tfds_cannot_read_is_refused(tmp_path, source, name):
  with pytest.raises(ValueError, match='must be letters, digits and underscor'):
    prepare.prepare(source, name, tmp_path, size=SIZE)


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path, source):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=f'data_dir={tmp_path}/file/data cannot'):
    _prepare(source, tmp_path / 'file' / 'data')


def test_the_command_ends_with_one_line_for_an_error(tmp_path):
  command = [sys.executable, '-m', 'alexnet_jax.prepare', '--name=flowers']
  arguments = [f'--source=folder:{tmp_path}', f'--data_dir={tmp_path / "data"}']
  result = subprocess.run(
    command + arguments, capture_output=True, text=True, check=False
  )
  assert result.returncode == 1
  assert result.stdout == ''
  (line,) = result.stderr.splitlines()
  assert line.startswith(f'FileNotFoundError: no folder {tmp_path}/train;')
  assert not (tmp_path / 'data').exists()
