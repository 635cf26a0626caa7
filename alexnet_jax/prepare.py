r"""Prepares a data set for training, once (section 2 of the paper).

    python -m alexnet_jax.prepare --source=folder:DIR --name=NAME

makes DATA_DIR/NAME/1.0.0, an ordinary tfds data set of ArrayRecord shards:
every image scaled so that its shorter side is `size` pixels (256 in the
paper), its central square cut out; beside it the training set's mean image
and the covariance of its RGB values. Needs no TensorFlow.

A killed preparation continues where it was: complete shards are kept, and the
data set appears under its name only when it is whole.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
import sys

from absl import app
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from PIL import Image
from PIL import ImageOps
import tensorflow_datasets as tfds
import tqdm

from alexnet_jax import input_pipeline
from alexnet_jax import sources

log = logging.getLogger('alexnet_jax.prepare')  # Also when it is __main__.

SHARD_EXAMPLES = 1280  # About 50 MB of 256x256 JPEG, 1,001 shards of ImageNet.
PNG_SIZE = 96  # Up to this size PNG is stored: lossless, and hardly larger.
LOSSLESS_FORMATS = ('PNG', 'BMP', 'PPM')


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
  out = input_pipeline.dataset_path(data_dir, name)
  if out.exists():
    log.info('%s exists: nothing to do.', out)
    return out
  _check_arguments(name, size, quality, max_bad)
  source = sources.open_source(spec)
  work = out.with_name(f'{out.name}.incomplete')
  plan = {
    'source': spec,
    'size': size,
    'jpeg_quality': quality,
    'seed': seed,
    'examples': {split: len(e) for split, e in source.splits.items()},
    'sha256': _digest(source),
  }
  _begin(work, plan)
  totals = {}
  skipped = []
  with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
    for split, examples in source.splits.items():
      order = np.random.default_rng(seed).permutation(len(examples))
      shards = np.array_split(order, -(-len(order) // SHARD_EXAMPLES))
      results = []
      progress = tqdm.tqdm(
        total=len(order),
        desc=f'{name} {split}',
        unit='image',
        disable=None,
        file=sys.stderr,
      )
      with progress:
        for i, shard in enumerate(shards):
          shard_name = (
            f'{name}-{split}.array_record-{i:05d}-of-{len(shards):05d}'
          )
          results.append(
            _write_shard(
              work / shard_name,
              [examples[j] for j in shard],
              pool,
              size,
              quality,
              max_bad - len(skipped),
              progress,
            )
          )
          skipped += results[-1]['skipped'].tolist()
          if len(skipped) > max_bad:
            raise RuntimeError(
              f'{len(skipped)} unreadable images, more than --max_bad={max_bad};'
              f' the last: {skipped[-1]}. Repair or remove them, or raise'
              ' --max_bad; the same command continues'
            )
      totals[split] = results
  _finish(work, name, source, plan, totals, skipped)
  os.replace(work, out)
  for line in skipped:
    log.warning('skipped %s', line)
  log.info(
    '%s: %s examples, %d unreadable images skipped.',
    out,
    ' + '.join(
      f'{sum(int(r["count"]) for r in rs)} {s}' for s, rs in totals.items()
    ),
    len(skipped),
  )
  return out


def encode(encoded: bytes, size: int, quality: int) -> tuple[bytes, np.ndarray]:
  """One image as it is stored, and its pixels [size, size, 3] of 0..255.

  EXIF rotation is applied; grey, palette and CMYK images become RGB; of a
  multi-frame image the first frame counts. The shorter side is scaled to
  `size` (bicubic, antialiased), then the central square is cut out. Stored as
  PNG where a lossless image needs no scaling or `size` is small, as the
  original bytes where a JPEG needs no change, otherwise as JPEG.

  Raises:
    OSError, ValueError, SyntaxError, Image.DecompressionBombError: if Pillow
      cannot read the image.
  """
  with Image.open(io.BytesIO(encoded)) as opened:
    kind, mode, stored_size = opened.format, opened.mode, opened.size
    image = ImageOps.exif_transpose(opened).convert('RGB')
    turned = opened.getexif().get(0x0112, 1) != 1  # The tag "Orientation".
  same = stored_size == (size, size)
  if not same:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    image = image.resize(
      (size, size),
      Image.Resampling.BICUBIC,
      box=(left, top, left + side, top + side),
    )
  pixels = np.asarray(image)
  if (
    same and kind == 'JPEG' and mode == 'RGB' and not turned and size > PNG_SIZE
  ):
    return encoded, pixels
  buffer = io.BytesIO()
  if size <= PNG_SIZE or same and kind in LOSSLESS_FORMATS:
    image.save(buffer, 'PNG')
  else:
    image.save(buffer, 'JPEG', quality=quality)
  return buffer.getvalue(), pixels


def _check_arguments(name, size, quality, max_bad):
  problems = []
  if not name.isidentifier():
    problems.append(f'--name={name} must be letters, digits and underscores')
  if size < 1:
    problems.append(f'--size={size} must be at least 1 pixel')
  if not 1 <= quality <= 100:
    problems.append(f'--quality={quality} must lie between 1 and 100')
  if max_bad < 0:
    problems.append(f'--max_bad={max_bad} must not be negative')
  if problems:
    raise ValueError('; '.join(problems))


def _digest(source):
  digest = hashlib.sha256()
  for split, examples in source.splits.items():
    for example in examples:
      digest.update(f'{split}\0{example.file_name}\0{example.label}\n'.encode())
  return digest.hexdigest()


def _begin(work, plan):
  plan_file = work / 'plan.json'
  if plan_file.exists():
    old = json.loads(plan_file.read_text())
    if old != plan:
      differ = [key for key in plan if old.get(key) != plan[key]]
      raise ValueError(
        f'{work} is an unfinished preparation of another {", ".join(differ)};'
        ' repeat its command, or remove that folder'
      )
    return
  work.mkdir(parents=True, exist_ok=True)
  temporary = plan_file.with_suffix('.tmp')
  temporary.write_text(json.dumps(plan))
  os.replace(temporary, plan_file)


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


def _write_shard(path, examples, pool, size, quality, may_skip, progress):
  """Writes one shard, or finds it written; returns its counts and sums."""
  sums_file = path.with_name(path.name + '.sums.npz')
  if path.exists():
    progress.update(len(examples))
    return dict(np.load(sums_file))
  serializer = tfds.core.example_serializer.ExampleSerializer(
    _features(['-'], size).get_serialized_info()
  )
  pixel_sum = np.zeros((size, size, 3), np.int64)
  product_sum = np.zeros((3, 3), np.int64)
  count = num_bytes = 0
  skipped = []
  temporary = path.with_name(path.name + '.tmp')
  writer = ArrayRecordWriter(str(temporary), 'group_size:1')
  for example, result in _map_ordered(
    pool, lambda e: _try_encode(e, size, quality), examples
  ):
    progress.update()
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
    count, num_bytes = count + 1, num_bytes + len(record)
    pixel_sum += pixels
    product_sum += products
  writer.close()
  result = {
    'count': np.int64(count),
    'num_bytes': np.int64(num_bytes),
    'pixel_sum': pixel_sum,
    'product_sum': product_sum,
    'skipped': np.array(skipped, dtype=np.str_),
  }
  if len(skipped) <= may_skip:
    np.savez(sums_file, **result)
    os.replace(temporary, path)
  return result


def _try_encode(example, size, quality):
  """Stored bytes, pixels, sums of RGB products; or why it is unreadable."""
  try:
    encoded, pixels = encode(example.read(), size, quality)
  except (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
  ) as error:
    return f'{example.file_name}: {error}'
  flat = pixels.reshape(-1, 3).astype(np.float64)  # Exact: below 2 ** 53.
  return encoded, pixels, (flat.T @ flat).astype(np.int64)


def _map_ordered(pool, fn, items, ahead: int = 64) -> Iterator:
  """Pairs (item, fn(item)) in order, at most `ahead` of them in memory."""
  items = iter(items)
  waiting = [
    (item, pool.submit(fn, item)) for item in itertools.islice(items, ahead)
  ]
  while waiting:
    item, future = waiting.pop(0)
    yield item, future.result()
    for item in itertools.islice(items, 1):
      waiting.append((item, pool.submit(fn, item)))


def _finish(work, name, source, plan, totals, skipped):
  """Statistics, tfds's metadata and the record of how it was made."""
  train = totals['train']
  count = sum(int(result['count']) for result in train)
  if not count:
    raise ValueError(f'--source={plan["source"]}: no readable training image')
  pixel_sum = sum(result['pixel_sum'] for result in train)
  product_sum = sum(result['product_sum'] for result in train)
  num_pixels = count * plan['size'] ** 2
  rgb_mean = pixel_sum.sum((0, 1)) / num_pixels
  np.savez(
    work / input_pipeline.STATISTICS_FILE,
    mean_image=(pixel_sum / count).astype(np.float32),
    rgb_covariance=product_sum / num_pixels - np.outer(rgb_mean, rgb_mean),
  )
  split_infos = []
  for split, results in totals.items():
    template = tfds.core.ShardedFileTemplate(
      dataset_name=name,
      data_dir=work,
      split=split,
      filetype_suffix='array_record',
    )
    split_infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[int(result['count']) for result in results],
        num_bytes=sum(int(result['num_bytes']) for result in results),
        filename_template=template,
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=work,
    features=_features(source.class_names, plan['size']),
    split_infos=split_infos,
    version=input_pipeline.VERSION,
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
    description=source.description,
  )
  (work / 'preparation.json').write_text(
    json.dumps({**plan, 'skipped': skipped}, indent=1)
  )
  for path in itertools.chain(work.glob('*.sums.npz'), [work / 'plan.json']):
    path.unlink()


FLAGS = flags.FLAGS


def define_flags() -> None:
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


if __name__ == '__main__':
  define_flags()
  app.run(main)
