r"""What more devices cost: measured on virtual ones, and a model on paper.

    python -m benchmarks.scaling [--quick] [--check] [--rounds=9]

Measured: seconds of a train step of each layout on 1 to 8 virtual CPU devices,
and on two real processes that meet on the loopback, with a net so small that
what remains is the fixed cost of a step: dispatch, and the meeting of devices.
Every layout has processes of its own, which take their steps in turn. A step
ends when its state is there. Virtual devices share this machine's cores, so that
with more devices than cores they also wait for each other; how much faster real
devices compute is not measured.

On paper: images per second and hours for 90 epochs of ImageNet with 1, 8 and 64
accelerators. The seconds of a step are the larger of what the hosts need to
decode its images and their processes to hand them out, and of arithmetic plus
bytes received over bandwidth, one after the other. Every number that goes into it is a flag, and printed. Bytes are
those of ring algorithms, by the formulas below; `--check` compares them with
the compiled programs for two devices.
"""

from collections.abc import Iterable
import contextlib
import functools
import os
import socket
import statistics
import subprocess
import sys

if __name__ == '__main__':  # Before JAX starts: two devices, to compile for.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=2'
    + ' --xla_backend_optimization_level=0'  # What is compiled here never runs.
  )

from absl import flags
import jax
import numpy as np

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax.runtime import processes
from benchmarks import communication
from benchmarks import interleaved
from benchmarks import layers
from benchmarks import report
from configs import paper

IMAGENET, EPOCHS = 1_281_167, 90  # Images of a training epoch; the paper's.
SLACK = 64  # Bytes of metrics, which are summed beside the gradients.

# Part 1. Smallest maps for three poolings, one image a device, what 8 divides.
TINY = {
  'num_classes': 16,
  'conv_features': (4, 4, 4, 4, 4),
  'fc_features': (16, 16),
}
IMAGE, CROP, BATCH = 72, 67, 8
# (layout, devices, processes); without a mesh both layouts are the same.
LAYOUTS = (
  ('data', 1, 1),
  ('towers', 2, 1),
  ('towers', 2, 2),
  ('data', 2, 1),
  ('data', 2, 2),
  ('one_weird_trick', 2, 1),
  ('towers', 4, 1),
  ('data', 4, 1),
  ('one_weird_trick', 4, 1),
  ('towers', 8, 1),
  ('data', 8, 1),
  ('one_weird_trick', 8, 1),
)
QUICK = LAYOUTS[:2] + LAYOUTS[3:6]


def take_steps(layout: str, steps: int, *cluster: str | int) -> None:
  """Takes `steps` steps for every line of stdin; called in a process of its own.

  Args:
    layout: of the mesh, which has all devices.
    steps: after each line; then this process prints that they are done.
    *cluster: the arguments of `processes.initialize`, if there are several.
  """
  if cluster:
    processes.initialize(*cluster)
  mesh = mesh_lib.create_mesh(layout, 'auto', jax.devices())
  net = model.AlexNet(**TINY, **mesh_lib.model_parallel_sizes(layout, mesh))
  step = train.make_train_step(
    net, mesh, crop_size=CROP, flip=True, momentum=0.9, weight_decay=5e-4
  )
  create = functools.partial(
    train_state.initial_state, model.AlexNet(**TINY), CROP
  )
  rng = np.random.default_rng(0)
  state = jax.tree.map(  # Any: compiling the initial one takes seconds.
    lambda x: (0.01 * rng.standard_normal(x.shape)).astype(x.dtype),
    jax.eval_shape(create, jax.random.key(0)),
  )
  specs = mesh_lib.param_specs(state, mesh, net.layers_sharded_over_data)
  state = mesh_lib.place(state, mesh, specs)
  rows = mesh_lib.local_batch_indices(BATCH, mesh)
  batch = {
    'image': rng.integers(0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8)[rows],
    'label': rng.integers(0, TINY['num_classes'], BATCH, np.int32)[rows],
    'mask': np.ones(BATCH, bool)[rows],
  }
  batch = mesh_lib.place_batch(batch, mesh)
  mean = np.zeros((IMAGE, IMAGE, 3), np.float32)
  statistics_ = run_lib.Statistics(mean, np.eye(3, dtype=np.float32))
  rates = dict.fromkeys(optimizer.RATE_KEYS, np.float32(0.01))
  rest = (statistics_, jax.random.key(1), rates, np.float32(0.1))
  rest = mesh_lib.place(rest, mesh)
  for _ in sys.stdin:
    for _ in range(steps):
      state, _ = step(state, batch, *rest)
      jax.block_until_ready(state)
    print('done', flush=True)


class Runner:
  """The processes of one layout; a call has them take their steps."""

  def __init__(self, layout: str, devices: int, number: int, steps: int):
    """Starts `number` processes, which share the devices."""
    with socket.socket() as probe:
      probe.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{probe.getsockname()[1]}'
    own = f'--xla_force_host_platform_device_count={devices // number}'
    self._processes = []
    for index in range(number):
      arguments = (layout, steps) + (address, number, index) * (number > 1)
      code = f'from benchmarks import scaling; scaling.take_steps(*{arguments})'
      self._processes.append(
        subprocess.Popen(
          [sys.executable, '-c', code],
          env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': own},
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          text=True,
        )
      )

  def __call__(self) -> None:
    """Returns when the steps are done."""
    for process in self._processes:
      with contextlib.suppress(BrokenPipeError):  # Found out below.
        print('go', file=process.stdin, flush=True)
    for process in self._processes:
      if 'done\n' not in process.stdout:  # Reads on; Gloo prints there, too.
        sys.exit('a process has ended without its steps; its error is above')

  def close(self) -> None:
    for process in reversed(self._processes):  # Last the one that others join.
      process.kill()
      with contextlib.suppress(BrokenPipeError):
        process.communicate()


def shown(layout: str, devices: int, number: int) -> str:
  """Name of a layout, with its mesh."""
  if devices == 1:
    return 'one device'
  mesh = 'x'.join(map(str, mesh_lib.mesh_shape(layout, 'auto', devices)))
  return f'{layout} {mesh}' + f', {number} processes' * (number > 1)


def fixed_costs(
  layouts: Iterable[tuple[str, int, int]], rounds: int, steps: int
) -> dict[str, list[float]]:
  """Seconds of a step, by layout and round.

  Args:
    layouts: as `LAYOUTS`, with a single device among them.
    rounds: that are timed.
    steps: of every layout in a round.
  """
  with contextlib.ExitStack() as stack:
    runners = {}
    for layout in layouts:
      runner = Runner(*layout, steps)
      stack.callback(runner.close)
      runners[shown(*layout)] = runner
      runner()  # One after the other: compiling takes all cores.
    taken = interleaved.seconds(runners, rounds)
  return {name: [s / steps for s in seconds] for name, seconds in taken.items()}


# Part 2.


def layer_sizes(settings: dict, crop_size: int) -> dict[str, dict[str, int]]:
  """Of each layer: weights and biases, and the units of an image that it reads.

  Units of layers alone at which devices meet in some layout.
  """
  sizes = model.feature_map_sizes(
    crop_size,
    settings['conv1_kernel'],
    settings['conv1_stride'],
    settings['conv1_padding'],
    settings['pool_size'],
  )
  create = functools.partial(
    train_state.initial_state, model.AlexNet(**settings), crop_size
  )
  params = jax.eval_shape(create, jax.random.key(0)).params
  maps, (fc6, fc7) = settings['conv_features'], settings['fc_features']
  reads = {'conv3': sizes['pool2'] ** 2 * maps[1], 'fc7': fc6, 'fc8': fc7}
  reads['fc6'] = sizes['pool5'] ** 2 * maps[4]
  return {
    name: {
      'params': sum(x.size for x in jax.tree.leaves(layer)),
      'reads': reads.get(name, 0),
    }
    for name, layer in params.items()
  }


def received_bytes(
  sizes: dict[str, dict[str, int]],
  classes: int,
  layout: str,
  shape: tuple[int, int],
  batch: int,
  activation_bytes: int = 4,
) -> dict[str, float]:
  """Bytes that a device receives in a step, by mesh axis.

  Args:
    sizes: from `layer_sizes`.
    classes: of the net.
    layout: 'towers', 'data' or 'one_weird_trick'.
    shape: of the mesh, (data, tower).
    batch: images of a step, over all devices.
    activation_bytes: of a number on its way to a layer. Logits and the
      gradients of weights have four.
  """
  data, tower = shape
  params = {name: layer['params'] for name, layer in sizes.items()}
  reads = {name: layer['reads'] for name, layer in sizes.items()}
  both_ways = lambda names: (
    2 * activation_bytes * sum(reads[name] for name in names)
  )
  found = {'data': 0.0, 'tower': 0.0}
  if tower > 1:  # Each has its half of the maps of its rows.
    found['tower'] = (
      (both_ways(communication.GATHERS) + 4 * classes) * batch / data / tower
    )
  summed = sum(params.values()) / tower
  if layout == 'one_weird_trick' and data > 1:
    whole = classes % data > 0  # Then every device has all of fc8.
    split = ('fc6', 'fc7') if whole else ('fc6', 'fc7', 'fc8')
    summed -= sum(params[name] for name in split)
    home = both_ways(['fc8']) if whole else 2 * 4 * classes
    others = (data - 1) / data * batch
    found['data'] = others * (both_ways(split) + home / data)
  found['data'] += 2 * (data - 1) / data * 4 * summed
  return found


def compiled_bytes(batch: int) -> dict[str, tuple[float, float]]:
  """By layout of two devices: bytes by the formulas, and in the program."""
  config, found = paper.get_config(), {}
  settings, crop_size = dict(config.model), config.input.crop_size
  sizes = layer_sizes(settings, crop_size)
  for layout in mesh_lib.LAYOUTS:
    mesh = mesh_lib.create_mesh(layout, 'auto', jax.devices()[:2])
    net = model.AlexNet(
      **settings, **mesh_lib.model_parallel_sizes(layout, mesh)
    )
    compiled, _ = communication.compile_step(
      net,
      mesh,
      batch_size=batch,
      image_size=config.input.image_size,
      crop_size=crop_size,
    )
    program = communication.collectives(compiled.as_text(), mesh)
    ours = received_bytes(
      sizes,
      net.num_classes,
      layout,
      (mesh.shape['data'], mesh.shape['tower']),
      batch,
    )
    found[layout] = (sum(ours.values()), sum(c.received_bytes for c in program))
  return found


def on_paper(layout: str, devices: int, given: dict) -> dict[str, float]:
  """The model's figures for a number of accelerators.

  Args:
    layout: of the mesh.
    devices: accelerators, whole hosts of them or a part of one.
    given: the numbers of `ASSUMED`, by flag.
  """
  config = paper.get_config()
  sizes = layer_sizes(dict(config.model), config.input.crop_size)
  shape = mesh_lib.mesh_shape(layout, 'auto', devices)
  batch = devices * given['images_per_device']
  hosts = -(-devices // given['devices_per_host'])
  received = received_bytes(
    sizes,
    config.model.num_classes,
    layout,
    shape,
    batch,
    given['activation_bytes'],
  )
  # Two towers are neighbours; the rings of the data axis pass every host.
  outside = given['network_gbytes' if hosts > 1 else 'link_gbytes']
  hosts_rate = hosts * min(
    given['cores_per_host'] * given['decode_rate'],
    given['processes_per_host'] * given['process_rate'],
  )
  seconds = {
    'reading': batch / hosts_rate,
    'arithmetic': given['images_per_device']
    * layers.train_flops()
    / (given['peak_tflops'] * 1e12 * given['utilisation']),
    'between devices': received['tower'] / given['link_gbytes'] / 1e9
    + received['data'] / outside / 1e9,
  }
  on_devices = seconds['arithmetic'] + seconds['between devices']
  rate = batch / max(seconds['reading'], on_devices)
  return {
    'layout': layout,
    'devices': devices,
    'mesh': 'x'.join(map(str, shape)),
    'received_bytes': sum(received.values()),
    'seconds': seconds,
    'limit': 'hosts' if seconds['reading'] > on_devices else 'devices',
    'images_per_second': rate,
    'hours': EPOCHS * IMAGENET / rate / 3600,
  }


DGX = 'of an NVIDIA DGX H200, by its data sheet'
# Flag: (default, where it is from).
ASSUMED = {
  'peak_tflops': (989.0, 'bfloat16, dense, of an H200, by its data sheet'),
  'utilisation': (0.1, 'of the peak in arithmetic: assumed'),
  'link_gbytes': (450.0, f'GB/s into a device from its host; NVLink, {DGX}'),
  'network_gbytes': (50.0, f'GB/s into a device from other hosts, {DGX}'),
  'devices_per_host': (8, DGX),
  'cores_per_host': (112, f'{DGX}; all of them decode'),
  'decode_rate': (
    1600.0,
    'images per second and core, 256x256: assumed; see README, Speed',
  ),
  'process_rate': (
    20000.0,
    'images per second that the threads of one process hand out at most:'
    ' assumed; see experiments/LOG.md',
  ),
  'processes_per_host': (1, 'one for all devices of a host'),
  'images_per_device': (256, 'of a step: assumed; the paper has 128 in all'),
  'activation_bytes': (2, 'bfloat16'),
}
FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('quick', False, 'Up to two devices, few rounds: a minute.')
  flags.DEFINE_bool('check', False, "Fail where bytes are not the program's.")
  flags.DEFINE_integer('rounds', 9, 'Of all layouts, in turn.', 1)
  flags.DEFINE_integer('steps', 20, 'Of a layout in a round.', 1)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')
  for name, (default, source) in ASSUMED.items():
    whole = isinstance(default, int)
    define = flags.DEFINE_integer if whole else flags.DEFINE_float
    define(name, default, f'On paper: {source}.', lower_bound=1 if whole else 0)


def main(_) -> None:
  given = {name: FLAGS[name].value for name in ASSUMED}
  if zero := [name for name, value in given.items() if not value]:
    sys.exit(f'--{zero[0]}=0 is nothing to compute with')
  layouts, rounds, steps = LAYOUTS, FLAGS.rounds, FLAGS.steps
  if FLAGS.quick:
    layouts, rounds, steps = QUICK, 3, 10
  taken = fixed_costs(layouts, rounds, steps)
  ratios = print_fixed(taken, rounds, steps)
  rows = [
    on_paper(layout, devices, given)
    for devices in (1, 8, 64)
    for layout in (mesh_lib.LAYOUTS if devices > 1 else ('data',))
  ]
  print_paper(rows, given)
  compared = compiled_bytes(8 if FLAGS.quick else 256)
  print('\nbytes received per step on two devices: formulas, compiled program')
  for layout, (ours, program) in compared.items():
    print(f'{layout:16} {ours:14,.0f} {program:14,.0f}')
  print('seeds: state and images 0, steps 1')
  report.print_environment()
  report.write(
    FLAGS.output,
    {
      'fixed_seconds': taken,
      'ratios': ratios,
      'bytes_on_two_devices': compared,
      'on_paper_not_measured': {'assumed': given, 'rows': rows},
    },
  )
  worst = max(program - ours for ours, program in compared.values())
  least = min(program - ours for ours, program in compared.values())
  print(
    f'program - formulas: {least:.0f} to {worst:.0f} bytes, bar 0 to {SLACK}'
    ' (metrics)'
  )
  if FLAGS.check and not 0 <= least <= worst <= SLACK:
    sys.exit(1)


def print_fixed(taken: dict, rounds: int, steps: int) -> dict[str, dict]:
  """The table of part 1; returns the ratios to one device."""
  one, ratios = taken['one device'], {}
  print(f'measured: milliseconds of a step of a tiny net, {BATCH} images,')
  print(f'{rounds} rounds of {steps} steps: median (least to most)')
  print('| layout (data x tower) | ms | over one device |')
  print('|---|---|---|')
  for name, seconds in taken.items():
    ratios[name] = r = interleaved.ratio(seconds, one)
    print(
      f'| {name} | {statistics.median(seconds) * 1e3:.2f}'
      f' ({min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f})'
      f' | {r["median"]:.2f} ({r["least"]:.2f} to {r["most"]:.2f}) |'
    )
  return ratios


def print_paper(rows: list[dict], given: dict) -> None:
  """The table of part 2, and all that goes into it."""
  print('\na model on paper, not measured. It takes:')
  for name, value in given.items():
    default, source = ASSUMED[name]
    print(f'  --{name}={value:g}  {source if value == default else "given"}')
  print(
    f'  {layers.train_flops() / 1e9:.4f} GFLOP per image: forward, and backward'
    ' but for the gradient of the pixels; a multiply-add is two'
  )
  print(
    '| accelerators | layout, data x tower | MB received | ms: reading |'
    ' arithmetic | between devices | limit | images/s | hours, 90 epochs |'
  )
  print('|' + '---|' * 9)
  for row in rows:
    cells = [f'{seconds * 1e3:.2f}' for seconds in row['seconds'].values()]
    print(
      f'| {row["devices"]} | {row["layout"]} {row["mesh"]}'
      f' | {row["received_bytes"] / 1e6:.1f} | {" | ".join(cells)}'
      f' | {row["limit"]} | {row["images_per_second"]:,.0f}'
      f' | {row["hours"]:.2f} |'
    )


if __name__ == '__main__':
  define_flags()
  report.run(main)
