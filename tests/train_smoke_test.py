import jax
from alexnet_jax import train
def test_smoke(tiny_config, tmp_path):
  print(train.train_and_evaluate(tiny_config, tmp_path))
def test_smoke_tower(tiny_config, tmp_path):
  tiny_config.mesh.layout = 'towers'
  print(train.train_and_evaluate(tiny_config, tmp_path))
