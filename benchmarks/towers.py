r"""What the towers cost and save, on the available devices.

    python -m benchmarks.towers [--quick] [--check] [--batch=32] [--rounds=7]

Ratios of whole train steps (augmentation, network, update), taken in turn:

* on one device, our step over that of `tests/plain_net.py`: what the generality
  costs. `--check` asks for at most 1.05, and for the same loss;
* two towers on two devices over the one-tower net on one (section 3.2: "the
  two-GPU net takes slightly less time to train than the one-GPU net"), and over the
  two-tower net on one. Two virtual CPU devices share all cores, so the one-tower
  net gets half of the cores, in a process of its own, and the other net all of
  them: the first of these ratios is about two devices, the second only shows
  what communication costs.
"""

import contextlib
import functools
import os
import sys

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()

import jax
import numpy as np

from alexnet_jax import mesh as mesh_lib
from alexnet_jax.runtime import compilation
from benchmarks import harness
from benchmarks import synthetic
from configs import one_tower
from tests import plain_net

BAR = 1.05  # Ours over the plain step; the noise of seven rounds is about 3%.
SAME_STEPS = 6  # Losses of these steps must agree; later, rounding errors grow.
LOSS_BAR = 1e-3  # Relative: float32 in another order of sums.
PLAIN, TWO = 'plain, one device', 'two towers, one device'
ONE, TWO_DEVICES = 'one tower, one device', 'two towers, two devices'
FLAGS = harness.FLAGS


def make_plain_step(*_):
  """Replaces `synthetic.make_train_step`."""
  options, step = compilation.network_options(), plain_net.train_step
  return jax.jit(step, donate_argnums=0, compiler_options=options)


def turn(step: synthetic.TrainStep) -> float:
  """Mean seconds of some steps.

  The first does not count: memory that was idle may have been taken away.
  """
  steps = harness.steps_per_wait()
  step(steps)
  return harness.mean_seconds(step, steps)


def one_tower_step(batch: int) -> synthetic.TrainStep:
  """The train step of the one-GPU net of section 3.2."""
  net = synthetic.network('towers', None, **one_tower.get_config().model)
  return synthetic.TrainStep(net, None, batch)


def half_of_the_cores() -> list[int]:
  """Half of the CPU cores of this process; none if it has one or cannot choose."""
  if not hasattr(os, 'sched_setaffinity'):
    return []
  cores = sorted(os.sched_getaffinity(0))
  return cores[: len(cores) // 2]


def take_turns(batch: int) -> None:
  """The work of a worker: turns of the one-tower net on half of the cores."""
  os.sched_setaffinity(0, half_of_the_cores())
  step = one_tower_step(batch)
  for _ in sys.stdin:
    harness.answer(turn(step))


def create_variants(batch: int) -> dict[str, synthetic.TrainStep]:
  """The train steps to compare in this process, by name."""
  net = synthetic.network('towers', None)
  variants = {
    PLAIN: synthetic.TrainStep(net, None, batch, make=make_plain_step),
    TWO: synthetic.TrainStep(net, None, batch),
  }
  if jax.device_count() > 1:
    mesh = mesh_lib.create_mesh('towers', 2, jax.devices()[:2])
    net = synthetic.network('towers', mesh)
    variants[TWO_DEVICES] = synthetic.TrainStep(net, mesh, batch)
    if jax.default_backend() != 'cpu':
      variants[ONE] = one_tower_step(batch)
  return variants


def measure() -> harness.Outcome:
  batch, rounds = (8, 3) if FLAGS.quick else (FLAGS.batch, FLAGS.rounds)
  variants = create_variants(batch)
  turns = {name: functools.partial(turn, v) for name, v in variants.items()}
  with contextlib.ExitStack() as stack:
    if ONE not in turns and half_of_the_cores():
      worker = harness.Worker(harness.command_line('towers.take_turns', batch))
      turns[ONE] = stack.enter_context(contextlib.closing(worker))
    taken = harness.seconds(turns, rounds)
  ratios = {
    f'{over} / {under}': harness.ratio(taken[over], taken[under])
    for over, under in ((TWO, PLAIN), (TWO_DEVICES, ONE), (TWO_DEVICES, TWO))
    if over in taken and under in taken
  }
  first = lambda name: np.array(variants[name].losses[:SAME_STEPS])
  difference = float(np.max(np.abs(first(TWO) / first(PLAIN) - 1)))
  figures = {'batch': batch, 'seconds': taken, 'ratios': ratios}
  figures['loss_difference'] = difference  # Relative.
  print(f'{batch} images, {rounds} rounds; {synthetic.SEEDS}')
  harness.print_figures(figures)
  cost = ratios[f'{TWO} / {PLAIN}']['median']
  verdict = f'loss_difference {difference:.1e}, bar {LOSS_BAR}; ours / plain'
  passed = cost <= BAR and difference <= LOSS_BAR
  return harness.Outcome(figures, f'{verdict} {cost:.3f}, bar {BAR}', passed)


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 2)
  harness.run(
    measure,
    quick='Small batches, few rounds: a minute.',
    check=f'Fail above {BAR} on one device, or if the losses differ.',
    rounds=7,
    batch=(32, 'Images of a step, over all devices.'),
  )
