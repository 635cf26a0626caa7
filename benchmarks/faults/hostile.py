"""Hostile files, names and work directories."""

from collections.abc import Callable
import contextlib
import pathlib
import signal
import tempfile
from unittest import mock

import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import events
from alexnet_jax import feature_file
from alexnet_jax import metrics_file
from alexnet_jax import predictions
from alexnet_jax import train
from alexnet_jax import weights
from alexnet_jax import words
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.convert import convert
from alexnet_jax.runtime import signals
from benchmarks.faults import damage
from benchmarks.faults import images
from benchmarks.faults import rows
from benchmarks.faults import runs

PICKLE = b"cos\nsystem\n(S'touch /tmp/alexnet_jax_was_run'\ntR."
check = rows.check


def _write_features(path):
  ones = np.ones((2, 2), np.float32)
  lists = {'names': ['a', 'b'], 'classes': ['', ''], 'rows': [-1, -1]}
  about = dict.fromkeys(feature_file.KEYS, '') | lists
  feature_file.write(path, [ones], about)


def _write_predictions(path):
  log_probs = np.log(np.full((3, 2), 0.5, np.float32))
  found = predictions.Predictions(log_probs, np.zeros(3, np.int32), {'a': 'b'})
  found.save(path)


def _write_net(path):
  from tests import narrow_nets

  weights.save(path, narrow_nets.tiny())


def _read_rows(path):
  return metrics_file.rows_until(path, ['step', 'epoch', 'train/loss'], 30)


def _read_events(path):
  events._rewind(path.parent, 12)


# By file name: what writes such a file, and what reads it.
READERS: dict[str, tuple[Callable, Callable]] = {
  'net.safetensors': (_write_net, weights.load),
  'net.pt': (lambda path: path.write_bytes(PICKLE), convert.read),
  'net.caffemodel': (lambda path: path.write_bytes(b'\n\x01x'), convert.read),
  'x.npy': (_write_features, lambda path: feature_file.read(path, '--index')),
  'saved.npz': (_write_predictions, lambda p: predictions.load(p, {'a': 'b'})),
  'words.txt': (lambda p: p.write_text('n01440764 tench, a\n'), words.read),
  'metrics.csv': (None, _read_rows),
  'config.json': (None, lambda path: workdir_lib.read_config(path.parent)),
  'events.out.tfevents.1': (None, _read_events),
}


@contextlib.contextmanager
def readers(shared):
  """Reads damaged files of every kind that the package reads."""
  with tempfile.TemporaryDirectory(dir=shared) as folder:
    whole, run = pathlib.Path(folder), runs.uninterrupted(shared)
    for name, (write, _) in READERS.items():
      (whole / name).mkdir()
      if write is None:
        (source,) = run.glob(f'{name[:19]}*')
        (whole / name / name).write_bytes(source.read_bytes())
      else:
        write(whole / name / name)

    def trial(rng, folder):
      name = damage.choose(sorted(READERS), rng)
      copy = damage.copy(whole / name, folder / 'files')
      victim = damage.choose(damage.files_of(copy), rng)
      if rng.random() < 0.5:
        what = damage.hurt(copy, rng)
      else:
        content, what = victim.read_bytes(), f'mutated {name}'
        victim.write_bytes(images.mutate(content, content, rng))
      with damage.nothing_is_run():
        try:
          READERS[name][1](copy / name)
        except (ValueError, OSError) as error:
          check(str(copy) in str(error), f'{what}: no name in {error}')
          lines = str(error).splitlines()
          check(len(lines) <= 3, f'{what}: {len(lines)} lines')
          return 'refused by name'
      return 'read, or set aside'

    yield trial


@contextlib.contextmanager
def names(shared):
  """Commands in the odd worlds of tests/fuzz_test.py."""
  try:
    from tests import fuzz_test
    from tests import worlds
  except ImportError as error:
    raise rows.Unavailable(f'it needs the tests ({error})') from error
  with (
    tempfile.TemporaryDirectory(dir=shared) as folder,
    mock.patch.object(signals, 'install', lambda: None),
  ):
    plain = fuzz_test.play_plain(folder, fuzz_test.run_here, {})

    def trial(rng, folder):
      world = worlds.draw(int(rng.integers(2**31)), 0)
      refused = fuzz_test.check_world(world, 'faults', folder, plain)
      return 'refused in part' if refused else 'equal'

    yield trial


@contextlib.contextmanager
def work_directories(shared):
  """Continues runs whose work directory was damaged in one place."""
  reference = runs.reference(shared)
  with tempfile.TemporaryDirectory(dir=shared) as folder:
    stopped = pathlib.Path(folder) / 'run'
    asked = iter([0] * 23 + [signal.SIGTERM] * 9)
    with contextlib.suppress(signals.Stopped), contextlib.redirect_stdout(None):
      train.train_and_evaluate(
        runs.load_config(shared), stopped, asked.__next__
      )
    rows.check(len(checkpoint.saved_steps(stopped)) >= 2, 'one checkpoint')

    def trial(rng, folder):
      workdir = damage.copy(stopped, folder / 'run')
      what = damage.hurt(workdir, rng)
      try:
        runs.train_here(shared, workdir)
      except (ValueError, OSError) as error:
        check(str(workdir) in str(error), f'{what}: no name in {error}')
        lines = str(error).splitlines()
        check(len(lines) <= 3, f'{what}: {len(lines)} lines')
        return 'refused by name'
      found = runs.results(shared, workdir)
      is_csv = 'metrics.csv' in what  # A changed digit cannot be noticed.
      for name in ('step', 'arrays') if is_csv else reference:
        check(found[name] == reference[name], f'{what}: other {name}')
      return 'equal'

    yield trial


ROWS = [
  rows.Row(
    'files',
    'damaged and hostile files: nets, features, predictions, metrics, events,'
    ' configs, word lists',
    'refused with the name of the file in at most three lines, set aside, or'
    ' read; no hang, nothing is run',
    *(2_000, 50, readers),
  ),
  rows.Row(
    'names',
    'odd names of folders, classes, images, data sets and configs',
    'the commands give what they give with plain names, bit by bit, or refuse'
    ' in at most three lines and leave every file as it was',
    *(200, 0, names, 300),
  ),
  rows.Row(
    'work_directories',
    'one damage to any file of the work directory of a stopped run',
    'the run ends with the arrays of the uninterrupted one, or is refused in at'
    ' most three lines that name the folder; no hang',
    *(100, 1, work_directories, 300),
  ),
]
