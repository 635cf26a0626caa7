r"""The host half alone against decoding alone and against other loaders.

    python -m benchmarks.input_pipeline --data_dir=DIR --dataset=NAME
        [--photographs=DIR] [--tf_python=FILE] [--quick] [--check]

Images per CPU-second (of all threads and processes) and per second, of

* `train_batches` of the prepared data set NAME; the same where decoding takes no
  time: what the threads of one process, which share Python's lock, hand out;
* decoding alone: `images.decode` from memory into the warm buffer of a batch, with
  a thread for each core; and with one thread into that of a single image;
* torch DataLoaders, a worker for each core, shuffled, over the same JPEG files, with
  Pillow and with simplejpeg; tf.data (tf_data.py) in the Python of --tf_python;
* with --photographs, full-size JPEG files: decoding them alone, and a DataLoader
  that scales them with Pillow and cuts out 256x256 pixels.

Every number of cores (1, 2, 4, ..., all) is a fresh process that is confined to
them, with files from the page cache. There all run in turn. --check asks, on every
number of cores and per CPU-second, for 0.85 of decoding alone, for as much as
tf.data, and for 1.5 times DataLoader with Pillow.
"""

from collections.abc import Callable
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import simplejpeg
import tensorflow_datasets as tfds

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax.runtime import command
from alexnet_jax.runtime import processes
from benchmarks import harness
from benchmarks import loaders
from benchmarks import plots

OURS, ALONE = 'ours', 'decoding alone, a thread per core'
UNDECODED = 'ours, nothing decoded'
ONE_THREAD = 'decoding alone, one thread, one image'
TF_DATA, PILLOW = 'tf.data', 'DataLoader, Pillow'
FASTEST = 'DataLoader, simplejpeg'
FULL_SIZE = 'photographs: decoding alone, one thread'
PHOTOGRAPHS = 'photographs: DataLoader, Pillow'
BARS = {ALONE: 0.85, TF_DATA: 1.0, PILLOW: 1.5}  # Per CPU-second.
UNITS = 'images per CPU-second', 'images/s'
NUM_FILES = 4096  # What torch, TensorFlow and decoding alone read.
FLAGS = harness.FLAGS


def contestants(settings: loaders.Settings, stack) -> dict[str, Callable]:
  """What is measured, by name; `stack` ends it."""
  found, without = {}, skipped(settings.tf_python)
  files, photographs = settings.files, settings.photographs
  # DataLoaders first: they fork, and later there are threads.
  for name, folder, decode in (
    (PILLOW, files, loaders.with_pillow),
    (FASTEST, files, simplejpeg.decode_jpeg),
    (PHOTOGRAPHS, photographs, loaders.scaled_with_pillow),
  ):
    if folder and PILLOW not in without:
      found[name] = loaders.data_loader(settings, folder, decode)
  if TF_DATA not in without:
    found[TF_DATA] = loaders.tf_data(settings, stack)
  found[OURS] = loaders.ours(settings, stack)
  found[UNDECODED] = loaders.undecoded(loaders.ours(settings, stack))
  each = -(-settings.batch // settings.cores)
  found[ALONE] = loaders.decoding_stored(settings, settings.cores, each)
  found[ONE_THREAD] = loaders.decoding_stored(settings, 1, 1)
  if photographs:
    found[FULL_SIZE] = loaders.decoding_photographs(settings)
  return found


def skipped(tf_python: str) -> dict[str, str]:
  """The reason why some cannot be measured here, by name."""
  torch = (PILLOW, FASTEST, PHOTOGRAPHS)
  found = dict.fromkeys(torch, 'no PyTorch') if missing('torch') else {}
  if missing('tensorflow', tf_python):
    found[TF_DATA] = 'no TensorFlow'
  return found


def missing(module: str, python: str = '') -> bool:
  """Whether an interpreter, '' for this one, does not have the module."""
  code = f'import importlib.util as u; exit(u.find_spec("{module}") is None)'
  return bool(subprocess.run([python or sys.executable, '-c', code]).returncode)


def rates_of(settings: loaders.Settings) -> dict[str, list[loaders.Rates]]:
  """Images per CPU-second and per second of each round, by name."""
  with contextlib.ExitStack() as stack:
    number = settings.threads or settings.cores
    with mock.patch.object(processes, 'available_cores', lambda: number):
      found = contestants(settings, stack)
    rates = {name: [] for name in found}
    for number, name in harness.turns(list(found), settings.rounds):
      pair = found[name]()
      if number:  # In round 0 the libraries of some are still starting.
        rates[name].append(pair)
    return rates


def answer_rates(settings: dict) -> None:
  command.quiet_libraries()
  harness.answer(rates_of(loaders.Settings(**settings)))


def confined(settings: dict) -> dict[str, list[loaders.Rates]]:
  """`rates_of` in a fresh process on 'cores' of the cores."""
  confine = getattr(os, 'sched_setaffinity', lambda *_: None)
  cores = getattr(os, 'sched_getaffinity', lambda _: [])(0)
  worker = harness.command_line('input_pipeline.answer_rates', settings)
  confine(0, sorted(cores)[: settings['cores']])
  try:  # The process, and all that it starts, inherits it.
    return harness.ask(worker)
  finally:
    confine(0, cores)


def numbers_of_cores(quick: bool) -> list[int]:
  """1, 2, 4, ... and all; only all if `quick`, or if cores cannot be chosen."""
  cores = processes.available_cores()
  if quick or not hasattr(os, 'sched_getaffinity'):
    return [cores]
  return [*(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]


def write_files(dataset: dataset_lib.Dataset, folder: str) -> None:
  """The first records of a prepared data set as NUMBER_LABEL.jpg.

  Raises:
    ValueError: if they are not JPEG.
  """
  skip = {'image': tfds.decode.SkipDecoding()}
  builder = tfds.builder_from_directory(dataset.path)
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
  return {name: harness.ratio(column(OURS), column(name)) for name in rates}


def print_rates(rates: dict, cores: int) -> None:
  """Prints the rates and their ratios, per CPU-second and per second."""
  for which, unit in enumerate(UNITS):
    for name, values in rates.items():
      path = (f'{cores} cores', unit, name)
      harness.print_figures([value[which] for value in values], *path)
    harness.print_figures(ratios(rates, which), f'{cores} cores', 'ours over')


def judge(found: dict[int, dict]) -> tuple[str, bool]:
  """The verdict, and whether a bar is missed on any number of cores."""
  parts, missed = [], False
  for name, bar in BARS.items():
    by_cores = {c: ratios(rates, 0).get(name) for c, rates in found.items()}
    values = [(ratio['median'], c) for c, ratio in by_cores.items() if ratio]
    value, cores = min(values, default=(bar, None))
    missed |= value < bar
    shown = f'{value:.3f} on {cores} cores, bar {bar}' if values else 'skipped'
    parts.append(f'{name}: {shown}')
  return 'ours per CPU-second over ' + '; '.join(parts), missed


def check_flags() -> dataset_lib.Dataset:
  """The data set; ends with one line if a flag is wrong."""
  if FLAGS.photographs:
    harness.jpeg_files(FLAGS.photographs, 'photographs')
  if tf_python := FLAGS.tf_python:
    if shutil.which(tf_python) is None:
      sys.exit(f'--tf_python={tf_python} is not a program')
    if missing('tensorflow', tf_python):
      sys.exit(f'--tf_python={tf_python} has no TensorFlow')
  with command.one_line_errors('nothing is kept'):
    return dataset_lib.open_dataset(FLAGS.data_dir, FLAGS.dataset)


def measure() -> harness.Outcome:
  dataset, found = check_flags(), {}
  batches, rounds = (4, 1) if FLAGS.quick else (FLAGS.batches, FLAGS.rounds)
  given = 'data_dir dataset photographs tf_python batch threads'
  settings = {name: FLAGS[name].value for name in given.split()}
  with tempfile.TemporaryDirectory() as folder:
    try:
      write_files(dataset, folder)
    except ValueError as error:
      sys.exit(str(error))
    settings |= {'files': folder, 'batches': batches, 'rounds': rounds}
    for cores in numbers_of_cores(FLAGS.quick):
      found[cores] = confined(settings | {'cores': cores})
      print_rates(found[cores], cores)
  print(f'batch {FLAGS.batch}, {rounds} rounds, seed {loaders.SEED}')
  print('skipped:', skipped(FLAGS.tf_python))
  verdict, missed = judge(found)
  return harness.Outcome(found, verdict, not missed)


def panels(figures):
  """Rates by cores; the rows that decode nothing would be ten times as long."""
  found = []
  for which, unit in enumerate(UNITS):
    groups = {
      f'{cores} core' + 's' * (cores != '1'): {
        name: [rate[which] for rate in values]
        for name, values in rates.items()
        if 'nothing' not in name
      }
      for cores, rates in figures.items()
    }
    found.append(plots.Panel(unit, groups))
  return 'The host half of the pipeline', found


if __name__ == '__main__':
  harness.run(
    measure,
    quick='Only all cores, one short round.',
    check=f'Fail below {BARS}, per CPU-second.',
    rounds=7,
    data_dir=(dataset_lib.DATA_DIR, 'Folder of the prepared data sets.'),
    dataset=(str, 'Name of a prepared data set of JPEG.'),
    photographs=('', 'Folder of full-size JPEG files.'),
    tf_python=('', 'A Python that has TensorFlow.'),
    batch=(128, 'Images of a batch.'),
    batches=(24, 'Batches timed in a round, for each core.'),
    threads=(0, 'Threads of ours; by default one for each core.'),
  )
