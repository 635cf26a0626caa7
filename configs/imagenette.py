r"""The paper's net at full width and geometry on ten classes of photographs.

    python -m alexnet_jax.prepare --source=folder:DIR --name=imagenette
    python -m alexnet_jax.main --config=configs/imagenette.py --workdir=DIR

DIR holds train/WNID/*.JPEG and val/WNID/*.JPEG, as Imagenette unpacks. For an
accelerator: two CPU cores take five seconds a step. Not run to its end yet:
experiments/results/imagenette has 157 steps on 5,000 of the photographs.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10  # As Imagenette has.
  # Deviation S4: the source's. The text's 0.01 begins to learn later: LOG.md.
  config.model.conv345_init_std = 0.03
  config.input.dataset = 'imagenette'
  # Steps may take seconds: look, and save, every few minutes.
  config.train.log_every_steps = 5
  config.train.checkpoint_every_steps = 50
  config.train.plateau_warning_steps = 500  # Learning begins well before.
  return config
