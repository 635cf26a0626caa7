r"""How long a save keeps the training waiting, and how long it takes in all.

    python -m benchmarks.saving [--quick] [--output=FILE]

The train state of the paper's net (parameters and v, 488 MB) is saved as the
train loop does it (`checkpoint.Checkpoints.save`): the step after it may begin
when the state has been copied off the device; the rest is written meanwhile.
Beside both stands that copy alone, into fresh memory. What a training loses to
its saves is the first of the three.
"""

import pathlib
import statistics
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import model
from alexnet_jax import run as run_lib
from benchmarks import report

COPY, BLOCKED, WHOLE = 'copy to the host', 'save returns', 'save is written'


def one_save(state: run_lib.TrainState) -> dict[str, float]:
  """Seconds of a copy and of a save, into a new folder."""
  began = time.perf_counter()
  jax.tree.map(np.array, state)
  copied = time.perf_counter() - began
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = checkpoint.Checkpoints(pathlib.Path(folder))
    began = time.perf_counter()
    checkpoints.save(1, state, {}, None)
    blocked = time.perf_counter() - began
    checkpoints.close()
    whole = time.perf_counter() - began
  return {COPY: copied, BLOCKED: blocked, WHOLE: whole}


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('quick', False, 'Two rounds.')
  flags.DEFINE_integer('rounds', 5, 'Saves, after one that is not timed.')
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  rounds = 2 if FLAGS.quick else FLAGS.rounds
  create = lambda key: run_lib.initial_state(model.AlexNet(), 224, key)
  state = jax.block_until_ready(jax.jit(create)(jax.random.key(0)))
  taken = [one_save(state) for _ in range(rounds + 1)][1:]
  megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  print(f'{megabytes:.0f} MB, {rounds} saves, seconds: median, least, most')
  for name in taken[0]:
    seconds = [one[name] for one in taken]
    print(
      f'{name:18}{statistics.median(seconds):8.3f}{min(seconds):8.3f}'
      f'{max(seconds):8.3f}'
    )
  print('seed of the state: 0')
  report.print_environment()
  report.write(FLAGS.output, {'megabytes': megabytes, 'saves': taken})


if __name__ == '__main__':
  define_flags()
  app.run(main)
