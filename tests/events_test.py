"""Event files as TensorBoard reads them."""

import io
import os
import pathlib
import struct
import subprocess
import sys

from google.protobuf import text_format
import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.projector import projector_config_pb2

from alexnet_jax import events

ROOT = pathlib.Path(events.__file__).parents[1]


def read_events(workdir):
  guidance = {'scalars': 0, 'images': 0, 'tensors': 0}  # 0 keeps all.
  found = event_accumulator.EventAccumulator(str(workdir), guidance)
  return found.Reload()


def scalar_points(workdir, tag):
  return [(e.step, e.value) for e in read_events(workdir).Scalars(tag)]


def write_run(workdir, start, stop):
  """Writes the steps after `start` to `stop`, with a/x = step / 8."""
  writer = events.EventWriter(workdir, start)
  for step in range(start + 1, stop + 1):
    writer.scalars(step, {'a/x': step / 8})
  writer.close()


@pytest.mark.parametrize('cut', [1, 10, 30])
def test_a_truncated_event_record_is_dropped(tmp_path, cut):
  write_run(tmp_path, 0, 3)
  (path,) = tmp_path.glob('*tfevents*')
  path.write_bytes(path.read_bytes()[:-cut])
  write_run(tmp_path, 5, 6)
  (tmp_path / 'whole').mkdir()
  write_run(tmp_path / 'whole', 0, 2)
  (whole,) = (tmp_path / 'whole').glob('*tfevents*')
  assert path.stat().st_size == whole.stat().st_size  # Truncated after step 2.
  steps = [step for step, _ in scalar_points(tmp_path, 'a/x')]
  assert steps == [1, 2, 6]


def test_the_hparams_plugin_reads_the_hyperparameters(tmp_path):
  values = {'a.rate': 0.5, 'a.steps': 3, 'a.flip': True, 'a.widths': [4, 8]}
  writer = events.EventWriter(tmp_path, 0)
  writer.hyperparameters(values)
  writer.close()
  found = read_events(tmp_path).summary_metadata
  start = hparams_metadata.parse_session_start_info_plugin_data(
    found[hparams_metadata.SESSION_START_INFO_TAG].plugin_data.content
  )
  read = {k: getattr(v, v.WhichOneof('kind')) for k, v in start.hparams.items()}
  assert read == values | {'a.widths': '[4, 8]'}
  # With it, TensorBoard would not put those first in which runs differ.
  assert hparams_metadata.EXPERIMENT_TAG not in found


def session(workdir):
  """Hyperparameters and status (None without an end) as TensorBoard has them."""
  found = read_events(workdir).summary_metadata
  content = lambda tag: found[tag].plugin_data.content
  start = hparams_metadata.parse_session_start_info_plugin_data(
    content(hparams_metadata.SESSION_START_INFO_TAG)
  )
  if hparams_metadata.SESSION_END_INFO_TAG not in found:
    return start.hparams, None
  end = hparams_metadata.parse_session_end_info_plugin_data(
    content(hparams_metadata.SESSION_END_INFO_TAG)
  )
  return start.hparams, api_pb2.Status.Name(end.status)


@pytest.mark.parametrize(
  ('succeeded', 'status'),
  [(True, 'STATUS_SUCCESS'), (False, 'STATUS_FAILURE'), (None, None)],
)
def test_the_latest_command_has_its_hyperparameters_and_its_status(
  tmp_path, succeeded, status
):
  for step, epochs, result in ((0, 90.0, True), (3, 45.0, succeeded)):
    writer = events.EventWriter(tmp_path, step)
    writer.hyperparameters({'train.epochs': epochs})
    writer.scalars(step + 1, {'a/x': epochs})
    if result is not None:
      writer.end(result)
    writer.close()
  hyperparameters, found = session(tmp_path)
  assert hyperparameters['train.epochs'].number_value == 45.0
  assert found == status
  assert scalar_points(tmp_path, 'a/x') == [(1, 90.0), (4, 45.0)]


def whole_records(content):
  """Offsets of the records, read by their lengths."""
  offsets = [0]
  while offsets[-1] < len(content):
    (length,) = struct.unpack_from('<Q', content, offsets[-1])
    offsets.append(offsets[-1] + length + 16)
  return offsets[:-1]


def flip_a_bit_of_the_value(content, at):
  value = content.index(struct.pack('<f', 3 / 8), at)  # That of step 3.
  return content[:value] + bytes([content[value] ^ 1]) + content[value + 1 :]


@pytest.mark.parametrize(
  'damage',
  [
    lambda content, at: content[: at + 12] + b'\xff' * (len(content) - at - 12),
    lambda content, at: content[:at] + bytes(len(content) - at),
    lambda content, at: content[:at] + b'\x07' + content[at + 1 :],
    lambda content, at: content[:at] + b'text, no record',
    flip_a_bit_of_the_value,
  ],
  ids=['event', 'zeros', 'length', 'text', 'value'],
)
def test_a_damaged_event_file_is_kept_aside_in_one_line(
  tmp_path, caplog, damage
):
  write_run(tmp_path, 0, 4)
  (path,) = tmp_path.glob('*tfevents*')
  content = path.read_bytes()
  damaged = damage(content, whole_records(content)[-2])  # That of step 3.
  path.write_bytes(damaged)
  write_run(tmp_path, 4, 5)
  assert scalar_points(tmp_path, 'a/x') == [(1, 0.125), (2, 0.25), (5, 0.625)]
  (kept,) = tmp_path.glob('*damaged*')
  assert kept.read_bytes() == damaged
  (record,) = caplog.records
  assert f'{path} is damaged' in record.getMessage()
  assert f'it is kept as {kept.name}' in record.getMessage()


def test_an_image_is_read_back_pixel_by_pixel(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  writer = events.EventWriter(tmp_path, 0)
  writer.image(3, 'a/picture', picture)
  writer.close()
  (image,) = read_events(tmp_path).Images('a/picture')
  assert (image.step, image.height, image.width) == (3, 5, 7)
  np.testing.assert_array_equal(
    np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), picture
  )


def test_a_histogram_has_every_finite_value(tmp_path):
  writer = events.EventWriter(tmp_path, 0)
  values = np.array([-1.0, 0.5, 0.5, 2.0, np.nan, np.inf])
  writer.histograms(4, {'a/x': values, 'a/y': values[4:]})
  writer.close()
  found = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  assert found.Tags()['histograms'] == ['a/x']
  (event,) = found.Histograms('a/x')
  histogram = event.histogram_value
  assert (event.step, histogram.min, histogram.max) == (4, -1, 2)
  assert (histogram.num, histogram.sum) == (4, 2)
  limits, counts = map(np.array, (histogram.bucket_limit, histogram.bucket))
  assert [counts[limits <= x].sum() for x in (0, 1, 3)] == [1, 3, 4]


def test_texts_and_charts_are_those_of_the_latest_command(tmp_path):
  for step, text in ((0, 'first'), (3, 'second')):
    writer = events.EventWriter(tmp_path, step)
    writer.texts({'run/about': text})
    writer.charts({'category': {'title': ['train/loss', f'{text}/.*']}})
    writer.scalars(step + 1, {'a/x': 0.5})
    writer.close()
  found = read_events(tmp_path)
  (event,) = found.Tensors('run/about/text_summary')
  assert event.tensor_proto.string_val == [b'second']
  (event,) = found.Tensors('custom_scalars__config__')
  layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
  (chart,) = layout.category[0].chart
  assert chart.title == 'title'
  assert chart.multiline.tag == ['train/loss', 'second/.*']


def test_the_pictures_of_the_projector_fill_their_square(tmp_path, monkeypatch):
  found = []
  make_sprite = lambda pictures, folder: found.append(pictures)
  monkeypatch.setattr(events.embedding, 'make_sprite', make_sprite)
  writer = events.EventWriter(tmp_path, 0)
  pictures = np.full((5, 4, 4, 3), 255, np.uint8)
  columns = {'class': list('abcde'), 'row': [*range(5)]}
  writer.embedding('fc7', np.zeros((5, 2), np.float32), pictures, columns)
  writer.close()
  assert found[0].shape == (
    9,
    3,
    4,
    4,
  )  # Of 6, tensorboardX leaves the rest to chance.
  assert found[0][:5].min() == 1 and found[0][5:].max() == 0


def test_the_projector_has_the_newest_vectors_with_names_and_pictures(tmp_path):
  for value in (1, 2):
    writer = events.EventWriter(tmp_path, 0)
    pictures = np.full((3, 4, 4, 3), 50 * value, np.uint8)
    vectors = value * np.arange(6, dtype=np.float32).reshape(3, 2)
    columns = {'class': ['a', 'b', 'a b'], 'row': [0, 1, 2]}
    writer.embedding('fc7', vectors, pictures, columns)
    writer.close()
  text = (tmp_path / 'projector_config.pbtxt').read_text()
  config = text_format.Parse(text, projector_config_pb2.ProjectorConfig())
  (found,) = config.embeddings
  np.testing.assert_array_equal(
    np.loadtxt(tmp_path / found.tensor_path), 2 * np.arange(6).reshape(3, 2)
  )
  rows = (tmp_path / found.metadata_path).read_text().splitlines()
  assert rows == ['class\trow', 'a\t0', 'b\t1', 'a b\t2']
  sprite = np.asarray(Image.open(tmp_path / found.sprite.image_path))
  assert sprite.shape == (8, 8, 3)
  assert (sprite[:4, :4] == 100).all()


def test_a_pytorch_that_cannot_be_imported_does_not_matter(tmp_path):
  (tmp_path / 'torch.py').write_text("raise OSError('libcudart.so: missing')")
  code = (
    'import pathlib, sys; from alexnet_jax import events\n'
    'writer = events.EventWriter(pathlib.Path(sys.argv[1]), 0)\n'
    "writer.scalars(1, {'a/x': 0.5})\n"
    "assert 'torch' not in sys.modules\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    env=os.environ | {'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert scalar_points(tmp_path, 'a/x') == [(1, 0.5)]
