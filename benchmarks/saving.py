r"""How long a save keeps the training waiting, and how long it takes in all.

    python -m benchmarks.saving [--quick] [--check] [--output=FILE]

The train state of the paper's net (parameters and v, 488 MB) is saved as the
train loop does it (`checkpoint.Checkpoints.save`), and then changed by a program
that is given it, as a step is. The save returns when it has the state on the host;
where the device is the host that is at once, and the copy is left to the step,
which may not overwrite what is still to be written. Both are therefore timed, and
that program without a save; what a training loses is the save and the difference.
Beside them stand a copy of the state alone, and the whole of the save. `--check`
asks that the save returns within the time of 1.5 such copies.
"""

import functools
import pathlib
import statistics
import sys
import tempfile
import time

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()

from absl import flags
import jax
from jaxtyping import PyTree
import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import model
from alexnet_jax import train_state
from benchmarks import report

COPY, BLOCKED, WHOLE = 'copy to the host', 'save returns', 'save is written'
AFTER, WITHOUT = 'change after a save', 'change without one'
BAR = 1.5  # Seconds until a save returns over those of a copy.


@functools.partial(jax.jit, donate_argnums=0)
def change(state: PyTree) -> PyTree:
  """The state plus one, in the same memory unless a save still needs it."""
  return jax.tree.map(lambda x: x + 1, state)


def one_save(state: PyTree) -> tuple[dict[str, float], PyTree]:
  """Seconds of a save into a new folder and of what comes after; the state."""
  seconds = {}

  def timed(name, function, *args):
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    seconds[name] = time.perf_counter() - began
    return result

  state = jax.block_until_ready(change(state))
  timed(COPY, lambda: jax.tree.map(np.array, state))
  state = timed(WITHOUT, change, state)
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = checkpoint.Checkpoints(pathlib.Path(folder))
    began = time.perf_counter()
    timed(BLOCKED, checkpoints.save, 1, state, {}, None)
    state = timed(AFTER, change, state)
    checkpoints.close()
    seconds[WHOLE] = time.perf_counter() - began
  return seconds, state


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('quick', False, 'Two rounds.')
  flags.DEFINE_bool('check', False, f'Fail above {BAR}.')
  flags.DEFINE_integer('rounds', 5, 'Saves, after one that is not timed.', 1)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  rounds = 2 if FLAGS.quick else FLAGS.rounds
  create = lambda key: train_state.initial_state(model.AlexNet(), 224, key)
  state = jax.block_until_ready(jax.jit(create)(jax.random.key(0)))
  taken = []
  for number in range(rounds + 1):
    seconds, state = one_save(state)
    if number:
      taken.append(seconds)
  megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  print(f'{megabytes:.0f} MB, {rounds} saves, seconds: median, least, most')
  for name in taken[0]:
    seconds = [one[name] for one in taken]
    print(
      f'{name:20}{statistics.median(seconds):8.3f}{min(seconds):8.3f}'
      f'{max(seconds):8.3f}'
    )
  lost = statistics.median(
    one[BLOCKED] + one[AFTER] - one[WITHOUT] for one in taken
  )
  print(f'a training loses {lost:.3f} s to a save')
  print('seed of the state: 0')
  report.print_environment()
  report.write(
    FLAGS.output, {'megabytes': megabytes, 'saves': taken, 'lost': lost}
  )
  waited = statistics.median(one[BLOCKED] / one[COPY] for one in taken)
  print(f'save returns / copy {waited:.3f}, bar {BAR}')
  if FLAGS.check and waited > BAR:
    sys.exit(1)


if __name__ == '__main__':
  define_flags()
  report.run(main)
