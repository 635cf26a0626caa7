r"""Prepares a data set for training, once (section 2 of the paper).

    python -m alexnet_jax.prepare --source=folder:DIR --name=NAME

makes DATA_DIR/NAME/1.0.0, an ordinary tfds data set of ArrayRecord shards:
every image scaled so that its shorter side is `size` pixels (256 in the
paper), its central square cut out; beside it the training set's mean image
and the covariance of its RGB values. Needs no TensorFlow.

A killed preparation continues where it was: complete shards are kept, and the
data set appears under its name only when it is whole.
"""

import collections
from collections.abc import Iterator, Sequence
import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import re
import sys

from absl import app
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from alexnet_jax import files
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax import sources

log = logging.getLogger('alexnet_jax.prepare')  # Also when it is __main__.

PLAN_FILE = 'plan.json'  # While the preparation is unfinished.
RECORD_FILE = 'preparation.json'  # How the data set was made.
SHARD_EXAMPLES = 1280  # About 50 MB of 256x256 JPEG, 1,001 shards of ImageNet.
AHEAD = 64  # Encoded images that wait to be written: 15 MB of 256x256.


def prepare(
  spec: str,
  name: str,
  data_dir: str | os.PathLike,
  *,
  size: int = 256,
  quality: int = 95,
  max_bad: int = 10,
  seed: int = 0,
  threads: int | None = None,
) -> pathlib.Path:
  """Prepares `spec` as the data set `name` under `data_dir`.

  Args:
    spec: what `sources.open_source` takes.
    name: of the data set, letters, digits and underscores.
    data_dir: folder of the prepared data sets.
    size: side of the stored images in pixels.
    quality: of JPEG, 1 to 100, where an image is stored as JPEG.
    max_bad: unreadable images to skip before the preparation fails.
    seed: of the order in which the examples are stored.
    threads: that decode and encode; default one per core.

  Returns:
    The folder of the data set, existing already or newly made.

  Raises:
    ValueError: if the arguments or the source are wrong, or if an unfinished
      preparation of other arguments is in the way.
    RuntimeError: after more than `max_bad` unreadable images.
  """
  _check_arguments(name, size, quality, max_bad, threads)
  out = input_pipeline.dataset_path(data_dir, name)
  asked = {'source': spec, 'size': size, 'jpeg_quality': quality, 'seed': seed}
  # Its errors come before anything is written.
  source = None if out.exists() else sources.open_source(spec)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
      f'the folder data_dir={data_dir} cannot be written ({error}); name one'
      ' that can'
    ) from error
  with files.locked(out.parent):
    if out.exists():
      _check_same(out / RECORD_FILE, asked, f'use another name than {name}')
      log.info('%s exists: nothing to do.', out)
      return out
    work = out.with_name(f'{out.name}.incomplete')
    plan = {
      **asked,
      'examples': {split: len(e) for split, e in source.splits.items()},
      'sha256': _digest(source),
    }
    _begin(work, plan)
    if not (work / RECORD_FILE).exists():
      _write(work, name, source, plan, max_bad, threads or os.cpu_count())
    for path in (*work.glob('*.sums.npz'), work / PLAN_FILE):
      path.unlink(missing_ok=True)
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


def _write(work, name, source, plan, max_bad, threads):
  """Writes all shards, then what describes them; the record comes last."""
  size, quality = plan['size'], plan['jpeg_quality']
  splits = {split: _Totals(size) for split in source.splits}
  skipped = []
  with (
    concurrent.futures.ThreadPoolExecutor(threads) as pool,
    tqdm.tqdm(
      total=sum(plan['examples'].values()),
      desc=name,
      unit='image',
      disable=None,
    ) as progress,
  ):
    done = 0
    for split, path, examples in _shards(work, name, source, plan['seed']):
      encoded = _encoded(examples, pool, size, quality, progress)
      result = _write_shard(path, encoded, max_bad - len(skipped), size)
      done += len(examples)
      progress.update(done - progress.n)  # Where it was written already.
      splits[split].add(result)
      skipped += result['skipped'].tolist()
      if len(skipped) > max_bad:
        raise RuntimeError(
          f'more than --max_bad={max_bad} unreadable images:\n'
          + '\n'.join(skipped)
          + '\nWith a larger --max_bad the same command continues without them;'
          f' or repair or remove them, remove {work}, and begin again'
        )
  _describe(work, name, source, plan, splits, skipped)


def _check_arguments(name, size, quality, max_bad, threads):
  problems = []
  if not re.fullmatch('[A-Za-z0-9_]+', name):
    problems.append(f'--name={name} must be letters, digits and underscores')
  if size < 1:
    problems.append(f'--size={size} must be at least 1 pixel')
  if not 1 <= quality <= 100:
    problems.append(f'--quality={quality} must lie between 1 and 100')
  if max_bad < 0:
    problems.append(f'--max_bad={max_bad} must not be negative')
  if threads is not None and threads < 0:
    problems.append(
      f'--threads={threads} must not be negative; 0: one per core'
    )
  if problems:
    raise ValueError('; '.join(problems))


def _digest(source):
  digest = hashlib.sha256()
  for split, examples in source.splits.items():
    for example in examples:
      digest.update(f'{split}\0{example.file_name}\0{example.label}\n'.encode())
  return digest.hexdigest()


def _check_same(file, asked, way_out):
  """Raises ValueError if a data set is there, made or begun in another way."""
  made = json.loads(file.read_text())
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


def _begin(work, plan):
  for file in (work / PLAN_FILE, work / RECORD_FILE):
    if file.exists():
      return _check_same(file, plan, 'repeat its command')
  work.mkdir(exist_ok=True)
  files.write_json(work / PLAN_FILE, plan)


def _features(
  class_names: Sequence[str], size: int
) -> tfds.features.FeaturesDict:
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(size, size, 3)),
      'label': tfds.features.ClassLabel(names=list(class_names)),
      'file_name': tfds.features.Text(),
    }
  )


def _shards(work, name, source, seed) -> Iterator:
  """(split, path, examples) of every shard, the examples in random order."""
  for split, examples in source.splits.items():
    order = np.random.default_rng(seed).permutation(len(examples))
    parts = np.array_split(order, -(-len(order) // SHARD_EXAMPLES))
    for i, part in enumerate(parts):
      file = f'{name}-{split}.array_record-{i:05d}-of-{len(parts):05d}'
      yield split, work / file, [examples[j] for j in part]


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


def _encoded(examples, pool, size, quality, progress) -> Iterator:
  """(example, its result of `_try_encode`) in order, few of them in memory."""
  waiting = collections.deque()
  for example in examples:
    waiting.append((example, pool.submit(_try_encode, example, size, quality)))
    if len(waiting) > AHEAD:
      yield waiting[0][0], waiting.popleft()[1].result()
      progress.update()
  for example, future in waiting:
    yield example, future.result()
    progress.update()


def _try_encode(example, size, quality):
  """Stored bytes, pixels, sums of RGB products; or why it is unreadable."""
  try:
    encoded, pixels = images.encode(example.read(), size, quality)
  except images.ERRORS as error:
    return f'{example.file_name}: {error}'
  flat = pixels.reshape(-1, 3).astype(np.float64)  # Exact: below 2 ** 53.
  return encoded, pixels, (flat.T @ flat).astype(np.int64)


def _write_shard(path, encoded_examples, may_skip, size):
  """Writes one shard, or finds it written; returns its counts and sums."""
  sums_file = path.with_name(path.name + '.sums.npz')
  if path.exists():
    return dict(np.load(sums_file))
  serializer = tfds.core.example_serializer.ExampleSerializer(
    _features(['-'], size).get_serialized_info()
  )
  pixel_sum = np.zeros((size, size, 3), np.int64)
  product_sum = np.zeros((3, 3), np.int64)
  num_bytes, count, skipped = 0, 0, []
  temporary = path.with_name(path.name + '.tmp')
  writer = ArrayRecordWriter(str(temporary), 'group_size:1')
  for example, result in encoded_examples:
    if isinstance(result, str):
      skipped.append(result)
      if len(skipped) > may_skip:
        break
      continue
    encoded, pixels, products = result
    record = serializer.serialize_example(
      {'image': encoded, 'label': example.label, 'file_name': example.file_name}
    )
    writer.write(record)
    count += 1
    num_bytes += len(record)
    pixel_sum += pixels
    product_sum += products
  writer.close()
  result = {
    'count': np.array(count),
    'num_bytes': np.array(num_bytes),
    'pixel_sum': pixel_sum,
    'product_sum': product_sum,
    'skipped': np.array(skipped, dtype=np.str_),
  }
  if len(skipped) <= may_skip:  # The shard's name says that both are whole.
    np.savez(sums_file, **result)
    os.replace(temporary, path)
  return result


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
    work / input_pipeline.STATISTICS_FILE,
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
    version=input_pipeline.VERSION,
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
    description=source.description,
  )
  stored = {split: sum(t.shard_lengths) for split, t in splits.items()}
  files.write_json(
    work / RECORD_FILE, {**plan, 'stored': stored, 'skipped': skipped}
  )


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command; run.py imports this module without them."""
  flags.DEFINE_string(
    'source', None, f'Where the images are: {sources.FORMS}.', required=True
  )
  flags.DEFINE_string('name', None, 'Name of the data set.', required=True)
  flags.DEFINE_string(
    'data_dir', input_pipeline.DATA_DIR, 'Folder of the prepared data sets.'
  )
  flags.DEFINE_integer('size', 256, 'Side of the stored images in pixels.')
  flags.DEFINE_integer(
    'quality', 95, 'JPEG quality of the stored images, 1 to 100.'
  )
  flags.DEFINE_integer(
    'max_bad', 10, 'Unreadable images to skip before failing.'
  )
  flags.DEFINE_integer(
    'threads', 0, 'Threads that decode and encode; 0: one per core.'
  )


def main(_) -> None:
  logging.getLogger('alexnet_jax').setLevel(logging.INFO)
  try:
    prepare(
      FLAGS.source,
      FLAGS.name,
      FLAGS.data_dir,
      size=FLAGS.size,
      quality=FLAGS.quality,
      max_bad=FLAGS.max_bad,
      threads=FLAGS.threads,
    )
  except (ValueError, OSError, RuntimeError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command continues')


if __name__ == '__main__':
  define_flags()
  app.run(main)
