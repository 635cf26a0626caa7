r"""Host memory of the input pipeline, over ten times more data.

    python -m benchmarks.memory --folder=DIR [--number=4000] [--check]

DIR holds photographs, which are taken in turn: `number` of them, and ten times
as many, are prepared at 256 pixels. Processes of their own then read one epoch of
each in batches of 128 and say what their memory was at most; the median counts.
`--check` asks for at most 100 bytes more for every further image: the order of an
epoch takes 8, two are kept.
"""

import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':
  huge_pages.reexec_with_huge_pages()

from absl import flags

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import input_pipeline
from alexnet_jax.prepare import prepare
from benchmarks import report

BAR = 100  # Bytes for every further image.
BATCH = 128
PROCESSES = 3  # Peaks vary by a MiB.


def make_folder(root: pathlib.Path, paths: list[pathlib.Path], number: int):
  """A source of `number` images, which are links to `paths` in turn."""
  for part, count in (('train', number), ('val', 1)):
    (root / part / 'class').mkdir(parents=True)
    for i, path in zip(range(count), itertools.cycle(paths)):
      os.symlink(path, root / part / 'class' / f'{i:07d}{path.suffix}')


def photographs(folder: str) -> list[pathlib.Path]:
  """The JPEGs below a folder; ends the command where there are none."""
  paths = report.jpeg_files(folder)
  if not paths:
    sys.exit(f'--folder={folder} holds no JPEG')
  return paths


def _read_epoch(data_dir):
  dataset = dataset_lib.open_dataset(data_dir, 'set')
  steps = dataset.num_examples['train'] // BATCH
  batches = input_pipeline.train_batches(
    dataset, 'train', batch_size=BATCH, seed=0, start_step=0
  )
  for _ in itertools.islice(batches, steps):
    pass
  batches.close()
  print(report.peak_bytes())


def peak_bytes(paths: list[pathlib.Path], number: int, processes: int) -> int:
  """Of processes that read one epoch of `number` images, the median."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    make_folder(root / 'photographs', paths, number)
    prepare.prepare(f'folder:{root}/photographs', 'set', root)
    command = [sys.executable, '-m', 'benchmarks.memory', '--epoch', folder]
    peaks = []
    for _ in range(processes):
      done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
      peaks.append(int(done.stdout.split()[-1]))
  return statistics.median(peaks)


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_string('folder', None, 'Of photographs.', required=True)
  flags.DEFINE_bool(
    'quick', False, 'A quarter of the images, read once: within a MiB.'
  )
  flags.DEFINE_bool('check', False, f'Fail above {BAR}.')
  flags.DEFINE_integer('number', 4000, 'Images of the smaller set.', BATCH)
  flags.DEFINE_string('output', None, 'File for the figures, JSON.')


def main(_) -> None:
  paths = photographs(FLAGS.folder)
  number = FLAGS.number // 4 if FLAGS.quick else FLAGS.number
  processes = 1 if FLAGS.quick else PROCESSES
  peaks = {n: peak_bytes(paths, n, processes) for n in (number, 10 * number)}
  for n, peak in peaks.items():
    print(f'{n:8} images: at most {peak / 2**20:.0f} MiB')
  grown = (peaks[10 * number] - peaks[number]) / (9 * number)
  print('seed of the order: 0')
  report.print_environment()
  report.write(FLAGS.output, {'peak_bytes': peaks, 'bytes_per_image': grown})
  print(f'{grown:.0f} bytes for every further image, bar {BAR}')
  if FLAGS.check and grown > BAR:
    sys.exit(1)


if __name__ == '__main__':
  if sys.argv[1:2] == ['--epoch']:  # For `peak_bytes`.
    _read_epoch(sys.argv[2])
    sys.exit()
  define_flags()
  report.run(main)
