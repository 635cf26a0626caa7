"""Damaged, replaced and re-framed data sets: never another example in silence."""

import contextlib
import functools
import pathlib
import shutil

from array_record.python import array_record_module
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import records as records_lib
from alexnet_jax.prepare import prepare
from alexnet_jax.prepare import verify
from alexnet_jax.runtime import digests
from benchmarks.faults import damage
from benchmarks.faults import rows
from benchmarks.faults import runs

SIZE = 24  # Images of this size are stored as PNG.
SPLITS = ('train', 'validation')
check = rows.check


def read_shard(path: pathlib.Path) -> list[bytes]:
  """The records of a shard."""
  reader = array_record_module.ArrayRecordReader(str(path))
  contents = reader.read_all()
  reader.close()
  return contents


def write_shard(
  path: pathlib.Path,
  contents: list[bytes],
  options: str = 'group_size:1,uncompressed',
) -> None:
  """Writes a shard; the default options are those of preparation."""
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  for content in contents:
    writer.write(content)
  writer.close()


def _edit(contents, rng, change):
  """Changes the features of one record."""
  row = rng.integers(len(contents))
  example = tf_example_pb2.Example.FromString(contents[row])
  change(example.features.feature)
  contents[row] = example.SerializeToString(deterministic=True)


def _label(contents, rng):
  labels = (-1, 2, 2**31, 2**62, -(2**63))
  value = labels[rng.integers(len(labels))]

  def change(feature):
    feature['label'].int64_list.value[0] = value

  _edit(contents, rng, change)


def _without(contents, rng):
  names = ('label', 'image', 'file_name')
  name = names[rng.integers(len(names))]
  _edit(contents, rng, lambda feature: feature.pop(name))


def _image(contents, rng):
  choices = (b'', b'%!PS-Adobe-3.0 EPSF-3.0\n', b'\xff\xd8\xff', rng.bytes(99))
  content = choices[rng.integers(len(choices))]

  def change(feature):
    feature['image'].bytes_list.value[0] = content

  _edit(contents, rng, change)


def _name(contents, rng):
  def change(feature):
    feature['file_name'].bytes_list.value[0] = rng.bytes(9)

  _edit(contents, rng, change)


def _noise(contents, rng):
  row = rng.integers(len(contents))
  contents[row] = rng.bytes(rng.integers(200))


def _bit(contents, rng):
  row = rng.integers(len(contents))
  content = bytearray(contents[row])
  content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
  contents[row] = bytes(content)


def _swap(contents, rng):
  contents[:] = [contents[i] for i in rng.permutation(len(contents))]


def _drop(contents, rng):
  del contents[rng.integers(len(contents))]


def _double(contents, rng):
  contents.append(contents[rng.integers(len(contents))])


RECORDS = (
  *(_label, _without, _image, _name, _noise, _bit, _swap, _drop, _double),
)


def hurt(folder: pathlib.Path, other: pathlib.Path, rng) -> tuple[str, str]:
  """Changes one file of a data set; returns its name, and what was done."""
  shards = sorted(folder.glob('*.array_record-*'))
  if (draw := rng.random()) < 0.4:  # A damaged file.
    path = damage.choose(damage.files_of(folder), rng)
    kind = damage.choose(damage.ALL, rng)
    kind(path, rng)
    return path.name, kind.__name__
  if draw < 0.6:  # A file of another data set of the same shapes.
    path = damage.choose(damage.files_of(folder), rng)
    shutil.copy(other / path.name, path)
    return path.name, 'replaced'
  shard = damage.choose(shards, rng)
  contents = read_shard(shard)
  if draw < 0.7:  # The same records in another frame.
    write_shard(shard, contents, 'group_size:4,zstd')
    return shard.name, 're-framed'
  kind = damage.choose(RECORDS, rng)
  kind(contents, rng)
  write_shard(shard, contents)
  return shard.name, kind.__name__


def read_all(data_dir: pathlib.Path) -> list:
  """Every example as (name, label, pixels), or the error in its place."""
  found = []
  dataset = dataset_lib.open_dataset(data_dir, 'set')
  out = np.empty((SIZE, SIZE, 3), np.uint8)
  for split in SPLITS:
    stored = records_lib.Records(dataset, split)
    for row in range(len(stored)):
      try:
        label, name = stored.decode_named(row, out)
        found.append((name, label, out.tobytes()))
      except ValueError as error:
        found.append(error)
  return found


def prepare_two(shared: pathlib.Path) -> list[pathlib.Path]:
  """The folders of two data sets of the same shapes and other pixels."""
  found = []
  for seed in (0, 1):
    root = runs.new_folder(shared)
    runs.write_photographs(root / 'images', 24, seed)
    source = f'folder:{root / "images"}'
    found.append(prepare.prepare(source, 'set', root, size=SIZE))
  return found


@contextlib.contextmanager
def data_set(shared, has_digests):
  """Opens, verifies and reads data sets in which one file is another."""
  whole, other = prepare_two(shared)
  expected = read_all(whole.parents[1])

  def trial(rng, folder):
    path = damage.copy(whole, folder / 'set' / whole.name)
    before = runs.tree(path)
    name, what = hurt(path, other, rng)
    regular = (path / name).is_file() and not (path / name).is_symlink()
    if regular and (path / name).read_bytes() == before[name]:
      return 'unchanged'
    what = f'{what} of {name}'
    if not has_digests:
      if name == digests.FILE:
        return 'unchanged'
      (path / digests.FILE).unlink()
    with damage.nothing_is_run():
      if has_digests:
        check_verified(folder, name, what)
      found = read_or_named(folder, expected, name, what)
    if found != 'other examples':
      return found
    return (
      f'{found}, {"--verify alone notices" if has_digests else "unnoticed"}'
    )

  yield trial


def check_verified(data_dir, name, what):
  """Raises Broken unless --verify names the file."""
  with contextlib.redirect_stdout(None):
    try:
      problems = verify.verify('set', data_dir)
    except ValueError as error:
      problems = [str(error)]
  # Other digests make every other file another.
  named = [x for x in problems if name in x or name == digests.FILE]
  check(named, f'{what}: verified {problems}')


def read_or_named(data_dir, expected, name, what):
  """What reading gives: each record is whole, or its shard is named."""
  try:
    found = read_all(data_dir)
  except (ValueError, OSError) as error:
    check(str(data_dir) in str(error), f'{what}: {error}')
    check('\n' not in str(error), f'{what}: several lines: {error}')
    return 'refused when opened'
  errors = [one for one in found if isinstance(one, ValueError)]
  for error in errors:
    check(f'{name}, record ' in str(error), f'{what}: {error}')
    check('\n' not in str(error), f'{what}: several lines: {error}')
  for one in found:
    is_whole = isinstance(one, ValueError) or one[1] in (0, 1)
    check(is_whole, f'{what}: label {one}')
  if errors:
    return 'refused when read'
  return 'equal' if found == expected else 'other examples'


ROWS = [
  rows.Row(
    'data_set',
    'a file of a data set is damaged, replaced by that of another, or holds'
    ' other or re-framed records',
    '--verify names the file; no label outside of the classes, no crash and no'
    ' hang: what cannot be read is refused in one line with file and record',
    *(150, 12, functools.partial(data_set, has_digests=True)),
  ),
  rows.Row(
    'old_data_set',
    'the same, in a data set of an earlier version, which has no digests',
    'no label outside of the classes, no crash and no hang; what cannot be read'
    ' is refused in one line with file and record',
    *(50, 4, functools.partial(data_set, has_digests=False)),
  ),
]
