"""What benchmarks.input_pipeline compares: loaders and decoders of JPEG files.

Each function makes a contestant, which works for a while and returns its `Rates`.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import os
import pathlib
import sys
import time
from unittest import mock
import warnings

import numpy as np
from PIL import Image
import simplejpeg

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax import input_pipeline
from benchmarks import harness

SEED = 0
Rates = tuple[float, float]  # Images per CPU-second and per second.


@dataclasses.dataclass(frozen=True)
class Settings:
  """What one process measures; `files` and `photographs` are folders."""

  data_dir: str
  dataset: str
  files: str
  photographs: str
  tf_python: str
  cores: int
  batch: int
  batches: int  # Timed in a round, for each core.
  rounds: int
  threads: int = 0  # Threads of ours; 0 for one for each core.

  @property
  def drain(self) -> int:
    """Batches to take before: as many as are timed, and all that are buffered.

    After a pause the first are slower: the system may have taken memory from
    what was idle. Loaders buffer two batches for each worker, or two and one.
    """
    return (self.batches + 2) * self.cores + 3


def timed(take, drain, count, num_images, cpu=time.process_time) -> Rates:
  """The rates of `take(count)` after `take(drain)`; waits for the buffers."""
  take(drain)
  began = cpu(), time.perf_counter()
  take(count)
  taken = cpu() - began[0], time.perf_counter() - began[1]
  harness.wait_until_idle(cpu)
  return num_images / taken[0], num_images / taken[1]


def pipeline(settings: Settings, batches: Iterator, workers=()) -> Callable:
  """A source of batches; `workers` are the ids of its processes."""
  cpu = lambda: time.process_time() + sum(map(cpu_seconds, workers))

  def take(number):
    for _ in itertools.islice(batches, number):
      pass

  count = settings.batches * settings.cores
  num_images = count * settings.batch
  return lambda: timed(take, settings.drain, count, num_images, cpu)


def cpu_seconds(pid: int) -> float:
  """CPU-seconds of another process with all its threads, on Linux."""
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  user, system = fields.split()[11:13]
  return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


def ours(settings: Settings, stack: contextlib.ExitStack) -> Callable:
  """The batches of training, closed by `stack`."""
  dataset = dataset_lib.open_dataset(settings.data_dir, settings.dataset)
  arguments = {'batch_size': settings.batch, 'seed': SEED, 'start_step': 0}
  batches = input_pipeline.train_batches(dataset, 'train', **arguments)
  stack.callback(batches.close)
  return pipeline(settings, batches)


def undecoded(contestant: Callable) -> Callable:
  """The same, but images keep the pixels that were in their buffers before."""
  return mock.patch.object(images, 'decode', lambda *_: None)(contestant)


def decoding(encoded, number, decode, buffers) -> Callable:
  """Decodes `number` images from memory into the same buffers again and again.

  A thread for each list of buffers calls `decode(encoded, buffer)`.
  """
  each, threads = number // len(buffers), len(buffers)

  def decode_part(i):
    start = i * len(encoded) // threads
    for n, buffer in zip(range(each), itertools.cycle(buffers[i])):
      decode(encoded[(start + n) % len(encoded)], buffer)

  def run():
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      take = lambda _: list(pool.map(decode_part, range(threads)))
      return timed(take, number, number, each * threads)

  return run


def decoding_stored(settings: Settings, threads: int, each: int) -> Callable:
  """Decodes stored images, each thread into a buffer of `each` images."""
  encoded = read_all(settings.files)
  shape = (each, *simplejpeg.decode_jpeg(encoded[0]).shape)
  buffers = [np.ones(shape, np.uint8) for _ in range(threads)]
  number = settings.batches * settings.batch * threads
  return decoding(encoded, number, images.decode, buffers)


def decoding_photographs(settings: Settings) -> Callable:
  """Decodes full-size photographs in one thread."""
  encoded = read_all(settings.photographs)
  largest = max(simplejpeg.decode_jpeg(e).size for e in encoded)
  decode = lambda e, buffer: simplejpeg.decode_jpeg(e, buffer=buffer)
  number = settings.batches * settings.batch // 4
  return decoding(encoded, number, decode, [[np.empty(largest, np.uint8)]])


def read_all(folder: str) -> list[bytes]:
  return [path.read_bytes() for path in harness.jpeg_files(folder)]


def with_pillow(encoded: bytes) -> np.ndarray:
  image = Image.open(io.BytesIO(encoded), formats=('JPEG', 'PNG'))
  return np.asarray(image.convert('RGB'))


def scaled_with_pillow(encoded: bytes) -> np.ndarray:
  """The central 256x256 pixels of a photograph whose shorter side is 256."""
  image = Image.open(io.BytesIO(encoded), formats=('JPEG', 'PNG'))
  image = image.convert('RGB')
  scale = 256 / min(image.size)
  image = image.resize([max(256, round(scale * side)) for side in image.size])
  left, top = ((side - 256) // 2 for side in image.size)
  return np.asarray(image.crop((left, top, left + 256, top + 256)))


class Files:
  """JPEG files as a map-style data set of torch: (pixels, number)."""

  def __init__(self, folder: str, decode: Callable):
    self._paths, self._decode = harness.jpeg_files(folder), decode

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
    return self._decode(self._paths[i].read_bytes()), i


def data_loader(settings: Settings, folder: str, decode: Callable) -> Callable:
  """torch's DataLoader over JPEG files, endless."""
  import torch.utils.data  # Optional.

  # Pillow's pixels are read-only, which does not matter here.
  warnings.filterwarnings('ignore', 'The given NumPy array is not writable')
  torch.manual_seed(SEED)
  files, before = Files(folder, decode), multiprocessing.active_children()
  sampler = torch.utils.data.RandomSampler(files, True, num_samples=2**40)
  arguments = {'sampler': sampler, 'num_workers': settings.cores}
  arguments['multiprocessing_context'] = 'fork'  # Python's default may change.
  loader = torch.utils.data.DataLoader(files, settings.batch, **arguments)
  batches = iter(loader)
  workers = {*multiprocessing.active_children()} - {*before}
  return pipeline(settings, batches, [worker.pid for worker in workers])


def tf_data(settings: Settings, stack: contextlib.ExitStack) -> Callable:
  """tf_data.py in a process of its own, closed by `stack`."""
  script = pathlib.Path(__file__).with_name('tf_data.py')
  python = settings.tf_python or sys.executable
  arguments = settings.files, str(settings.cores), str(settings.batch)
  quiet = {'TF_CPP_MIN_LOG_LEVEL': '3', 'TF_ENABLE_ONEDNN_OPTS': '0'}
  env = quiet | {'CUDA_VISIBLE_DEVICES': ''}
  worker = harness.Worker([python, str(script), *arguments], **env)
  stack.callback(worker.close)
  count = settings.batches * settings.cores

  def run():
    taken = worker(f'{settings.drain} {count}')
    harness.wait_until_idle(lambda: cpu_seconds(worker.pid))
    return tuple(count * settings.batch / seconds for seconds in taken)

  return run
