r"""Prepares a data set for training, once (section 2 of the paper).

    python -m alexnet_jax.prepare --source=folder:DIR --name=NAME

makes DATA_DIR/NAME/1.0.0, an ordinary tfds data set of ArrayRecord shards:
every image scaled so that its shorter side is `size` pixels (256 in the
paper), its central square cut out; beside it the training set's mean image
and the covariance of its RGB values. Needs no TensorFlow.

Every core works on a shard of its own, in a process of its own. Memory: about
0.4 GB for each process with usual photographs; for a large one 4 (JPEG) to 20
(JPEG 2000) bytes for every pixel, by its format (images of more than
`images.MAX_PIXELS`, and files of more than `examples.MAX_BYTES`, are skipped);
the index of ImageNet's archives takes 0.2 GB while it is made.

A killed preparation continues where it was, also after a power loss: complete
shards are kept, and the data set appears under its name only when it is whole.
However often it was killed, and on however many cores, its bytes are the same.
"""

from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import zipfile

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import images
from alexnet_jax.prepare import examples as examples_lib
from alexnet_jax.prepare import shards
from alexnet_jax.prepare import sources
from alexnet_jax.prepare import workers as workers_lib
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

log = logging.getLogger('alexnet_jax.prepare')  # Also when it is __main__.

PLAN_FILE = 'plan.json'  # While the preparation is unfinished.
RECORD_FILE = 'preparation.json'  # How the data set was made.
INDEX_FILE = 'index.npz'  # Of the source, while the preparation is unfinished.
SHARD_EXAMPLES = 1280  # About 50 MB of 256x256 JPEG, 1,001 shards of ImageNet.
ALONE = 4 * SHARD_EXAMPLES  # Up to so many images this process does the work.


def prepare(
  spec: str,
  name: str,
  data_dir: str | os.PathLike,
  *,
  size: int = 256,
  quality: int = 95,
  max_bad: int = 10,
  seed: int = 0,
  workers: int | None = None,
) -> pathlib.Path:
  """Prepares `spec` as the data set `name` under `data_dir`.

  More than `ALONE` images are spread over processes, see workers.py.

  Args:
    spec: what `sources.open_source` takes.
    name: of the data set, letters, digits and underscores.
    data_dir: folder of the prepared data sets.
    size: side of the stored images in pixels.
    quality: of JPEG, 1 to 100, where an image is stored as JPEG.
    max_bad: unreadable images to skip before the preparation fails.
    seed: of the order in which the examples are stored.
    workers: processes that read, decode and encode; default one per core.

  Returns:
    The folder of the data set, existing already or newly made.

  Raises:
    ValueError: if the arguments or the source are wrong, or if an unfinished
      preparation of other arguments is in the way.
    RuntimeError: after more than `max_bad` unreadable images, or if a process
      that worked on a shard has died.
  """
  _check_arguments(name, size, quality, max_bad, workers)
  out = dataset_lib.dataset_path(data_dir, name)
  spec = sources.absolute(spec)
  asked = {'source': spec, 'size': size, 'jpeg_quality': quality, 'seed': seed}
  work = out.with_name(f'{out.name}.incomplete')
  # Its errors come before anything is written.
  if out.exists():
    return _finished(out, asked)
  source = sources.open_source(spec, _read_index(work))
  with contextlib.ExitStack() as stack:
    try:
      out.parent.mkdir(parents=True, exist_ok=True)
      stack.enter_context(files.locked(out.parent))
    except OSError as error:
      raise ValueError(
        f'the folder data_dir={data_dir} cannot be written ({error}); name one'
        ' that can'
      ) from error
    if out.exists():  # Another process has been faster.
      return _finished(out, asked)
    plan = {
      **asked,
      'examples': {split: len(e) for split, e in source.splits.items()},
      'sha256': source.digest,
      'encoder': images.ENCODER,
    }
    _begin(work, plan, source.index)
    if not (work / RECORD_FILE).exists():
      number = workers or processes.available_cores()
      _write(work, name, source, plan, max_bad, number)
    # Also what kills have left of shards.
    for pattern in ('*.sums.npz', '*.tmp', INDEX_FILE, PLAN_FILE):
      for path in work.glob(pattern):
        path.unlink()
    os.replace(work, out)
  record = json.loads((out / RECORD_FILE).read_text())
  for line in record['skipped']:
    log.warning('skipped %s', line)
  stored = ' + '.join(f'{n} {split}' for split, n in record['stored'].items())
  skipped = len(record['skipped'])
  log.info(
    '%s: %s examples, %d unreadable images skipped.', out, stored, skipped
  )
  return out


def _finished(out, asked):
  _check_same(
    out / RECORD_FILE, asked, f'use another name than {out.parent.name}'
  )
  log.info('%s exists: nothing to do.', out)
  return out


def _write(work, name, source, plan, max_bad, workers):
  """Writes all shards, then what describes them; the record comes last."""
  todo = list(_shards(work, name, source, plan))
  with tqdm.tqdm(
    total=sum(plan['examples'].values()), desc=name, unit='image', disable=None
  ) as progress:
    alone = workers == 1 or progress.total <= ALONE
    write = _write_alone if alone else _write_in_processes
    write(todo, work, max_bad, progress, workers)
  splits = {split: _Totals(plan['size']) for split in source.splits}
  skipped = []
  for shard in todo:
    sums = shards.read_sums(shard)
    splits[shard.split].add(sums)
    skipped += sums['skipped'].tolist()
  _describe(work, name, source, plan, splits, skipped)


def _write_alone(todo, work, max_bad, progress, _):
  skipped, done = [], 0
  for shard in todo:
    sums = shards.write(shard, max_bad - len(skipped), progress.update)
    skipped += sums['skipped'].tolist()
    _check_skipped(skipped, max_bad, work)
    done += len(shard.examples)
    progress.update(done - progress.n)  # Where it was written already.


def _write_in_processes(todo, work, max_bad, progress, workers):
  there, waiting, skipped = 0, [], {}  # The last by path.
  for shard in todo:
    if shard.path.exists():
      skipped[shard.path] = shards.read_sums(shard)['skipped'].tolist()
      there += len(shard.examples)
    else:
      waiting.append(shard)
  progress.initial = progress.last_print_n = progress.n = there

  def report(encoded, of_shards):
    progress.update(there + encoded - progress.n)
    lines = skipped | of_shards
    found = [line for s in todo for line in lines.get(s.path, ())]
    _check_skipped(found, max_bad, work)

  workers_lib.write_all(waiting, max_bad, workers, report)


def _check_skipped(skipped, max_bad, work):
  if len(skipped) > max_bad:
    raise RuntimeError(
      f'more than --max_bad={max_bad} unreadable images:\n'
      + '\n'.join(skipped)
      + '\nWith a larger --max_bad the same command continues without them;'
      f' or repair or remove them, remove {work}, and begin again'
    )


def _check_arguments(name, size, quality, max_bad, workers):
  problems = []
  if not re.fullmatch('[A-Za-z0-9_]+', name):
    problems.append(f'--name={name} must be letters, digits and underscores')
  if size < 1:
    problems.append(f'--size={size} must be at least 1 pixel')
  if not 1 <= quality <= 100:
    problems.append(f'--quality={quality} must lie between 1 and 100')
  if max_bad < 0:
    problems.append(f'--max_bad={max_bad} must not be negative')
  if workers is not None and workers < 0:
    problems.append(
      f'--workers={workers} must not be negative; 0: one per core'
    )
  if problems:
    raise ValueError('; '.join(problems))


def _check_same(file, asked, way_out):
  """Raises ValueError if a data set is there, made or begun in another way."""
  try:
    made = json.loads(file.read_text())
  except (FileNotFoundError, ValueError) as error:
    raise ValueError(
      f'{file.parent} was not made by this command, or is damaged ({error});'
      f' remove it, or {way_out}'
    ) from error
  differ = [
    f'{key} {made.get(key)!r} there, {value!r} here'
    for key, value in asked.items()
    if made.get(key) != value
  ]
  if differ:
    raise ValueError(
      f'{file.parent} was made with other arguments ({"; ".join(differ)});'
      f' remove it, or {way_out}'
    )


def _read_index(work):
  """What an unfinished preparation knows of its source; None without one."""
  try:
    with open(work / INDEX_FILE, 'rb') as file, np.load(file) as index:
      return dict(index)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    return None  # Not there, or cut short by a kill.


def _begin(work, plan, index):
  for file in (work / PLAN_FILE, work / RECORD_FILE):
    if file.exists():
      return _check_same(file, plan, 'repeat its command')
  work.mkdir(exist_ok=True)
  if index is not None:
    np.savez(work / INDEX_FILE, **index)
  files.write_json(work / PLAN_FILE, plan)


def _shards(work, name, source, plan) -> Iterator[shards.Shard]:
  """Every shard, the examples of a split in random order."""
  for split, examples in source.splits.items():
    order = np.random.default_rng(plan['seed']).permutation(len(examples))
    parts = np.array_split(order, -(-len(order) // SHARD_EXAMPLES))
    for i, part in enumerate(parts):
      file = f'{name}-{split}.array_record-{i:05d}-of-{len(parts):05d}'
      yield shards.Shard(
        split,
        work / file,
        examples_lib.Part(examples, part),
        plan['size'],
        plan['jpeg_quality'],
      )


def _features(
  class_names: Sequence[str], size: int
) -> tfds.features.FeaturesDict:
  """What tfds is told of an example."""
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(size, size, 3)),
      'label': tfds.features.ClassLabel(names=list(class_names)),
      'file_name': tfds.features.Text(),
    }
  )


class _Totals:
  """What the shards of one split add up to; exact, in integers."""

  def __init__(self, size: int):
    self.shard_lengths = []
    self.num_bytes = 0
    self.pixel_sum = np.zeros((size, size, 3), np.int64)
    self.product_sum = np.zeros((3, 3), np.int64)  # Of R, G, B with R, G, B.

  def add(self, shard: dict[str, np.ndarray]) -> None:
    self.shard_lengths.append(int(shard['count']))
    self.num_bytes += int(shard['num_bytes'])
    self.pixel_sum += shard['pixel_sum']
    self.product_sum += shard['product_sum']


def _describe(work, name, source, plan, splits, skipped):
  """Statistics, tfds's metadata and the record of how it was made."""
  train = splits['train']
  count = sum(train.shard_lengths)
  if not count:
    raise ValueError(f'--source={plan["source"]}: no readable training image')
  num_pixels = count * plan['size'] ** 2
  rgb_mean = train.pixel_sum.sum((0, 1)) / num_pixels
  mean_image = (train.pixel_sum / count).astype(np.float32)
  made = [plan[key] for key in ('sha256', 'size', 'jpeg_quality', 'seed')]
  facts = json.dumps([*made, skipped, source.class_names]).encode()
  np.savez(
    work / dataset_lib.STATISTICS_FILE,
    mean_image=mean_image,
    fingerprint=hashlib.sha256(facts + mean_image.tobytes()).hexdigest()[:16],
    rgb_covariance=train.product_sum / num_pixels
    - np.outer(rgb_mean, rgb_mean),
  )
  split_infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=totals.shard_lengths,
      num_bytes=totals.num_bytes,
      filename_template=tfds.core.ShardedFileTemplate(
        dataset_name=name,
        data_dir=work,
        split=split,
        filetype_suffix='array_record',
      ),
    )
    for split, totals in splits.items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=work,
    features=_features(source.class_names, plan['size']),
    split_infos=split_infos,
    version=dataset_lib.VERSION,
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
    description=source.description,
  )
  stored = {split: sum(t.shard_lengths) for split, t in splits.items()}
  for path in work.iterdir():
    files.sync(path)  # The record says that the rest is whole.
  files.write_json(
    work / RECORD_FILE, {**plan, 'stored': stored, 'skipped': skipped}
  )
