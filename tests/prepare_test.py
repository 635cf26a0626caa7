"""Preparation: statistics, metadata, unreadable images, interruptions.

The oracles are images of known colours, NumPy statistics of the source images,
and the result of an uninterrupted preparation.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import io
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np
from PIL import Image
import psutil
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax.prepare import examples
from alexnet_jax.prepare import plan
from alexnet_jax.prepare import prepare
from alexnet_jax.prepare import shards
from alexnet_jax.prepare import sources
from alexnet_jax.prepare import verify
from alexnet_jax.prepare import workers
from alexnet_jax.runtime import command
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import files
from alexnet_jax.runtime import signals

SIZE = 8
FULL = os.strerror(errno.ENOSPC)


def _write_source(root, *, train=10, val=3):
  """Writes class folders of random images; returns the training pixels."""
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
  """Raises KeyboardInterrupt, as Ctrl-C does, after encoding some images."""
  calls = itertools.count()
  encode = images.encode

  def interrupted(*args):
    if next(calls) == after:
      raise KeyboardInterrupt
    return encode(*args)

  monkeypatch.setattr(images, 'encode', interrupted)


def test_statistics_match_numpy_on_the_training_pixels(tmp_path, small_shards):
  pixels = _write_source(tmp_path / 'images')
  path = _prepare(f'folder:{tmp_path / "images"}', tmp_path)
  with np.load(path / dataset_lib.STATISTICS_FILE) as statistics:
    # The mean image is stored as float32, of 24 bits.
    np.testing.assert_allclose(
      statistics['mean_image'], pixels.astype(float).mean(0), rtol=2**-23
    )
    rgb = pixels.reshape(-1, 3).T.astype(float)
    np.testing.assert_allclose(
      statistics['rgb_covariance'], np.cov(rgb, bias=True), rtol=1e-9
    )


def test_examples_are_stored_shuffled_with_their_labels(tmp_path, source):
  _prepare(source, tmp_path)
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
  batches = input_pipeline.eval_batches(dataset, 'train', batch_size=10)
  labels = next(batches)['label'].tolist()
  batches.close()
  assert sorted(labels) == [0] * 5 + [1] * 5
  assert labels != sorted(labels)


@pytest.fixture
def in_processes(monkeypatch):
  """Divides even a few images among worker processes."""
  monkeypatch.setattr(prepare, 'ALONE', 0)


def test_the_bytes_do_not_depend_on_the_number_of_workers(
  tmp_path, source, small_shards, in_processes
):
  bad = _add_bad_images(tmp_path)
  trees = []
  for number in (1, 2):
    out = _prepare(source, tmp_path / str(number), workers=number, max_bad=2)
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


def _link(path, target):
  path.symlink_to(target)


def _socket(path):
  with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
    server.bind(path.name)  # The absolute path may be too long.


@pytest.mark.parametrize(
  ('make', 'reason'),
  [
    (lambda path: os.mkfifo(path), 'a pipe, not a regular file'),
    (_socket, 'a socket, not a regular file'),
    (lambda path: _link(path, '/dev/zero'), 'a device, not a regular file'),
    (lambda path: _link(path, 'nothing.png'), 'a link to nothing'),
    (lambda path: _link(path, path.name), 'a link to nothing'),
    (lambda path: _link(path, '00.png/x'), 'a link to nothing'),
    (lambda path: _link(path, 'x' * 300), 'a link to nothing'),
    (
      lambda path: _link(path, '..'),
      'a link to a folder that is read under another name',
    ),
  ],
  ids='pipe socket device nothing itself below_a_file too_long loop'.split(),
)
@pytest.mark.parametrize('place', ['train', 'train/class0', 'train/class0/sub'])
def test_what_is_no_regular_file_is_counted_and_never_opened(
  tmp_path, source, place, make, reason
):
  path = tmp_path / 'images' / place / 'odd.png'
  path.parent.mkdir(exist_ok=True)
  make(path)
  with pytest.raises(RuntimeError, match=f'max_bad=0 .*\n{place}/odd.png: '):
    _prepare(source, tmp_path, max_bad=0)
  out = _prepare(source, tmp_path, max_bad=1)
  record = json.loads((out / plan.RECORD_FILE).read_text())
  assert record['skipped'] == [f'{place}/odd.png: ValueError: {reason}']
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
  assert dataset.num_examples == {'train': 10, 'validation': 3}
  assert dataset.class_names == ('class0', 'class1')


def test_unused_files_and_folders_are_counted_and_named(
  tmp_path, source, caplog
):
  before = _prepare(source, tmp_path / 'before')
  folder = tmp_path / 'images'
  image = (folder / 'train/class0/00.png').read_bytes()
  for name in ('train/1.png', 'val/2.png', 'extra/class0/3.png', 'README'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(image)
  with caplog.at_level(logging.INFO, 'alexnet_jax'):
    path = _prepare(source, tmp_path)
  first, last = caplog.messages
  assert first == (
    f'{source}: not in a class folder and not used: train/1.png, val/2.png,'
    ' README and 1 more.'
  )
  assert last.endswith('skipped, 4 other files or folders not used.')
  record = json.loads((path / plan.RECORD_FILE).read_text())
  assert record.pop('unused') == ['train/1.png', 'val/2.png', 'README', 'extra']
  assert record == json.loads((before / plan.RECORD_FILE).read_text())
  trees = [_tree(out) for out in (before, path)]
  for tree in trees:
    del tree[plan.RECORD_FILE], tree[digests.FILE]
  assert trees[0] == trees[1]


def _saved(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def _photograph(mode, colour=None, shape=(12, 9)):
  return Image.new(mode, shape, colour)


def _bomb():
  """A PNG of 450 bytes whose header announces 10 GB of pixels."""
  whole = _saved(_photograph('RGB', RED), 'PNG')
  header = b'IHDR' + struct.pack('>II', 60_000, 60_000) + whole[24:29]
  checksum = struct.pack('>I', zlib.crc32(header))
  return whole[:12] + header + checksum + whole[33:]


def _rotated():
  """Blue above red after the EXIF rotation; blue left of red as stored."""
  image = _photograph('RGB', RED, (20, 20))
  image.paste(BLUE, (0, 0, 10, 20))
  exif = Image.Exif()
  exif[0x0112] = 6  # Displayed after a clockwise rotation by 90 degrees.
  return _saved(image, 'PNG', exif=exif)


def _damaged_exif():
  """A JPEG with an EXIF tag whose value lies far beyond the EXIF data."""
  exif = Image.Exif()
  exif[0x0112] = 6
  exif[0x010F] = 'a maker of cameras with a long name'
  whole = _saved(_photograph('RGB', RED), 'JPEG', exif=exif)
  return whole[:30] + bytes([255] * 20) + whole[50:]


RED, BLUE = (255, 0, 0), (0, 0, 255)
CYAN_INK = (255, 0, 0, 0)
# File name, content, and the colour of the first stored pixel, or None if the
# image is skipped.
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
  ('exif.png', lambda: _damaged_exif_of_a_png(), RED),
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
def test_an_unusual_image_is_stored_correctly_or_skipped_and_listed(
  tmp_path, source, name, content, colour
):
  (tmp_path / 'images/val/class1' / name).write_bytes(content())
  path = _prepare(source, tmp_path, max_bad=1)
  skipped = json.loads((path / 'preparation.json').read_text())['skipped']
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
  if colour is None:
    assert [line.split(':')[0] for line in skipped] == [f'val/class1/{name}']
    assert dataset.num_examples['validation'] == 3
    with pytest.raises(RuntimeError, match=f'--max_bad=0 unre.*\n.*{name}'):
      _prepare(source, tmp_path / 'strict', max_bad=0)
    return
  assert skipped == []
  (batch,) = input_pipeline.eval_batches(dataset, 'validation', batch_size=4)
  # The other images are noise. This one has a single colour, up to the rounding
  # of JPEG; the rotated one has another colour in its lower half.
  upper = batch['image'][:, :2].reshape(4, -1, 3).astype(int)
  assert (np.abs(upper - colour).max((1, 2)) <= 3).sum() == 1


def _damaged_exif_of_a_png():
  whole = _saved(_photograph('RGB', RED), 'PNG')
  chunk = b'eXIfgarbage'
  chunk = struct.pack('>I', 7) + chunk + struct.pack('>I', zlib.crc32(chunk))
  return whole[:33] + chunk + whole[33:]


def test_warnings_of_pillow_name_the_image(tmp_path, source, caplog):
  folder = tmp_path / 'images/train/class0'
  exif = b'Exif\0\0II*\0\x08\0\0\0\xff\xff' + bytes(range(200))
  _photograph('RGB', RED).save(folder / 'two\nlines.jpg', exif=exif)
  _prepare(source, tmp_path, max_bad=0)
  (message,) = caplog.messages
  name, text = message.split(': ', 1)
  assert name == r'train/class0/two\nlines.jpg'
  assert text and len(message.splitlines()) == 1


def _kill_first_process(shard, _):
  if '-train.array_record-00000-of-' in shard.path.name:
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(60)  # Outlives the test, unless this process is killed, too.


def test_after_a_killed_worker_the_command_continues(
  tmp_path, source, small_shards, in_processes, monkeypatch
):
  uninterrupted = _prepare(source, tmp_path / 'once', workers=1)
  with monkeypatch.context() as patch:
    patch.setattr(workers, '_write', _kill_first_process)
    began = time.monotonic()
    with pytest.raises(
      RuntimeError, match='killed, perhaps because memory ran out'
    ):
      _prepare(source, tmp_path / 'again', workers=2)
  assert time.monotonic() - began < 50
  assert multiprocessing.active_children() == []
  again = _prepare(source, tmp_path / 'again', workers=1)
  assert _tree(again) == _tree(uninterrupted)


def test_an_interrupted_verify_does_not_say_that_it_continues(
  run_command, monkeypatch
):
  lines = []

  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(verify, 'verify', interrupted)
  monkeypatch.setattr(signals, 'print_line', lines.append)
  monkeypatch.setattr(signals, 'resume_hint', '')
  code, *_ = run_command('prepare.__main__', '--verify', '--name=x', net=())
  assert code == 128 + signal.SIGINT
  assert lines == ['interrupted by SIGINT; the same command begins again']


_PREPARE = """
import signal
import sys
from absl import app
# Shells start background processes, perhaps these tests, with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from alexnet_jax.runtime import signals
signals.install()
from alexnet_jax.prepare import __main__ as command
from alexnet_jax.prepare import prepare
prepare.ALONE, prepare.SHARD_EXAMPLES = 0, 10
app.run(command.main, sys.argv)
"""


def _start_and_wait_for_a_shard(root):
  """Starts the command; returns it and its two workers after a new shard."""
  flags = [f'--source=folder:{root}/photos', '--name=set', f'--data_dir={root}']
  command = [sys.executable, '-c', _PREPARE, *flags, '--workers=2', '--size=8']
  process = subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, start_new_session=True
  )
  work = root / 'set/1.0.0.incomplete'
  whole = lambda: set(work.glob('*.array_record-*')) - set(work.glob('*.tmp'))
  before = whole()
  while whole() == before:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.01)
  children = psutil.Process(process.pid).children()
  children = [p for p in children if 'spawn_main' in ' '.join(p.cmdline())]
  assert len(children) == 2
  return process, children


def test_a_signal_and_a_kill_end_all_processes_and_the_command_continues(
  tmp_path, in_processes, monkeypatch
):
  photograph = tmp_path / 'photograph.jpg'  # Encoding it takes 10 ms.
  Image.effect_noise((1200, 800), 50).save(photograph)
  for part, count in (('train', 160), ('val', 1)):
    folder = tmp_path / 'photos' / part / 'class'
    folder.mkdir(parents=True)
    for i in range(count):
      (folder / f'{i:03d}.jpg').symlink_to(photograph)
  for number in (signal.SIGTERM, signal.SIGKILL):
    process, children = _start_and_wait_for_a_shard(tmp_path)
    if number == signal.SIGTERM:  # A scheduler sends it to all processes.
      os.killpg(process.pid, number)
    else:
      process.kill()
    # After a signal the workers finish their current image; after the kill of
    # their parent they end at once.
    assert not psutil.wait_procs(children, timeout=10)[1]
    lines = process.communicate(timeout=10)[1].split('\n')
    assert process.returncode in (128 + number, -number)
    if number == signal.SIGTERM:  # The workers print no tracebacks.
      *notice, last = [x for x in lines if x]
      assert last == 'interrupted by SIGTERM; the same command continues'
      # It is there if the current image took over a second.
      assert notice in ([], ['SIGTERM: stopping; once more ends at once'])
  assert not (tmp_path / 'set/1.0.0').exists()
  monkeypatch.setattr(prepare, 'SHARD_EXAMPLES', 10)
  for name in ('encode', 'reported_damage'):  # All images are one photograph.
    once = functools.cache(getattr(images, name))
    monkeypatch.setattr(images, name, once)
  source = f'folder:{tmp_path}/photos'
  again = _prepare(source, tmp_path, workers=1)
  once = _prepare(source, tmp_path / 'once', workers=1)
  assert _tree(again) == _tree(once)


def test_files_are_synced_before_they_are_renamed(
  tmp_path, source, small_shards, monkeypatch
):
  synced, named = set(), []
  fsync, replace = os.fsync, os.replace

  def noting_fsync(descriptor):
    synced.add(os.path.realpath(f'/proc/self/fd/{descriptor}'))
    fsync(descriptor)

  def checking_replace(old, new):
    old, new = pathlib.Path(old), pathlib.Path(new)
    parts = old.iterdir() if old.is_dir() else [old]
    if new.name == plan.RECORD_FILE:  # It says that all files are complete.
      parts = {*old.parent.iterdir()} - {old.with_name(plan.PLAN_FILE)}
      assert {'statistics.npz', 'dataset_info.json', 'features.json'} <= {
        path.name for path in parts
      }
    assert {str(part) for part in parts} <= synced
    if 'array_record' in new.name:
      assert f'{new}.sums.npz' in synced
    if old.name.endswith('.tmp'):
      synced.add(str(new))
    named.append(new.name)
    replace(old, new)

  monkeypatch.setattr(os, 'fsync', noting_fsync)
  monkeypatch.setattr(os, 'replace', checking_replace)
  _prepare(source, tmp_path)
  assert {'set-train.array_record-00000-of-00004', '1.0.0'} <= set(named)


def _add_bad_images(tmp_path):
  """Adds a truncated image to train/ and text to val/; returns their names."""
  folder = tmp_path / 'images'
  whole = (folder / 'train/class0/00.png').read_bytes()
  (folder / 'train/class0/short.png').write_bytes(whole[: len(whole) // 2])
  (folder / 'val/class1/text.jpg').write_text('<html>404</html>')
  return ['train/class0/short.png', 'val/class1/text.jpg']


@pytest.mark.parametrize(
  ('owner', 'name', 'error'),
  [
    (shards, 'ArrayRecordWriter', RuntimeError(f'write() failed: {FULL}; x')),
    (np, 'savez', OSError(errno.ENOSPC, FULL)),
    (digests, 'write', OSError(errno.EDQUOT, 'Disk quota exceeded')),
  ],
)
def test_a_full_disk_has_a_way_out_that_works(
  tmp_path, source, monkeypatch, owner, name, error
):
  def fail(*_, **__):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(owner, name, fail)
    with pytest.raises(OSError, match=f'disk full at {tmp_path}/set; ') as e:
      _prepare(source, tmp_path)
  assert command.refusal(e.value) == '; make space; the same command continues'
  assert '\n' not in str(e.value)
  _prepare(source, tmp_path)


def test_unreadable_images_are_skipped_counted_and_listed(
  tmp_path, source, caplog
):
  bad = _add_bad_images(tmp_path)
  with caplog.at_level(logging.INFO, 'alexnet_jax'):
    path = _prepare(source, tmp_path, max_bad=2)
  skipped = json.loads((path / 'preparation.json').read_text())['skipped']
  assert [line.split(':')[0] for line in skipped] == bad
  assert 'truncated' in skipped[0]  # The reason.
  assert '0x' not in skipped[1]  # A memory address would differ in every run.
  assert [f'skipped {line}' for line in skipped] == caplog.messages[:2]
  assert caplog.messages[2] == (
    f'{path}: 10 train + 3 validation examples, 2 unreadable images skipped.'
  )
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
  assert dataset.num_examples == {'train': 10, 'validation': 3}


def test_an_error_for_many_unreadable_images_has_three_lines(
  tmp_path, source, caplog
):
  folder = tmp_path / 'images/train/class0'
  for i in range(6):
    (folder / f'two\nlines{i}.jpg').write_text('no image')
  with pytest.raises(RuntimeError) as error:
    _prepare(source, tmp_path, max_bad=4)
  assert len(str(error.value).splitlines()) == 3
  assert ' and 2 more\n' in str(error.value)
  assert len(caplog.messages) == 2  # The others.
  text = str(error.value) + ''.join(caplog.messages)
  assert len(set(re.findall(r'two\\nlines\d.jpg: ', text))) == 5


@pytest.mark.parametrize('shard_examples', [3, 100])
def test_a_larger_max_bad_continues_after_too_many_unreadable_images(
  tmp_path, source, monkeypatch, shard_examples
):
  monkeypatch.setattr(prepare, 'SHARD_EXAMPLES', shard_examples)
  for i in range(4):
    (tmp_path / f'images/train/class0/bad{i}.jpg').write_text('no image')
  with pytest.raises(RuntimeError) as error:
    _prepare(source, tmp_path / 'again', max_bad=1)
  message = str(error.value)
  first, bad, last = message.splitlines()
  assert first == 'more than --max_bad=1 unreadable images:'
  assert len(re.findall(r'train/class0/bad\d.jpg: ', bad)) == 2
  assert last.startswith(
    'To continue without them, repeat the command with a larger --max_bad'
  )
  assert not dataset_lib.dataset_path(tmp_path / 'again', 'set').exists()
  continued = _prepare(source, tmp_path / 'again', max_bad=4)
  at_once = _prepare(source, tmp_path / 'once', max_bad=4)
  assert _tree(continued) == _tree(at_once)


def test_all_images_of_a_shard_may_be_unreadable(
  tmp_path, source, small_shards
):
  for path in list((tmp_path / 'images' / 'val').rglob('*.png')):
    path.write_text('no image')
  for i in range(3):
    (tmp_path / f'images/val/class0/{i}.jpg').write_text('no image')
  good = tmp_path / 'images/train/class1/01.png'
  (tmp_path / 'images/val/class1/good.png').write_bytes(good.read_bytes())
  _prepare(source, tmp_path, max_bad=6)
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
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
  out = dataset_lib.dataset_path(tmp_path / 'again', 'set')
  with monkeypatch.context() as patch:
    _interrupt(patch, after=7)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path / 'again')
  assert not out.exists()
  work = out.with_name('1.0.0.incomplete')
  shards = list(work.glob('*.array_record-?????-of-?????'))
  # The shards have 3, 3, 2 and 2 examples, of which 7 were encoded.
  assert len(shards) == 2
  written = {shard.name: shard.stat().st_mtime_ns for shard in shards}
  assert _prepare(source, tmp_path / 'again') == out
  for name, changed in written.items():
    assert (out / name).stat().st_mtime_ns == changed
  assert _tree(out) == _tree(uninterrupted)
  assert not work.exists()


def test_nothing_appears_under_the_final_name_before_the_end(
  tmp_path, source, small_shards, monkeypatch
):
  out = dataset_lib.dataset_path(tmp_path, 'set')
  seen = []

  def watch(module, name):
    function = getattr(module, name)

    def watched(*args, **kwargs):
      seen.append(out.exists())
      return function(*args, **kwargs)

    monkeypatch.setattr(module, name, watched)

  watch(images, 'encode')
  watch(shards, 'ArrayRecordWriter')
  watch(np, 'savez')
  watch(tfds.folder_dataset, 'write_metadata')
  assert _prepare(source, tmp_path) == out
  # 13 images in 5 shards, 5 files of sums, the statistics and the metadata.
  assert seen == [False] * (13 + 5 + 5 + 1 + 1)
  assert out.exists()


def test_a_preparation_killed_before_the_final_rename_continues(
  tmp_path, source, monkeypatch
):
  uninterrupted = _prepare(source, tmp_path / 'once')
  replace = os.replace

  def interrupted(old, new):
    if old.is_dir():
      raise KeyboardInterrupt
    replace(old, new)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path / 'again')
  assert _tree(_prepare(source, tmp_path / 'again')) == _tree(uninterrupted)


def test_a_preparation_killed_while_writing_sums_continues(
  tmp_path, source, monkeypatch
):
  uninterrupted = _prepare(source, tmp_path / 'once')

  def interrupted(path, **arrays):
    path.write_bytes(b'PK')
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(np, 'savez', interrupted)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path / 'again')
  assert _tree(_prepare(source, tmp_path / 'again')) == _tree(uninterrupted)


@pytest.mark.parametrize(
  ('options', 'keys'),
  [
    ({'size': 9}, 'size is 8 there but 9 here'),
    ({'quality': 80}, 'jpeg_quality is 95 there but 80 here'),
    (
      {'seed': 1, 'size': 9},
      'size is 8 there but 9 here; seed is 0 there but 1 here',
    ),
  ],
)
def test_an_incomplete_preparation_with_other_arguments_is_refused(
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
    f'{work} was made with other arguments or from other images ({keys});'
    ' remove it, or repeat the command that began it'
  )


def test_an_incomplete_preparation_of_other_images_is_refused(
  tmp_path, source, monkeypatch
):
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  old = tmp_path / 'images/train/class0/00.png'
  old.rename(old.with_name('renamed.png'))
  with pytest.raises(
    ValueError, match='other images .sha256 .*repeat the command that began'
  ):
    _prepare(source, tmp_path)


def test_a_complete_data_set_is_not_changed(tmp_path, source, caplog):
  path = _prepare(source, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'set').rglob('*')}
  with caplog.at_level(logging.INFO, 'alexnet_jax'):
    assert _prepare(source, tmp_path) == path
  assert caplog.messages == [f'{path} exists already; nothing to do.']
  after = {p: p.stat().st_mtime_ns for p in (tmp_path / 'set').rglob('*')}
  assert after == before


def test_a_complete_data_set_of_another_size_is_refused(tmp_path, source):
  path = _prepare(source, tmp_path)
  with pytest.raises(ValueError) as error:
    _prepare(source, tmp_path, size=9)
  assert str(error.value) == (
    f'{path} was made with other arguments or from other images (size is 8'
    ' there but 9 here); remove it, or choose a --name other than set'
  )


def test_the_fraction_that_was_held_out_is_recorded(tmp_path):
  folder = tmp_path / 'images' / 'class'
  folder.mkdir(parents=True)
  for i in range(4):
    Image.new('RGB', (SIZE, SIZE), (60 * i,) * 3).save(folder / f'{i}.png')
  spec = f'folder:{folder.parent}'
  path = _prepare(spec, tmp_path, val_fraction=0.25)
  record = json.loads((path / 'preparation.json').read_text())
  assert record['val_fraction'] == 0.25
  assert record['stored'] == {'train': 3, 'validation': 1}
  message = 'val_fraction is 0.25 there but 0.5 here'
  with pytest.raises(ValueError, match=message):
    _prepare(spec, tmp_path, val_fraction=0.5)


def test_a_data_set_of_a_version_without_fractions_is_complete(
  tmp_path, source
):
  path = _prepare(source, tmp_path)
  file = path / 'preparation.json'
  record = json.loads(file.read_text())
  del record['val_fraction']
  file.write_text(json.dumps(record))
  assert _prepare(source, tmp_path) == path
  with pytest.raises(ValueError, match='val_fraction is 0.0 there but 0.5 her'):
    _prepare(source, tmp_path, val_fraction=0.5)


def test_a_data_set_completed_meanwhile_by_another_process_is_kept(
  tmp_path, source, monkeypatch
):
  open_source, before = sources.open_source, {}

  def overtaken(*args):
    opened = open_source(*args)
    with monkeypatch.context() as patch:
      patch.setattr(sources, 'open_source', open_source)
      before.update(_tree(_prepare(source, tmp_path)))
    return opened

  monkeypatch.setattr(sources, 'open_source', overtaken)
  path = _prepare(source, tmp_path)
  assert _tree(path) == before
  assert set(os.listdir(path.parent)) == {'1.0.0', 'lock'}


def test_two_simultaneous_preparations_of_a_data_set_are_refused(
  tmp_path, source
):
  (tmp_path / 'set').mkdir()
  with files.locked(tmp_path / 'set'):
    with pytest.raises(ValueError, match='another process is at work in'):
      _prepare(source, tmp_path)
  _prepare(source, tmp_path)  # The lock has been released.


@pytest.mark.parametrize(
  'options', [{'size': 9}, {'quality': 80}, {'seed': 1}, {}]
)
def test_arguments_change_the_fingerprint(tmp_path, source, options):
  fingerprints = set()
  for folder, arguments in (('a', {}), ('b', options)):
    _prepare(source, tmp_path / folder, **arguments)
    dataset = dataset_lib.open_dataset(tmp_path / folder, 'set')
    fingerprints.add(dataset.fingerprint)
  assert len(fingerprints) == (2 if options else 1)


def test_the_fingerprint_is_that_of_earlier_versions(tmp_path, source):
  """Otherwise a run could not resume after its data set is prepared again."""
  folder = tmp_path / 'images/train/class0'
  (folder / 'text.jpg').write_text('<html>404</html>')
  _photograph('F', 0.5).save(folder / 'float.tiff')
  Image.new('1', (10_000, 10_000)).save(folder / 'large.png')
  with open(folder / 'sparse.jpg', 'wb') as file:
    file.truncate(images.MAX_BYTES + 1)
  _prepare(source, tmp_path, max_bad=4)
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
  assert dataset.fingerprint == '26979422b74d60d0'


def test_all_invalid_arguments_are_listed_at_once(tmp_path):
  with pytest.raises(ValueError) as error:
    prepare.prepare(
      'digits',
      'my-set',
      tmp_path,
      size=0,
      quality=101,
      max_bad=-1,
      seed=-1,
      val_fraction=1.0,
      workers=-2,
    )
  assert re.findall(r'--\w+=\S+', str(error.value)) == [
    '--name=my-set',
    '--size=0',
    '--quality=101',
    '--max_bad=-1',
    '--seed=-1',
    '--val_fraction=1.0',
    '--workers=-2',
  ]
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  'name', ['', 'a/b', '..', 'my-set', 'été', '1', '_x', 201 * 'x']
)
def test_a_name_that_tfds_cannot_read_is_refused(tmp_path, source, name):
  with pytest.raises(ValueError, match='must be a letter, then at most 199'):
    prepare.prepare(source, name, tmp_path, size=SIZE)


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path, source):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=f'data_dir={tmp_path}/file/data is not'):
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


# The first row of the luminance quantization table in annex K of the JPEG
# standard. libjpeg uses it unchanged at quality 50 and doubled at quality 25.
ANNEX_K = [16, 11, 10, 16, 24, 40, 51, 61]


def test_the_command_obeys_its_flags(tmp_path):
  # Resized from 120 to 97 pixels, the smallest size that is stored as JPEG.
  rng = np.random.default_rng(2)
  for part in ('train', 'val'):
    folder = tmp_path / 'images' / part / 'class'
    folder.mkdir(parents=True)
    for i in range(8):
      pixels = rng.integers(0, 256, (120, 120, 3), np.uint8)
      Image.fromarray(pixels).save(folder / f'{i}.png')
    (folder / 'bad.png').write_text('no image')
  flags = {
    'source': f'folder:{tmp_path}/images',
    'name': 'set',
    'data_dir': f'{tmp_path}/data',
    'size': 97,
    'quality': 25,
    'seed': 3,
    'workers': 1,
  }
  run = lambda max_bad: subprocess.run(
    [
      *(sys.executable, '-m', 'alexnet_jax.prepare', f'--max_bad={max_bad}'),
      *(f'--{name}={value}' for name, value in flags.items()),
    ],
    capture_output=True,
    text=True,
  )
  stopped = run(1)
  assert stopped.returncode == 1 and '--max_bad=1 unreadab' in stopped.stderr
  done = run(2)
  assert done.returncode == 0, done.stderr
  path = tmp_path / 'data/set/1.0.0'
  record = json.loads((path / 'preparation.json').read_text())
  assert record['source'] == flags['source']
  assert [record[key] for key in ('size', 'jpeg_quality', 'seed')] == [
    97,
    25,
    3,
  ]
  source = tfds.builder_from_directory(path).as_data_source('train')
  order = np.random.default_rng(3).permutation(9)  # bad.png is the last.
  assert [e['file_name'].decode() for e in source] == [
    f'train/class/{i}.png' for i in order if i < 8
  ]
  for i in range(8):
    record = tf_example_pb2.Example.FromString(source.data_source[i])
    (stored,) = record.features.feature['image'].bytes_list.value
    with Image.open(io.BytesIO(stored)) as image:
      assert image.size == (97, 97)
      assert image.quantization[0][:8] == [2 * x for x in ANNEX_K]


def _shard(tmp_path, contents, size=SIZE):
  """A shard with one example for each of the contents, not yet written."""
  for i, content in enumerate(contents):
    (tmp_path / f'{i}.png').write_bytes(content)
  names = [f'{i}.png' for i in range(len(contents))]
  return shards.Shard(
    'train',
    tmp_path / 'shard',
    examples.Files(tmp_path, names, [0] * len(names)),
    size,
    95,
  )


def test_the_sums_of_a_shard(tmp_path):
  pixels = np.random.default_rng(0).integers(200, 256, (3, 97, 97, 3), np.uint8)
  contents = [_saved(Image.fromarray(p), 'PNG') for p in pixels]
  calls = []
  shard = _shard(tmp_path, [*contents, b'no image'], size=97)
  found = shards.write(shard, 1, lambda: calls.append(1))
  assert len(calls) == 4  # The unreadable image counts, too.
  assert found['count'] == 3 and len(found['skipped']) == 1
  exact = pixels.astype(np.int64)
  np.testing.assert_array_equal(found['pixel_sum'], exact.sum(0))
  # The sums exceed the integers that float32 represents exactly.
  rgb = exact.reshape(-1, 3)
  np.testing.assert_array_equal(found['product_sum'], rgb.T @ rgb)
  reader = ArrayRecordReader(str(shard.path))
  assert found['num_bytes'] == sum(map(len, reader.read_all()))
  options = reader.writer_options_string()
  # A record can be read without its neighbours, and is not compressed again.
  assert 'group_size:1,' in options and 'uncompressed' in options


def test_any_error_of_a_decoder_skips_one_image(tmp_path, source, monkeypatch):
  encode = images.encode
  errors = iter([struct.error('odd'), KeyError('odd'), ZeroDivisionError()])

  def failing(*args):
    for error in errors:
      raise error
    return encode(*args)

  monkeypatch.setattr(images, 'encode', failing)
  path = _prepare(source, tmp_path, max_bad=3)
  skipped = json.loads((path / 'preparation.json').read_text())['skipped']
  assert [line.split(': ')[1] for line in skipped] == [
    'error',
    'KeyError',
    'ZeroDivisionError',
  ]


def test_images_with_damage_that_a_decoder_reports_are_counted_and_listed(
  tmp_path, source, caplog
):
  whole = _saved(Image.effect_noise((40, 40), 50), 'JPEG')
  path = tmp_path / 'images/val/class1/odd.jpg'
  path.write_bytes(whole[: len(whole) * 2 // 3] + b'\xff\xd9')
  with caplog.at_level(logging.INFO, 'alexnet_jax'):
    folder = _prepare(source, tmp_path, max_bad=0)
  record = json.loads((folder / 'preparation.json').read_text())
  (line,) = record['damaged']
  assert line.startswith('val/class1/odd.jpg: ') and 'premature end' in line
  assert record['stored']['validation'] == 4 and record['skipped'] == []
  assert caplog.messages[-1].endswith('skipped, 1 damaged but used.')


def test_file_names_are_kept_in_any_script(tmp_path, source):
  old = tmp_path / 'images/train/class0/00.png'
  old.rename(old.with_name('été 漢字.png'))
  path = _prepare(source, tmp_path)
  data = tfds.builder_from_directory(path).as_data_source('train')
  names = [example['file_name'].decode() for example in data]
  assert 'train/class0/été 漢字.png' in names


def test_a_preparation_begun_with_another_encoder_is_refused(
  tmp_path, source, monkeypatch
):
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  monkeypatch.setattr(images, 'ENCODER', 'another')
  with pytest.raises(
    ValueError, match="encoder is 'Pillow .* there but 'another' here"
  ):
    _prepare(source, tmp_path)


def test_other_arguments_are_refused_even_before_the_final_rename(
  tmp_path, source, monkeypatch
):
  with monkeypatch.context() as patch:
    replace = os.replace

    def interrupted(old, new):
      if old.is_dir():
        raise KeyboardInterrupt
      replace(old, new)

    patch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  with pytest.raises(ValueError, match='seed is 0 there but 1 here'):
    _prepare(source, tmp_path, seed=1)


def test_a_complete_data_set_does_not_need_its_source(tmp_path, source):
  path = _prepare(source, tmp_path)
  (tmp_path / 'images').rename(tmp_path / 'elsewhere')
  assert _prepare(source, tmp_path) == path


def test_the_seed_orders_the_examples(tmp_path, source):
  names = []
  for seed in (0, 1):
    path = _prepare(source, tmp_path / str(seed), seed=seed)
    data = tfds.builder_from_directory(path).as_data_source('train')
    names.append([example['file_name'] for example in data])
  assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])


def test_skipped_images_and_classes_change_the_fingerprint(tmp_path, source):
  fingerprints = []
  for folder in ('a', 'skipped', 'class'):
    _prepare(source, tmp_path / folder)
    dataset = dataset_lib.open_dataset(tmp_path / folder, 'set')
    fingerprints.append(dataset.fingerprint)
    if folder == 'a':
      (tmp_path / 'images/val/class0/10.png').write_text('no image')
    elif folder == 'skipped':
      for part in ('train', 'val'):
        (tmp_path / 'images' / part / 'class1').rename(
          tmp_path / 'images' / part / 'other'
        )
  assert len(set(fingerprints)) == 3


def test_the_record_and_the_metadata_describe_the_data_set(tmp_path, source):
  path = _prepare(source, tmp_path)
  record = json.loads((path / plan.RECORD_FILE).read_text())
  assert record['source'] == source
  assert (
    record['examples'] == record['stored'] == {'train': 10, 'validation': 3}
  )
  info = tfds.builder_from_directory(path).info
  assert info.description == 'Images of images/.'
  assert info.splits['train'].num_bytes > 10 * SIZE


def test_the_index_is_stored_only_until_the_data_set_is_complete(
  tmp_path, source, monkeypatch
):
  seen = []
  open_source = sources.open_source

  def with_index(spec, index, *held_out):
    seen.append(index)
    return dataclasses.replace(open_source(spec), index={'rows': np.arange(3)})

  monkeypatch.setattr(sources, 'open_source', with_index)
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  work = tmp_path / 'set/1.0.0.incomplete'
  whole = (work / plan.INDEX_FILE).read_bytes()
  (work / plan.INDEX_FILE).write_bytes(whole[:-20])  # As after a kill.
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  (work / plan.INDEX_FILE).write_bytes(whole)
  out = _prepare(source, tmp_path)
  assert seen[:2] == [None, None]
  assert seen[2]['rows'].tolist() == [0, 1, 2]
  assert not (out / plan.INDEX_FILE).exists()


def test_a_single_worker_needs_no_further_process(
  tmp_path, source, in_processes, monkeypatch
):
  monkeypatch.setattr(prepare, '_write_in_workers', None)
  _prepare(source, tmp_path, workers=1)


def test_a_shard_is_sent_without_the_rest_of_its_split(
  tmp_path, source, small_shards, in_processes, monkeypatch
):
  sent = []

  class Pool(concurrent.futures.ThreadPoolExecutor):
    def __init__(self, number, context, initializer, arguments):
      super().__init__(1)
      workers._num_processed, workers._stop = arguments

    def submit(self, function, shard, max_skipped):
      sent.append(shard.examples)
      return super().submit(function, shard, max_skipped)

  monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Pool)
  monkeypatch.setattr(workers, '_num_processed', None, raising=False)
  monkeypatch.setattr(workers, '_stop', None, raising=False)
  _prepare(source, tmp_path, workers=2)
  assert [type(e) for e in sent] == [list] * 5


@pytest.mark.parametrize('number', [1, 2])
def test_the_progress_bar_ends_at_its_total_after_an_interruption(
  tmp_path, source, small_shards, in_processes, monkeypatch, number
):
  with monkeypatch.context() as patch:
    _interrupt(patch, after=7)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path, workers=1)
  bars, tqdm = [], prepare.tqdm.tqdm

  def recording_tqdm(**options):
    bars.append(tqdm(**options | {'disable': False}))
    return bars[0]

  monkeypatch.setattr(prepare.tqdm, 'tqdm', recording_tqdm)
  _prepare(source, tmp_path, workers=number)
  assert bars[0].n == bars[0].total == 13


def test_other_pixels_under_the_same_names_change_the_fingerprint(
  tmp_path, source
):
  fingerprints = set()
  for folder in ('a', 'b'):
    _prepare(source, tmp_path / folder)
    dataset = dataset_lib.open_dataset(tmp_path / folder, 'set')
    fingerprints.add(dataset.fingerprint)
    path = tmp_path / 'images/train/class0/00.png'
    Image.new('RGB', (SIZE, SIZE)).save(path)
  assert len(fingerprints) == 2


def test_running_out_of_memory_does_not_skip_an_image(
  tmp_path, source, monkeypatch
):
  def no_memory(*_):
    raise MemoryError

  with monkeypatch.context() as patch:
    patch.setattr(images, 'encode', no_memory)
    with pytest.raises(MemoryError, match=r'train/.*png: not enough memory'):
      _prepare(source, tmp_path, max_bad=99)
  _prepare(source, tmp_path, max_bad=0)


def test_a_name_that_is_not_utf8_is_escaped(tmp_path, source):
  folder = os.fsencode(tmp_path / 'images/val/class0')
  os.rename(folder + b'/10.png', folder + b'/caf\xe9.png')
  (pathlib.Path(os.fsdecode(folder)) / os.fsdecode(b'bad\xe9.png')).write_text(
    'x'
  )
  path = _prepare(source, tmp_path, max_bad=1)
  (line,) = json.loads((path / 'preparation.json').read_text())['skipped']
  assert line.startswith(r'val/class0/bad\udce9.png: ')
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
  assert dataset.num_examples['validation'] == 3


def test_running_out_of_file_descriptors_does_not_skip_an_image(
  tmp_path, source, monkeypatch
):
  def too_many(*_):
    raise OSError(errno.EMFILE, 'Too many open files')

  monkeypatch.setattr(images, 'encode', too_many)
  with pytest.raises(OSError, match="Too many open files: '.*png'"):
    _prepare(source, tmp_path, max_bad=99)


def test_a_relative_source_depends_on_the_current_folder(tmp_path, monkeypatch):
  for folder, count in (('a', 4), ('b', 5)):
    _write_source(tmp_path / folder / 'images', train=count)
  monkeypatch.chdir(tmp_path / 'a')
  path = _prepare('folder:images', tmp_path)
  assert _prepare('folder:images/', tmp_path) == path
  monkeypatch.chdir(tmp_path / 'b')
  with pytest.raises(ValueError, match='a/images. there but .*b/images. here'):
    _prepare('folder:images', tmp_path)


def test_a_folder_that_is_not_a_data_set_is_named(tmp_path, source):
  (tmp_path / 'set/1.0.0').mkdir(parents=True)
  with pytest.raises(ValueError, match=f'{tmp_path}/set/1.0.0 was not made by'):
    _prepare(source, tmp_path)


def test_a_complete_data_set_needs_no_lock(tmp_path, source):
  path = _prepare(source, tmp_path)
  with files.locked(tmp_path / 'set'):
    assert _prepare(source, tmp_path) == path
