"""Folders of images as people have them: which entries are used.

Every entry of a folder is used, counted, or left out by one of two rules:
names that begin with a dot are hidden, and `is_junk` lists what desktops and
file servers leave behind. The order never depends on the file system.
"""

from collections.abc import Callable, Iterator, Sequence
import errno
import logging
import os
import pathlib

from alexnet_jax.prepare import examples as examples_lib

log = logging.getLogger(__name__)

# Folders and files that desktops, network storage and file systems create, in
# lower case. Names that begin with a dot, such as .AppleDouble, are hidden.
_JUNK = frozenset(
  (
    '__macosx',  # macOS, in zip files
    'icon\r',
    'network trash folder',
    'temporary items',
    'thevolumesettingsfolder',
    '$recycle.bin',  # Windows
    'desktop.ini',
    'ehthumbs.db',
    'ehthumbs_vista.db',
    'system volume information',
    'thumbs.db',
    '@eadir',  # Synology
    '@sharebin',
    '@tmp',
    '#recycle',
    '#snapshot',
    '@__thumb',  # QNAP
    '@recently-snapshot',
    '@recycle',
    '@transcode',
    'lost+found',  # ext4
    'picasa.ini',
    'zbthumbnail.info',
  )
)
# Windows stores it beside a downloaded file; copying makes it a file.
_JUNK_SUFFIX = ':zone.identifier'


def is_junk(name: str) -> bool:
  """Whether a file or folder is hidden or was made by a desktop or a NAS."""
  lower = name.lower()
  return name.startswith('.') or lower in _JUNK or lower.endswith(_JUNK_SUFFIX)


def scan(folder: str | os.PathLike) -> list[os.DirEntry]:
  """The entries of a folder without junk, in order of their names."""
  with os.scandir(folder) as entries:
    return sorted(
      (entry for entry in entries if not is_junk(entry.name)),
      key=lambda entry: entry.name,
    )


def split_entries(
  folder: pathlib.Path,
) -> tuple[list[str], list[str], list[str]]:
  """Names of the class folders, of files, and of what cannot be read.

  Args:
    folder: the folder of a split, such as train/.

  Returns:
    Three sorted lists of names: folders; regular files; and all else, namely
    links to nothing, devices, pipes, sockets, and links to a folder that
    contains them.
  """
  classes, files, unreadable = [], [], []
  outer = _ancestors(folder)
  for entry in scan(folder):
    if _leads_to(entry.is_dir):
      is_loop = entry.is_symlink() and _identity(entry.path) in outer
      (unreadable if is_loop else classes).append(entry.name)
    else:
      (files if _leads_to(entry.is_file) else unreadable).append(entry.name)
  return classes, files, unreadable


def class_files(folder: pathlib.Path) -> list[str]:
  """Everything in a class folder and its subfolders except junk and folders.

  Links to folders are followed, but no folder is read twice, so that a link to
  a folder above it has an end. Such a link is itself part of the result, like
  links to nothing, devices and pipes: it is counted when it cannot be read.

  Returns:
    Sorted paths relative to `folder`.
  """
  found = []
  seen = _ancestors(folder)
  # Folders before links to folders: of two names for one folder its own is
  # used.
  waiting, links = [''], []
  while waiting or links:
    inner = waiting.pop() if waiting else links.pop(0)
    path = folder / inner
    if inner:
      identity = _identity(path)
      if identity in seen:
        found.append(inner)
        continue
      seen.add(identity)
    for entry in scan(path):
      name = f'{inner}/{entry.name}' if inner else entry.name
      if not _leads_to(entry.is_dir):
        found.append(name)
      else:
        (links if entry.is_symlink() else waiting).append(name)
  return sorted(found)


def warn_of_subfolders(
  root: pathlib.Path, names: Sequence[str], depth: int
) -> None:
  """Logs how many images lie in subfolders of class folders.

  Args:
    root: the folder that the names are relative to.
    names: paths of images.
    depth: number of parts of a path directly in a class folder.
  """
  if inner := [name for name in names if name.count('/') >= depth]:
    log.warning(
      '%s: files in subfolders of class folders: %d, such as %s; their class'
      ' is the outermost folder.',
      root,
      len(inner),
      printable(inner[0]),
    )


def warn_of_unused(spec: str, names: Sequence[str]) -> None:
  """Logs the names of what lies beside the class folders of a source."""
  if names:
    log.warning(
      '%s: not in a class folder and not used: %s.', spec, described(names)
    )


def described(
  names: Sequence[str], limit: int = 3, separator: str = ', '
) -> str:
  """The first names, on one line, and how many others there are."""
  shown = separator.join(printable(name) for name in names[:limit])
  more = len(names) - limit
  return f'{shown} and {more} more' if more > 0 else shown


def printable(text: str) -> str:
  """The text on one line; unprintable characters appear as in Python."""
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _leads_to(is_kind: Callable[[], bool]) -> bool:
  """The result of `is_kind`; False for a link that cannot be followed."""
  try:
    return is_kind()
  except OSError as error:
    if error.errno in (*examples_lib.LINK_ERRORS, errno.EACCES):
      return False
    raise


def _ancestors(folder: pathlib.Path) -> set[tuple[int, int]]:
  """Identities of a folder and all folders that contain it."""
  return {_identity(path) for path in _above(folder)}


def _above(folder) -> Iterator[pathlib.Path]:
  # A link has two paths to the root.
  for path in (folder.absolute(), folder.resolve()):
    yield path
    yield from path.parents


def _identity(path):
  status = os.stat(path)
  return status.st_dev, status.st_ino
