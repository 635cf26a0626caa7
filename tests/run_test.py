"""An opened run: what it takes from the config and the data set."""

import jax
import numpy as np
import pytest

from alexnet_jax import run as run_lib
from configs import quickstart


@pytest.mark.parametrize('square_root', [False, True])
def test_the_colour_directions_are_those_of_the_config(data_dir, square_root):
  config = quickstart.get_config()
  config.input.data_dir = str(data_dir)
  config.augment.color_square_root = square_root
  run = run_lib.open_run(config)
  # The digits are grey: one direction, along which the variance is the trace.
  variance = np.trace(run.dataset.rgb_covariance)
  expected = np.sqrt(variance) if square_root else variance / 255
  lengths = np.linalg.norm(run.statistics.directions, axis=0)
  assert lengths.max() == pytest.approx(expected, rel=1e-6)  # float32


def test_a_run_on_one_of_several_devices_has_the_rules_of_one(data_dir):
  config = quickstart.get_config()
  config.input.data_dir = str(data_dir)
  config.eval.batch_size = 7  # The four devices do not divide it.
  devices = jax.devices()[:1]
  assert run_lib.open_run(config, devices=devices).mesh is None
  with pytest.raises(ValueError, match=r'eval.batch_size=7 must be a multiple'):
    run_lib.open_run(config)
