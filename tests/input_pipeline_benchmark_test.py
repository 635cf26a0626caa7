"""The benchmark of the host half: what it counts, compares and refuses."""

import contextlib
import io
import itertools
import os
import time
import types

import numpy as np
from PIL import Image
import pytest
import simplejpeg
from sklearn import datasets

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax.prepare import prepare
from benchmarks import harness
from benchmarks import input_pipeline as benchmark
from benchmarks import loaders

NUM, SIZE = 12, 112  # Above images.PNG_SIZE: stored as JPEG.


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Holds 'jpeg' and 'png', of the same few digits."""
  folder = tmp_path_factory.mktemp('digits')
  digits = datasets.load_digits()
  for i, (pixels, label) in enumerate(
    zip(digits.images[:NUM], digits.target, strict=False)
  ):
    path = folder / 'images' / 'train' / str(label % 3) / f'{i:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15).astype(np.uint8)).save(path)
    if i < 3:
      other = folder / 'images' / 'val' / path.parent.name / path.name
      other.parent.mkdir(parents=True, exist_ok=True)
      other.write_bytes(path.read_bytes())
  for name, size in (('jpeg', SIZE), ('png', 8)):
    prepare.prepare(f'folder:{folder / "images"}', name, folder, size=size)
  return folder


def settings_of(data_dir, files, **changes):
  values = {
    'data_dir': str(data_dir),
    'dataset': 'jpeg',
    'files': str(files),
    'photographs': '',
    'tf_python': '',
    'cores': 1,
    'batch': 4,
    'batches': 2,
    'rounds': 2,
  }
  return loaders.Settings(**values | changes)


@pytest.fixture
def files(data_dir, tmp_path):
  dataset = dataset_lib.open_dataset(data_dir, 'jpeg')
  benchmark.write_files(dataset, tmp_path)
  return tmp_path


def test_the_files_are_the_stored_images(data_dir, files):
  dataset = dataset_lib.open_dataset(data_dir, 'jpeg')
  (batch,) = itertools.islice(
    input_pipeline.train_batches(
      dataset, 'train', batch_size=NUM, seed=0, start_step=0
    ),
    1,
  )
  expected = sorted(
    (int(label), image.tobytes())
    for image, label in zip(batch['image'], batch['label'], strict=True)
  )
  found = []
  for path in harness.jpeg_files(files):
    pixels = np.empty((SIZE, SIZE, 3), np.uint8)
    images.decode(path.read_bytes(), pixels)
    found.append((int(path.stem.partition('_')[2]), pixels.tobytes()))
  assert sorted(found) == expected


def test_images_that_are_not_jpeg_are_refused(data_dir, tmp_path):
  dataset = dataset_lib.open_dataset(data_dir, 'png')
  with pytest.raises(ValueError, match='not JPEG; .* --size above 96'):
    benchmark.write_files(dataset, tmp_path)
  assert not list(tmp_path.iterdir())


def test_ours_and_decoding_alone_are_measured(data_dir, files, monkeypatch):
  others = dict.fromkeys((benchmark.PILLOW, benchmark.TF_DATA), 'a reason')
  monkeypatch.setattr(benchmark, 'skipped', lambda _: others)
  rates = benchmark.rates_of(settings_of(data_dir, files))
  assert rates.keys() == {
    benchmark.OURS,
    benchmark.UNDECODED,
    benchmark.ALONE,
    benchmark.ONE_THREAD,
  }
  assert {len(values) for values in rates.values()} == {2}
  assert (
    min(r for values in rates.values() for pair in values for r in pair) > 0
  )


@pytest.mark.parametrize('decodes', [True, False])
def test_only_the_undecoded_pipeline_decodes_nothing(
  data_dir, monkeypatch, decodes
):
  decoded, decode = [], images.decode
  monkeypatch.setattr(
    images, 'decode', lambda *args: decoded.append(decode(*args))
  )
  with contextlib.ExitStack() as stack:
    contestant = loaders.ours(settings_of(data_dir, ''), stack)
    (contestant if decodes else loaders.undecoded(contestant))()
  assert bool(decoded) == decodes


def test_a_segment_gives_up_what_is_buffered_before_it_counts(monkeypatch):
  taken, images_ = itertools.count(), []
  settings = settings_of('', '', cores=2, batch=5, batches=3)
  timed = loaders.timed
  monkeypatch.setattr(
    loaders, 'timed', lambda *args: images_.append(args[3]) or timed(*args)
  )
  loaders.pipeline(settings, taken)()
  assert images_ == [2 * 3 * 5]
  assert next(taken) == settings.drain + 2 * 3
  # DataLoader holds two batches for each worker, tf.data and Grain two.
  assert settings.drain > 2 * 3 + 2 * 2 + 2


def test_rates_are_images_over_both_times(monkeypatch):
  cpu, wall = iter([1.0, 3.0, 3.0, 3.0, 3.0]), iter([10.0, 15.0])
  monkeypatch.setattr(loaders.time, 'perf_counter', lambda: next(wall))
  taken = []
  found = loaders.timed(taken.append, 7, 4, 20, lambda: next(cpu))
  assert (found, taken) == ((10.0, 4.0), [7, 4])


def test_all_threads_decode_their_share(monkeypatch):
  calls, images_ = [], []
  decode = lambda *call: calls.append(call)
  timed = loaders.timed
  monkeypatch.setattr(
    loaders, 'timed', lambda *args: images_.append(args[3]) or timed(*args)
  )
  loaders.decoding([b'a', b'b', b'c'], 10, decode, [['x'], ['y'], ['z']])()
  assert images_ == [9]
  assert len(calls) == 2 * 9
  timed = calls[9:]  # After as many.
  assert sorted(buffer for _, buffer in timed) == sorted('xyz' * 3)
  assert {encoded for encoded, _ in timed} == {b'a', b'b', b'c'}


def test_the_cpu_time_of_a_process_is_that_of_all_its_threads():
  end = time.process_time() + 0.1
  while time.process_time() < end:
    pass
  found = loaders.cpu_seconds(os.getpid())
  assert found == pytest.approx(time.process_time(), abs=0.05)


def test_a_photograph_is_scaled_and_its_centre_cut_out():
  # Red up to the middle of the longer side, then blue.
  pixels = np.zeros((512, 1024, 3), np.uint8)
  pixels[:, :512, 0] = pixels[:, 512:, 2] = 255
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  found = loaders.scaled_with_pillow(buffer.getvalue())
  assert found.shape == (256, 256, 3)
  assert (found[:, :125] == [255, 0, 0]).all()
  assert (found[:, 131:] == [0, 0, 255]).all()


def test_both_decoders_of_the_data_loader_give_the_stored_pixels(files):
  (path, *_) = harness.jpeg_files(files)
  expected = np.asarray(Image.open(path))
  for decode in (loaders.with_pillow, simplejpeg.decode_jpeg):
    pixels, number = loaders.Files(files, decode)[0]
    assert number == 0
    # libjpeg-turbo of two versions may round differently.
    np.testing.assert_allclose(pixels.astype(int), expected, atol=2)


def rates(ours, alone, pillow):
  wall = 1.0
  return {
    benchmark.OURS: [(rate, wall) for rate in ours],
    benchmark.ALONE: [(rate, wall) for rate in alone],
    benchmark.PILLOW: [(rate, wall) for rate in pillow],
  }


def test_a_ratio_is_the_median_of_rounds():
  found = benchmark.ratios(rates([8, 9, 20], [10, 10, 10], [4, 3, 5]), 0)
  assert found[benchmark.ALONE] == {'median': 0.9, 'least': 0.8, 'most': 2.0}
  assert found[benchmark.PILLOW]['median'] == 3


@pytest.mark.parametrize(
  ('ours', 'missed'), [((9, 9), False), ((9, 8), True), ((8, 9), True)]
)
def test_a_bar_counts_on_every_number_of_cores(ours, missed):
  found = {
    cores: rates([rate], [10], [4])
    for cores, rate in zip((1, 2), ours, strict=True)
  }
  line, verdict = benchmark.judge(found)
  assert verdict == missed
  assert f'{min(ours) / 10:.3f} on {1 + ours.index(min(ours))} cores' in line
  assert 'tf.data: skipped' in line


def test_pillow_has_a_bar_of_its_own():
  assert benchmark.judge({1: rates([9], [10], [6.1])})[1]
  assert not benchmark.judge({1: rates([9], [10], [5.9])})[1]


def test_numbers_of_cores(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(6)))
  assert benchmark.numbers_of_cores(quick=False) == [1, 2, 4, 6]
  assert benchmark.numbers_of_cores(quick=True) == [6]


@pytest.mark.parametrize(
  ('flag', 'value', 'message'),
  [
    ('photographs', 'nowhere', '--photographs=nowhere holds no JPEG'),
    ('tf_python', 'nowhere', '--tf_python=nowhere is not a program'),
    ('tf_python', 'false', '--tf_python=false has no TensorFlow'),
    ('dataset', 'nothing', 'no prepared data set'),
  ],
)
def test_wrong_flags_are_one_line(data_dir, monkeypatch, flag, value, message):
  given = {
    'data_dir': str(data_dir),
    'dataset': 'jpeg',
    'photographs': '',
    'tf_python': '',
  }
  given[flag] = value
  monkeypatch.setattr(benchmark, 'FLAGS', types.SimpleNamespace(**given))
  with pytest.raises(SystemExit, match=message):
    benchmark.check_flags()
