"""Preparing a data set: geometry, statistics, bad images, interruption.

The oracles are images painted by hand, Pillow's own resize and crop, NumPy
over the source images, and the uninterrupted preparation.
"""

import concurrent.futures
import dataclasses
import errno
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

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np
from PIL import Image
import psutil
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax.prepare import examples
from alexnet_jax.prepare import prepare
from alexnet_jax.prepare import shards
from alexnet_jax.prepare import sources
from alexnet_jax.prepare import workers
from alexnet_jax.runtime import files

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
  with np.load(path / dataset_lib.STATISTICS_FILE) as statistics:
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
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
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
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
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
    patch.setattr(workers, '_write', _die)
    with pytest.raises(
      RuntimeError, match='killed, perhaps for want of memory'
    ):
      _prepare(source, tmp_path / 'again', workers=2)
  again = _prepare(source, tmp_path / 'again', workers=2)
  assert _tree(again) == _tree(uninterrupted)


_PREPARE = """
import signal
import sys
from absl import app
# Shells start what is in the background deaf to Ctrl-C, perhaps these tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
from alexnet_jax.prepare import prepare
from alexnet_jax import dataset as dataset_lib
prepare.ALONE, prepare.SHARD_EXAMPLES = 0, 10
prepare.define_flags()
app.run(prepare.main, sys.argv)
"""


def _start_until_a_shard_is_there(root):
  """The command on two processes of its own, half-way; and these two."""
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


def test_ctrl_c_and_a_kill_end_all_processes_and_the_command_continues(
  tmp_path, in_processes, monkeypatch
):
  photograph = tmp_path / 'photograph.jpg'  # Ten milliseconds to encode.
  Image.effect_noise((1200, 800), 50).save(photograph)
  for part, count in (('train', 320), ('val', 1)):
    folder = tmp_path / 'photos' / part / 'class'
    folder.mkdir(parents=True)
    for i in range(count):
      (folder / f'{i:03d}.jpg').symlink_to(photograph)
  for number in (signal.SIGINT, signal.SIGKILL):
    process, children = _start_until_a_shard_is_there(tmp_path)
    if number == signal.SIGINT:  # Of a terminal: all processes get it.
      os.killpg(process.pid, number)
    else:
      process.kill()
    # Ctrl-C waits for the images at hand; of a kill the workers learn at once.
    assert not psutil.wait_procs(children, timeout=10)[1]
    lines = process.communicate(timeout=10)[1].split('\n')
    assert process.returncode in (1, -number)
    if number == signal.SIGINT:  # No traceback of a worker.
      assert [x for x in lines if x] == [
        'interrupted; the same command continues'
      ]
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
    old, new = pathlib.Path(old), pathlib.Path(new)
    parts = old.iterdir() if old.is_dir() else [old]
    if new.name == prepare.RECORD_FILE:  # Says that all is there.
      parts = {*old.parent.iterdir()} - {old.with_name(prepare.PLAN_FILE)}
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
  dataset = dataset_lib.open_dataset(tmp_path, 'set')
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
  assert not dataset_lib.dataset_path(tmp_path / 'again', 'set').exists()
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


def test_what_another_process_prepared_meanwhile_is_left_alone(
  tmp_path, source, monkeypatch
):
  open_source, before = sources.open_source, {}

  def slowly(*args):
    found = open_source(*args)
    with monkeypatch.context() as patch:
      patch.setattr(sources, 'open_source', open_source)
      before.update(_tree(_prepare(source, tmp_path)))
    return found

  monkeypatch.setattr(sources, 'open_source', slowly)
  path = _prepare(source, tmp_path)
  assert _tree(path) == before
  assert set(os.listdir(path.parent)) == {'1.0.0', 'lock'}


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
    dataset = dataset_lib.open_dataset(tmp_path / folder, 'set')
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


# The first row of luminance's table in annex K of the standard, which libjpeg
# has at quality 50; at 25 it is the double.
ANNEX_K = [16, 11, 10, 16, 24, 40, 51, 61]


def test_the_command_prepares_as_its_flags_say(tmp_path):
  # Of 120 pixels to be stored of 97: the least that is stored as JPEG.
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
  """A shard to be written, of files of these contents."""
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


def test_what_a_shard_adds_up_to(tmp_path):
  pixels = np.random.default_rng(0).integers(200, 256, (3, 97, 97, 3), np.uint8)
  contents = [_saved(Image.fromarray(p), 'PNG') for p in pixels]
  calls = []
  shard = _shard(tmp_path, [*contents, b'no image'], size=97)
  found = shards.write(shard, 1, lambda: calls.append(1))
  assert len(calls) == 4  # The unreadable one too.
  assert found['count'] == 3 and len(found['skipped']) == 1
  exact = pixels.astype(np.int64)
  np.testing.assert_array_equal(found['pixel_sum'], exact.sum(0))
  # Beyond the integers of float32.
  rgb = exact.reshape(-1, 3)
  np.testing.assert_array_equal(found['product_sum'], rgb.T @ rgb)
  reader = ArrayRecordReader(str(shard.path))
  assert found['num_bytes'] == sum(map(len, reader.read_all()))
  options = reader.writer_options_string()
  # One record is read without its neighbours, and not compressed twice.
  assert 'group_size:1,' in options and 'uncompressed' in options


def test_any_error_of_a_decoder_is_one_image_skipped(
  tmp_path, source, monkeypatch
):
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


def test_file_names_are_kept_in_any_script(tmp_path, source):
  old = tmp_path / 'images/train/class0/00.png'
  old.rename(old.with_name('été 漢字.png'))
  path = _prepare(source, tmp_path)
  data = tfds.builder_from_directory(path).as_data_source('train')
  names = [example['file_name'].decode() for example in data]
  assert 'train/class0/été 漢字.png' in names


def test_what_was_begun_by_another_encoder_is_refused(
  tmp_path, source, monkeypatch
):
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  monkeypatch.setattr(images, 'ENCODER', 'another')
  with pytest.raises(
    ValueError, match="encoder 'Pillow .* there, 'another' here"
  ):
    _prepare(source, tmp_path)


def test_what_only_lacks_its_name_is_still_that_of_other_arguments(
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
  with pytest.raises(ValueError, match='seed 0 there, 1 here'):
    _prepare(source, tmp_path, seed=1)


def test_a_finished_preparation_does_not_want_its_source(tmp_path, source):
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


def test_skipped_images_and_classes_tell_data_sets_apart(tmp_path, source):
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


def test_a_set_says_what_it_holds(tmp_path, source):
  path = _prepare(source, tmp_path)
  record = json.loads((path / prepare.RECORD_FILE).read_text())
  assert record['source'] == source
  assert (
    record['examples'] == record['stored'] == {'train': 10, 'validation': 3}
  )
  info = tfds.builder_from_directory(path).info
  assert info.description == 'Images of images/.'
  assert info.splits['train'].num_bytes > 10 * SIZE


def test_an_index_is_kept_between_kills_and_not_after(
  tmp_path, source, monkeypatch
):
  seen = []
  open_source = sources.open_source

  def with_index(spec, index=None):
    seen.append(index)
    return dataclasses.replace(open_source(spec), index={'rows': np.arange(3)})

  monkeypatch.setattr(sources, 'open_source', with_index)
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  work = tmp_path / 'set/1.0.0.incomplete'
  whole = (work / prepare.INDEX_FILE).read_bytes()
  (work / prepare.INDEX_FILE).write_bytes(whole[:-20])  # By a kill.
  with monkeypatch.context() as patch:
    _interrupt(patch, after=0)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path)
  (work / prepare.INDEX_FILE).write_bytes(whole)
  out = _prepare(source, tmp_path)
  assert seen[:2] == [None, None]
  assert seen[2]['rows'].tolist() == [0, 1, 2]
  assert not (out / prepare.INDEX_FILE).exists()


def test_one_worker_is_this_process(
  tmp_path, source, in_processes, monkeypatch
):
  monkeypatch.setattr(prepare, '_write_in_processes', None)
  _prepare(source, tmp_path, workers=1)


def test_a_shard_is_sent_without_the_rest_of_its_split(
  tmp_path, source, small_shards, in_processes, monkeypatch
):
  sent = []

  class Pool(concurrent.futures.ThreadPoolExecutor):
    def __init__(self, number, context, initializer, arguments):
      super().__init__(1)
      workers._encoded, workers._stop = arguments

    def submit(self, function, shard, max_bad):
      sent.append(shard.examples)
      return super().submit(function, shard, max_bad)

  monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Pool)
  monkeypatch.setattr(workers, '_encoded', None, raising=False)
  monkeypatch.setattr(workers, '_stop', None, raising=False)
  _prepare(source, tmp_path, workers=2)
  assert [type(e) for e in sent] == [list] * 5


@pytest.mark.parametrize('number', [1, 2])
def test_the_bar_ends_at_the_whole_after_an_interruption(
  tmp_path, source, small_shards, in_processes, monkeypatch, number
):
  with monkeypatch.context() as patch:
    _interrupt(patch, after=7)
    with pytest.raises(KeyboardInterrupt):
      _prepare(source, tmp_path, workers=1)
  bars, tqdm = [], prepare.tqdm.tqdm

  def noted(**options):
    bars.append(tqdm(**options | {'disable': False}))
    return bars[0]

  monkeypatch.setattr(prepare.tqdm, 'tqdm', noted)
  _prepare(source, tmp_path, workers=number)
  assert bars[0].n == bars[0].total == 13


def test_other_pixels_under_the_same_names_tell_data_sets_apart(
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


def test_want_of_memory_is_no_fault_of_an_image(tmp_path, source, monkeypatch):
  def no_memory(*_):
    raise MemoryError

  with monkeypatch.context() as patch:
    patch.setattr(images, 'encode', no_memory)
    with pytest.raises(MemoryError):
      _prepare(source, tmp_path, max_bad=99)
  _prepare(source, tmp_path, max_bad=0)


def test_a_name_that_is_no_utf8_is_spelled_out(tmp_path, source):
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


def test_a_want_of_file_descriptors_is_no_fault_of_an_image(
  tmp_path, source, monkeypatch
):
  def too_many(*_):
    raise OSError(errno.EMFILE, 'Too many open files')

  monkeypatch.setattr(images, 'encode', too_many)
  with pytest.raises(OSError, match='Too many open files'):
    _prepare(source, tmp_path, max_bad=99)


def test_a_relative_source_is_another_one_in_another_folder(
  tmp_path, monkeypatch
):
  for folder, count in (('a', 4), ('b', 5)):
    _write_source(tmp_path / folder / 'images', train=count)
  monkeypatch.chdir(tmp_path / 'a')
  path = _prepare('folder:images', tmp_path)
  assert _prepare('folder:images/', tmp_path) == path
  monkeypatch.chdir(tmp_path / 'b')
  with pytest.raises(ValueError, match='a/images. there, .*b/images. here'):
    _prepare('folder:images', tmp_path)


def test_a_folder_that_is_no_preparation_is_named(tmp_path, source):
  (tmp_path / 'set/1.0.0').mkdir(parents=True)
  with pytest.raises(ValueError, match=f'{tmp_path}/set/1.0.0 was not made by'):
    _prepare(source, tmp_path)


def test_a_finished_preparation_needs_no_lock(tmp_path, source):
  path = _prepare(source, tmp_path)
  with files.locked(tmp_path / 'set'):
    assert _prepare(source, tmp_path) == path
