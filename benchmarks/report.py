"""What every benchmark reports beside its figures: machine, versions, commit."""

from collections.abc import Callable
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import sys

from absl import app
import jax

from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import command
from alexnet_jax.runtime import processes

# Whose versions a figure may depend on, where they are installed.
LIBRARIES = (
  'jax',
  'jaxlib',
  'flax',
  'numpy',
  'grain',
  'array-record',
  'simplejpeg',
  'pillow',
  'torch',
)


def run(main: Callable, **kwargs) -> None:
  """`absl.app.run`, with `command.quiet_libraries`."""

  def quiet(argv):
    if len(argv) > 1:
      sys.exit(f'{argv[1]} is not a flag; flags have the form --name=value')
    command.quiet_libraries()
    main(argv)

  app.run(quiet, **kwargs)


def environment() -> dict[str, object]:
  """Where and with what a benchmark runs."""
  return {
    'machine': _processor(),
    'cores': processes.available_cores(),
    'devices': sorted({device.device_kind for device in jax.devices()}),
    'python': platform.python_version(),
    **_versions(),
    'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', ''),
    'commit': workdir_lib.current_commit(),
    'command': ' '.join(['python -m', _module(), *map(_public, sys.argv[1:])]),
  }


def peak_bytes() -> int:
  """Peak resident memory of this process so far, as the system counts it."""
  try:
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
      if line.startswith('VmHWM'):  # Not that of the parent before exec.
        return int(line.split()[1]) * 1024
  except OSError:
    pass  # Not Linux.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_environment() -> None:
  """One line of `environment`."""
  print(', '.join(f'{key} {value}' for key, value in environment().items()))


def jpeg_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
  """Below a folder, in order."""
  paths = sorted(pathlib.Path(folder).resolve().rglob('*.*'))
  return [p for p in paths if p.suffix.lower() in ('.jpeg', '.jpg')]


def write(path: str | None, figures: object) -> None:
  """Writes figures and environment as JSON; nothing where `path` is None."""
  if path is not None:
    content = {'environment': environment(), 'figures': figures}
    pathlib.Path(path).write_text(json.dumps(content, indent=1) + '\n')


def _versions():
  found = {}
  for name in LIBRARIES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def _processor():
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  except OSError:
    pass  # Not Linux.
  return platform.processor() or platform.machine()


def _public(argument):
  """A flag without the place of its folder, which is of one machine alone."""
  return re.sub('=[/~].*', '=DIR', argument)


def _module():
  spec = sys.modules['__main__'].__spec__
  return spec.name if spec else sys.argv[0]
