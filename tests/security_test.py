"""SECURITY.md: what a file from outside may not do: run anything, or never end."""

import ast
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal

import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import feature_file
from alexnet_jax import images
from alexnet_jax import metrics
from alexnet_jax import metrics_file
from alexnet_jax import predictions
from alexnet_jax import weights
from alexnet_jax import words
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.convert import convert
from alexnet_jax.prepare import imagenet
from alexnet_jax.prepare import plan
from alexnet_jax.runtime import files
from tests.dataset_test import prepare_painted

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
  path.relative_to(ROOT)
  for folder in ('alexnet_jax', 'benchmarks', 'experiments', 'configs')
  for path in (ROOT / folder).rglob('*.py')
)


def test_the_limits_are_those_of_the_code():
  modules = {
    module.__name__.rpartition('.')[2]: module
    for module in (images, files, weights, convert, imagenet)
  }
  limits = re.findall(
    r'\| ([\d,]+) ?(GiB)?[^|]*\| `(\w+)\.([A-Z_]+)`',
    (ROOT / 'SECURITY.md').read_text(),
  )
  for number, unit, module, name in limits:
    limit = int(number.replace(',', '')) * (2**30 if unit else 1)
    assert getattr(modules[module], name) == limit, f'{module}.{name}'
  assert len(limits) == 7


def run_what_a_file_holds(source):
  """What a module calls that may run what a file holds, as source text."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [alias.name for alias in node.names]
      names.append(getattr(node, 'module', None) or '')
      modules = {name.partition('.')[0] for name in names}
      found += modules & {
        'pickle',
        'cPickle',
        'dill',
        'joblib',
        'shelve',
        'yaml',
      }
    if not isinstance(node, ast.Call):
      continue
    name = ast.unparse(node.func)
    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name in ('eval', 'exec', 'compile', '__import__', 'os.system'):
      found.append(name)
    if keywords.get('allow_pickle', 'False') != 'False':
      found.append(f'{name} with allow_pickle')
    if name == 'torch.load' and keywords.get('weights_only') != 'True':
      found.append('torch.load without weights_only')
    if keywords.get('shell', 'False') != 'False':
      found.append(f'{name} with a shell')
    if name == 'Image.open' and 'formats' not in keywords:
      found.append('Image.open without formats')
  return found


@pytest.mark.parametrize('path', SOURCES, ids=str)
def test_no_module_runs_what_a_file_holds(path):
  assert run_what_a_file_holds((ROOT / path).read_text()) == []


def test_the_walk_above_finds_each_way():
  bad = (
    'import pickle, torch\neval(x); exec(x); np.load(f, allow_pickle=True)\n'
    'torch.load(f); torch.load(f, weights_only=False); Image.open(f)\n'
    'subprocess.run(x, shell=True); from yaml import load'
  )
  assert len(run_what_a_file_holds(bad)) == 9
  good = (
    'torch.load(f, weights_only=True); Image.open(f, formats=X); np.load(f)'
  )
  assert run_what_a_file_holds(good) == []


@pytest.fixture
def no_hang():
  """Ends a test that waits for ever for the other end of a pipe."""

  def late(*_):
    raise TimeoutError('it waits for the other end of a pipe')

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(20)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


def _lock(path):
  with files.locked(path.parent):
    pass


READERS = {
  'config.json': lambda path: workdir_lib.read_config(path.parent),
  'lock': _lock,
  'net.safetensors': weights.load,
  'net.pt': convert.read if hasattr(convert, 'read') else convert.load,
  'image.jpg': lambda path: images.read_pixels(path, 8),
  'checkpoints/5/metrics/metrics': lambda path: checkpoint.Checkpoints(
    path.parents[3], read_only=True
  ),
  'checkpoints/5/state/manifest.ocdbt': lambda path: checkpoint.Checkpoints(
    path.parents[3], read_only=True
  ).restore({}, 5),
  'preparation.json': lambda path: plan.check_same(path, {}, 'wait'),
}


@pytest.mark.usefixtures('no_hang')
@pytest.mark.parametrize('name', READERS)
def test_a_pipe_in_place_of_a_file_is_one_line(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(parents=True, exist_ok=True)
  os.mkfifo(path)
  with pytest.raises(ValueError, match='not a |neither a file') as error:
    READERS[name](path)
  assert len(str(error.value).splitlines()) == 1
  assert str(path) in str(error.value)


@pytest.mark.usefixtures('no_hang')
def test_a_pipe_among_saved_results_counts_as_damaged_or_missing(tmp_path):
  for name in ('metrics.csv', 'saved.npz', 'index.npz', 'words.txt'):
    os.mkfifo(tmp_path / name)
  assert metrics_file.rows_until(tmp_path / 'metrics.csv', ['step'], 3) == []
  assert (tmp_path / 'metrics.csv.damaged').exists()
  assert predictions.load(tmp_path / 'saved.npz', {}) is None
  assert plan.read_index(tmp_path) is None
  with pytest.raises(FileNotFoundError, match='no such file'):
    words.read(tmp_path / 'words.txt')
  np.save(tmp_path / 'x.npy', np.ones((2, 2), np.float32))
  os.mkfifo(tmp_path / 'x.json')
  with pytest.raises((ValueError, FileNotFoundError), match='--index='):
    feature_file.read(tmp_path / 'x.npy', '--index')


@pytest.mark.usefixtures('no_hang')
@pytest.mark.parametrize('step', [0, 3])
def test_pipes_among_metrics_are_set_aside(tmp_path, caplog, step):
  name = 'events.out.tfevents.1.x'
  for file in (name, 'metrics.csv.tmp', 'rewound.tmp'):
    os.mkfifo(tmp_path / file)
  (tmp_path / 'events.out.tfevents.2.y').write_bytes(b'incomplete')
  metrics.MetricsWriter(tmp_path, True, step).close()
  assert (tmp_path / 'metrics.csv').is_file()
  (line,) = caplog.messages
  assert f'{name} is not a file; it is now events.out.damaged.1.x' in line
  assert (tmp_path / 'events.out.damaged.1.x').is_fifo()


@pytest.fixture(scope='module')
def painted(tmp_path_factory):
  return prepare_painted(tmp_path_factory.mktemp('painted'))


@pytest.mark.usefixtures('no_hang')
@pytest.mark.parametrize(
  'pattern', ['statistics.npz', '*train.array_record*', 'features.json']
)
def test_a_pipe_in_a_data_set_is_one_line(painted, tmp_path, pattern):
  folder = tmp_path / 'painted' / dataset_lib.VERSION
  shutil.copytree(painted.path, folder)
  (file,) = folder.glob(pattern)
  file.unlink()
  os.mkfifo(file)
  with pytest.raises(ValueError, match=f'{file.name} is not a regular file'):
    dataset_lib.open_dataset(tmp_path, 'painted')


def test_a_large_text_file_is_refused_before_it_is_read(tmp_path):
  with open(tmp_path / 'config.json', 'wb') as file:
    file.truncate(files.MAX_BYTES + 1)  # No block of the disk is written.
  with pytest.raises(ValueError, match='over the limit'):
    workdir_lib.read_config(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
  made = tmp_path / 'made'

  class Program:
    def __reduce__(self):
      return pathlib.Path.touch, (made,)

  rows = np.array([Program()], object)
  np.savez(tmp_path / 'saved.npz', log_probs=rows, labels=rows)
  np.savez(tmp_path / 'statistics.npz', mean_image=rows, rgb_covariance=rows)
  np.save(tmp_path / 'x.npy', rows)
  (tmp_path / 'x.json').write_text(json.dumps({}))
  assert predictions.load(tmp_path / 'saved.npz', {}) is None
  with pytest.raises(ValueError, match='is damaged'):
    dataset_lib._statistics(tmp_path / 'statistics.npz', (8, 8, 3))
  with pytest.raises((ValueError, FileNotFoundError)):
    feature_file.read(tmp_path / 'x.npy', '--index')
  with contextlib.suppress(ValueError):
    np.lib.format.open_memmap(tmp_path / 'x.npy', mode='r')
  assert not made.exists()
