"""What is installed here, compared between the processes of a run.

Processes that run different code, or the same on other versions of what it
computes and stores with, would train on in silence, each on its own way.
"""

from collections.abc import Mapping
import hashlib
import importlib.metadata
import json
import pathlib
import sys

import jax

from alexnet_jax.runtime import processes

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# What computes, reads and stores.
LIBRARIES = (
  *('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'libtpu'),
  *('flax', 'optax', 'orbax-checkpoint', 'tensorstore', 'numpy', 'grain'),
  *('array-record', 'pillow', 'simplejpeg', 'ml-collections', 'protobuf'),
)
_WAY_OUT = 'run the same command with the same code and versions on all hosts'


def facts() -> dict[str, str]:
  """What must be the same on all hosts, by the names that messages give it."""
  found = {'the version of Python': '.'.join(map(str, sys.version_info[:2]))}
  for name in LIBRARIES:
    try:
      version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      version = 'not installed'
    found[f'the version of {name}'] = version
  precision = jax.config.jax_default_matmul_precision
  found['JAX_DEFAULT_MATMUL_PRECISION'] = str(precision)
  for path in sorted(_PACKAGE.rglob('*.py')):
    name = path.relative_to(_PACKAGE.parent)
    found[f'the file {name}'] = _digest(path)
  return found


def _digest(path):
  return f'SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}'


def check(command: Mapping[str, str], config_file: str | None = None) -> None:
  """Raises ValueError in all processes if they are not installed alike.

  No device is used, and no data is read. With a single process nothing is done.

  Args:
    command: what else must be the same, by name: flags, values of the config.
    config_file: path of a file that is part of the command; what follows a
      colon is no part of its name.
  """
  if processes.is_single_process():
    return
  mine = facts() | command
  if config_file:
    path = pathlib.Path(config_file.partition(':')[0])
    mine['the file of --config'] = _digest(path)
  compare([json.loads(x) for x in processes.exchange(json.dumps(mine))])


def compare(all_facts: list[dict[str, str]]) -> None:
  """Raises ValueError if the facts of a process differ from those of process 0.

  Args:
    all_facts: facts by name, of every process.
  """
  names = dict.fromkeys(name for one in all_facts for name in one)
  values = {n: [one.get(n, 'missing') for one in all_facts] for n in names}
  differing = [n for n in names if len({*values[n]}) > 1]
  if not differing:
    return
  name = differing[0]
  first, *_ = found = values[name]
  others = [str(i) for i, value in enumerate(found) if value != first]
  more = f' (and {len(differing) - 1} more differ)' if differing[1:] else ''
  raise ValueError(
    f'{name} is {found[int(others[0])][:60]} in process {", ".join(others)}, but'
    f' {first[:60]} in process 0{more}; {_WAY_OUT}'
  )
