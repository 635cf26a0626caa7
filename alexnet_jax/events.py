"""TensorBoard's event files of a work directory."""

from collections.abc import Iterator, Mapping, Sequence
import logging
import math
import os
import pathlib
import struct
import sys
import time

from jaxtyping import Float, UInt8
import numpy as np

# tensorboardX imports PyTorch if it is installed. That takes more than a second
# and may raise any error; we only pass NumPy arrays. With None in this place its
# import fails in the way that tensorboardX expects.
if 'torch' not in sys.modules:
  sys.modules['torch'] = None
from tensorboardX import embedding
from tensorboardX import event_file_writer
from tensorboardX import record_writer
from tensorboardX import summary
from tensorboardX.proto import api_pb2
from tensorboardX.proto import event_pb2
from tensorboardX.proto import plugin_hparams_pb2

from alexnet_jax.runtime import files

if sys.modules['torch'] is None:
  del sys.modules['torch']

log = logging.getLogger(__name__)

# Tags of what every command writes anew: hyperparameters (the HPARAMS tab), the
# charts of the CUSTOM SCALARS tab, and texts.
LATEST = ('_hparams_/', 'custom_scalars__config__', 'run/')
# Bins of a histogram; TensorBoard shows 30.
BINS = 60
PROJECTOR = 'projector'  # Folder of what the PROJECTOR tab shows.


class EventWriter:
  """A new event file; events after `step` are removed from the earlier ones.

  tensorboardX's `purge_step` would only hide them in TensorBoard: other readers
  of the files would see the steps after a resumed one twice. Earlier values of
  `LATEST` are removed as well: those of the latest command count. When a method
  returns, what it wrote is in the file.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens a file to continue after `step`; 0 removes all earlier files."""
    _rewind(workdir, step)
    self._workdir = workdir
    self._writer = event_file_writer.EventsWriter(
      str(workdir / 'events'), f'.{time.time_ns()}'
    )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one point per tag."""
    self._write(step, *(summary.scalar(tag, x) for tag, x in values.items()))

  def image(self, step: int, tag: str, image: np.ndarray) -> None:
    """Writes one picture, uint8 [height, width, 3]."""
    self._write(step, summary.image(tag, image, dataformats='HWC'))

  def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
    """Writes one histogram per tag, of those values that are finite."""
    finite = {tag: x[np.isfinite(x)] for tag, x in values.items()}
    self._write(
      step, *(_histogram(tag, x) for tag, x in finite.items() if x.size)
    )

  def texts(self, values: Mapping[str, str]) -> None:
    """Writes one text, in Markdown, per tag; a tag begins with 'run/'."""
    self._write(0, *(summary.text(tag, text) for tag, text in values.items()))

  def charts(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Writes the charts of the CUSTOM SCALARS tab.

    Args:
      layout: regular expressions of the tags on a chart, by category and title.
    """
    charts = {
      category: {title: ['Multiline', tags] for title, tags in charts.items()}
      for category, charts in layout.items()
    }
    self._write(0, summary.custom_scalars(charts))

  def hyperparameters(self, values: Mapping[str, object]) -> None:
    """Writes hyperparameters by dotted key for TensorBoard's HPARAMS tab.

    The tab shows those first in which runs differ, and all scalars beside them,
    as no summary of an experiment says otherwise. It shows the status UNKNOWN
    until `end` is called.
    """
    plain = {
      k: v if isinstance(v, bool | int | float) else str(v)
      for k, v in values.items()
    }
    _, start, _ = summary.hparams(plain, {})
    self._write(0, start)

  def embedding(
    self,
    name: str,
    vectors: Float[np.ndarray, 'examples features'],
    thumbnails: UInt8[np.ndarray, 'examples side side 3'],
    columns: Mapping[str, Sequence],
  ) -> None:
    """Writes the vectors of the PROJECTOR tab in place of earlier ones.

    Args:
      name: name of the vectors in the tab.
      vectors: one row per example.
      thumbnails: the pictures of the examples.
      columns: what is known of the examples, by title; at least two columns.
    """
    folder = self._workdir / PROJECTOR
    folder.mkdir(exist_ok=True)
    (self._workdir / 'projector_config.pbtxt').unlink(missing_ok=True)
    rows = [*zip(*columns.values(), strict=True)]
    pictures = thumbnails.transpose(0, 3, 1, 2) / 255
    embedding.make_mat(vectors, str(folder))
    embedding.make_tsv(rows, str(folder), [*columns])
    # They fill a square, which `make_sprite` would not initialise elsewhere.
    missing = math.ceil(len(pictures) ** 0.5) ** 2 - len(pictures)
    padding = np.zeros((missing, *pictures.shape[1:]))
    embedding.make_sprite(np.concatenate([pictures, padding]), str(folder))
    embedding.append_pbtxt(
      rows, pictures, str(self._workdir), PROJECTOR, 0, name
    )

  def end(self, succeeded: bool) -> None:
    """Writes the status for the HPARAMS tab: SUCCESS or FAILURE."""
    _, _, end = summary.hparams({}, {})  # Its status is SUCCESS.
    if not succeeded:
      data = plugin_hparams_pb2.HParamsPluginData()
      plugin_data = end.value[0].metadata.plugin_data
      data.ParseFromString(plugin_data.content)
      data.session_end_info.status = api_pb2.Status.STATUS_FAILURE
      plugin_data.content = data.SerializeToString()
    self._write(0, end)

  def close(self) -> None:
    self._writer.close()

  def _write(self, step, *summaries):
    for value in summaries:
      event = event_pb2.Event(summary=value, step=step, wall_time=time.time())
      self._writer.write_event(event)
    self._writer.flush()


def _histogram(tag, values):
  # summary.histogram multiplies in many threads, which takes 4 ms.
  values = values.astype(np.float64)
  counts, limits = np.histogram(values, BINS)
  return summary.histogram_raw(
    tag,
    values.min(),
    values.max(),
    values.size,
    values.sum(),
    np.square(values).sum(),
    limits.tolist(),
    [0, *counts.tolist()],  # Counts are those below each limit.
  )


def _rewind(workdir: pathlib.Path, step: int) -> None:
  """Removes events after `step`, `LATEST` ones, and incomplete records."""
  for path in workdir.glob('events.out.tfevents.*'):
    # TensorBoard does not read a file of this name.
    damaged = path.with_name(path.name.replace('tfevents', 'damaged'))
    if not path.is_file():  # A pipe would wait for a writer.
      path.rename(damaged)
      log.warning('%s is not a file; it is now %s', path, damaged.name)
      continue
    if step == 0:
      path.unlink()
      continue
    content, kept = files.read_bytes(path, 2**40), bytearray()
    try:
      for record, event in _records(content):
        tags = [value.tag for value in event.summary.value]
        if event.step <= step and not any(t.startswith(LATEST) for t in tags):
          kept += record
    except ValueError as error:
      files.write_bytes(damaged, content)
      log.warning(
        '%s is damaged (%s); it is kept as %s, and TensorBoard has the events'
        ' before the damage',
        path,
        error,
        damaged.name,
      )
    if kept != content:
      temporary = workdir / 'rewound.tmp'  # TensorBoard ignores this name.
      temporary.unlink(missing_ok=True)  # It may be a pipe.
      temporary.write_bytes(kept)
      os.replace(temporary, path)


def _records(content: bytes) -> Iterator:
  """Yields (record, event) for every complete record.

  A record is a header (length, CRC), the event, and its CRC. After the last
  complete one there may be the beginning of another, which a kill interrupted.
  The CRCs take 0.2 s per MB, unless the package `crc32c` is installed.

  Raises:
    ValueError: if a record is damaged.
  """
  start = 0
  while start + 12 <= len(content):
    header = content[start : start + 8]
    length, crc = struct.unpack_from('<QI', content, start)
    if crc != record_writer.masked_crc32c(header):
      raise ValueError(f'wrong checksum at byte {start}')
    end = start + 12 + length + 4
    if end > len(content):
      return
    data = content[start + 12 : end - 4]
    (crc,) = struct.unpack_from('<I', content, end - 4)
    if crc != record_writer.masked_crc32c(data):
      raise ValueError(f'wrong checksum at byte {end - 4}')
    yield content[start:end], event_pb2.Event.FromString(data)
    start = end
