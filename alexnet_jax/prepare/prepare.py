r"""Prepares a data set for training, once (section 2 of the paper).

    python -m alexnet_jax.prepare --source=folder:DIR --name=NAME

creates DATA_DIR/NAME/1.0.0, an ordinary tfds data set of ArrayRecord shards.
Every image is scaled so that its shorter side has `size` pixels (256 in the
paper), and its central square is cut out. The mean image of the training split
and the covariance of its RGB values are stored with the images. Preparation
needs no TensorFlow.

Each CPU core writes shards of its own, in a worker process. Memory: about
0.4 GB per process for photographs of usual size. A large image takes 4 (JPEG)
to 20 (JPEG 2000) bytes per pixel, depending on its format; images of more than
`images.MAX_PIXELS` and files of more than `images.MAX_BYTES` are skipped. The
index of the ImageNet archives takes 0.2 GB while it is built.

A killed preparation continues where it stopped, even after a power loss:
complete shards are kept, and the data set gets its name only when it is
complete. Its bytes do not depend on interruptions or on the number of cores.
"""

from collections.abc import Iterator
import contextlib
import logging
import os
import pathlib
import re

import numpy as np
import tqdm

from alexnet_jax import dataset as dataset_lib
from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.prepare import folders
from alexnet_jax.prepare import metadata
from alexnet_jax.prepare import plan as plan_lib
from alexnet_jax.prepare import shards
from alexnet_jax.prepare import sources
from alexnet_jax.prepare import workers as workers_lib
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

SHARD_EXAMPLES = 1280  # About 50 MB of 256x256 JPEG; 1,001 shards of ImageNet.
# Up to this many images, this process writes all shards itself.
ALONE = 4 * SHARD_EXAMPLES
_NUM_SHOWN = 3  # Number of unreadable images that an error names.


def prepare(
  spec: str,
  name: str,
  data_dir: str | os.PathLike,
  *,
  size: int = 256,
  quality: int = 95,
  max_bad: int = 10,
  seed: int = 0,
  val_fraction: float = 0.0,
  workers: int | None = None,
) -> pathlib.Path:
  """Prepares the source `spec` as the data set `name` in `data_dir`.

  More than `ALONE` images are divided among worker processes; see workers.py.

  Args:
    spec: the source, in one of the forms of `sources.open_source`.
    name: a letter, then up to 199 letters, digits and underscores.
    data_dir: folder of the prepared data sets.
    size: height and width of the stored images in pixels.
    quality: JPEG quality, 1 to 100, of the images stored as JPEG.
    max_bad: maximum number of unreadable images to skip.
    seed: seed of the order of the examples, and of the choice of those held out.
    val_fraction: part of every class to hold out as 'validation', at least 0
      and below 1; 0 for a source that has its splits.
    workers: number of worker processes; one per CPU core if 0 or None.

  Returns:
    The folder of the data set, which may have existed already.

  Raises:
    ValueError: if an argument or the source is invalid, or if the data set
      exists, complete or incomplete, with other arguments or images.
    FileNotFoundError: if the source does not exist.
    RuntimeError: after more than `max_bad` unreadable images, or if a worker
      process was killed.
  """
  _check_arguments(name, size, quality, max_bad, seed, val_fraction, workers)
  spec = sources.absolute(spec)
  settings = {'source': spec, 'size': size, 'jpeg_quality': quality}
  settings |= {'seed': seed, 'val_fraction': val_fraction}
  folder = dataset_lib.dataset_path(data_dir, name, '--data_dir')
  if folder.exists():
    return _existing(folder, settings)
  incomplete = folder.with_name(f'{folder.name}.incomplete')
  # An invalid source is refused before anything is written.
  index = plan_lib.read_index(incomplete)
  source = sources.open_source(spec, index, val_fraction, seed)
  folders.warn_of_unused(spec, source.unused)
  examples_lib.warn_of_empty_classes(source)
  with _created_and_locked(folder.parent, data_dir):
    if folder.exists():  # Another process has completed it in the meantime.
      return _existing(folder, settings)
    plan = plan_lib.begin(incomplete, settings, source)
    if not (incomplete / plan_lib.RECORD_FILE).exists():
      _write(incomplete, name, source, plan, max_bad, workers)
    _complete(incomplete, folder)
  plan_lib.log_record(folder)
  return folder


def _check_arguments(name, size, quality, max_bad, seed, val_fraction, workers):
  problems = []
  # The names of shards are longer; file systems allow 255 bytes.
  if not re.fullmatch('[A-Za-z][A-Za-z0-9_]{,199}', name):
    problems.append(
      f'--name={name} must be a letter, then at most 199 letters, digits and _'
    )
  if size < 1:
    problems.append(f'--size={size} must be at least 1 pixel')
  if not 1 <= quality <= 100:
    problems.append(f'--quality={quality} must be between 1 and 100')
  if max_bad < 0:
    problems.append(f'--max_bad={max_bad} must not be negative')
  if seed < 0:
    problems.append(f'--seed={seed} must not be negative')
  if not 0 <= val_fraction < 1:
    problems.append(
      f'--val_fraction={val_fraction} must be at least 0, below 1'
    )
  if workers is not None and workers < 0:
    problems.append(f'--workers={workers} must be at least 0 (one per core)')
  if problems:
    raise ValueError('; '.join(problems))


def _existing(folder, settings):
  """The folder of a complete data set, if it was made with these settings."""
  plan_lib.check_same(
    folder / plan_lib.RECORD_FILE,
    settings,
    f'choose a --name other than {folder.parent.name}',
  )
  log.info('%s exists already; nothing to do.', folder)
  return folder


@contextlib.contextmanager
def _created_and_locked(folder, data_dir) -> Iterator[None]:
  """Creates `folder` and holds its lock; see `files.locked`."""
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      stack.enter_context(files.locked(folder))
    except OSError as error:
      raise ValueError(
        f'data_dir={data_dir} is not a writable folder ({error}); choose'
        ' another one'
      ) from error
    with files.full_disk_named(folder, lambda: 'finished shards are kept'):
      yield


def _write(folder, name, source, plan, max_bad, workers):
  """Writes all shards and the files that describe them."""
  todo = list(_shards(folder, name, source, plan))
  with tqdm.tqdm(
    total=sum(plan['examples'].values()), desc=name, unit='image', disable=None
  ) as progress:
    workers = workers or processes.available_cores()
    if workers == 1 or progress.total <= ALONE:
      _write_in_this_process(todo, folder, max_bad, progress)
    else:
      _write_in_workers(todo, folder, max_bad, progress, workers)
  _describe(folder, name, source, plan, todo)


def _shards(folder, name, source, plan) -> Iterator[shards.Shard]:
  """All shards; the examples of each split are in random order."""
  for split, examples in source.splits.items():
    order = np.random.default_rng(plan['seed']).permutation(len(examples))
    parts = np.array_split(order, -(-len(order) // SHARD_EXAMPLES))
    for i, part in enumerate(parts):
      file = f'{name}-{split}.array_record-{i:05d}-of-{len(parts):05d}'
      yield shards.Shard(
        split,
        folder / file,
        examples_lib.Subset(examples, part),
        plan['size'],
        plan['jpeg_quality'],
      )


def _write_in_this_process(todo, folder, max_bad, progress):
  skipped, num_done = [], 0
  for shard in todo:
    sums = shards.write(shard, max_bad - len(skipped), progress.update)
    skipped += sums['skipped'].tolist()
    _check_skipped(skipped, max_bad, folder)
    num_done += len(shard.examples)
    # Counts the images of a shard that was complete already.
    progress.update(num_done - progress.n)


def _write_in_workers(todo, folder, max_bad, progress, workers):
  waiting, num_complete, skipped = [], 0, {}
  for shard in todo:
    if shard.path.exists():
      skipped[shard.path] = shards.read_sums(shard)['skipped'].tolist()
      num_complete += len(shard.examples)
    else:
      waiting.append(shard)
  progress.initial = progress.last_print_n = progress.n = num_complete

  def report(num_processed, newly_skipped):
    progress.update(num_complete + num_processed - progress.n)
    by_path = skipped | newly_skipped
    lines = [line for shard in todo for line in by_path.get(shard.path, ())]
    _check_skipped(lines, max_bad, folder)

  workers_lib.write_all(waiting, max_bad, workers, report)


def _check_skipped(skipped, max_bad, folder):
  if len(skipped) > max_bad:
    for line in skipped[_NUM_SHOWN:]:
      log.warning('unreadable: %s', folders.printable(line))
    raise RuntimeError(
      f'more than --max_bad={max_bad} unreadable images:\n'
      f'{folders.described(skipped, _NUM_SHOWN, "; ")}\n'
      'To continue without them, repeat the command with a larger'
      f' --max_bad; or repair or delete them, remove {folder}, and begin again'
    )


def _describe(folder, name, source, plan, complete_shards):
  """Writes the statistics, the tfds metadata and the record.

  The record comes last: it says that all other files are complete.
  """
  splits = {
    split: metadata.SplitTotals(plan['size']) for split in source.splits
  }
  skipped, damaged = [], []
  for shard in complete_shards:
    sums = shards.read_sums(shard)
    splits[shard.split].add(sums)
    skipped += sums['skipped'].tolist()
    damaged += sums['damaged'].tolist()
  if not splits['train'].num_examples:
    raise ValueError(
      f'--source={plan["source"]} has no readable training image'
    )
  identity = [plan[key] for key in ('sha256', 'size', 'jpeg_quality', 'seed')]
  identity += [skipped, source.class_names]
  metadata.write_statistics(folder, splits['train'], identity)
  metadata.write_tfds_metadata(
    folder,
    name,
    splits,
    size=plan['size'],
    class_names=source.class_names,
    description=source.description,
  )
  for path in folder.iterdir():
    files.sync(path)
  stored = {split: totals.num_examples for split, totals in splits.items()}
  record = {**plan, 'stored': stored, 'skipped': skipped}
  if source.unused:
    record['unused'] = [*source.unused]
  if damaged:
    record['damaged'] = damaged
  files.write_json(folder / plan_lib.RECORD_FILE, record)


def _complete(incomplete, folder):
  """Removes temporary files, records digests, and names the data set."""
  known = shards.read_digests(incomplete)
  # Killed processes may have left *.tmp files.
  temporary = (shards.SUMS, '*.tmp', plan_lib.INDEX_FILE, plan_lib.PLAN_FILE)
  for pattern in temporary:
    for path in incomplete.glob(pattern):
      path.unlink()
  digests.write(incomplete, known)
  os.replace(incomplete, folder)
