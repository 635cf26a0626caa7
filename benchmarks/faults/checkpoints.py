"""Damaged checkpoints: never a wrong value in silence, never a lost older one."""

import contextlib
import functools
import logging
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax import checkpoint
from alexnet_jax import train_state
from alexnet_jax.runtime import digests
from benchmarks.faults import damage
from benchmarks.faults import rows

OLD, NEW = 4, 8  # The two checkpoints; the new one is damaged.
check = rows.check


def make_state(step: int) -> train_state.TrainState:
  """A train state whose every number depends on the step.

  TensorStore stores values of up to 1 kB with a checksum, longer ones without.
  """
  rng = np.random.default_rng(step)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'conv1': {'kernel': array(5, 5, 3, 8), 'bias': array(8)}}
  opt_state = optax.TraceState(jax.tree.map(lambda x: x * 2, params))
  state = train_state.TrainState(jnp.int32(step), params, opt_state)
  return jax.device_put(state, jax.devices()[0])


def make_metadata(step: int) -> dict:
  """Metadata that depend on the step."""
  return {'config': {'seed': step}, 'metrics': {'train/loss': step / 7}}


def save(workdir: pathlib.Path, errors: dict[int, float]) -> None:
  """Saves a checkpoint for each step, with its validation error."""
  with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
    for step, error in errors.items():
      checkpoints.save(step, make_state(step), make_metadata(step), error)


class Lines(logging.Handler):
  """The messages of a logger while it is attached."""

  def __init__(self):
    super().__init__()
    self.text = ''

  def emit(self, record):
    self.text += record.getMessage() + '\n'


@contextlib.contextmanager
def logged():
  """Collects what the package logs, in place of printing it."""
  lines, logger = Lines(), logging.getLogger('alexnet_jax')
  before = logger.propagate, logger.level
  logger.propagate = False
  logger.setLevel(logging.WARNING)
  logger.addHandler(lines)
  try:
    yield lines
  finally:
    logger.removeHandler(lines)
    logger.propagate = before[0]
    logger.setLevel(before[1])


def restored(workdir: pathlib.Path) -> tuple[int, str]:
  """The step whose very values are restored, and what was logged.

  Raises:
    Broken: if the values are those of no checkpoint.
  """
  template = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    make_state(0),
  )
  with logged() as lines:
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
      found, metadata = checkpoints.restore_latest(template, lambda _: None)
  for step in (NEW, OLD):
    same = jax.tree.map(np.array_equal, found, make_state(step))
    if jax.tree.all(same) and metadata == make_metadata(step):
      return step, lines.text
  raise rows.Broken('other values than were saved were restored')


@contextlib.contextmanager
def damaged(shared, hurt):
  """Restores a run of two checkpoints, of which `hurt` damages the newer."""
  del shared

  with contextlib.ExitStack() as stack:
    whole = pathlib.Path(stack.enter_context(rows.folder())) / 'run'
    save(whole, {OLD: 0.5, NEW: 0.4})

    def trial(rng, folder):
      workdir = damage.copy(whole, folder / 'run')
      newest = workdir / checkpoint.FOLDER / str(NEW)
      what = hurt(newest, rng)
      with damage.nothing_is_run():
        try:
          step, text = restored(workdir)
        except rows.Broken as error:
          raise rows.Broken(f'{what}: {error}') from error
      if step == NEW:
        return 'the same values'
      named = f'checkpoint {NEW} cannot be read' in text
      check(named, f'{what}: another checkpoint without a word: {text}')
      check(newest.with_name(f'damaged.{NEW}').exists(), f'{what}: not kept')
      return 'the older one, by name'

    yield trial


def flip(newest, rng, item):
  """Flips one bit in a file of one item of a checkpoint."""
  path = damage.choose(damage.files_of(newest / item), rng)
  damage.flip_bit(path, rng)
  return f'bit in {path.relative_to(newest)}'


def mix(newest, rng):
  """Up to three damages to any files, also to digests and Orbax's own.

  A lost file of digests alone is a checkpoint of an earlier version, whose
  values cannot be checked: it is never drawn with another damage.
  """
  if rng.random() < 0.05:
    (newest / digests.FILE).unlink()
    return 'no digests'
  done, kept = [], (newest / digests.FILE).read_bytes()
  for _ in range(rng.integers(1, 4)):
    done.append(damage.hurt(newest, rng))
    if not os.path.lexists(newest / digests.FILE):
      (newest / digests.FILE).write_bytes(kept)
  return ', '.join(done)


PROMISE = (
  'the very values that were saved, or those of the checkpoint before, with a'
  ' line that names the damaged one, which is kept'
)


def _row(name, injected, full, quick, hurt):
  opened = functools.partial(damaged, hurt=hurt)
  return rows.Row(name, injected, PROMISE, full, quick, opened)


ROWS = [
  _row(
    *('checkpoint_state', "one flipped bit in a checkpoint's state", 100, 10),
    functools.partial(flip, item=checkpoint.STATE),
  ),
  _row(
    *('checkpoint_record', "one flipped bit in a checkpoint's record", 100, 10),
    functools.partial(flip, item=checkpoint.METADATA),
  ),
  _row(
    'checkpoint_mixed',
    'one to three damages to the files of a checkpoint: flipped, cut, blank,'
    ' noise, replaced, removed, a pipe, a folder, an endless device',
    *(200, 15, mix),
  ),
]
