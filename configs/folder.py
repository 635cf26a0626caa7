r"""A narrow AlexNet for photographs of one's own, on a laptop.

    python -m alexnet_jax.prepare --source=folder:DIR --val_fraction=0.1 --name=mine --size=112
    python -m alexnet_jax.main --config=configs/folder.py --workdir=WORKDIR

DIR holds CLASS/*.jpg. A trained net of the same layers is fine-tuned with
--config.train.init_from=OTHER, see docs/finetuning.md.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 0  # As many as the data set has.
  # A third of the paper's widths, and an eighth in fc6 and fc7.
  config.model.conv_features = (32, 96, 128, 128, 96)
  config.model.fc_features = (512, 512)
  # Narrow nets need more than the paper's 0.01: see quickstart.py.
  config.model.init_std = 0.05
  config.model.conv345_init_std = 0.05
  config.model.fc67_init_std = 0.05
  config.input.dataset = 'mine'
  # Maps of 23, 11, 5 and 2 pixels: a fifth of the time of 224.
  config.input.image_size = 112
  config.input.crop_size = 99
  config.input.batch_size = 32  # Some thousands of photographs: many steps.
  # The images of validation are those of the error: no rule may see them.
  config.optimizer.schedule = 'cosine'
  config.mesh.layout = 'data'  # Any number of classes, on any devices.
  config.train.epochs = 30.0
  # An epoch takes some seconds.
  config.train.log_every_steps = 20
  config.train.eval_every_epochs = 2.0
  config.train.checkpoint_every_steps = 500
  config.train.plateau_warning_steps = 500  # Learning begins well before.
  return config
