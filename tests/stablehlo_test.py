"""StableHLO files: one for every device and batch size, and the same numbers."""

import jax
import jax.export
import numpy as np
import pytest

from alexnet_jax import model
from alexnet_jax import net as net_lib
from alexnet_jax.convert import stablehlo
from tests import narrow_nets

# bfloat16; towers without links; deviations per channel.
QUICK = {'fast', 'run150', 'torchvision'}


@pytest.mark.parametrize(
  'preset',
  [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in narrow_nets.PRESETS
  ],
)
def test_one_file_takes_batches_of_all_sizes(preset, tmp_path):
  config = narrow_nets.preset(preset)
  weights = narrow_nets.weights(config)
  stablehlo.export(weights, tmp_path / 'net.stablehlo')
  content = (tmp_path / 'net.stablehlo').read_bytes()
  exported = jax.export.deserialize(bytearray(content))
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  images = narrow_nets.images(config, 3)
  found = exported.call(images)
  of_one = exported.call(images[:1])
  expected = net_lib.Net(weights).probabilities(images)
  # Measured: 3e-7, and 1e-3 in bfloat16; 1e-6 between sizes of the batch.
  tolerance = 1e-5 if config.model.dtype == 'float32' else 0.005
  np.testing.assert_allclose(found, expected, rtol=tolerance)
  np.testing.assert_allclose(of_one, found[:1], rtol=tolerance)
  size = config.input.image_size
  with pytest.raises(ValueError, match=rf'expected \(batch, {size}, {size}, 3'):
    exported.call(images[:, : size - 1])


# On these, layers of the same function are computed in other ways.
@pytest.mark.parametrize('backend', ['cpu', 'gpu', 'tpu'])
def test_a_file_written_on_any_device_is_the_same_net(monkeypatch, backend):
  weights = narrow_nets.weights(narrow_nets.variant())
  size = weights.config.input.crop_size
  crops = np.random.default_rng(2).normal(0, 64, (2, size, size, 3))
  crops = crops.astype(np.float32)
  net = model.AlexNet(**weights.config.model)
  expected = jax.jit(net.apply)({'params': weights.params}, crops)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  found = stablehlo.build(weights, crops=True).call(crops)
  # Measured: 1e-7 of logits of up to 0.4.
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
