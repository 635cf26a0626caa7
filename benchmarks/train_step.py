r"""The train step against PyTorch's on the same net, and where its time goes.

    python -m benchmarks.train_step [--quick] [--check] [--batches=32,128]
        [--parts=training,layers] [--torch=all]

The steps run in turn, each library in a process of its own with the same number
of threads: ours (crops, reflections, colour noise, network, update) and PyTorch's
(only network and update, on prepared images), eager and compiled, each with and
without channels last; on a GPU also with CUDA graphs, which XLA uses by default,
and waiting once per 20 steps (a run: 50). `benchmarks.inference` has the net at test.
All use huge pages, as main.py does (none if GLIBC_TUNABLES is set, even to nothing).
`--check` asks for at least the images per second of PyTorch's best. On a GPU
float32 products are computed in TF32 in both; bfloat16 is autocast in PyTorch.

Utilisation is that of what a product of two 4096 x 4096 matrices (8192 on a GPU)
reaches in the same run. Peak memory is that of the process, or what a library allocates on a GPU.
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
  # The processes share a GPU, and compiling is timed without caches.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('TORCHINDUCTOR_FORCE_DISABLE_CACHES', '1')
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

import jax

from alexnet_jax.runtime import processes
from benchmarks import harness
from benchmarks import layer_times
from benchmarks import machine
from benchmarks import plots
from benchmarks import synthetic

BAR = 1.0  # Images per second of ours over those of PyTorch's best.
OURS, EAGER = 'ours', 'PyTorch eager'
LAST = {'channels_last': True}
TORCH = {
  EAGER: {},
  'PyTorch eager, channels last': LAST,
  'PyTorch compiled': {'compiled': 'default'},
  'PyTorch compiled, channels last': LAST | {'compiled': 'default'},
}
GRAPHS = 'PyTorch compiled, channels last, CUDA graphs'  # Only on a GPU.
MODES = TORCH | {GRAPHS: LAST | {'compiled': 'reduce-overhead'}}
DTYPES = {'float32', 'bfloat16'}
PARTS = ['training', 'layers']
COMPILED = 'PyTorch compiled, channels last'
# What --torch selects.
AGAINST = {'all': [*TORCH], 'compiled': [COMPILED], 'none': []}
FLAGS = harness.FLAGS


def create_variant(
  name: str, batch: int, dtype: str, narrow: bool
) -> Callable[[int], object]:
  """The work of a variant on a batch; its first call compiles."""
  if name == OURS:
    return synthetic.create_step(batch, dtype, narrow)
  import torch  # PyTorch is optional.

  from tests import torch_net

  torch.set_num_threads(processes.available_cores())
  settings = MODES[name] | {'bfloat16': dtype == 'bfloat16'}
  return torch_net.TrainStep(batch, **settings)


def take_turns(name: str, batch: int, dtype: str, narrow: bool = False) -> None:
  """The work of a worker: a turn for every line of stdin, after the first.

  In one process one library's threads and allocator would slow down the other.
  It answers with the mean seconds of a step (0 for the first line, which compiles)
  and its peak bytes. The first step after a pause does not count: memory of an
  idle process may have been taken away.
  """
  steps = harness.steps_per_wait()
  variant = create_variant(name, batch, dtype, narrow)
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


def start_worker(*args: object, **env: str) -> harness.Worker:
  """A worker for `take_turns`, once it is ready."""
  command = harness.command_line('train_step.take_turns', *args)
  worker = harness.Worker(command, **env)
  worker.receive()
  return worker


def compare(names, batch, dtype, rounds) -> dict[str, object]:
  """Seconds, compile seconds, peak memory and ratios over `OURS`, by variant."""
  workers, compiling, peaks = {}, {}, {}
  narrow = FLAGS.quick and len(names) == 1  # PyTorch's is the whole net.
  for name in names:
    workers[name] = start_worker(name, batch, dtype, narrow)
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
  if not set(FLAGS.dtypes) <= DTYPES:
    sys.exit('--dtypes takes float32 and bfloat16, with a comma')
  if 'parts' in FLAGS and not set(FLAGS.parts) <= set(PARTS):
    sys.exit(f'--parts takes {", ".join(PARTS)}, with commas')
  if FLAGS.torch not in AGAINST:
    sys.exit(f'--torch takes one of {", ".join(AGAINST)}')
  if FLAGS.torch == 'none':
    return
  if jax.default_backend() == 'tpu' or not importlib.util.find_spec('torch'):
    sys.exit('this needs PyTorch (pip install torch), and a CPU or GPU')


def measure() -> harness.Outcome:
  check_flags()
  batches, names = list(map(int, FLAGS.batches)), [OURS, *AGAINST[FLAGS.torch]]
  if FLAGS.torch == 'all' and jax.default_backend() == 'gpu':
    names.append(GRAPHS)
  rounds, parts, figures = FLAGS.rounds, FLAGS.parts, {}
  if FLAGS.quick:
    batches, rounds, parts, names = batches[:1], 2, parts[:1], names[:2]
  if len(names) > 1:
    from tests import torch_net  # PyTorch is optional.

    difference = torch_net.logits_difference()
    print(f"both nets' logits differ by {difference:.1e} of their deviation")
    figures['logits_difference'] = difference
  print(f'{rounds} rounds; {synthetic.SEEDS}')
  figures['rounds'] = rounds
  for dtype in FLAGS.dtypes:
    figures[dtype] = measure_dtype(dtype, names, batches, rounds, parts)
  results = [r for d in FLAGS.dtypes for r in figures[d]['batches'].values()]
  figure = least_ratio(results)
  against = names[1] if len(names) == 2 else "PyTorch's best"
  verdict = f'ours / {against} (images per second) {figure:.3f}, bar {BAR}'
  if len(names) == 1 or not results:
    verdict = 'no training beside PyTorch: no ratio'
  return harness.Outcome(figures, verdict, figure >= BAR)


def measure_dtype(dtype, names, batches, rounds, parts) -> dict[str, object]:
  """The figures of a dtype, of the `PARTS` asked for."""
  size = 4096 if jax.default_backend() == 'cpu' else 8192
  size = 512 if FLAGS.quick else size
  flops = max(machine.product_flops(size, dtype, None, rounds=3))
  found = {'matmul_flops': flops, 'batches': {}}
  for batch in batches if 'training' in parts else ():
    result = found['batches'][batch] = compare(names, batch, dtype, rounds)
    title = f'train step, {dtype}, batch {batch}'
    print_results(title, result, batch, found['matmul_flops'])
  if 'layers' in parts:
    found['layers'] = layer_times.seconds(batches[0], dtype, rounds)
    for name, *values in map(dict.values, found['layers']):
      cells = ' '.join(f'{1e3 * value:8.1f}' for value in values)
      print(f'{name:14} ms forward, backward; MFLOP of a step: {cells}')
  return found


def least_ratio(results: list[dict]) -> float:
  """Ours over PyTorch's best, the least of several results of `compare`."""
  medians = [r['median'] for one in results for r in one['ratios'].values()]
  return min(medians, default=BAR)


def print_results(title, result, batch, limit) -> None:
  """Prints a result; utilisation is that of `limit`, in operations/s."""
  harness.print_figures(result, title)
  for name, seconds in result['seconds'].items():
    rate = batch / statistics.median(seconds)
    used = rate * layer_times.train_flops() / limit
    derived = {'images/s': rate, 'utilisation': used}
    harness.print_figures(derived, title, name)


def panels(figures):
  dtypes = {d: found for d, found in figures.items() if d in DTYPES}
  ratios = {
    f'{dtype} batch {batch}': {
      n: [*r.values()] for n, r in result['ratios'].items()
    }
    for dtype, found in dtypes.items()
    for batch, result in found['batches'].items()
  }
  found = [plots.Panel('images/s of ours over PyTorch’s', ratios, 1.0)]
  layers = next((f['layers'] for f in dtypes.values() if 'layers' in f), [])
  milliseconds = {
    key: {one['name']: [1e3 * one[f'{key}_seconds']] for one in layers}
    for key in ('forward', 'backward')
  }
  if layers:
    found.append(plots.Panel('ms of each part, compiled alone', milliseconds))
  return 'The train step against PyTorch, and its parts', found


if __name__ == '__main__':
  harness.run(
    measure,
    quick='Two rounds, one part and batch, eager; without PyTorch narrow.',
    check=f'Fail below {BAR} of the best.',
    rounds=7,
    batches=(['32', '128'], 'Images of a step.'),
    dtypes=(['float32'], 'Dtypes of the activations.'),
    parts=(PARTS, 'What to measure.'),
    torch=('all', 'Which of PyTorch to compare with: all, compiled or none.'),
  )
