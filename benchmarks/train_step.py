r"""The train step against PyTorch's on the same net, and where its time goes.

    python -m benchmarks.train_step [--quick] [--check] [--batches=32,128]

Steps in turn, each library in a process of its own, on as many threads: ours
(crops, reflections, colour noise, net, update; `train.make_train_step`) and
PyTorch's (net and update alone, on images that are ready), eager and compiled,
each with and without channels last; on a GPU also with CUDA graphs, which XLA uses
unasked. There 50 steps share one wait, as in a run, and at test, where latency
counts, each has its own. All have large pages, as main.py has (an
empty GLIBC_TUNABLES before the command: none has). Both nets have two groups,
the response norm of section 3.3, dropout and 60,965,224 parameters; that they
are the same is shown by their logits for the same weights and images. `--check`
asks for at least the images a second of PyTorch's best, round by round. On a GPU
give larger batches, and --dtypes=float32,bfloat16: float32 products are then made
in TF32 in both libraries, bfloat16 is autocast in PyTorch.

Utilisation: 4.1356 GFLOP for every image of a step (forward, gradients of
weights and inputs but conv1's; 2 for a multiplication with its addition; taps on
padding included; nothing else counted) over what a product of two 4096 x 4096
matrices reaches on the same device, in the same run. Peak memory is that of the
process, with PyTorch or without it (JAX is imported in all, 0.2 GiB); on a GPU
what the library has allocated there.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()
  # Before JAX starts: a GPU is for both.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  # The seconds of compiling are those of the first time.
  os.environ.setdefault('TORCHINDUCTOR_FORCE_DISABLE_CACHES', '1')
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import model
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import processes
from benchmarks import interleaved
from benchmarks import layers
from benchmarks import report
from benchmarks import towers
from configs import paper

BAR = 1.0  # Images a second of ours over those of PyTorch's best.
OURS, EAGER = 'ours', 'PyTorch eager'
TORCH = {
  EAGER: {},
  'PyTorch eager, channels last': {'channels_last': True},
  'PyTorch compiled': {'compiled': True},
  'PyTorch compiled, channels last': {'compiled': True, 'channels_last': True},
}
# On a GPU.
CUDA_GRAPHS = {
  'PyTorch compiled, channels last, CUDA graphs': {
    'compiled': True,
    'cuda_graphs': True,
    'channels_last': True,
  }
}


class Inference:
  """Our net at test, on crops that are ready."""

  def __init__(self, batch_size: int, dtype: str):
    net = model.AlexNet(dtype=dtype)
    images = 64 * jax.random.normal(
      jax.random.key(1), (batch_size, 224, 224, 3)
    )
    params = net.init(jax.random.key(0), images[:1])['params']
    logits = lambda p, x: net.apply({'params': p}, x)
    options = compilation.network_options()
    self._call = jax.jit(logits, compiler_options=options)
    self._arguments = params, images

  def __call__(self, steps: int = 1) -> None:
    for _ in range(steps):
      out = self._call(*self._arguments)
    jax.block_until_ready(out)


def make_variant(name: str, batch: int, dtype: str, train: bool = True):
  """What `name` stands for, at work on a batch; its first call compiles."""
  if name == OURS:
    if not train:
      return Inference(batch, dtype)
    settings = dict(paper.get_config().model) | {'dtype': dtype}
    return towers.Variant(settings, 1, batch)
  from benchmarks import torch_alexnet  # PyTorch is optional.

  return torch_alexnet.Variant(
    batch,
    train=train,
    bfloat16=dtype == 'bfloat16',
    **(TORCH | CUDA_GRAPHS)[name],
  )


def logits_difference() -> float:
  """Largest difference of both nets' logits, over their standard deviation."""
  import torch

  from benchmarks import torch_alexnet

  net = model.AlexNet(**paper.get_config().model)
  images = np.random.default_rng(0).normal(0, 64, (2, 224, 224, 3))
  images = images.astype(np.float32)
  params = jax.jit(net.init)(jax.random.key(0), images)['params']
  # At test the paper's net multiplies by a half what PyTorch's has doubled.
  net = net.clone(inverted_dropout=True)
  with jax.default_matmul_precision('highest'):  # No TF32, as PyTorch on CPU.
    ours = jax.jit(net.apply)({'params': params}, images)
  other = torch_alexnet.AlexNet().eval()
  torch_alexnet.load(other, params)
  with torch.inference_mode():
    theirs = other(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
  return float(np.abs(theirs - ours).max() / np.std(theirs))


def matmul_flops(dtype: str) -> float:
  """Operations a second of a product of two 4096 x 4096 matrices."""
  x = jax.random.normal(jax.random.key(0), (4096, 4096), dtype)
  product = jax.jit(jnp.matmul)
  number = layers.calls_at_once()
  products = lambda: jax.block_until_ready(
    [product(x, x) for _ in range(number)]
  )
  taken = interleaved.seconds({'products': products}, 3)
  return number * 2 * 4096**3 / min(taken['products'])


class Process:
  """A variant at work in a process of its own, idle between the calls.

  In one process the threads and the allocator of the one library slow down the
  other. Memory of an idle process may be taken away from it, so that the first
  step after a pause is slower: it does not count.
  """

  def __init__(self, name: str, batch: int, dtype: str, train: bool):
    """Starts the process; returns when all but the first call is done."""
    # A run asks for the next step before the last is done; of a net at test the
    # latency is wanted.
    at_once = layers.calls_at_once() if train else 1
    arguments = json.dumps([name, batch, dtype, train, at_once])
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.train_step', '--alone', arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._read()

  def __call__(self) -> float:
    """Mean seconds of the work, over a turn; one before does not count."""
    print('go', file=self._process.stdin, flush=True)
    seconds, self._peak = self._read()
    return seconds

  def close(self) -> float:
    """Ends the process; its peak memory in bytes."""
    self._process.communicate()
    return self._peak

  def _read(self):
    for line in self._process.stdout:  # Libraries print there as well.
      if line.startswith('seconds, bytes '):
        return [float(word) for word in line.split()[-2:]]
    sys.exit('a process has ended without its steps; its error is above')


def work_alone(
  name: str, batch: int, dtype: str, train: bool, at_once: int
) -> None:
  """What a `Process` runs."""
  if name != OURS:
    import torch

    torch.set_num_threads(processes.available_cores())
  variant = make_variant(name, batch, dtype, train)
  print('seconds, bytes', 0, 0, flush=True)
  for number, _ in enumerate(sys.stdin):
    variant()
    # At first it compiles.
    seconds = interleaved.mean_seconds(variant, at_once) if number else 0.0
    print('seconds, bytes', seconds, _peak_bytes(name), flush=True)


def _peak_bytes(name):
  if name == OURS:
    found = jax.devices()[0].memory_stats()
    return found['peak_bytes_in_use'] if found else report.peak_bytes()
  import torch

  if torch.cuda.is_available():
    return torch.cuda.max_memory_allocated()
  return report.peak_bytes()


def compare(
  names: list[str], batch: int, dtype: str, rounds: int, train: bool = True
) -> dict[str, object]:
  """Seconds, compile seconds, peak memory and ratios over `OURS`, by variant."""
  variants, first = {}, {}
  for name in names:
    variants[name] = Process(name, batch, dtype, train)
    began = time.perf_counter()
    variants[name]()
    first[name] = time.perf_counter() - began
  taken = interleaved.seconds(variants, rounds)
  medians = {name: statistics.median(s) for name, s in taken.items()}
  return {
    'seconds': taken,
    'compile_seconds': {name: first[name] - medians[name] for name in names},
    'peak_bytes': {name: variants[name].close() for name in names},
    'ratios': {
      name: interleaved.ratio(taken[name], taken[OURS]) for name in names[1:]
    },
  }


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_bool('quick', False, 'Two rounds of training, one batch, eager.')
  flags.DEFINE_bool('check', False, f'Fail below {BAR} of the best.')
  flags.DEFINE_list('batches', ['32', '128'], 'Images of a step.')
  flags.DEFINE_list('dtypes', ['float32'], 'Of the activations.')
  flags.DEFINE_integer('rounds', 7, 'Of all, in turn.', 1)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')
  flags.register_validator(
    'batches',
    lambda batches: all(b.isdigit() and int(b) for b in batches),
    'takes whole numbers above 0, with commas',
  )
  flags.register_validator(
    'dtypes',
    lambda dtypes: set(dtypes) <= {'float32', 'bfloat16'},
    'takes float32 and bfloat16, with a comma',
  )


def main(_) -> None:
  if importlib.util.find_spec('torch') is None:
    sys.exit('PyTorch is what this compares with: pip install torch')
  if jax.default_backend() == 'tpu':
    sys.exit(
      'PyTorch is timed on CPUs and GPUs alone; see benchmarks.operations'
    )
  batches, rounds = [int(batch) for batch in FLAGS.batches], FLAGS.rounds
  names = [OURS, *TORCH]
  if jax.default_backend() == 'gpu':
    names += CUDA_GRAPHS
  if FLAGS.quick:
    batches, rounds, names = batches[:1], 2, [OURS, EAGER]
  figures = {'rounds': rounds, 'logits_difference': logits_difference()}
  for dtype in FLAGS.dtypes:
    limit = matmul_flops(dtype)
    found = figures[dtype] = {'matmul_flops': limit, 'batches': {}}
    for batch in batches:
      result = compare(names, batch, dtype, rounds)
      found['batches'][batch] = result
      _print(f'train step, {dtype}, batch {batch}', result, batch, limit)
    if FLAGS.quick:
      continue
    found['inference'] = {}
    for batch in {1, batches[0]}:
      result = compare(names, batch, dtype, rounds, train=False)
      found['inference'][batch] = result
      _print(f'inference, {dtype}, batch {batch}', result, batch, None)
    found['layers'] = layers.seconds(batches[0], dtype, rounds)
    _print_layers(found['layers'], batches[0], dtype)
  print(
    'logits of both nets for the same weights and images differ by'
    f' {figures["logits_difference"]:.1e} of their standard deviation'
  )
  print('seeds: weights and images 0, draws 1; for inference images 1')
  report.print_environment()
  report.write(FLAGS.output, figures)
  figure = least_ratio(
    [r for d in FLAGS.dtypes for r in figures[d]['batches'].values()]
  )
  against = ' or '.join(names[1:]) if FLAGS.quick else "PyTorch's best"
  print(f'ours / {against} (images a second) {figure:.3f}, bar {BAR}')
  if FLAGS.check and figure < BAR:
    sys.exit(1)


def least_ratio(results: list[dict]) -> float:
  """Ours over the best of PyTorch's, where that is least, of `compare`s."""
  return min(
    ratio['median'] for result in results for ratio in result['ratios'].values()
  )


def _print(title, result, batch, limit):
  columns = ['seconds', 'images/s', 'compile s', 'peak GiB', 'utilisation']
  print(f'\n{title:34}' + ''.join(c.rjust(12) for c in columns))
  for name, seconds in result['seconds'].items():
    median = statistics.median(seconds)
    cells = [
      f'{median:.4f}',
      f'{batch / median:.1f}',
      f'{result["compile_seconds"][name]:.1f}',
      f'{result["peak_bytes"][name] / 2**30:.2f}',
      ''
      if limit is None
      else f'{layers.train_flops() * batch / median / limit:.0%}',
    ]
    ratio = result['ratios'].get(name)
    pair = ''
    if ratio:
      pair = '  ours is {median:.2f} times as fast ({least:.2f} to {most:.2f})'
      pair = pair.format(**ratio)
    print(f'{name:34}' + ''.join(c.rjust(12) for c in cells) + pair)


def _print_layers(rows, batch, dtype):
  print(f'\nevery part alone, {dtype}, batch {batch}: ms forward, backward')
  for row in rows:
    total = row['forward_seconds'] + row['backward_seconds']
    rate = row['gflop'] / total if total else 0
    print(
      f'{row["name"]:14}{1e3 * row["forward_seconds"]:9.1f}'
      f'{1e3 * row["backward_seconds"]:9.1f}'
      + (f'{rate:9.0f} GFLOP/s' if rate else '')
    )


if __name__ == '__main__':
  if sys.argv[1:2] == ['--alone']:  # For `Process`.
    work_alone(*json.loads(sys.argv[2]))
    sys.exit()
  define_flags()
  report.run(main)
