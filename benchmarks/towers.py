r"""What the towers cost and save, on the devices at hand.

    python -m benchmarks.towers [--quick] [--check] [--batch=32] [--rounds=7]

Two ratios of whole train steps (augmentation, net, update), taken in turn, at
least two steps after one that does not count:

* on one device, ours over a step with the same net written straight down,
  without towers, meshes or switches: what the generality costs. `--check` asks
  for at most 1.05, and for the same loss;
* two towers on two devices over the one-tower net on one (section 3.2: "the
  two-GPU net takes slightly less time to train than the one-GPU net"); here also
  over the two-tower net on one device. Virtual CPU devices share one processor,
  so that this shows what communication costs, and not what a second GPU saves.
"""

import functools
import os
import sys

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()
  # Before JAX starts: two devices where it is a CPU.
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=2'
  )

from absl import flags
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment
from alexnet_jax import layers
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import pooling
from alexnet_jax import run as run_lib
from alexnet_jax import towers
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax.runtime import compilation
from benchmarks import interleaved
from benchmarks import layers
from benchmarks import report
from configs import one_tower
from configs import paper

BAR = 1.05  # Ours over the plain step; the noise of seven rounds is about 3%.
SAME_STEPS = 6  # With the same loss; then rounding grows from step to step.
RATE, MOMENTUM, DECAY, COLOR_STD = 0.01, 0.9, 5e-4, 0.1


class PlainNet(nn.Module):
  """The paper's net in training, straight down: two groups on one device."""

  @nn.compact
  def __call__(self, params, images):
    def conv(name, x, stride, padding, groups):
      kernel, bias = params[name]['kernel'], params[name]['bias']
      parts = [
        lax.conv_general_dilated(
          part,
          part_kernel,
          (stride, stride),
          padding,
          dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        for part, part_kernel in zip(
          jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True
        )
      ]
      return nn.relu(towers.add_bias(jnp.concatenate(parts, -1), bias))

    def norm(x):
      halves = x.reshape(*x.shape[:3], 2, -1)
      sums = lax.reduce_window(
        halves**2,
        0.0,
        lax.add,
        (1, 1, 1, 1, 5),
        (1,) * 5,
        [(0, 0)] * 4 + [(2, 2)],
      )
      root = lax.rsqrt(2 + 1e-4 * sums)
      return (halves * root * jnp.sqrt(root)).reshape(x.shape)

    def dense(name, x):
      return x @ params[name]['kernel'] + params[name]['bias'][None]

    pool = lambda x: pooling.max_pool(x, 3)
    # 224 pixels give 55 places; the last window hangs over by three.
    x = pool(norm(conv('conv1', images, 4, [(0, 3)] * 2, 1)))
    x = pool(norm(conv('conv2', x, 1, [(2, 2)] * 2, 2)))
    x = conv('conv3', x, 1, [(1, 1)] * 2, 1)
    x = conv('conv4', x, 1, [(1, 1)] * 2, 2)
    x = pool(conv('conv5', x, 1, [(1, 1)] * 2, 2)).reshape(len(images), -1)
    rows = jnp.arange(len(images))
    for name in ('fc6', 'fc7'):
      x = nn.relu(dense(name, x))
      key = self.make_rng('dropout')  # The draws of ours: so is the loss.
      x = layers.dropout(x, key, 0.5, rows, x.shape[1], 2)
    return dense('fc8', x)


def plain_step(state, batch, statistics, key, rates, color_std):
  """A train step of `PlainNet`, with the arguments of ours."""
  key = jax.random.fold_in(key, state.step)
  rows = jnp.arange(len(batch['label']))

  def mean_loss(params):
    images = augment.random_views(
      jax.random.fold_in(key, train.AUGMENT),
      batch['image'],
      rows,
      statistics.mean_image,
      statistics.directions,
      color_std,
      crop_size=224,
      flip=True,
    )
    rngs = {'dropout': jax.random.fold_in(key, train.DROPOUT)}
    logits = PlainNet().apply({}, params, images, rngs=rngs)
    chosen = jax.nn.log_softmax(logits)[rows, batch['label']]
    return -chosen.mean()

  loss, grads = jax.value_and_grad(mean_loss)(state.params)
  rate = rates['kernel']
  v = jax.tree.map(
    lambda v, g, w: MOMENTUM * v - rate * (g + DECAY * w),
    state.opt_state.trace,
    grads,
    state.params,
  )
  params = jax.tree.map(jnp.add, state.params, v)
  opt_state = state.opt_state._replace(trace=v)
  state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
  return state, {'loss': loss * len(rows), 'count': jnp.float32(len(rows))}


class Variant:
  """A train step with its state and a batch of random images."""

  def __init__(
    self, settings: dict, num_devices: int, batch_size: int, plain: bool = False
  ):
    """Makes the step for a network of `settings` on the first devices."""
    mesh = mesh_lib.create_mesh(
      'towers', 'auto', jax.devices()[:num_devices], settings['num_towers']
    )
    net = model.AlexNet(
      **settings, **mesh_lib.model_parallel_sizes('towers', mesh)
    )
    if plain:
      options = compilation.network_options()
      self._step = jax.jit(
        plain_step, donate_argnums=0, compiler_options=options
      )
    else:
      self._step = train.make_train_step(
        net,
        mesh,
        crop_size=224,
        flip=True,
        momentum=MOMENTUM,
        weight_decay=DECAY,
      )
    create = lambda key: train_state.initial_state(
      model.AlexNet(**settings), 224, key
    )
    state = jax.jit(create)(jax.random.key(0))
    self._state = mesh_lib.place(state, mesh, mesh_lib.param_specs(state, mesh))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, 256, 256, 3), np.uint8)
    self._batch = mesh_lib.place_batch(
      {
        'image': images,
        'label': rng.integers(0, 1000, batch_size, np.int32),
        'mask': np.ones(batch_size, bool),
      },
      mesh,
    )
    statistics = run_lib.Statistics(
      images.mean(0, dtype=np.float32), np.eye(3, dtype=np.float32)
    )
    rates = dict.fromkeys(optimizer.RATE_KEYS, np.float32(RATE))
    rest = (statistics, jax.random.key(1), rates, np.float32(COLOR_STD))
    self._rest = mesh_lib.place(rest, mesh)
    self._sums = []

  def compile(self) -> str:
    """Compiles the step, before the first is taken; the program as text."""
    lowered = self._step.lower(self._state, self._batch, *self._rest)
    self._step = lowered.compile()
    return self._step.as_text()

  def __call__(self, steps: int = 1) -> None:
    """Takes steps, and waits until the last state is there."""
    for _ in range(steps):
      self._state, sums = self._step(self._state, self._batch, *self._rest)
      self._sums.append(sums)
    jax.block_until_ready(self._state)

  @property
  def losses(self) -> list[float]:
    """The mean loss of every step so far."""
    return [float(sums['loss'] / sums['count']) for sums in self._sums]


def turn(variant: Variant) -> float:
  """Mean seconds of some steps of a variant.

  Memory of what was idle may have been taken away: the first does not count.
  """
  at_once = layers.calls_at_once()
  variant(at_once)
  return interleaved.mean_seconds(variant, at_once)


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('quick', False, 'Small batches, few rounds: a minute.')
  flags.DEFINE_bool('check', False, f'Fail above {BAR} on one device.')
  flags.DEFINE_integer('batch', 32, 'Images of a step, over all devices.', 2)
  flags.DEFINE_integer('rounds', 7, 'Turns of each variant that are timed.', 1)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  batch, rounds = (8, 3) if FLAGS.quick else (FLAGS.batch, FLAGS.rounds)
  two, one = (dict(config.get_config().model) for config in (paper, one_tower))
  variants = {
    'plain, one device': Variant(two, 1, batch, plain=True),
    'two towers, one device': Variant(two, 1, batch),
    'one tower, one device': Variant(one, 1, batch),
  }
  if jax.device_count() > 1:
    variants['two towers, two devices'] = Variant(two, 2, batch)
  turns = {name: functools.partial(turn, v) for name, v in variants.items()}
  taken = interleaved.seconds(turns, rounds)
  print(f'{batch} images, {rounds} rounds, seconds of a step: median, least')
  for name, seconds in taken.items():
    print(f'{name:24} {np.median(seconds):7.3f} {min(seconds):7.3f}')
  ratios = {}
  for over, under in (
    ('two towers, one device', 'plain, one device'),
    ('two towers, two devices', 'one tower, one device'),
    ('two towers, two devices', 'two towers, one device'),
  ):
    if over in taken:
      ratios[f'{over} / {under}'] = interleaved.ratio(taken[over], taken[under])
  for name, value in ratios.items():
    print(
      f'{name}: {value["median"]:.3f} ({value["least"]:.3f} to'
      f' {value["most"]:.3f})'
    )
  ours, plain = (
    np.array(variants[name].losses[:SAME_STEPS])
    for name in ('two towers, one device', 'plain, one device')
  )
  difference = float(np.max(np.abs(ours / plain - 1)))
  print('seeds: weights and images 0, draws 1')
  report.print_environment()
  report.write(
    FLAGS.output,
    {
      'batch': batch,
      'seconds': taken,
      'ratios': ratios,
      'loss_difference': difference,
    },
  )
  cost = ratios['two towers, one device / plain, one device']['median']
  print(
    f'losses of ours and the plain step differ by {difference:.1e} (relative)'
    f' in the first {SAME_STEPS} steps'
  )
  print(f'ours / plain {cost:.3f}, bar {BAR}')
  # Float32 in another order of sums.
  if FLAGS.check and (cost > BAR or difference > 1e-3):
    sys.exit(1)


if __name__ == '__main__':
  define_flags()
  report.run(main)
