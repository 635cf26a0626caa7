"""Four CPU devices, strict ranks and dtypes, a folder of prepared data."""

import atexit
import logging
import os
import shutil
import subprocess
import sys
import tempfile

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

import jax
import pytest

from alexnet_jax.prepare import prepare

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'standard')


# One worker runs all tests of a file: the files that take longest start first.
FIRST = (
  *('train_test.py', 'processes_test.py', 'towers_test.py', 'prepare_test.py'),
  *('main_test.py', 'evaluate_test.py', 'model_test.py', 'sweep_test.py'),
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """Folder of prepared data sets; it has 'digits' at 76 pixels."""
  folder = tmp_path_factory.mktemp('data')
  prepare.prepare('digits', 'digits', folder, size=76)
  return folder


@pytest.fixture(autouse=True)
def levels():
  """A command that a test runs sets levels of loggers; no other test sees it."""
  yield
  for name in ('alexnet_jax', 'jax'):
    logging.getLogger(name).setLevel(logging.NOTSET)
