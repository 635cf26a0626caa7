"""Four CPU devices, strict types, and a tiny run that many tests share."""

import os

# Before JAX starts: virtual devices stand in for accelerators.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)

import jax
import pytest

from configs import quickstart

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'standard')


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """Folder of prepared data sets; holds 'digits' at 76 pixels after first use."""
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def tiny_config(data_dir):
  """The quick start with the narrowest net, for a few steps on one device."""
  config = quickstart.get_config()
  config.model.conv_features = (4, 8, 8, 8, 8)
  config.model.fc_features = (16, 16)
  config.input.data_dir = str(data_dir)
  config.input.batch_size = 16
  config.mesh.layout = 'data'
  config.train.epochs = 0.1
  config.train.log_every_steps = 2
  config.train.checkpoint_every_steps = 4
  config.train.eval_every_epochs = 0.08
  config.eval.batch_size = 100
  return config
