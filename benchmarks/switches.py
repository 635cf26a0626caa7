r"""The train step with other ways of computing the same: which is faster here?

    python -m benchmarks.switches [--batch=128] [--dtype=bfloat16] [--only=NAMES]
        [--quick] [--output=FILE]

In turn, whole train steps of the paper's net as it is and with one thing changed:

| name | what is changed |
|---|---|
| feature_group_count | XLA's grouped convolution in place of one for each tower |
| XLA's pooling | XLA's gradient of max pooling (a scatter) in place of gathering |
| space to depth | conv1 on 4 x 4 blocks of pixels: 3 x 3 x 48 in place of 11 x 11 x 3 |
| norm by slices | the norm's sum as five shifted slices in place of a window |
| norm by a product | the norm's sum as a product with a band matrix |
| no command buffers | a GPU's kernels launched one by one |

The loss of the first steps must be the same up to rounding. The ratios are seconds
of a changed step over those of the step as it is.
"""

from collections.abc import Callable, Iterator
import contextlib
import math
import os
import sys
from unittest import mock

import flax.linen as nn
from jax import lax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import layers
from alexnet_jax import pooling
from alexnet_jax import towers
from benchmarks import harness
from benchmarks import plots
from benchmarks import synthetic
from benchmarks import train_step

AS_IS, UNBUFFERED = 'as it is', 'no command buffers'
STEPS = 3  # Their losses are compared.
# For --quick: the network, and the sides of its images and crops.
NARROW = {'conv_features': (8, 16, 16, 16, 16), 'fc_features': (32, 32)}
SMALL = 76, 67
FLAGS = harness.FLAGS


def conv_by_xla(x, kernel, stride, padding, groups):
  """`towers.grouped_conv` as a single convolution."""
  return lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def conv_on_blocks(x, kernel, stride, padding, groups):
  """`towers.grouped_conv` with stride 1 on blocks of stride x stride pixels."""
  size = len(kernel)
  if stride == 1:
    return _grouped_conv(x, kernel, stride, padding, groups)
  side = math.ceil(size / stride)  # In blocks.
  before, after = padding[0]
  out = (x.shape[1] + before + after - size) // stride + 1
  after = (out - 1 + side) * stride - before - x.shape[1]
  x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
  more = side * stride - size
  kernel = jnp.pad(kernel, ((0, more), (0, more), (0, 0), (0, 0)))
  shape = side, stride, side, stride, *kernel.shape[2:]
  kernel = kernel.reshape(shape).transpose(0, 2, 1, 3, 4, 5)
  kernel = kernel.reshape(side, side, -1, kernel.shape[-1])
  blocks = x.shape[1] // stride
  x = x.reshape(-1, blocks, stride, blocks, stride, x.shape[-1])
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), blocks, blocks, -1)
  return _grouped_conv(x, kernel, 1, ((0, 0), (0, 0)), groups)


_grouped_conv = towers.grouped_conv


def norm_by_slices(x, window, k, alpha):
  """`layers._normalize` with the sum of adjacent maps as shifted slices."""
  size = window[-1]
  wide, half = x.astype(jnp.float32), size // 2
  edges = [(0, 0)] * (x.ndim - 1) + [(half, size - 1 - half)]
  squares = jnp.pad(jnp.square(wide), edges)
  sums = sum(squares[..., i : i + x.shape[-1]] for i in range(size))
  return _divide(x, wide, sums, k, alpha)


def norm_by_product(x, window, k, alpha):
  """`layers._normalize` with the sum of adjacent maps as a product."""
  maps, half = x.shape[-1], window[-1] // 2
  band = np.abs(np.subtract.outer(np.arange(maps), np.arange(maps))) <= half
  wide = x.astype(jnp.float32)
  squares = jnp.square(wide).astype(x.dtype)
  sums = jnp.matmul(
    squares, band.astype(x.dtype), preferred_element_type=jnp.float32
  )
  return _divide(x, wide, sums, k, alpha)


def _divide(x, wide, sums, k, alpha):
  root = lax.rsqrt(k + alpha * sums)
  return (wide * (root * lax.sqrt(root))).astype(x.dtype)


def xla_max_pool(x, size):
  """`pooling.max_pool` with XLA's gradient."""
  return nn.max_pool(x, (size, size), (2, 2))


PATCHES = {
  AS_IS: (),
  'feature_group_count': (towers, 'grouped_conv', conv_by_xla),
  "XLA's pooling": (pooling, 'max_pool', xla_max_pool),
  'space to depth': (towers, 'grouped_conv', conv_on_blocks),
  'norm by slices': (layers, '_normalize', norm_by_slices),
  'norm by a product': (layers, '_normalize', norm_by_product),
}


@contextlib.contextmanager
def patched(name: str) -> Iterator[None]:
  """The package with one thing changed, while the step is traced."""
  with contextlib.ExitStack() as stack:
    if PATCHES[name]:
      stack.enter_context(mock.patch.object(*PATCHES[name]))
    yield


def create_step(name: str, batch: int, dtype: str) -> synthetic.TrainStep:
  """The compiled train step with one thing changed."""
  widths, sizes = (NARROW, SMALL) if FLAGS.quick else ({}, ())
  net = synthetic.network('towers', None, dtype=dtype, **widths)
  step = synthetic.TrainStep(net, None, batch, *sizes)
  with patched(name):
    step.compile()
  return step


def timed(step: Callable[[int], None]) -> Callable[[], float]:
  """A turn of a step: its mean seconds."""
  number = harness.steps_per_wait()
  return lambda: harness.mean_seconds(step, number)


def measure() -> harness.Outcome:
  batch, rounds = (2, 1) if FLAGS.quick else (FLAGS.batch, FLAGS.rounds)
  names = FLAGS.only or [*PATCHES] + [UNBUFFERED] * (not FLAGS.quick)
  if unknown := set(names) - {*PATCHES, UNBUFFERED}:
    sys.exit(f'--only={min(unknown)} is none of {", ".join(PATCHES)}')
  names = [AS_IS, *(name for name in names if name != AS_IS)]
  variants, losses = {}, {}
  with contextlib.ExitStack() as stack:
    for name in names:
      if name == UNBUFFERED:
        xla_flags = os.environ.get('XLA_FLAGS', '')
        xla_flags += ' --xla_gpu_enable_command_buffer='
        arguments = train_step.OURS, batch, FLAGS.dtype, True
        worker = train_step.start_worker(*arguments, XLA_FLAGS=xla_flags)
        stack.callback(worker.close)
        variants[name] = lambda worker=worker: worker()[0]
        continue
      step = create_step(name, batch, FLAGS.dtype)
      step(STEPS)
      losses[name] = step.losses
      variants[name] = timed(step)
    taken = harness.seconds(variants, rounds)
  ratios = {name: harness.ratio(taken[name], taken[AS_IS]) for name in taken}
  figures = {'batch': batch, 'dtype': FLAGS.dtype, 'seconds': taken}
  figures |= {'ratios': ratios, 'losses': losses}
  harness.print_figures({'seconds': taken, 'ratios': ratios, 'losses': losses})
  best = min(ratios, key=lambda name: ratios[name]['median'])
  verdict = (
    f'fastest: {best}, {ratios[best]["median"]:.3f} of the step as it is'
  )
  return harness.Outcome(figures, f'{synthetic.SEEDS}\n{verdict}')


def panels(figures):
  ratios = {name: [*r.values()] for name, r in figures['ratios'].items()}
  label = f'seconds over the step as it is, {figures["dtype"]}'
  label += f', batch {figures["batch"]}'
  return 'Other ways of computing the same', [
    plots.Panel(label, {'': ratios}, 1.0)
  ]


if __name__ == '__main__':
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  harness.run(
    measure,
    quick='A narrow net, two small images, one round.',
    rounds=3,
    batch=(128, 'Images of a step.'),
    dtype=('bfloat16', 'Dtype of the activations.'),
    only=([], 'Names of the table to measure; by default all.'),
  )
