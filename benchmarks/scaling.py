r"""What more devices cost in every step, measured on virtual ones.

    python -m benchmarks.scaling [--quick] [--rounds=9] [--steps=20]

Seconds of a train step of each layout on 1 to 8 virtual CPU devices, and on two
real processes that communicate over the loopback interface, with a net so small
that what remains is the fixed cost of a step: dispatch, and the collectives.
Virtual devices share this machine's cores; how much faster real ones compute is
estimated in docs/speed_model.md, not measured.
"""

from collections.abc import Iterable
import contextlib
import socket
import sys

import jax

from alexnet_jax import mesh as mesh_lib
from alexnet_jax.runtime import processes
from benchmarks import harness
from benchmarks import plots
from benchmarks import synthetic

# The smallest maps for three poolings, one image a device, widths that 8 divides.
TINY = {'conv_features': (4,) * 5, 'fc_features': (16, 16), 'num_classes': 16}
IMAGE, CROP, BATCH = 72, 67, 8
# (layout, devices, processes); on one device all layouts are the same.
QUICK = [('data', 1, 1), ('towers', 2, 1), ('data', 2, 1), ('data', 2, 2)]
QUICK += [('one_weird_trick', 2, 1)]
LAYOUTS = [*QUICK, ('towers', 2, 2)]
LAYOUTS += [(layout, n, 1) for n in (4, 8) for layout in mesh_lib.LAYOUTS]
FLAGS = harness.FLAGS


def take_steps(layout: str, steps: int, *cluster: str | int) -> None:
  """The work of a worker: takes `steps` steps for every line of stdin.

  With several workers `cluster` are the arguments of `processes.initialize`.
  """
  if cluster:
    processes.initialize(*cluster)
  mesh = mesh_lib.create_mesh(layout, 'auto', jax.devices())
  net = synthetic.network(layout, mesh, **TINY)
  step = synthetic.TrainStep(net, mesh, BATCH, IMAGE, CROP)
  for _ in sys.stdin:
    for _ in range(steps):
      step()
    harness.answer('done')


def start_worker(
  layout: str, devices: int, number: int, steps: int
) -> harness.Worker:
  """The worker of a layout: `number` processes, which share the devices."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  own = f'--xla_force_host_platform_device_count={devices // number}'
  clusters = [(address, number, index) for index in range(number)]
  commands = [
    harness.command_line('scaling.take_steps', layout, steps, *cluster)
    for cluster in (clusters if number > 1 else [()])
  ]
  return harness.Worker(*commands, JAX_PLATFORMS='cpu', XLA_FLAGS=own)


def name_of(layout: str, devices: int, number: int) -> str:
  """The name of a layout, with its mesh."""
  if devices == 1:
    return 'one device'
  mesh = 'x'.join(map(str, mesh_lib.mesh_shape(layout, 'auto', devices)))
  return f'{layout} {mesh}' + f', {number} processes' * (number > 1)


def fixed_costs(
  layouts: Iterable[tuple[str, int, int]], rounds: int, steps: int
) -> dict[str, list[float]]:
  """Seconds of a step in each round of `steps` steps, by name of a layout."""
  with contextlib.ExitStack() as stack:
    workers = {}
    for layout in layouts:
      worker = workers[name_of(*layout)] = start_worker(*layout, steps)
      stack.callback(worker.close)
      worker()  # One after the other: compiling takes all cores.
    taken = harness.seconds(workers, rounds)
  return {name: [s / steps for s in seconds] for name, seconds in taken.items()}


def measure() -> harness.Outcome:
  layouts, rounds, steps = LAYOUTS, FLAGS.rounds, FLAGS.steps
  if FLAGS.quick:
    layouts, rounds, steps = QUICK, 3, 10
  taken = fixed_costs(layouts, rounds, steps)
  ratios = {n: harness.ratio(s, taken['one device']) for n, s in taken.items()}
  print(f'a tiny net, {BATCH} images, {rounds} rounds of {steps} steps')
  figures = {'fixed_seconds': taken, 'ratios': ratios}
  harness.print_figures(figures)
  most = max(ratios, key=lambda name: ratios[name]['median'])
  cost = f'{ratios[most]["median"]:.2f} times a step on one device ({most})'
  return harness.Outcome(figures, f'{synthetic.SEEDS}\nat most {cost}')


def panels(figures):
  fixed = {
    name: [1e3 * s for s in seconds]
    for name, seconds in figures['fixed_seconds'].items()
  }
  label = 'ms of a step of a tiny net: measured on virtual CPU devices'
  return 'More devices', [plots.Panel(label, {'': fixed})]


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  harness.run(
    measure,
    quick='Up to two devices, few rounds: a minute.',
    rounds=9,
    steps=(20, 'Steps of a layout in a round.'),
  )
