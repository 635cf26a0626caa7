r"""What an accelerator reaches: large matrix products and copies in its memory.

    python -m benchmarks.machine [--size=8192] [--quick] [--output=FILE]

Operations per second of a product of two SIZE x SIZE matrices of random numbers, in
bfloat16, in float32 as XLA computes it by default (TF32 on NVIDIA GPUs since Ampere)
and in float32 with all bits; bytes read and written per second by a copy. The
utilisation of the train step is relative to these. nvidia-smi's line is recorded.
"""

import shutil
import subprocess

import jax
import jax.numpy as jnp

from benchmarks import harness

PRODUCTS = {
  'bfloat16': ('bfloat16', None),
  'float32': ('float32', None),
  'float32, highest': ('float32', 'highest'),
}
COPIED = 2**30  # Bytes.
NVIDIA_SMI = 'name,driver_version,memory.total,clocks.max.sm,power.limit'
FLAGS = harness.FLAGS


def product_flops(size: int, dtype: str, precision: str | None, rounds: int):
  """Operations per second of each round of products of square matrices."""
  keys = jax.random.split(jax.random.key(0))
  x, y = (jax.random.normal(key, (size, size), dtype) for key in keys)
  product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=precision))
  return _per_second(lambda: product(x, y), 2 * size**3, rounds)


def copy_bytes(num_bytes: int, rounds: int) -> list[float]:
  """Bytes read and written per second of each round of negations."""
  x = jax.random.normal(jax.random.key(0), (num_bytes // 4,))
  negate = jax.jit(jnp.negative)
  return _per_second(lambda: negate(x), 2 * x.nbytes, rounds)


def _per_second(work, amount, rounds):
  number = harness.steps_per_wait()
  wait = lambda: jax.block_until_ready([work() for _ in range(number)])
  taken = harness.seconds({'': wait}, rounds)['']
  return [number * amount / seconds for seconds in taken]


def nvidia_smi() -> str:
  """A line of nvidia-smi about the GPUs; '' without it."""
  program = shutil.which('nvidia-smi')
  if not program:
    return ''
  command = [program, f'--query-gpu={NVIDIA_SMI}', '--format=csv,noheader']
  return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def measure() -> harness.Outcome:
  chosen = FLAGS.rounds, FLAGS.size, COPIED
  rounds, size, copied = (2, 512, 2**22) if FLAGS.quick else chosen
  found = {'nvidia_smi': nvidia_smi(), 'size': size}
  print(found['nvidia_smi'])
  found['flops'] = {
    name: product_flops(size, *settings, rounds)
    for name, settings in PRODUCTS.items()
  }
  found['copied_bytes'] = copy_bytes(copied, rounds)
  harness.print_figures({k: found[k] for k in ('flops', 'copied_bytes')})
  best = max(found['flops']['bfloat16'])
  verdict = f'{best:.4g} operations/s in bfloat16, {rounds} rounds, seed 0'
  return harness.Outcome(found, verdict)


if __name__ == '__main__':
  harness.run(
    measure,
    quick='Small matrices, two rounds.',
    rounds=5,
    size=(8192, 'Side of the matrices.'),
  )
