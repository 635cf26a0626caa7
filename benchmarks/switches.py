r"""The train step with other ways of computing the same: which is faster here?

    python -m benchmarks.switches [--batch=128] [--dtype=bfloat16] [--only=NAMES]
        [--quick] [--output=FILE]

In turn, whole train steps of the paper's net as it is and with one thing changed:

| name | what is changed |
|---|---|
| feature_group_count | XLA's grouped convolution in place of one for each tower |
| XLA's pooling | XLA's gradient of max pooling (a scatter) in place of gathering |
| conv1 on pixels | 11 x 11 x 3 with stride 4, as on a CPU |
| conv1 on blocks | 3 x 3 x 48 on blocks of 4 x 4 pixels, as on other devices |
| bias by a product | the gradient of the biases as a product with ones, as on a CPU |
| norm, all stored | the norm's sums kept for the backward pass, not computed again |
| norm by a product | the norm's sum as a product with a band matrix |
| no command buffers | a GPU's kernels launched one by one |

The loss of the first steps must be the same up to rounding. The ratios are seconds
of a changed step over those of the step as it is.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import os
import sys
from unittest import mock

import flax.linen as nn
import jax
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
PIXELS, BLOCKS = 'conv1 on pixels', 'conv1 on blocks'
STEPS = 3  # Their losses are compared.
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


# `towers._conv` as on a CPU.
conv_on_pixels = functools.partial(conv_by_xla, groups=1)


def conv_on_blocks(x, kernel, stride, padding):
  """`towers._conv` as on other devices."""
  if stride > 1:
    x, kernel = towers._on_blocks(x, kernel, stride, padding)
    stride, padding = 1, ((0, 0), (0, 0))
  return conv_on_pixels(x, kernel, stride, padding)


def product_sum(g):
  """`towers._bias_gradient` as on a CPU, outside of its threads' registers."""
  flat = g.reshape(-1, g.shape[-1])
  ones = jnp.ones((8, flat.shape[0]), g.dtype)
  return jnp.matmul(ones, flat, preferred_element_type=jnp.float32)[0]


def norm_by_product(x, window, k, alpha):
  """`layers._normalize` with the sum of adjacent maps as a product."""
  maps, half = x.shape[-1], window[-1] // 2
  band = np.abs(np.subtract.outer(np.arange(maps), np.arange(maps))) <= half
  wide = x.astype(jnp.float32)
  squares = jnp.square(wide).astype(x.dtype)
  sums = jnp.matmul(
    squares, band.astype(x.dtype), preferred_element_type=jnp.float32
  )
  return layers._divide(wide, sums, k, alpha).astype(x.dtype)


def xla_max_pool(x, size):
  """`pooling.max_pool` with XLA's gradient."""
  return nn.max_pool(x, (size, size), (2, 2))


PATCHES = {
  AS_IS: (),
  'feature_group_count': (towers, 'grouped_conv', conv_by_xla),
  "XLA's pooling": (pooling, 'max_pool', xla_max_pool),
  PIXELS: (towers, '_conv', conv_on_pixels),
  BLOCKS: (towers, '_conv', conv_on_blocks),
  'bias by a product': (towers, '_bias_gradient', product_sum),
  'norm, all stored': (layers, '_normalize', layers._normalize.__wrapped__),
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
  step = synthetic.create_step(batch, dtype, narrow=FLAGS.quick)
  with patched(name):
    step.compile()
  return step


def timed(step: Callable[[int], None]) -> Callable[[], float]:
  """A turn of a step: its mean seconds."""
  number = harness.steps_per_wait()
  return lambda: harness.mean_seconds(step, number)


def measure() -> harness.Outcome:
  batch, rounds = (2, 1) if FLAGS.quick else (FLAGS.batch, FLAGS.rounds)
  same = PIXELS if jax.default_backend() == 'cpu' else BLOCKS
  names = [n for n in [*PATCHES, UNBUFFERED] if n != same]
  names = FLAGS.only or names[: -1 if FLAGS.quick else None]
  if unknown := set(names) - {*PATCHES, UNBUFFERED}:
    sys.exit(f'--only={min(unknown)} is none of {", ".join(PATCHES)}')
  names = [AS_IS, *(name for name in names if name != AS_IS)]
  variants, losses = {}, {}
  with contextlib.ExitStack() as stack:
    for name in names:
      if name == UNBUFFERED:
        xla_flags = os.environ.get('XLA_FLAGS', '')
        xla_flags += ' --xla_gpu_enable_command_buffer='
        arguments = train_step.OURS, batch, FLAGS.dtype
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
  figures = {'seconds': taken, 'ratios': ratios, 'losses': losses}
  harness.print_figures(figures)
  figures |= {'batch': batch, 'dtype': FLAGS.dtype}
  best = min(ratios, key=lambda name: ratios[name]['median'])
  verdict = f'fastest: {best}, {ratios[best]["median"]:.3f} of that as it is'
  return harness.Outcome(figures, f'{synthetic.SEEDS}\n{verdict}')


def panels(figures):
  ratios = {name: [*r.values()] for name, r in figures['ratios'].items()}
  label = f'seconds over the step as it is, {figures["dtype"]}'
  label += f', batch {figures["batch"]}'
  return 'Other ways of computing the same', [plots.Panel(label, {'': ratios})]


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
