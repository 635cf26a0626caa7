"""Hostile archives of ImageNet."""

import contextlib
import io
import pathlib
import tarfile
from unittest import mock

from alexnet_jax.prepare import imagenet
from benchmarks.faults import damage
from benchmarks.faults import images
from benchmarks.faults import rows

CLASSES = ('n01440764', 'n01443537', 'n01484850')  # In place of all 1,000.
check = rows.check


def add(archive, name: str, content: bytes = b'x', **fields) -> None:
  """Adds a member to a tar archive; `fields` may be anything."""
  member = tarfile.TarInfo(name)
  member.size = len(content)
  for field, value in fields.items():
    setattr(member, field, value)
  archive.addfile(member, io.BytesIO(content) if member.isreg() else None)


def odd_member(rng) -> dict:
  """A member that does not belong into an archive of ImageNet."""
  return damage.choose(
    (
      {'name': '../outside.JPEG'},
      {'name': '/etc/passwd.JPEG'},
      {'name': 'x/../../outside.JPEG'},
      {'name': 'x' * 300 + '.JPEG'},
      {'name': '\udcff.JPEG'},
      {'name': 'l', 'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'},
      {'name': 'l', 'type': tarfile.LNKTYPE, 'linkname': '../outside'},
      {'name': 'd', 'type': tarfile.CHRTYPE},
      {'name': 'd', 'type': tarfile.BLKTYPE},
      {'name': 'f', 'type': tarfile.FIFOTYPE},
      {'name': 's', 'type': tarfile.GNUTYPE_SPARSE},
      {'name': 's', 'pax_headers': {'GNU.sparse.size': '99', 'size': '-1'}},
      {'name': 'p', 'pax_headers': {'path': '../../outside', 'size': '1e9'}},
      {'name': 'n00000000.tar', 'content': b''},
      {'name': f'{CLASSES[0]}.tar', 'content': b'no archive'},
      {'name': 'ILSVRC2012_val_99999999.JPEG'},
      {'name': 'ILSVRC2012_val_00000001.JPEG'},  # Twice.
    ),
    rng,
  )


def write_archives(folder: pathlib.Path, rng) -> None:
  """Writes two archives; some have an odd member, in or outside of a class."""
  inner, outer, validation = rng.random(3) < 0.3
  form = damage.choose((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT), rng)
  options = {'mode': 'w', 'format': form, 'errors': 'surrogateescape'}
  with tarfile.open(folder / imagenet.TRAIN_TAR, **options) as archive:
    for name in CLASSES:
      buffer = io.BytesIO()
      with tarfile.open(fileobj=buffer, **options) as own:
        add(own, f'{name}_1.JPEG')
        if inner:
          add(own, **odd_member(rng))
      add(archive, f'{name}.tar', buffer.getvalue())
    if outer:
      add(archive, **odd_member(rng))
  with tarfile.open(folder / imagenet.VALIDATION_TAR, **options) as archive:
    add(archive, 'ILSVRC2012_val_00000001.JPEG')
    if validation:
      add(archive, **odd_member(rng))


@contextlib.contextmanager
def archives(shared):
  """Opens archives of ImageNet with odd members and damaged bytes."""
  del shared
  names = mock.patch.object(imagenet, 'class_names', lambda: CLASSES)
  ids = mock.patch.object(
    imagenet, '_validation_wordnet_ids', lambda: [CLASSES[1]] * 9
  )

  def trial(rng, around):
    folder = around / 'archives'
    folder.mkdir()
    write_archives(folder, rng)
    paths = [folder / imagenet.TRAIN_TAR, folder / imagenet.VALIDATION_TAR]
    if rng.random() < 0.6:
      path, other = (damage.choose(paths, rng) for _ in range(2))
      path.write_bytes(
        images.mutate(path.read_bytes(), other.read_bytes(), rng)
      )
    with damage.nothing_is_run():
      try:
        source = imagenet.open_imagenet(folder)
      except ValueError as error:
        check(
          str(folder) in str(error) or 'ILSVRC2012_val' in str(error), error
        )
        check(len(str(error).splitlines()) == 1, f'several lines: {error}')
        return 'refused by name'
    check({*around.rglob('*')} == {folder, *paths}, 'files were written')
    for path, examples in zip(paths, source.splits.values(), strict=True):
      ends = examples._offsets + examples._sizes
      check(ends.max() <= path.stat().st_size, 'an image beyond the end')
      check((examples._offsets >= 0).all(), 'an image before the beginning')
    return 'read'

  with names, ids:
    yield trial


ROWS = [
  rows.Row(
    *('archives', 'archives of ImageNet: odd members, damaged bytes'),
    'refused in one line that names archive or image, or read with every image'
    ' inside of its archive; nothing is written or run',
    *(1_000, 100, archives),
  )
]
