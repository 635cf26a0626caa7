"""TensorBoard's event files of a work directory.

A module of its own since tensorboardX imports PyTorch where that is installed,
which takes over a second: only processes that write events should pay for it.
"""

from collections.abc import Mapping
import os
import pathlib
import struct
import time

import numpy as np
from tensorboardX import event_file_writer
from tensorboardX import proto
from tensorboardX import summary


class EventWriter:
  """One more event file; what earlier ones hold beyond `step` is removed.

  Writes are in the file when a method returns.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens a file to continue behind `step`; 0 starts anew."""
    _rewind(workdir, step)
    self._writer = event_file_writer.EventsWriter(
      str(workdir / 'events'), f'.{time.time_ns()}'
    )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """One point per tag."""
    self._write(step, *(summary.scalar(tag, x) for tag, x in values.items()))

  def image(self, step: int, tag: str, image: np.ndarray) -> None:
    """One picture, uint8 [height, width, 3]."""
    self._write(step, summary.image(tag, image, dataformats='HWC'))

  def hyperparameters(self, values: Mapping[str, object], metric: str) -> None:
    """Values by dotted key, for the HPARAMS tab, and the tag that they decide."""
    plain = {
      k: v if isinstance(v, bool | int | float) else str(v)
      for k, v in values.items()
    }
    self._write(0, *summary.hparams(plain, {metric: 0.0}))

  def close(self) -> None:
    self._writer.close()

  def _write(self, step, *summaries):
    for one in summaries:
      event = proto.event_pb2.Event(
        summary=one, step=step, wall_time=time.time()
      )
      self._writer.write_event(event)
    self._writer.flush()


def _rewind(workdir: pathlib.Path, step: int) -> None:
  """Removes what the event files hold beyond `step`, and broken tails."""
  for path in workdir.glob('events.out.tfevents.*'):
    if step == 0:
      path.unlink()
      continue
    content = path.read_bytes()
    kept = b''.join(
      record for record, event in _records(content) if event.step <= step
    )
    if kept != content:
      temporary = workdir / 'rewound.tmp'  # A name TensorBoard passes over.
      temporary.write_bytes(kept)
      os.replace(temporary, path)


def _records(content: bytes):
  """(framed bytes, event) of an event file: length, crc, data, crc."""
  start = 0
  while start + 12 <= len(content):
    (length,) = struct.unpack_from('<Q', content, start)
    end = start + 12 + length + 4
    if end > len(content):
      return
    event = proto.event_pb2.Event.FromString(content[start + 12 : end - 4])
    yield content[start:end], event
    start = end
