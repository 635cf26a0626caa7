"""TensorBoard's event files of a work directory."""

from collections.abc import Mapping
import os
import pathlib
import struct
import sys
import time

import numpy as np

# tensorboardX imports PyTorch if it is installed. That takes more than a second
# and may raise any error; we only pass NumPy arrays. With None in this place its
# import fails in the way that tensorboardX expects.
if 'torch' not in sys.modules:
  sys.modules['torch'] = None
from tensorboardX import event_file_writer
from tensorboardX import proto
from tensorboardX import summary

if sys.modules['torch'] is None:
  del sys.modules['torch']


class EventWriter:
  """A new event file; events after `step` are removed from the earlier ones.

  tensorboardX's `purge_step` would only hide them in TensorBoard: other readers
  of the files would see the steps after a resumed one twice. When a method
  returns, what it wrote is in the file.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens a file to continue after `step`; 0 removes all earlier files."""
    _rewind(workdir, step)
    self._writer = event_file_writer.EventsWriter(
      str(workdir / 'events'), f'.{time.time_ns()}'
    )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one point per tag."""
    self._write(step, *(summary.scalar(tag, x) for tag, x in values.items()))

  def image(self, step: int, tag: str, image: np.ndarray) -> None:
    """Writes one picture, uint8 [height, width, 3]."""
    self._write(step, summary.image(tag, image, dataformats='HWC'))

  def hyperparameters(self, values: Mapping[str, object], metric: str) -> None:
    """Writes hyperparameters for TensorBoard's HPARAMS tab.

    Args:
      values: by dotted key.
      metric: tag that the tab shows beside them.
    """
    plain = {
      k: v if isinstance(v, bool | int | float) else str(v)
      for k, v in values.items()
    }
    self._write(0, *summary.hparams(plain, {metric: 0.0}))

  def close(self) -> None:
    self._writer.close()

  def _write(self, step, *summaries):
    for value in summaries:
      event = proto.event_pb2.Event(
        summary=value, step=step, wall_time=time.time()
      )
      self._writer.write_event(event)
    self._writer.flush()


def _rewind(workdir: pathlib.Path, step: int) -> None:
  """Removes events after `step`, and incomplete records at the end of files."""
  for path in workdir.glob('events.out.tfevents.*'):
    if step == 0:
      path.unlink()
      continue
    content = path.read_bytes()
    kept = b''.join(
      record for record, event in _records(content) if event.step <= step
    )
    if kept != content:
      temporary = workdir / 'rewound.tmp'  # TensorBoard ignores this name.
      temporary.write_bytes(kept)
      os.replace(temporary, path)


def _records(content: bytes):
  """Yields (bytes, event) for every complete record: length, CRC, data, CRC."""
  start = 0
  while start + 12 <= len(content):
    (length,) = struct.unpack_from('<Q', content, start)
    end = start + 12 + length + 4
    if end > len(content):
      return
    event = proto.event_pb2.Event.FromString(content[start + 12 : end - 4])
    yield content[start:end], event
    start = end
