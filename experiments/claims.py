r"""The paper's claims that need no training, computed from this code.

    python -m experiments.claims [--output=DIR]

Prints a table: claim, what the paper says, what is computed, and the tests that
hold it; --output=DIR also writes it as DIR/claims.csv. Nothing in the column
'computed' is written by hand. Counts are those of the full-width net, evaluated on shapes
alone. Which layers read both towers is found by changing the biases of one
tower. The traffic is read from the train step that XLA compiles for two virtual
CPU devices. There are no data sets and no seeds: weights are drawn with key 0.
"""

import csv
import itertools
import pathlib

from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alexnet_jax import augment
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import net as net_lib
from alexnet_jax import pooling
from alexnet_jax import weights as weights_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import command
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import files
from benchmarks import collectives
from benchmarks import layer_times
from benchmarks import synthetic
from configs import one_tower
from configs import paper

FILE = 'claims.csv'
TRAINING_IMAGES = 1_200_000  # Section 2: "roughly 1.2 million".
DAYS = (6, 5)  # Section 5: "five to six days".
# The paper's side, and the tests that hold each claim.
CLAIMS = """
claim | section | what | paper | tests
parameters | abstract | parameters | 60 million | model_test
layers | abstract | layers with weights | five convolutional, three fully-connected | claims_test
neurons | abstract | neurons | 650,000 | claims_test
conv1_neurons | Fig. 2 | neurons of the first layer | 253,440 | claims_test
towers | 3.5 | layers that read the maps of both GPUs | the third and the fully-connected | claims_test, model_test
traffic | 3.2 | where the GPUs communicate, and how much | only in certain layers; no number | communication_test, speed_model_test
one_gpu_parameters | 3.2 | parameters of the one-GPU net | about as many | model_test
pooling_windows | 3.4 | overlapping pooling | side 3, stride 2 | claims_test, model_test
pooling_sizes | 3.4 | pooling that does not overlap | side 2, stride 2; maps of equal size | claims_test, model_test
softmax | 3.5 | softmax over the classes | 1000-way | claims_test
views | 4.1 | different crops and reflections of an image | 2048 | claims_test
multiply_adds | - | multiply-adds of an image, forward | no number | train_step_benchmark_test
days | 5 | the rate of 90 cycles through 1.2 million images | five to six days | claims_test
"""


def shapes(config: ml_collections.ConfigDict) -> tuple[dict, dict]:
  """(parameters, activations by name) of a config's net for one image."""
  net, size = model.AlexNet(**config.model), config.input.crop_size

  def run(images):
    captured = {}
    variables = net.init(jax.random.key(0), images)
    net.apply(variables, images, capture=captured)
    return variables['params'], captured

  return jax.eval_shape(
    run, jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  )


def num_parameters(config: ml_collections.ConfigDict) -> int:
  """Number of weights and biases."""
  return sum(x.size for x in jax.tree.leaves(shapes(config)[0]))


def num_layers(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """Numbers of convolutional and of fully connected layers."""
  params, _ = shapes(config)
  kernels = [layer['kernel'].ndim for layer in params.values()]
  return kernels.count(4), kernels.count(2)


def neurons(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Units by layer, before pooling."""
  params, activations = shapes(config)
  return {name: _units(activations, name).size for name in params}


def map_sizes(config: ml_collections.ConfigDict) -> list[int]:
  """Sides in pixels of the maps of conv1, pool1, pool2 and pool5."""
  _, activations = shapes(config)
  names = ('conv1/linear', *model.POOLED)
  return [activations[name].shape[1] for name in names]


def _units(activations, name):
  """The units of a layer before norm and pooling; fc8 has neither."""
  return activations.get(f'{name}/linear', activations[name])


def initial_params(config: ml_collections.ConfigDict) -> dict:
  """The parameters of a config's net, drawn with key 0."""
  net, size = model.AlexNet(**config.model), config.input.crop_size
  init = jax.jit(net.init, compiler_options=compilation.fast_compile_options())
  images = jnp.zeros((1, size, size, 3))
  return init(jax.random.key(0), images)['params']


def layers_that_read_both_towers(
  config: ml_collections.ConfigDict, params: dict
) -> list[str]:
  """The layers whose second half of units depends on the first half below it.

  It raises the biases of the first half of the units of one layer at a time and
  compares the next layer, so norms and pooling between them count as well.
  """
  net, size = model.AlexNet(**config.model), config.input.crop_size
  images = 60 * jax.random.normal(jax.random.key(1), (1, size, size, 3))

  def units(params):
    captured = {}
    net.apply({'params': params}, images, capture=captured)
    return {name: _units(captured, name) for name in params}

  options = compilation.fast_compile_options()
  units = jax.jit(units, compiler_options=options)
  before, found = units(params), []
  for layer, reader in itertools.pairwise(params):
    bias = params[layer]['bias']
    raised = params[layer] | {'bias': bias.at[: bias.size // 2].add(1)}
    after = units(params | {layer: raised})
    own, other = np.split(np.asarray(after[reader] != before[reader]), 2, -1)
    if not own.any():
      raise ValueError(f'{reader} does not read {layer}')
    if other.any():
      found.append(reader)
  return found


def pooling_window(size: int) -> tuple[int, int]:
  """(side, stride) in pixels of a pooling window, from what each output reads."""
  rows = jnp.eye(11)[:, :, None, None]  # In image i only row i is not 0.
  images = jnp.broadcast_to(rows, (11, 11, 11, 1))
  reads = np.asarray(pooling.max_pool(images, size))[:, :, 0, 0] > 0
  first, second = (np.flatnonzero(reads[:, output]) for output in (0, 1))
  return len(first), int(second[0] - first[0])


def num_views(image_size: int, crop_size: int) -> int:
  """Number of different crops and reflections among many random ones.

  Crops of 2 pixels from images that are larger by as much as the stored ones
  are: the corner of a crop and whether it is reflected are read from it.
  """
  size, draws = image_size - crop_size + 2, 50_000
  y, x = np.indices((size, size), np.uint8)
  image = np.stack([y, x, np.zeros_like(x)], -1)
  views = jax.jit(augment.random_views, static_argnames=('crop_size', 'flip'))(
    jax.random.key(0),
    jnp.broadcast_to(image, (draws, *image.shape)),
    jnp.arange(draws),
    jnp.zeros(image.shape),
    jnp.zeros((3, 3)),
    0.0,
    crop_size=2,
    flip=True,
  )
  return len(np.unique(np.asarray(views).reshape(draws, -1), axis=0))


def class_probabilities(
  config: ml_collections.ConfigDict, params: dict
) -> np.ndarray:
  """What the net says of one random image: float32 [classes]."""
  size = config.input.image_size
  names = tuple(map(str, range(config.model.num_classes)))
  mean = np.full((size, size, 3), 127, np.float32)
  params = jax.tree.map(np.asarray, params)
  net = net_lib.Net(weights_lib.Weights(params, config, names, mean))
  image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
  return net.probabilities([image])[0]


def tower_traffic(batch: int) -> list[collectives.Collective]:
  """What two devices exchange in a train step, from the compiled program."""
  mesh = mesh_lib.create_mesh('towers', 2, jax.devices()[:2])
  net = synthetic.network('towers', mesh)
  step = synthetic.compile_step(net, mesh, batch_size=batch)
  found = collectives.read(step.as_text(), mesh)
  return [one for one in found if one.group_size > 1]


def training_rates(days: tuple[float, ...] = DAYS) -> list[float]:
  """Images per second of a training of the paper's length, by its days."""
  images = paper.get_config().train.epochs * TRAINING_IMAGES
  return [images / (24 * 3600 * number) for number in days]


def computed() -> dict[str, str]:
  """The cells of the column 'computed', by claim."""
  config, plain = paper.get_config(), paper.get_config()
  plain.model.pool_size = 2
  params, batch = initial_params(config), config.input.batch_size
  units = neurons(config)
  probabilities = class_probabilities(config, params)
  exchanged = tower_traffic(batch)
  received = sum(one.received_bytes for one in exchanged)
  rates = training_rates()
  flops = [rate * layer_times.train_flops() / 1e12 for rate in rates]
  return {
    'parameters': f'{num_parameters(config):,}',
    'layers': '{} convolutional, {} fully connected'.format(
      *num_layers(config)
    ),
    'neurons': f'{sum(units.values()):,}',
    'conv1_neurons': f'{units["conv1"]:,}',
    'towers': ', '.join(layers_that_read_both_towers(config, params)),
    'traffic': f'{", ".join(sorted({one.layer for one in exchanged}))};'
    f' {received / batch:,.0f} bytes received by each device for an image,'
    f' {received / 1e6:.1f} MB in a step of {batch}',
    'one_gpu_parameters': f'{num_parameters(one_tower.get_config()):,}',
    'pooling_windows': _pooling(config),
    'pooling_sizes': _pooling(plain),
    'softmax': f'{len(probabilities):,} probabilities, sum'
    f' {probabilities.sum(dtype=float):.6f}',
    'views': f'{num_views(config.input.image_size, config.input.crop_size):,}',
    'multiply_adds': f'{sum(layer_times.macs().values()):,}',
    'days': '{:.0f} to {:.0f} images/s, {:.2f} to {:.2f} TFLOP/s'.format(
      *rates, *flops
    ),
  }


def _pooling(config):
  side, stride = pooling_window(config.model.pool_size)
  sizes = ', '.join(map(str, map_sizes(config)))
  return f'side {side}, stride {stride}; maps of {sizes} pixels'


def rows(cells: dict[str, str]) -> list[dict[str, str]]:
  """The rows of claims.csv by column; `cells` as from `computed`."""
  head, *lines = (line.split(' | ') for line in CLAIMS.strip().splitlines())
  found = [dict(zip(head, line, strict=True)) for line in lines]
  return [row | {'computed': cells[row['claim']]} for row in found]


def write(output: str, found: list[dict[str, str]]) -> pathlib.Path:
  """Writes claims.csv into the folder, which may be missing; its path."""
  folder = files.local_path(output, '--output')
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / FILE, 'w', newline='') as file:
    writer = csv.DictWriter(file, [*found[0]])
    writer.writeheader()
    writer.writerows(found)
  return folder / FILE


def main(_) -> None:
  with command.one_line_errors('run the command again'):
    if output := flags.FLAGS.output:  # Before seconds of work.
      workdir_lib.check_writable(
        files.local_path(output, '--output'), f'--output={output}'
      )
    found = rows(computed())
    columns = ('what', 'paper', 'computed', 'tests')
    for cells in (
      columns,
      ['---'] * 4,
      *([row[c] for c in columns] for row in found),
    ):
      print(f'| {" | ".join(cells)} |')
    if output:
      print(write(output, found))


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 2)
  flags.DEFINE_string('output', '', 'Folder of claims.csv; by default none.')
  command.run(main)
