r"""The paper's net at full width and geometry on ten classes of photographs.

    python -m alexnet_jax.prepare --source=folder:DIR --name=imagenette
    python -m alexnet_jax.main --config=configs/imagenette.py --workdir=DIR

DIR holds train/WNID/*.JPEG and val/WNID/*.JPEG, as Imagenette unpacks.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10
  # Deviation S4: the text's 0.01 in these layers stays at ln(10).
  config.model.conv345_init_std = 0.03
  config.input.dataset = 'imagenette'
  config.train.log_every_steps = 5
  config.train.checkpoint_every_steps = 50
  return config
