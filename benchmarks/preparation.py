r"""What preparing a data set costs beside decoding, scaling and encoding.

    python -m benchmarks.preparation --folder=DIR [--quick] [--check]

DIR holds photographs, which are taken in turn. Each round encodes some in a
process for each core, from memory (`images.encode`: decode, scale, encode), and
prepares two data sets of the same images, a small and a large one, with as many.
Compared are images per CPU-second of all processes; what the large one has more
than the small one is the rate without start-up, of which `--check` asks for 0.8
of encoding alone. The size of the prepared ImageNet is estimated from the
photographs.
"""

import concurrent.futures
import functools
import itertools
import multiprocessing
import pathlib
import resource
import statistics
import sys
import tempfile
import time

from absl import flags

from alexnet_jax import images
from alexnet_jax.prepare import imagenet
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import processes
from benchmarks import memory
from benchmarks import report

BAR = 0.8
QUALITIES = (95, 90)


def cpu_seconds() -> float:
  """Of this process and of those that it has started and that have ended."""
  usages = [
    resource.getrusage(who)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Alone:
  """Encodes photographs from memory, a process for each core."""

  def __init__(self, paths: list[pathlib.Path]):
    self._cores = processes.available_cores()
    self._pool = concurrent.futures.ProcessPoolExecutor(
      self._cores, multiprocessing.get_context('spawn')
    )
    self._paths = paths
    self(self._cores * 20)  # Starts all; caches, and lazy imports.

  def __call__(self, number: int) -> float:
    """Images per CPU-second, all cores at work."""
    each = number // self._cores
    task = functools.partial(_encode, self._paths)
    return self._cores * each / sum(self._pool.map(task, [each] * self._cores))

  def close(self) -> None:
    self._pool.shutdown()


def _encode(paths, number):
  contents = [path.read_bytes() for path in paths]
  began = time.process_time()
  for content in itertools.islice(itertools.cycle(contents), number):
    images.encode(content, 256, 95)
  return time.process_time() - began


def preparation(paths: list[pathlib.Path], number: int) -> tuple[float, float]:
  """CPU-seconds and seconds of a whole preparation."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    memory.make_folder(root / 'photographs', paths, number)
    cpu, wall = cpu_seconds(), time.perf_counter()
    prepare.prepare(f'folder:{root}/photographs', 'set', root)
    return cpu_seconds() - cpu, time.perf_counter() - wall


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_string('folder', None, 'Of photographs.', required=True)
  flags.DEFINE_bool('quick', False, 'One short round, with start-up.')
  flags.DEFINE_bool('check', False, f'Fail below {BAR} of encoding alone.')
  flags.DEFINE_integer('number', 15_000, 'Images of a preparation.')
  flags.DEFINE_integer('rounds', 3, 'Of both, in turn.', 1)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  paths = memory.photographs(FLAGS.folder)
  number, rounds = FLAGS.number, FLAGS.rounds
  if number < 2 * prepare.ALONE:
    sys.exit(f'--number={number} must be at least {2 * prepare.ALONE}')
  if FLAGS.quick:
    number, rounds = 2 * prepare.ALONE, 1
  contents = [path.read_bytes() for path in paths[:1000]]
  encoding_alone = Alone(paths[:1000])
  alone, prepared = [], []
  for _ in range(rounds):
    alone.append(encoding_alone(number // 4))
    few, few_cpu, few_wall = 0, 0.0, 0.0
    if not FLAGS.quick:
      few = prepare.ALONE + 1
      few_cpu, few_wall = preparation(paths, few)
    cpu, wall = preparation(paths, number)
    prepared.append(
      {
        'with_startup_per_cpu_second': number / cpu,
        'per_cpu_second': (number - few) / (cpu - few_cpu),
        'per_second': (number - few) / (wall - few_wall),
      }
    )
  encoding_alone.close()
  ratios = [
    p['per_cpu_second'] / a for a, p in zip(alone, prepared, strict=True)
  ]
  ratio = statistics.median(ratios)
  cores = processes.available_cores()
  wall = statistics.median(
    p['per_second'] / (a * cores) for a, p in zip(alone, prepared, strict=True)
  )
  median = lambda key: statistics.median(p[key] for p in prepared)
  unit = 1 if sys.platform == 'darwin' else 1024  # Bytes, of ru_maxrss.
  peaks = {
    who: unit * resource.getrusage(which).ru_maxrss
    for who, which in (
      ('this process', resource.RUSAGE_SELF),
      ('a worker', resource.RUSAGE_CHILDREN),
    )
  }
  sizes = {
    quality: statistics.mean(
      len(images.encode(content, 256, quality)[0]) for content in contents
    )
    for quality in QUALITIES
  }
  total = sum(imagenet.NUM_IMAGES.values())
  print(f'{len(paths)} photographs, {number} images, {rounds} rounds, medians')
  print(
    f'encoding alone      {statistics.median(alone):8.1f} images / CPU-second'
  )
  print(
    f'preparation         {median("per_cpu_second"):8.1f} images / CPU-second,'
    f' {median("per_second"):.1f} / second on {cores} cores'
  )
  print(
    f'with start-up       {median("with_startup_per_cpu_second"):8.1f} images /'
    f' CPU-second'
  )
  for who, peak in peaks.items():
    print(f'peak memory of {who}: {peak / 2**30:.2f} GiB')
  for quality, size in sizes.items():
    print(
      f'quality {quality}: {size / 1e3:.1f} kB an image, ImageNet (1.33 million)'
      f' {size * total / 1e9:.0f} GB'
    )
  rate = median('per_cpu_second')
  for number_of_cores in (2, 16, 64):
    print(
      f'by arithmetic, ImageNet on {number_of_cores} cores:'
      f' {total / rate / number_of_cores / 3600:.2f} h'
    )
  print('seed of the order: 0')
  report.print_environment()
  report.write(
    FLAGS.output,
    {
      'encoding_alone': alone,
      'preparation': prepared,
      'ratios': ratios,
      'peak_bytes': peaks,
      'bytes_by_quality': sizes,
    },
  )
  print(f'per second, over {cores} cores that encode alone: {wall:.3f}')
  print(f'preparation / encoding alone {ratio:.3f}, bar {BAR}')
  if FLAGS.check and ratio < BAR:
    sys.exit(1)


if __name__ == '__main__':
  define_flags()
  report.run(main)
