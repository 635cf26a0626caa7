"""The run that the rows interrupt: the net of tiny.py on the digits.

The uninterrupted run is made once for all rows of a command.
"""

from collections.abc import Callable
import contextlib
import csv
import fcntl
import functools
import pathlib
import runpy
import socket
import tempfile

import jax
import numpy as np
from PIL import Image

from alexnet_jax import checkpoint
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import compilation
from benchmarks.faults import rows

CONFIG = pathlib.Path(__file__).with_name('tiny.py')
TIMINGS = ('train/images_per_second', 'train/input_wait_fraction')
check = rows.check


def prepare_digits(shared: pathlib.Path) -> None:
  """Prepares the digits for all rows."""
  size = load_config(shared).input.image_size
  prepare.prepare('digits', 'digits', shared, size=size)


def load_config(shared: pathlib.Path, **changes):
  """The config of tiny.py; `changes` are values of 'section__key'."""
  config = runpy.run_path(str(CONFIG))['get_config']().unlock()
  config.input.data_dir = str(shared)
  for name, value in changes.items():
    section, _, key = name.partition('__')
    config[section][key] = value
  return config.lock()


def flags(shared: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  """The flags of such a run as a command."""
  return [
    f'--config={CONFIG}',
    f'--config.input.data_dir={shared}',
    f'--workdir={workdir}',
    f'--compilation_cache_dir={shared}/xla',
  ]


def cluster(number: int, host='127.0.0.1', port=0) -> list[list[str]]:
  """The flags of so many processes of one run; by default a free port."""
  with socket.socket() as probe:
    probe.bind(('', 0))
    address = f'{host}:{port or probe.getsockname()[1]}'
  return [
    [
      f'--coordinator_address={address}',
      f'--num_processes={number}',
      f'--process_id={index}',
    ]
    for index in range(number)
  ]


def train_here(shared: pathlib.Path, workdir: pathlib.Path, **changes) -> None:
  """Trains, or goes on, in this process."""
  compilation.enable_compilation_cache(f'{shared}/xla')
  with contextlib.redirect_stdout(None):
    train.train_and_evaluate(load_config(shared, **changes), workdir)


def new_folder(shared: pathlib.Path) -> pathlib.Path:
  """A folder that lasts as long as the command; players share the other."""
  return pathlib.Path(tempfile.mkdtemp(dir=shared))


def made_once(workdir: pathlib.Path, make: Callable) -> pathlib.Path:
  """The work directory of a run that `make` plays, unless another row has."""
  with open(f'{workdir}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (workdir / 'result.json').exists():
      make(workdir)
  return workdir


def uninterrupted(shared: pathlib.Path) -> pathlib.Path:
  """The work directory of the uninterrupted run."""
  return made_once(
    shared / 'uninterrupted', functools.partial(train_here, shared)
  )


@functools.cache
def reference(shared: pathlib.Path) -> dict[str, object]:
  """The results of the uninterrupted run."""
  return results(shared, uninterrupted(shared))


def results(shared: pathlib.Path, workdir: pathlib.Path) -> dict[str, object]:
  """The rows of metrics.csv without times, and all arrays of the state."""
  with open(workdir / 'metrics.csv', newline='') as file:
    found = list(csv.DictReader(file))
  lines = [{k: v for k, v in r.items() if k not in TIMINGS} for r in found]
  step = max(checkpoint.saved_steps(workdir))
  arrays = arrays_of(shared, workdir, step)
  arrays = {name: array.tobytes() for name, array in arrays.items()}
  return {'rows': lines, 'step': step, 'arrays': arrays}


def arrays_of(
  shared: pathlib.Path, workdir: pathlib.Path, step: int
) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint, by name."""
  template = train_state.state_template(run_lib.open_run(load_config(shared)))
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, read_only=True)
  ) as checkpoints:
    state = checkpoints.restore(template, step)
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def check_same(shared: pathlib.Path, workdir: pathlib.Path) -> None:
  """Raises Broken unless a run has the results of the uninterrupted one."""
  found, expected = results(shared, workdir), reference(shared)
  for name, value in expected.items():
    check(found[name] == value, f'{name} differ from the uninterrupted run')
  check((workdir / 'result.json').exists(), 'there is no result.json')
  left = [path for path in workdir.rglob('*tmp*') if '.tmp' in path.name]
  check(not left, f'{left} was left behind')


def write_photographs(folder: pathlib.Path, number: int, seed: int = 0) -> None:
  """Writes images of noise in the two folders that preparation expects."""
  rng = np.random.default_rng(seed)
  for i in range(number):
    part = 'val' if i % 10 == 9 else 'train'
    path = folder / part / f'class{i % 2}' / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(path)


def tree(folder: pathlib.Path) -> dict[str, bytes]:
  """The bytes of all files of a folder, by name."""
  return {path.name: path.read_bytes() for path in folder.iterdir()}
