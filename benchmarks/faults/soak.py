"""A long run: what grows with its steps, with standard errors.

The net of tiny.py trains, evaluates and saves without end. Memory, descriptors
and the time of a step are averaged over intervals; a straight line through
the last two thirds of them gives the slopes.
"""

import contextlib
import os
import pathlib
import re
import signal
import sys
import time
from unittest import mock

import numpy as np

from alexnet_jax import progress as progress_lib
from alexnet_jax import train
from alexnet_jax.runtime import signals
from benchmarks.faults import rows
from benchmarks.faults import runs

STEPS_PER_SAVE = 20
INTERVALS = 60  # A whole soak has so many.
# For each save, beyond two errors. TensorStore leaks 20 to 40 kB in some 430
# blocks (experiments/LOG.md); malloc's arenas grow for hundreds of saves.
MAX_KILOBYTES = 60.0  # Resident memory.
MAX_BLOCKS = 500.0  # Blocks that Python's objects occupy.
MAX_SLOWER = 0.05  # Share of the step time over the whole soak, likewise.


def resident_bytes() -> int:
  """Resident memory of this process."""
  text = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmRSS:\s*(\d+)', text)[1]) * 1024


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Slope of the least-squares line through points, and its standard error."""
  x = x - x.mean()
  found = (x @ y) / (x @ x)
  residuals = y - y.mean() - found * x
  return found, np.sqrt((residuals @ residuals) / (len(x) - 2) / (x @ x))


def samples(shared: pathlib.Path, workdir: pathlib.Path, seconds: float):
  """Trains for some seconds after the first step; a row for each interval.

  Returns:
    Columns: steps so far, resident bytes, blocks that Python's objects occupy,
    descriptors, seconds of a step.
  """
  began, found, stamps = [], [], []
  update = progress_lib.Progress.update

  def watch(self):
    update(self)
    stamps.append(time.monotonic())
    if not began:
      began.append(stamps[-1])
    end = began[0] + (len(found) + 1) * seconds / INTERVALS
    if stamps[-1] < end or len(stamps) < 2:
      return
    steps = (found[-1][0] if found else 0) + len(stamps)
    memory = resident_bytes(), sys.getallocatedblocks()
    descriptors = len(os.listdir('/proc/self/fd'))
    # The median: an interval also holds evaluations and saves.
    step = float(np.median(np.diff(stamps)))
    found.append((steps, *memory, descriptors, step))
    stamps.clear()

  changes = {
    'train__epochs': 1e6,
    'train__log_every_steps': STEPS_PER_SAVE,
    'train__checkpoint_every_steps': STEPS_PER_SAVE,
    'train__eval_every_epochs': 10.0,
  }

  def stop():
    is_over = began and time.monotonic() - began[0] > seconds
    return signal.SIGTERM if is_over and len(found) >= 9 else 0

  with (
    mock.patch.object(progress_lib.Progress, 'update', watch),
    contextlib.redirect_stdout(None),
    contextlib.suppress(signals.Stopped),
  ):
    config = runs.load_config(shared, **changes)
    train.train_and_evaluate(config, workdir, stop)
  return np.array(found, float)


@contextlib.contextmanager
def soak(shared):
  """One long run."""
  runs.reference(shared)  # It compiles.

  def trial(_, folder, seconds):
    found = samples(shared, folder / 'run', seconds)
    steps, memory, blocks, descriptors, step = found[len(found) // 3 :].T
    saves = steps / STEPS_PER_SAVE
    share = (steps[-1] - steps[0]) / step.mean()
    figures = {'steps': steps[-1], 'resident_megabytes': memory[-1] / 1e6}
    for name, x, y in (
      ('kilobytes_per_save', saves, memory / 1e3),
      ('blocks_per_save', saves, blocks),
      ('descriptors_per_save', saves, descriptors),
      ('slower_share', steps, step * share),
    ):
      figures[name], figures[f'{name}_error'] = slope(x, y)
    figures = {name: float(value) for name, value in figures.items()}
    for name, most in (
      ('kilobytes_per_save', MAX_KILOBYTES),
      ('blocks_per_save', MAX_BLOCKS),
      ('descriptors_per_save', 0.0),
      ('slower_share', MAX_SLOWER),
    ):
      value, error = figures[name], figures[f'{name}_error']
      rows.check(
        value - 2 * error <= most or seconds < 600,
        f'{name} is {value:.3g} +- {error:.2g}, bar {most:g}: {figures}',
      )
    return figures

  yield trial


ROWS = [
  rows.Row(
    'soak',
    'time: a run that saves after every twentieth step, for so many seconds',
    f'beyond two standard errors, resident memory grows by at most'
    f' {MAX_KILOBYTES:g} kB a save and by {MAX_BLOCKS:g} Python blocks, no'
    f' descriptor is left open, and steps become at most {MAX_SLOWER:.0%} slower;'
    ' judged from 600 seconds on',
    *(3_600, 5, soak, 600),
    is_size=True,
  )
]
