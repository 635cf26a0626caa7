r"""Whether an accelerator computes what the CPU computes, part by part.

    python -m benchmarks.numerics [--quick] [--check] [--output=FILE]

The CPU of the same machine computes in a process of its own, in float32: crops,
reflections and colour noise; norms and pooling with their gradients; dropout masks;
the update; and the first step of the paper's net, with the gradient of each layer.
The default device computes the same in float32 with all bits ('highest'), in float32
as XLA does by default (TF32 on NVIDIA GPUs since Ampere) and in bfloat16. The figure
of an array is norm(difference) / norm(CPU's). --check fails above `TOLERANCES`.
"""

import contextlib
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment
from alexnet_jax import layers
from alexnet_jax import pooling
from benchmarks import harness
from benchmarks import synthetic

# Largest relative difference of a part, by name of the precision. Draws and
# maxima are the same numbers. Other parts do float32 arithmetic, with sums in
# another order (2**-24 = 6e-8 a sum), in every precision. In the net, rounding
# moves some maxima and ReLUs to the other side, which adds up over eight layers:
# bfloat16 (7 bits of mantissa) gives gradients of conv1 that differ by 0.29 on a
# CPU as well; an H200 gave 0.30, in TF32 (10 bits) 0.085 and in float32 0.006. A
# wrong gradient differs by 1.
EXACT, SUMS = 0.0, 5e-6
DIFFERENTIATED = 'pooling', 'norm', 'within_map_norm'
TOLERANCES = {
  'highest': {'loss': 1e-5, 'gradient': 1e-2},
  'default': {'loss': 2e-3, 'gradient': 1.5e-1},
  'bfloat16': {'loss': 1e-2, 'gradient': 4e-1},
}
PARTS = {'crops': EXACT, 'dropout': EXACT, 'pooling': EXACT}
PARTS |= dict.fromkeys(('views', 'norm', 'within_map_norm', 'update'), SUMS)
PARTS |= {f'{name} gradient': SUMS for name in DIFFERENTIATED}
FLAGS = harness.FLAGS


def parts(batch: int) -> dict[str, np.ndarray]:
  """What the parts outside of the network's products compute, by name."""
  key = jax.random.key(3)
  rng = np.random.default_rng(1)
  images = synthetic.create_batch(batch, 256, 1000)['image']
  mean = images.mean(0, dtype=np.float32)
  maps = rng.normal(0, 10, (batch, 13, 13, 64)).astype(np.float32)
  indices = jnp.arange(batch)

  def views(color_std):
    view = functools.partial(augment.random_views, crop_size=224, flip=True)
    return jax.jit(view)(key, images, indices, mean, jnp.eye(3), color_std)

  def dropped(x):
    return layers.dropout(x, key, 0.5, indices, x.shape[1], 2)

  found = {'crops': views(0.0), 'views': views(0.1)}
  found['dropout'] = jax.jit(dropped)(np.ones((batch, 4096), np.float32))
  for name, function in (
    ('pooling', lambda x: pooling.max_pool(x, 3)),
    ('norm', lambda x: layers.local_response_norm(x, 2)),
    ('within_map_norm', layers.within_map_norm),
  ):
    found[name] = out = jax.jit(function)(maps)
    weights = rng.normal(size=out.shape).astype(np.float32)
    total = lambda x, f=function, w=weights: jnp.vdot(f(x), w)
    found[f'{name} gradient'] = jax.jit(jax.grad(total))(maps)
  found['update'] = _update(rng)
  return {name: np.asarray(value) for name, value in found.items()}


def _update(rng):
  """Weights after two updates with the paper's rule."""
  params = {'fc': {'kernel': rng.normal(0, 0.01, 4096).astype(np.float32)}}

  @jax.jit
  def update(params, grads):
    sgd = synthetic.make_optimizer({'kernel': 0.01, 'bias': 0.01})
    state = sgd.init(params)
    for _ in range(2):
      changes, state = sgd.update(grads, state, params)
      params = jax.tree.map(jnp.add, params, changes)
    return params

  grads = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), params)
  return update(params, grads)['fc']['kernel']


def first_step(batch: int, dtype: str, widths: dict) -> dict[str, np.ndarray]:
  """Loss and gradients of the paper's net on its first batch, by name."""
  net = synthetic.network('towers', None, dtype=dtype, **widths)
  make = functools.partial(synthetic.create_state, net, 224)
  params = jax.tree.map(_weights, jax.eval_shape(make, jax.random.key(0)))
  loss = synthetic.loss(net, 224)
  images = synthetic.create_batch(batch, 256, 1000)
  statistics, key, _, color_std = synthetic.create_arguments(images['image'])
  value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, _), grads = value_and_grad(
    params.params, images, statistics, key, color_std
  )
  found = {'loss': np.asarray(value)}
  for layer, leaves in grads.items():
    for name, leaf in leaves.items():
      found[f'gradient of {layer} {name}'] = np.asarray(leaf, np.float32)
  return found


def _weights(leaf):
  """Random weights with the variance of He et al., so that no layer is silent.

  They are drawn by NumPy: erfinv of an accelerator differs in its last bits.
  """
  rng = np.random.default_rng(len(leaf.shape) + leaf.size)
  fan_in = leaf.size / leaf.shape[-1] if len(leaf.shape) > 1 else 1e4
  scale = (2 / fan_in) ** 0.5
  return (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)


def write(file: str, batch: int, widths: dict) -> None:
  """The work of the worker on the CPU: the float32 arrays, into a file."""
  np.savez(file, **parts(batch), **first_step(batch, 'float32', widths))
  harness.answer('ready')


def differences(found: dict, reference) -> dict[str, float]:
  """norm(difference) / norm(reference) of every array."""
  result = {}
  for name, value in found.items():
    expected = np.asarray(reference[name], np.float64)
    value = np.asarray(value, np.float64)
    scale = np.linalg.norm(expected) or 1.0
    result[name] = float(np.linalg.norm(value - expected) / scale)
  return result


def excesses(found: dict[str, dict[str, float]]) -> list[str]:
  """'precision name: difference, tolerance' of everything above a tolerance."""
  lines = []
  for precision, values in found.items():
    for name, value in values.items():
      if precision == 'parts':
        limit = PARTS[name]
      else:
        limit = TOLERANCES[precision][name.split()[0]]
      if not value <= limit:  # Also if it is NaN.
        lines.append(f'{precision} {name}: {value:.1e}, tolerance {limit:.1e}')
  return lines


def measure() -> harness.Outcome:
  batch, widths = FLAGS.batch, {}
  if FLAGS.quick:
    batch, widths = 2, synthetic.NARROW
  with tempfile.TemporaryDirectory() as folder:
    file = os.path.join(folder, 'cpu.npz')
    words = harness.command_line('numerics.write', file, batch, widths)
    cpu = harness.Worker(words, JAX_PLATFORMS='cpu')
    with contextlib.closing(cpu):
      computed = {'parts': parts(batch)}
      for name in TOLERANCES:
        dtype = name if name == 'bfloat16' else 'float32'
        highest = 'highest' if name == 'highest' else None
        with jax.default_matmul_precision(highest):
          computed[name] = first_step(batch, dtype, widths)
      cpu.receive()
    with np.load(file) as reference:
      found = {n: differences(v, reference) for n, v in computed.items()}
  for precision, values in found.items():
    worst = max(values, key=values.get)
    harness.print_figures(values[worst], precision, f'largest: {worst}')
  wrong = excesses(found)
  print(f'batch {batch}, {synthetic.SEEDS}; weights of He et al., biases alike')
  verdict = '\n'.join(wrong) or 'everything is within its tolerance'
  figures = {'batch': batch, 'differences': found, 'wrong': wrong}
  return harness.Outcome(figures, verdict, not wrong)


if __name__ == '__main__':
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  harness.run(
    measure,
    quick='A narrow net, two images.',
    check='Fail where a difference is above its tolerance.',
    batch=(8, 'Images of the first step.'),
  )
