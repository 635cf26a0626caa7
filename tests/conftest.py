"""Four CPU devices, strict ranks and dtypes, prepared data, nets and pictures."""

import atexit
import fcntl
import functools
import gc
import logging
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings

# Compiled programs are shared by all processes, also commands that tests start.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  # Set before JAX starts. Virtual devices stand in for accelerators. The programs
  # are small: at this level of optimisation the suite takes the least time.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = ' '.join(
    [
      os.environ.get('XLA_FLAGS', ''),
      '--xla_force_host_platform_device_count=4',
      '--xla_backend_optimization_level=1',
    ]
  )
  # XLA's older code for fusions compiles in half the time, while XLA has it.
  older = f'{os.environ["XLA_FLAGS"]} --xla_cpu_use_fusion_emitters=false'
  start = [sys.executable, '-c', 'import jax; jax.devices()']
  probe = subprocess.run(
    start, env=os.environ | {'XLA_FLAGS': older}, capture_output=True
  )
  if probe.returncode == 0:
    os.environ['XLA_FLAGS'] = older
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'])
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Imports and tracing create many objects. Collecting garbage each 700 of them
# walks through those of all libraries again and again.
gc.set_threshold(200_000)

from absl import app
from absl import flags
import jax
import numpy as np
from PIL import Image
import pytest

from alexnet_jax import evaluator
from alexnet_jax import net as net_lib
from alexnet_jax import train_state
from alexnet_jax import train_step
from alexnet_jax import trained_net
from alexnet_jax import weights as weights_lib
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import signals
from tests import narrow_nets

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'standard')
signals.install = lambda: (
  None
)  # Commands that run here leave pytest's handlers.
os.fsync = lambda _: None  # The disk is waited for in commands only.


# One worker runs all tests of a file: the files that take longest start first,
# in this order. While processes of the first wait, those of the second work.
FIRST = (
  *('processes_test.py', 'towers_test.py', 'train_test.py', 'prepare_test.py'),
  *('main_test.py', 'evaluate_test.py', 'model_test.py', 'sweep_test.py'),
)


def pytest_collection_modifyitems(items):
  order = {name: place for place, name in enumerate(FIRST)}
  items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """Folder of prepared data sets; it has 'digits' at 76 pixels."""
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent  # The first worker prepares for all.
  with open(folder / 'data.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    prepare.prepare('digits', 'digits', folder / 'data', size=76)
  return folder / 'data'


@pytest.fixture(scope='session')
def old_workdir(tmp_path_factory):
  """Work directory of a net that has learnt to tell digits; step 188."""
  fixture = pathlib.Path(__file__).parent / 'fixtures/workdir_ed611a7'
  return shutil.copytree(fixture, tmp_path_factory.mktemp('old') / 'run')


@pytest.fixture(scope='session')
def trained(old_workdir, data_dir):
  """The net of `old_workdir`, opened."""
  return trained_net.open_net(old_workdir, 'latest', data_dir=str(data_dir))


@pytest.fixture(scope='session')
def tiny_net_file(tmp_path_factory):
  """A .safetensors file of `narrow_nets.tiny`."""
  path = tmp_path_factory.mktemp('net') / 'tiny.safetensors'
  weights_lib.save(path, narrow_nets.tiny())
  return path


@pytest.fixture(scope='session')
def tiny_net(tiny_net_file):
  return net_lib.load(tiny_net_file)


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
  """A folder of class folders with five pictures, and one that is damaged."""
  folder = tmp_path_factory.mktemp('pictures')
  rng = np.random.default_rng(1)
  for name in (
    'ant/a.png',
    'ant/more/b.png',
    'bee/c.png',
    'fox/d.png',
    'e.png',
  ):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    size = narrow_nets.TINY_SIZE
    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  (folder / 'ant/bad.png').write_text('no picture')
  return folder


@pytest.fixture(scope='module')
def shared_programs():
  """The runs of a module trace equal programs once.

  Its value is what was traced; `clear()` lets the next run trace everything.
  A test that replaces what is traced must not use it.
  """
  made = {}

  def share(patch, owner, name, settings_of=lambda *args: args):
    make = getattr(owner, name)

    def made_once(*args):
      settings = settings_of(*args)
      # The text of an array leaves elements out.
      arrays = np.ndarray | jax.Array
      assert not any(isinstance(x, arrays) for x in jax.tree.leaves(settings))
      # The text of a mesh does not name its devices. Functions are named by
      # their address: they are kept, so that no other gets it.
      meshes = [x for x in settings if isinstance(x, jax.sharding.Mesh)]
      key = (name, repr(settings), *meshes)
      if key not in made:
        made[key] = make(*args), settings
      return made[key][0]

    patch.setattr(owner, name, made_once)

  def model_and_optimizer(run, num_classes=None):
    config = run.config
    keys = (config.model, config.optimizer, config.input.crop_size)
    return (*map(str, keys), num_classes)

  with pytest.MonkeyPatch.context() as patch:
    share(patch, train_step, 'make_train_step')
    share(patch, evaluator, 'make_eval_step')
    share(patch, train_state, '_creator', model_and_optimizer)
    yield made


@pytest.fixture
def run_command(tiny_net_file, capsys, caplog, monkeypatch):
  """Function that runs a command here with that net: (code, stdout, stderr)."""

  def run(module, *argv, net=(f'--weights={tiny_net_file}',)):
    words = [f'alexnet_jax.{module}', *net, *map(str, argv)]
    # The flags of this process are those of other commands.
    values = flags.FlagValues()
    with (
      monkeypatch.context() as patch,
      warnings.catch_warnings(),
      pytest.raises(SystemExit) as ended,
    ):
      patch.setattr(flags, 'FLAGS', values)
      for kind in ('string', 'bool', 'integer', 'enum', 'list', 'multi_string'):
        define = getattr(flags, f'DEFINE_{kind}')
        patch.setattr(
          flags, f'DEFINE_{kind}', functools.partial(define, flag_values=values)
        )
      patch.setattr(
        app,
        'run',
        lambda main, flags_parser: sys.exit(main(flags_parser(words))),
      )
      warnings.simplefilter('ignore', RuntimeWarning)  # Imported before.
      runpy.run_module(f'alexnet_jax.{module}', run_name='__main__')
    code, output = ended.value.code, capsys.readouterr()
    err = output.err + caplog.text  # absl logs to the terminal itself.
    if isinstance(code, str):
      return 1, output.out, err + code
    return code or 0, output.out, err

  return run


@pytest.fixture(autouse=True)
def levels():
  """A command that a test runs sets levels of loggers; no other test sees it."""
  yield
  for name in ('alexnet_jax', 'jax'):
    logging.getLogger(name).setLevel(logging.NOTSET)
