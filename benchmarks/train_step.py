r"""The train step against PyTorch's on the same net, and where its time goes.

    python -m benchmarks.train_step [--quick] [--check] [--batches=32,128]

Steps in turn, each library in a process of its own, on as many threads: ours
(crops, reflections, colour noise, network, update) and PyTorch's (network and
update alone, on images that are ready), eager and compiled, each with and without
channels last; on a GPU also with CUDA graphs, which XLA uses unasked. There 50
steps share one wait, as in a run; at test, where latency counts, each has its own.
All have large pages, as main.py has (if GLIBC_TUNABLES is set, even to nothing,
none has). Both nets have two groups, the response norm of section 3.3, dropout
and 60,965,224 parameters; that they are the same is shown by their logits for the
same weights and images. `--check` asks for at least as many images per second as
PyTorch's best, round by round. On a GPU use larger batches, and
--dtypes=float32,bfloat16: float32 products are then computed in TF32 in both
libraries, bfloat16 is autocast in PyTorch.

Utilisation: 4.1356 GFLOP for every image of a step (forward, gradients of weights
and inputs but conv1's; 2 for a multiply-add; padding included; nothing else
counted) over what a product of two 4096 x 4096 matrices reaches on the same
device, in the same run. Peak memory is that of the process, with PyTorch or
without it (JAX is imported in all, 0.2 GiB); on a GPU what the library has
allocated there.
"""

from collections.abc import Callable
import functools
import importlib.util
import os
import statistics
import sys
import time

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()
  # Before JAX starts: the processes share a GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  # Compiling is timed without caches.
  os.environ.setdefault('TORCHINDUCTOR_FORCE_DISABLE_CACHES', '1')
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import processes
from benchmarks import harness
from benchmarks import layer_times
from benchmarks import plots
from benchmarks import synthetic

BAR = 1.0  # Images per second of ours over those of PyTorch's best.
OURS, EAGER = 'ours', 'PyTorch eager'
TORCH = {
  EAGER: {},
  'PyTorch eager, channels last': {'channels_last': True},
  'PyTorch compiled': {'compiled': 'default'},
  'PyTorch compiled, channels last': {
    'compiled': 'default',
    'channels_last': True,
  },
  # Only on a GPU.
  'PyTorch compiled, channels last, CUDA graphs': {
    'compiled': 'reduce-overhead',
    'channels_last': True,
  },
}
FLAGS = flags.FLAGS


def inference(batch: int, dtype: str) -> Callable:
  """Our net at test, on crops that are ready."""
  net = synthetic.network('towers', None, dtype=dtype)
  images = 64 * jax.random.normal(jax.random.key(1), (batch, 224, 224, 3))
  variables = net.init(jax.random.key(0), images[:1])
  call = jax.jit(net.apply, compiler_options=compilation.network_options())

  def work(steps=1):
    for _ in range(steps):
      out = call(variables, images)
    jax.block_until_ready(out)

  return work


def create_variant(name: str, batch: int, dtype: str, train: bool) -> Callable:
  """The work of a variant on a batch; its first call compiles."""
  if name == OURS and train:
    net = synthetic.network('towers', None, dtype=dtype)
    return synthetic.TrainStep(net, None, batch)
  if name == OURS:
    return inference(batch, dtype)
  import torch  # PyTorch is optional.

  from benchmarks import torch_alexnet

  torch.set_num_threads(processes.available_cores())
  settings = TORCH[name] | {'bfloat16': dtype == 'bfloat16'}
  return torch_alexnet.Variant(batch, train=train, **settings)


def logits_difference() -> float:
  """Largest difference of both nets' logits, over their standard deviation."""
  import torch

  from benchmarks import torch_alexnet

  # In the paper the net at test multiplies by a half what PyTorch's has doubled.
  net = synthetic.network('towers', None, inverted_dropout=True)
  images = np.random.default_rng(0).normal(0, 64, (2, 224, 224, 3))
  images = images.astype(np.float32)
  params = jax.jit(net.init)(jax.random.key(0), images)['params']
  with jax.default_matmul_precision('highest'):  # No TF32, as PyTorch on CPU.
    ours = jax.jit(net.apply)({'params': params}, images)
  other = torch_alexnet.AlexNet().eval()
  torch_alexnet.load(other, params)
  with torch.inference_mode():
    theirs = other(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
  return float(np.abs(theirs - ours).max() / np.std(theirs))


def matmul_flops(dtype: str) -> float:
  """Operations per second of a product of two 4096 x 4096 matrices."""
  x = jax.random.normal(jax.random.key(0), (4096, 4096), dtype)
  product, number = jax.jit(jnp.matmul), harness.steps_per_wait()
  work = lambda: jax.block_until_ready([product(x, x) for _ in range(number)])
  return number * 2 * 4096**3 / min(harness.seconds({'': work}, 3)[''])


def take_turns(name: str, batch: int, dtype: str, train: bool) -> None:
  """The work of a worker: a turn for every line of stdin, after the first.

  In one process the threads and the allocator of one library would slow down the
  other. It answers with the mean seconds of a step (0 for the first line: that
  step compiles) and its peak memory in bytes. Memory of an idle process may be
  taken away from it, so the first step after a pause is slower and does not count.
  """
  # A run asks for the next step before the last is done; at test latency counts.
  steps = harness.steps_per_wait() if train else 1
  variant = create_variant(name, batch, dtype, train)
  harness.answer('ready')
  for number, _ in enumerate(sys.stdin):
    variant()
    seconds = harness.mean_seconds(variant, steps) if number else 0.0
    harness.answer([seconds, _peak_bytes(name)])


def _peak_bytes(name):
  if name == OURS:
    found = jax.devices()[0].memory_stats()
    return found['peak_bytes_in_use'] if found else harness.peak_bytes()
  import torch

  on_gpu = torch.cuda.is_available()
  return torch.cuda.max_memory_allocated() if on_gpu else harness.peak_bytes()


def start_worker(*arguments: object) -> harness.Worker:
  """A worker for `take_turns`, once it is ready."""
  command = harness.command_line('train_step.take_turns', *arguments)
  worker = harness.Worker(command)
  worker.receive()
  return worker


def compare(
  names: list[str], batch: int, dtype: str, rounds: int, train: bool = True
) -> dict[str, object]:
  """Seconds, compile seconds, peak memory and ratios over `OURS`, by variant."""
  workers, compiling, peaks = {}, {}, {}
  for name in names:
    workers[name] = start_worker(name, batch, dtype, train)
    began = time.perf_counter()
    workers[name]()
    compiling[name] = time.perf_counter() - began

  def turn(name):
    seconds, peaks[name] = workers[name]()
    return seconds

  turns = {name: functools.partial(turn, name) for name in names}
  taken = harness.seconds(turns, rounds)
  for name, worker in workers.items():
    compiling[name] -= statistics.median(taken[name])
    worker.close()
  ratios = {name: harness.ratio(taken[name], taken[OURS]) for name in names[1:]}
  found = {'seconds': taken, 'compile_seconds': compiling}
  return found | {'peak_bytes': peaks, 'ratios': ratios}


def check_flags() -> None:
  """Ends the command with one line where it cannot run."""
  if not all(batch.isdigit() and int(batch) for batch in FLAGS.batches):
    sys.exit('--batches takes whole numbers above 0, with commas')
  if not set(FLAGS.dtypes) <= {'float32', 'bfloat16'}:
    sys.exit('--dtypes takes float32 and bfloat16, with a comma')
  if importlib.util.find_spec('torch') is None:
    sys.exit('this compares with PyTorch: pip install torch')
  if jax.default_backend() == 'tpu':
    sys.exit('PyTorch is timed on CPU and GPU only; see benchmarks.operations')


def measure() -> harness.Outcome:
  check_flags()
  batches, rounds = [int(batch) for batch in FLAGS.batches], FLAGS.rounds
  names = [OURS, *TORCH]
  if jax.default_backend() != 'gpu':
    names.pop()
  if FLAGS.quick:
    batches, rounds, names = batches[:1], 2, [OURS, EAGER]
  figures = {'rounds': rounds, 'logits_difference': logits_difference()}
  print(f'{rounds} rounds; {synthetic.SEEDS}; for inference images 1')
  for dtype in FLAGS.dtypes:
    figures[dtype] = measure_dtype(dtype, names, batches, rounds)
  print(
    'logits of both nets for the same weights and images differ by'
    f' {figures["logits_difference"]:.1e} of their standard deviation'
  )
  figure = least_ratio(
    [r for d in FLAGS.dtypes for r in figures[d]['batches'].values()]
  )
  against = EAGER if FLAGS.quick else "PyTorch's best"
  verdict = f'ours / {against} (images per second) {figure:.3f}, bar {BAR}'
  return harness.Outcome(figures, verdict, figure >= BAR)


def measure_dtype(
  dtype: str, names: list[str], batches: list[int], rounds: int
) -> dict[str, object]:
  """The figures of a dtype: training, and unless --quick inference and layers."""
  found = {'matmul_flops': matmul_flops(dtype), 'batches': {}}
  for batch in batches:
    result = found['batches'][batch] = compare(names, batch, dtype, rounds)
    title = f'train step, {dtype}, batch {batch}'
    print_results(title, result, batch, found['matmul_flops'])
  if FLAGS.quick:
    return found
  found['inference'] = {}
  for batch in {1, batches[0]}:
    result = compare(names, batch, dtype, rounds, train=False)
    found['inference'][batch] = result
    print_results(f'inference, {dtype}, batch {batch}', result, batch)
  found['layers'] = layer_times.seconds(batches[0], dtype, rounds)
  rows = [(f'{dtype}, batch {batches[0]}', 'ms forward', 'backward', 'GFLOP/s')]
  for name, forward, backward, gflop in map(dict.values, found['layers']):
    cells = f'{1e3 * forward:.1f}', f'{1e3 * backward:.1f}'
    rate = f'{gflop / (forward + backward):.0f}' if gflop else ''
    rows.append((name, *cells, rate))
  print('\nevery part alone')
  harness.print_table(rows)
  return found


def least_ratio(results: list[dict]) -> float:
  """Ours over PyTorch's best, the least of several results of `compare`."""
  return min(
    r['median'] for result in results for r in result['ratios'].values()
  )


def print_results(
  title: str, result: dict, batch: int, limit: float | None = None
) -> None:
  """A row for each variant; utilisation is that of `limit`, in operations/s."""
  columns = ('seconds', 'images/s', 'compile s', 'peak GiB', 'utilisation')
  rows = [(title, *columns, 'ours is faster by')]
  for name, seconds in result['seconds'].items():
    median, ratio = statistics.median(seconds), result['ratios'].get(name)
    flops = layer_times.train_flops() * batch / median
    cells = f'{median:.4f}', f'{batch / median:.1f}'
    cells += (f'{result["compile_seconds"][name]:.1f}',)
    cells += (f'{result["peak_bytes"][name] / 2**30:.2f}',)
    cells += (f'{flops / limit:.0%}' if limit else '',)
    rows.append((name, *cells, harness.shown(ratio, '.2f') if ratio else ''))
  print()
  harness.print_table(rows)


def panels(figures):
  """PyTorch's seconds over ours by batch; our layers, forward and backward."""
  by_dtype = {d: f for d, f in figures.items() if isinstance(f, dict)}
  ratios = {
    f'{dtype} batch {batch}': {
      name: list(ratio.values()) for name, ratio in result['ratios'].items()
    }
    for dtype, found in by_dtype.items()
    for batch, result in found['batches'].items()
  }
  found = [plots.Panel('images/s of ours over PyTorch’s', ratios, 1.0)]
  layers = next((f['layers'] for f in by_dtype.values() if 'layers' in f), [])
  both = {
    key: {one['name']: [1e3 * one[f'{key}_seconds']] for one in layers}
    for key in ('forward', 'backward')
  }
  if layers:
    found.append(plots.Panel('ms of each part, compiled alone', both))
  return 'The train step against PyTorch, and its parts', found


if __name__ == '__main__':
  harness.run(
    measure,
    quick='Two rounds of training, one batch, eager.',
    check=f'Fail below {BAR} of the best.',
    rounds=7,
    batches=(['32', '128'], 'Images of a step.'),
    dtypes=(['float32'], 'Dtypes of the activations.'),
  )
