r"""What preparing a data set costs, or reading one in host memory.

    python -m benchmarks.preparation --folder=DIR [--memory] [--quick] [--check]

Each round encodes photographs of DIR in a process for each core, from memory, and
prepares two data sets of them, a small and a large one, whose difference is the
rate without start-up. `--check` asks for 0.8 of the images per CPU-second of
encoding alone. With --memory, processes read one epoch of --number images and of ten
times as many; `--check` asks for at most 100 bytes of peak memory for every further
image: the order of an epoch takes 8, and two are kept.
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

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__' and '--memory' in sys.argv:
  huge_pages.reexec_with_huge_pages()  # As in a run.


from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import processes
from benchmarks import harness

BAR = 0.8  # Images per CPU-second, over those of encoding alone.
MEMORY_BAR = 100  # Bytes for every further image.
BATCH, READERS = 128, 3  # Peaks vary by a MiB, hence several readers.
FLAGS = harness.FLAGS


def make_links(root: pathlib.Path, paths: list, number: int) -> None:
  """Makes a source of `number` images, which are links to `paths` in turn."""
  for part, count in (('train', number), ('val', 1)):
    (root / part / 'class').mkdir(parents=True)
    for i, path in zip(range(count), itertools.cycle(paths)):
      (root / part / 'class' / f'{i:07d}{path.suffix}').symlink_to(path)


def prepare_links(folder: str, paths: list, number: int) -> tuple[float, float]:
  """CPU-seconds and seconds of preparing such a source as `folder`/set."""
  root = pathlib.Path(folder)
  make_links(root / 'photographs', paths, number)
  cpu, wall = _cpu_seconds(), time.perf_counter()
  prepare.prepare(f'folder:{root}/photographs', 'set', root)
  return _cpu_seconds() - cpu, time.perf_counter() - wall


def _usages():
  """Usage of this process, and of those that it started and that have ended."""
  kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  return [resource.getrusage(kind) for kind in kinds]


def _cpu_seconds():
  return sum(usage.ru_utime + usage.ru_stime for usage in _usages())


def _encode(paths, number):
  """CPU-seconds of encoding."""
  contents = [path.read_bytes() for path in paths]
  began = time.process_time()
  for content in itertools.islice(itertools.cycle(contents), number):
    images.encode(content, 256, 95)
  return time.process_time() - began


def encoding_alone(pool, paths: list[pathlib.Path], number: int) -> float:
  """Images per CPU-second from memory, all cores at work."""
  each = [number // processes.available_cores()] * processes.available_cores()
  return sum(each) / sum(pool.map(functools.partial(_encode, paths), each))


def one_preparation(paths: list, number: int, few: int) -> dict[str, float]:
  """The rates of preparing `number` images; `few` (or 0) take away start-up."""
  taken = []
  for n in (few, number):
    with tempfile.TemporaryDirectory() as folder:
      taken.append(prepare_links(folder, paths, n) if n else (0.0, 0.0))
  (few_cpu, few_wall), (cpu, wall) = taken
  return {
    'with_startup_per_cpu_second': number / cpu,
    'per_cpu_second': (number - few) / (cpu - few_cpu),
    'per_second': (number - few) / (wall - few_wall),
  }


def measure_speed(paths: list[pathlib.Path]) -> harness.Outcome:
  number, rounds, few = FLAGS.number or 15_000, FLAGS.rounds, prepare.ALONE + 1
  if number < 2 * prepare.ALONE:
    sys.exit(f'--number={number} must be at least {2 * prepare.ALONE}')
  if FLAGS.quick:
    number, rounds, few = 2 * prepare.ALONE, 1, 0
  alone, prepared, sample = [], [], paths[:1000]
  cores = processes.available_cores()
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(cores, spawn) as pool:
    encoding_alone(pool, sample, cores * 20)  # Caches and lazy imports.
    for _ in range(rounds):
      alone.append(encoding_alone(pool, sample, number // 4))
      prepared.append(one_preparation(paths, number, few))
  unit = 1 if sys.platform == 'darwin' else 1024  # Bytes of ru_maxrss.
  peaks = [unit * usage.ru_maxrss for usage in _usages()]
  contents = [path.read_bytes() for path in sample]
  stored = lambda q: [len(images.encode(c, 256, q)[0]) for c in contents]
  sizes = {quality: statistics.mean(stored(quality)) for quality in (95, 90)}
  figures = {
    'encoding_alone': alone,
    'preparation': prepared,
    'peak_bytes': dict(zip(('this process', 'a worker'), peaks, strict=True)),
    'bytes_by_quality': sizes,
  }
  pairs = zip(prepared, alone, strict=True)
  figures['ratios'] = [p['per_cpu_second'] / a for p, a in pairs]
  print(f'{len(paths)} photographs, {number} images, {rounds} rounds, seed 0')
  harness.print_figures(figures)
  ratio = statistics.median(figures['ratios'])
  verdict = f'preparation / encoding alone {ratio:.3f}, bar {BAR}'
  return harness.Outcome(figures, verdict, ratio >= BAR)


def read_epoch(data_dir: str) -> None:
  """The work of a worker: reads an epoch, answers with its peak memory."""
  dataset = dataset_lib.open_dataset(data_dir, 'set')
  arguments = {'batch_size': BATCH, 'seed': 0, 'start_step': 0}
  batches = input_pipeline.train_batches(dataset, 'train', **arguments)
  steps = dataset.num_examples['train'] // BATCH
  for _ in itertools.islice(batches, steps):
    pass
  batches.close()
  harness.answer(harness.peak_bytes())


def measure_memory(paths: list[pathlib.Path]) -> harness.Outcome:
  number, readers, peaks = FLAGS.number or 4000, READERS, {}
  if FLAGS.quick:
    number, readers = number // 4, 1
  for n in (number, 10 * number):
    with tempfile.TemporaryDirectory() as folder:
      prepare_links(folder, paths, n)
      command = harness.command_line('preparation.read_epoch', folder)
      found = [harness.ask(command) for _ in range(readers)]
    peaks[n] = statistics.median(found)
  grown = (peaks[10 * number] - peaks[number]) / (9 * number)
  figures = {'peak_bytes': peaks, 'bytes_per_image': grown}
  harness.print_figures(figures)
  verdict = f'{grown:.0f} bytes for every further image, bar {MEMORY_BAR}'
  return harness.Outcome(figures, verdict, grown <= MEMORY_BAR)


def measure() -> harness.Outcome:
  paths = harness.jpeg_files(FLAGS.folder, 'folder')
  return measure_memory(paths) if FLAGS.memory else measure_speed(paths)


if __name__ == '__main__':
  harness.run(
    measure,
    quick='One short round, with start-up; with --memory a quarter, read once.',
    check=f'Fail below {BAR} of encoding alone, or above {MEMORY_BAR} bytes.',
    rounds=3,
    folder=(str, 'Folder of photographs.'),
    number=(0, 'Images, by default 15,000; with --memory 4,000.'),
    memory=(False, 'Measure the memory of reading instead.'),
  )
