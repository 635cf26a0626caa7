r"""Inference against PyTorch and ONNX Runtime: latency, and images per second.

    python -m benchmarks.inference [--quick] [--check] [--batches=1,32,128]
        [--torch=all] [--dtypes=float32]

The paper's net, from float crops to logits on the host, with the same weights and
crops in all libraries; each waits after every batch. They run in turn, each in a
process of its own with the same number of threads: ours (the bare
network), the same from a StableHLO file, PyTorch eager and compiled, each with and without channels last
(on a GPU also with CUDA graphs), and ONNX Runtime (on a CPU only). bfloat16 is
autocast in PyTorch. All use huge pages, see `benchmarks.train_step`. `--check` asks
for at least the images per second of PyTorch's best.
"""

from collections.abc import Callable
import functools
import os
import statistics
import sys
import time

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()
  # The processes share a GPU, and the first batch is timed without caches.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('TORCHINDUCTOR_FORCE_DISABLE_CACHES', '1')
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

import jax
import numpy as np

from alexnet_jax import model
from alexnet_jax import weights as weights_lib
from alexnet_jax.convert import onnx_graph
from alexnet_jax.convert import stablehlo
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import processes
from benchmarks import harness
from benchmarks import plots
from benchmarks import synthetic
from benchmarks import train_step
from configs import paper

BAR = 1.0  # Images per second of ours over those of PyTorch's best.
OURS, STABLEHLO, ONNX = 'ours', 'ours, StableHLO', 'ONNX Runtime'
# Differences of logits, over their deviation, that are rounding.
TOLERANCES = {'float32': 1e-3, 'bfloat16': 0.1}
FLAGS = harness.FLAGS


def create_weights(dtype: str, narrow: bool) -> weights_lib.Weights:
  """The paper's net, or a narrow one, with activations that stay in range."""
  config = paper.get_config()
  # PyTorch's net doubles in training what the paper halves at test time.
  changes = {'inverted_dropout': True, 'dtype': dtype}
  config.model.update(changes | (synthetic.NARROW if narrow else {}))
  rng, params = np.random.default_rng(0), {}
  for name, shape in sorted(weights_lib.shapes(config).items()):
    layer, _, kind = name.partition('/')
    array = rng.standard_normal(shape, np.float32)
    # The variance for ReLUs of He et al. 2015; biases are small.
    array *= np.float32(np.sqrt(2 / np.prod(shape[:-1])) if shape[1:] else 0.1)
    params.setdefault(layer, {})[kind] = array
  names = tuple(map(str, range(config.model.num_classes)))
  mean = np.zeros((256, 256, 3), np.float32)
  return weights_lib.Weights(params, config, names, mean)


def create_variant(
  name: str, batch: int, dtype: str, narrow: bool
) -> Callable[[], np.ndarray]:
  """Computes the logits of a batch, in one library; the first call compiles."""
  weights = create_weights(dtype, narrow)
  crops = np.random.default_rng(1).normal(0, 64, (batch, 224, 224, 3))
  crops = crops.astype(np.float32)
  if name == ONNX:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processes.available_cores()
    session = onnxruntime.InferenceSession(
      onnx_graph.build(weights, crops=True).SerializeToString(), options
    )
    return lambda: session.run(None, {'crops': crops})[0]
  if name in train_step.MODES:
    import torch

    from tests import torch_net

    torch.set_num_threads(processes.available_cores())
    settings = train_step.MODES[name] | {'bfloat16': dtype == 'bfloat16'}
    return torch_net.classifier(weights.params, crops, **settings)
  jit = functools.partial(
    jax.jit, compiler_options=compilation.inference_options()
  )
  if name == STABLEHLO:
    call = jit(stablehlo.build(weights, crops=True).call)
    arguments = (crops,)
  else:
    call = jit(model.AlexNet(**weights.config.model).apply)
    arguments = ({'params': weights.params}, crops)
  arguments = jax.device_put(arguments)
  return lambda: np.asarray(call(*arguments))


def take_turns(name: str, batch: int, dtype: str, narrow: bool) -> None:
  """The work of a worker: a turn for every line of stdin.

  First it answers with the first logits and the seconds that they took, then
  with the mean seconds of a batch.
  """
  variant = create_variant(name, batch, dtype, narrow)
  began = time.perf_counter()
  logits = variant()[0].tolist()
  harness.answer([logits, time.perf_counter() - began])
  for _ in sys.stdin:
    variant()  # Memory of an idle process may have been taken away.
    call = lambda steps: [variant() for _ in range(steps)]
    harness.answer(harness.mean_seconds(call, 1))


def compare(names, batch, dtype, rounds, narrow) -> dict[str, object]:
  """Seconds of a batch and of the first one, and ratios, by variant.

  Ends the command if the logits differ by more than rounding.
  """
  workers, first, logits = {}, {}, {}
  for name in names:
    line = harness.command_line(
      'inference.take_turns', name, batch, dtype, narrow
    )
    workers[name] = harness.Worker(line)
    logits[name], first[name] = workers[name].receive()
  deviation = np.std(logits[OURS])
  differences = {
    name: float(np.abs(np.subtract(logits[name], logits[OURS])).max())
    / deviation
    for name in names[1:]
  }
  taken = harness.seconds(workers, rounds)
  for worker in workers.values():
    worker.close()
  for name, difference in differences.items():
    if not difference < TOLERANCES[dtype]:
      sys.exit(f'{name} differs from ours by {difference:.1e} of the deviation')
  return {
    'seconds': taken,
    'first_seconds': first,
    'logits_differences': differences,
    'ratios': {n: harness.ratio(taken[n], taken[OURS]) for n in names[1:]},
  }


def variants() -> list[str]:
  """The variants that the flags ask for, ours first."""
  names = [OURS, STABLEHLO, *train_step.AGAINST[FLAGS.torch]]
  if FLAGS.torch == 'all' and jax.default_backend() == 'gpu':
    names.append(train_step.GRAPHS)
  return [*names, *([ONNX] if jax.default_backend() == 'cpu' else [])]


def measure() -> harness.Outcome:
  train_step.check_flags()
  batches, names = list(map(int, FLAGS.batches)), variants()
  rounds, dtypes, figures = FLAGS.rounds, FLAGS.dtypes, {'rounds': FLAGS.rounds}
  if FLAGS.quick:
    rounds, batches, dtypes = 2, batches[:1], dtypes[:1]
    names = [n for n in names if n not in train_step.MODES or n == names[2]]
  for dtype in dtypes:
    for batch in batches:
      found = compare(names, batch, dtype, rounds, FLAGS.quick)
      title = f'inference, {dtype}, batch {batch}'
      harness.print_figures(found, title)
      for name, seconds in found['seconds'].items():
        rate = batch / statistics.median(seconds)
        harness.print_figures({'images/s': rate}, title, name)
      figures.setdefault(dtype, {})[batch] = found
  return harness.Outcome(figures, *verdict(figures))


def verdict(figures) -> tuple[str, bool]:
  """The least ratio of ours over PyTorch's best, as a line; whether it passes."""
  least = {}
  for dtype in train_step.DTYPES & figures.keys():
    for batch, result in figures[dtype].items():
      medians = {n: r['median'] for n, r in result['ratios'].items()}
      theirs = [m for n, m in medians.items() if n in train_step.MODES]
      if theirs:
        least[f'{dtype}, batch {batch}'] = min(theirs)
  if not least:
    return 'without PyTorch: no ratio', True
  where = min(least, key=least.get)
  line = f"ours / PyTorch's best (images per second) {least[where]:.3f}"
  return f'{line} ({where}), bar {BAR}', least[where] >= BAR


def panels(figures):
  ratios = {
    f'{dtype} batch {batch}': {
      n: [*r.values()] for n, r in result['ratios'].items()
    }
    for dtype in sorted(train_step.DTYPES & figures.keys())
    for batch, result in figures[dtype].items()
  }
  label = 'images/s of ours over others’'
  return 'Inference against other libraries', [plots.Panel(label, ratios, 1.0)]


if __name__ == '__main__':
  harness.run(
    measure,
    quick='Two rounds of one batch size and dtype, eager, and a narrow net.',
    check=f"Fail below {BAR} of PyTorch's best.",
    rounds=7,
    batches=(['1', '32', '128'], 'Images of a batch.'),
    dtypes=(['float32'], 'Dtypes of the activations.'),
    torch=('all', 'Which of PyTorch to compare with: all, compiled or none.'),
  )
