"""A profile of some steps of a loop, for TensorBoard, XProf or Perfetto."""

from collections.abc import Iterable, Iterator
import logging
import pathlib

import jax

from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)


class Profile:
  """Profiles the steps `first` to `first` + `count` - 1, on process 0."""

  def __init__(self, folder: pathlib.Path, first: int, count: int):
    """Profiles into `folder`/plugins/profile; nothing if `first` is 0."""
    self._folder, self._first, self._count = folder, first, count
    self._enabled = first > 0 and processes.is_first()
    self._is_running = False

  def steps(self, inputs: Iterable, completed: int) -> Iterator:
    """Yields `inputs`: those of the steps `completed` + 1, and so on.

    The profile ends one step late, when the last of its steps must be done, or
    at `end_row`.
    """
    for step, arguments in enumerate(inputs, completed + 1):
      if step == self._first and self._enabled:
        jax.profiler.start_trace(self._folder)
        self._is_running = True
      elif step > self._first + self._count:
        self.close()
      if self._is_running and step < self._first + self._count:
        # XProf finds train steps by these annotations.
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
          yield arguments
      else:
        yield arguments

  def end_row(self, completed: int) -> None:
    """Ends a profile whose steps are done: evaluations do not belong to it."""
    if completed >= self._first + self._count - 1:
      self.close()

  def close(self) -> None:
    """Writes the profile, if one is running."""
    if self._is_running:
      self._is_running = False
      jax.profiler.stop_trace()
      log.info('The profile is in %s/plugins/profile.', self._folder)
