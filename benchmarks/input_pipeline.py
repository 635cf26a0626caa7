r"""The host half alone against decoding alone and against other loaders.

    python -m benchmarks.input_pipeline --data_dir=DIR --dataset=NAME
        [--photographs=DIR] [--tf_python=FILE] [--quick] [--check]

Images per CPU-second (of all threads and processes) and per second, of

* `train_batches` of the prepared data set NAME;
* the same where decoding takes no time: what the threads of one process, which
  share Python's lock, hand out at most;
* decoding alone: `images.decode` of its records, in memory, into the warm buffer
  of a batch, with a thread for each core; and with one thread into that of a
  single image, which stays in the processor's cache;
* a torch DataLoader, a worker for each core, shuffled, default collate, over the
  same JPEG bytes as files, with Pillow and with simplejpeg;
* tf.data over these files (tf_data.py), in the Python of --tf_python or in this;
* with --photographs, full-size JPEG files: decoding them alone, and the
  DataLoader with Pillow that scales the shorter side to 256 and cuts out the
  centre, which is what a prepared data set saves.

Every number of cores (1, 2, 4, ..., all) is a fresh process that is confined to
them. There all run in turn, the others idle. Each first gives up what it has
buffered, and as many batches as it is then timed over: the steady state. Ratios
are of one round. All files are in the page cache.

Not measured: a disk, the copy to a device (end_to_end.py), augmentation, which
ours does on the device, and start-up.

--check asks, on every number of cores and per CPU-second, for 0.85 of decoding
alone on as many threads, for as much as tf.data, and for 1.5 times DataLoader
with Pillow. Threads that share a core or its caches slow each other down
whatever the pipeline does, hence as many threads.
"""

import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock
import warnings

from absl import flags
import numpy as np
from PIL import Image
import simplejpeg
import tensorflow_datasets as tfds

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax.runtime import command
from alexnet_jax.runtime import processes
from benchmarks import interleaved
from benchmarks import report

OURS, ALONE = 'ours', 'decoding alone, a thread per core'
UNDECODED = 'ours, nothing decoded'
ONE_THREAD = 'decoding alone, one thread, one image'
TF_DATA, PILLOW = 'tf.data', 'DataLoader, Pillow'
FASTEST = 'DataLoader, simplejpeg'
FULL_SIZE = 'photographs: decoding alone, one thread'
PHOTOGRAPHS = 'photographs: DataLoader, Pillow'
BARS = {ALONE: 0.85, TF_DATA: 1.0, PILLOW: 1.5}  # Per CPU-second.
SEED = 0
QUIET_TF = {'TF_CPP_MIN_LOG_LEVEL': '3', 'TF_ENABLE_ONEDNN_OPTS': '0'}
NUM_FILES = 4096  # That torch, TensorFlow and decoding alone read.


@dataclasses.dataclass(frozen=True)
class Settings:
  """What one process measures; `files` and `photographs` are folders."""

  data_dir: str
  dataset: str
  files: str
  photographs: str | None
  tf_python: str | None
  cores: int
  batch: int
  batches: int  # Of a segment, for each core.
  rounds: int
  threads: int | None = None  # Of ours, if not one for each core.


class Files:
  """JPEG files as a map-style data set of torch: (pixels, number)."""

  def __init__(self, folder: str, decode):
    self._paths, self._decode = report.jpeg_files(folder), decode

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
    return self._decode(self._paths[i].read_bytes()), i


def with_pillow(encoded: bytes) -> np.ndarray:
  """The pixels of a stored image."""
  return np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))


def with_simplejpeg(encoded: bytes) -> np.ndarray:
  """The pixels of a stored image."""
  return simplejpeg.decode_jpeg(encoded)


def scaled_with_pillow(encoded: bytes) -> np.ndarray:
  """The central 256x256 pixels of a photograph whose shorter side is 256."""
  image = Image.open(io.BytesIO(encoded)).convert('RGB')
  scale = 256 / min(image.size)
  image = image.resize([max(256, round(scale * side)) for side in image.size])
  left, top = ((side - 256) // 2 for side in image.size)
  return np.asarray(image.crop((left, top, left + 256, top + 256)))


def cpu_seconds(pid: int) -> float:
  """Of another process and all its threads, while it lives; Linux."""
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  user, system = fields.split()[11:13]
  return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


def drain(settings: Settings) -> int:
  """As many batches as are timed, and all that any loader buffers.

  After a pause the first batches are slower: the system may have taken memory
  from what was idle. Buffered are two batches for each worker, or two and one.
  """
  return settings.batches * settings.cores + 2 * settings.cores + 3


class Pipeline:
  """A source of batches; a call times some of them, nothing buffered."""

  def __init__(self, settings: Settings, batches, workers=()):
    """`workers` are the ids of the processes that belong to it."""
    self._batches, self._workers = batches, workers
    self._count = settings.batches * settings.cores
    self._drain = drain(settings)
    self.images = self._count * settings.batch

  def __call__(self) -> tuple[float, float]:
    """CPU-seconds and seconds; returns when the buffers are full again."""
    self._take(self._drain)
    cpu, wall = self._cpu(), time.perf_counter()
    self._take(self._count)
    taken = self._cpu() - cpu, time.perf_counter() - wall
    interleaved.wait_until_idle(self._cpu)
    return taken

  def _take(self, number):
    for _ in itertools.islice(self._batches, number):
      pass

  def _cpu(self):
    return time.process_time() + sum(map(cpu_seconds, self._workers))


class Undecoded(Pipeline):
  """A pipeline whose images keep the pixels that were there before."""

  def __call__(self) -> tuple[float, float]:
    with mock.patch.object(images, 'decode', lambda *_: None):
      return super().__call__()


class Decoding:
  """Decodes images from memory, again and again into the same buffers."""

  def __init__(self, encoded, number: int, decode, buffers):
    """`decode(encoded, buffer)`; a thread takes each list of buffers in turn."""
    self._encoded, self._decode, self._buffers = encoded, decode, buffers
    self.images = number // len(buffers) * len(buffers)

  def __call__(self) -> tuple[float, float]:
    """CPU-seconds and seconds."""
    with concurrent.futures.ThreadPoolExecutor(len(self._buffers)) as threads:
      self._run(threads, self.images)  # As the others: see `drain`.
      cpu, wall = time.process_time(), time.perf_counter()
      self._run(threads, self.images)
      return time.process_time() - cpu, time.perf_counter() - wall

  def _run(self, threads, number):
    def decode_part(i):
      start = i * len(self._encoded) // len(self._buffers)
      numbers = range(start, start + number // len(self._buffers))
      for n, buffer in zip(numbers, itertools.cycle(self._buffers[i])):
        self._decode(self._encoded[n % len(self._encoded)], buffer)

    list(threads.map(decode_part, range(len(self._buffers))))


class TfData:
  """tf_data.py in a process of its own."""

  def __init__(self, settings: Settings):
    script = pathlib.Path(__file__).with_name('tf_data.py')
    python = settings.tf_python or sys.executable
    arguments = [settings.files, str(settings.cores), str(settings.batch)]
    self._process = subprocess.Popen(
      [python, script, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {**QUIET_TF, 'CUDA_VISIBLE_DEVICES': ''},
    )
    count = settings.batches * settings.cores
    self._line = f'{drain(settings)} {count}\n'
    self.images = count * settings.batch

  def __call__(self) -> tuple[float, float]:
    """CPU-seconds and seconds; returns when the buffers are full again."""
    self._process.stdin.write(self._line)
    self._process.stdin.flush()
    taken = json.loads(self._process.stdout.readline())
    interleaved.wait_until_idle(lambda: cpu_seconds(self._process.pid))
    return taken

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def data_loader(settings: Settings, folder: str, decode) -> Pipeline:
  """torch's DataLoader over JPEG files, endless."""
  import torch.utils.data  # Optional.

  # Pillow's pixels are read-only, which nothing here minds.
  warnings.filterwarnings('ignore', 'The given NumPy array is not writable')
  torch.manual_seed(SEED)
  files = Files(folder, decode)
  sampler = torch.utils.data.RandomSampler(
    files, replacement=True, num_samples=2**40
  )
  before = set(multiprocessing.active_children())
  batches = iter(
    torch.utils.data.DataLoader(
      files,
      settings.batch,
      sampler=sampler,
      num_workers=settings.cores,
      multiprocessing_context='fork',  # This process itself was spawned.
    )
  )
  workers = set(multiprocessing.active_children()) - before
  return Pipeline(settings, batches, [worker.pid for worker in workers])


def ours(
  settings: Settings, stack: contextlib.ExitStack, kind: type = Pipeline
) -> Pipeline:
  """The batches of training, closed by `stack`."""
  batches = input_pipeline.train_batches(
    dataset_lib.open_dataset(settings.data_dir, settings.dataset),
    'train',
    batch_size=settings.batch,
    seed=SEED,
    start_step=0,
  )
  return kind(settings, stack.enter_context(contextlib.closing(batches)))


def decoding(settings: Settings, threads: int, images_each: int) -> Decoding:
  """Of the stored images, each thread into a buffer of `images_each`."""
  encoded = [path.read_bytes() for path in report.jpeg_files(settings.files)]
  shape = (images_each, *simplejpeg.decode_jpeg(encoded[0]).shape)
  buffers = [np.ones(shape, np.uint8) for _ in range(threads)]
  number = settings.batches * settings.batch * threads
  return Decoding(encoded, number, images.decode, buffers)


def decoding_photographs(settings: Settings) -> Decoding:
  """Of full-size photographs, in one thread."""
  encoded = [
    path.read_bytes() for path in report.jpeg_files(settings.photographs)
  ]
  largest = max(simplejpeg.decode_jpeg(e).size for e in encoded)
  decode = lambda e, buffer: simplejpeg.decode_jpeg(e, buffer=buffer)
  number = settings.batches * settings.batch // 4
  return Decoding(encoded, number, decode, [[np.empty(largest, np.uint8)]])


def contestants(settings: Settings, stack: contextlib.ExitStack) -> dict:
  """What is measured, by name; `stack` ends it."""
  found = {}
  # DataLoaders first: they fork, and later there are threads.
  without = skipped(settings.tf_python)
  if PILLOW not in without:
    found[PILLOW] = data_loader(settings, settings.files, with_pillow)
    found[FASTEST] = data_loader(settings, settings.files, with_simplejpeg)
    if settings.photographs:
      found[PHOTOGRAPHS] = data_loader(
        settings, settings.photographs, scaled_with_pillow
      )
  if TF_DATA not in without:
    found[TF_DATA] = stack.enter_context(contextlib.closing(TfData(settings)))
  found[OURS] = ours(settings, stack)
  found[UNDECODED] = ours(settings, stack, Undecoded)
  each = -(-settings.batch // settings.cores)
  found[ALONE] = decoding(settings, settings.cores, each)
  found[ONE_THREAD] = decoding(settings, 1, 1)
  if settings.photographs:
    found[FULL_SIZE] = decoding_photographs(settings)
  return found


def skipped(tf_python: str | None) -> dict[str, str]:
  """Why some cannot be measured here, by name."""
  found = {}
  if missing('torch'):
    found = dict.fromkeys((PILLOW, FASTEST, PHOTOGRAPHS), 'no PyTorch')
  if missing('tensorflow', tf_python):
    found[TF_DATA] = 'no TensorFlow'
  if not pathlib.Path('/proc/self/stat').exists():
    reason = 'CPU-seconds of other processes need /proc'
    found = dict.fromkeys((PILLOW, FASTEST, PHOTOGRAPHS, TF_DATA), reason)
  return found


def missing(module: str, python: str | None = None) -> bool:
  """Whether an interpreter, None for this one, does not have the module."""
  code = f'import importlib.util as u; exit(u.find_spec("{module}") is None)'
  return bool(subprocess.run([python or sys.executable, '-c', code]).returncode)


def measure(settings: Settings) -> dict[str, list[tuple[float, float]]]:
  """Images per CPU-second and per second of each round, by name."""
  command.quiet_libraries()
  with contextlib.ExitStack() as stack:
    number = settings.threads or settings.cores
    with mock.patch.object(processes, 'number_of_cores', lambda: number):
      found = contestants(settings, stack)
    rates = {name: [] for name in found}
    for number in range(settings.rounds + 1):
      for name in list(found)[:: 1 if number % 2 else -1]:
        cpu, wall = found[name]()
        amount = found[name].images
        if number:  # In round 0 the libraries of some are still starting.
          rates[name].append((amount / cpu, amount / wall))
    return rates


def confined(settings: Settings) -> dict[str, list[tuple[float, float]]]:
  """`measure` in a fresh process on `settings.cores` of the cores."""
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
    if not hasattr(os, 'sched_setaffinity'):
      return process.submit(measure, settings).result()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[: settings.cores])
    try:  # The process, and all that it starts, inherits it.
      result = process.submit(measure, settings)
    finally:
      os.sched_setaffinity(0, cores)
    return result.result()


def numbers_of_cores(quick: bool) -> list[int]:
  """1, 2, 4, ... and all; all alone if `quick`, or if cores cannot be chosen."""
  if not hasattr(os, 'sched_getaffinity'):
    return [os.cpu_count()]
  cores = len(os.sched_getaffinity(0))
  powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
  return [cores] if quick else [*powers, cores]


def write_files(dataset: dataset_lib.Dataset, folder: str) -> None:
  """The first records of a prepared data set as NUMBER_LABEL.jpg.

  Raises:
    ValueError: if they are not JPEG.
  """
  builder = tfds.builder_from_directory(dataset.path)
  skip = {'image': tfds.decode.SkipDecoding()}
  source = builder.as_data_source('train', decoders=skip)
  for i in range(min(len(source), NUM_FILES)):
    example = source[i]
    if not example['image'].startswith(b'\xff\xd8'):
      raise ValueError(
        f'{dataset.path} holds images that are not JPEG; prepare it with a'
        f' --size above {images.PNG_SIZE}'
      )
    path = pathlib.Path(folder) / f'{i:06d}_{example["label"]}.jpg'
    path.write_bytes(example['image'])


def ratios(rates: dict, which: int) -> dict[str, dict[str, float]]:
  """Ours over each, by name: per CPU-second (`which` 0) or per second (1)."""
  column = lambda name: [rate[which] for rate in rates[name]]
  return {name: interleaved.ratio(column(OURS), column(name)) for name in rates}


def print_table(rates: dict, cores: int) -> None:
  """One line for each; ratios are ours over it, median and range."""
  print(
    f'{cores} cores{"":28} images/CPU-s  images/s   ours over it: CPU, wall'
  )
  shown = lambda r: f'{r["median"]:.2f} ({r["least"]:.2f} to {r["most"]:.2f})'
  for name, values in rates.items():
    cpu, wall = (
      statistics.median(column) for column in zip(*values, strict=True)
    )
    print(
      f'  {name:36}{cpu:9.0f}{wall:10.0f}   {shown(ratios(rates, 0)[name]):20}'
      f' {shown(ratios(rates, 1)[name])}'
    )


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_string('data_dir', dataset_lib.DATA_DIR, 'Of the data sets.')
  flags.DEFINE_string('dataset', None, 'Prepared, of JPEG.', required=True)
  flags.DEFINE_string('photographs', None, 'Folder of full-size JPEG files.')
  flags.DEFINE_string('tf_python', None, 'A Python that has TensorFlow.')
  flags.DEFINE_bool('quick', False, 'All cores alone, one short round.')
  flags.DEFINE_bool('check', False, f'Fail below {BARS}, per CPU-second.')
  flags.DEFINE_integer('batch', 128, 'Images.', 1)
  flags.DEFINE_integer('batches', 24, 'Timed in a round, for each core.', 1)
  flags.DEFINE_integer('rounds', 7, 'Of all, after one untimed.', 1)
  flags.DEFINE_integer('threads', None, 'Of ours; else one for each core.', 1)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def check_flags() -> dataset_lib.Dataset:
  """The data set; ends with one line if a flag is wrong."""
  if FLAGS.photographs is not None and not report.jpeg_files(FLAGS.photographs):
    sys.exit(f'--photographs={FLAGS.photographs} holds no JPEG')
  if FLAGS.tf_python is not None:
    if shutil.which(FLAGS.tf_python) is None:
      sys.exit(f'--tf_python={FLAGS.tf_python} is not a program')
    if missing('tensorflow', FLAGS.tf_python):
      sys.exit(f'--tf_python={FLAGS.tf_python} has no TensorFlow')
  try:
    return dataset_lib.open_dataset(FLAGS.data_dir, FLAGS.dataset)
  except (ValueError, FileNotFoundError) as error:
    sys.exit(str(error))


def main(_) -> None:
  dataset = check_flags()
  batches, rounds = (4, 1) if FLAGS.quick else (FLAGS.batches, FLAGS.rounds)
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    try:
      write_files(dataset, folder)
    except ValueError as error:
      sys.exit(str(error))
    for cores in numbers_of_cores(FLAGS.quick):
      found[cores] = confined(
        Settings(
          data_dir=FLAGS.data_dir,
          dataset=FLAGS.dataset,
          files=folder,
          photographs=FLAGS.photographs,
          tf_python=FLAGS.tf_python,
          cores=cores,
          batch=FLAGS.batch,
          batches=batches,
          rounds=rounds,
          threads=FLAGS.threads,
        )
      )
      print_table(found[cores], cores)
  for name, reason in skipped(FLAGS.tf_python).items():
    if name != PHOTOGRAPHS or FLAGS.photographs:
      print(f'{name}: skipped: {reason}')
  print(f'batch {FLAGS.batch}, {rounds} rounds, seed {SEED}')
  report.print_environment()
  report.write(FLAGS.output, found)
  verdict, missed = judge(found)
  print(verdict)
  if FLAGS.check and missed:
    sys.exit(1)


def judge(found: dict[int, dict]) -> tuple[str, bool]:
  """The last line, and whether a bar is missed on any number of cores."""
  parts, missed = [], False
  for name, bar in BARS.items():
    values = {
      cores: ratios(rates, 0)[name]['median']
      for cores, rates in found.items()
      if name in rates
    }
    if not values:
      parts.append(f'{name}: skipped')
      continue
    cores = min(values, key=values.get)
    missed |= values[cores] < bar
    parts.append(f'{name}: {values[cores]:.3f} on {cores} cores, bar {bar}')
  return 'ours per CPU-second over ' + '; '.join(parts), missed


if __name__ == '__main__':
  define_flags()
  report.run(main)
