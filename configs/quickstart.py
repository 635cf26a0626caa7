r"""The quick start: a narrow AlexNet on scikit-learn's handwritten digits.

    python -m alexnet_jax.main --config=configs/quickstart.py --workdir=DIR

Two CPU cores: 45 s; 1.0, 2.3 and 1.3% error on the test images with seeds 0, 1
and 2 (see experiments/LOG.md). The data come with scikit-learn and are prepared
on first use.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10  # The digits 0 to 9.
  # A quarter of the paper's widths, and a sixteenth in fc6 and fc7: a minute.
  config.model.conv_features = (24, 64, 96, 96, 64)
  config.model.fc_features = (256, 256)
  # On so narrow a net the paper's 0.01 stays at ln(10): experiments/LOG.md.
  config.model.init_std = 0.05
  config.model.conv345_init_std = 0.05
  config.model.fc67_init_std = 0.05
  config.input.dataset = 'digits'  # Embedded: nothing to download.
  config.input.eval_split = 'test'  # The digits have no third split.
  # From 8 pixels. 67 is the least for which every 11x11 window lies inside the
  # crop and every layer has output: maps of 15, 7, 3 and 1 pixels.
  config.input.image_size = 76
  config.input.crop_size = 67
  config.augment.flip = False  # A reflected digit is another sign.
  config.augment.color_std = 0.0  # The digits are grey.
  config.input.batch_size = 64  # 128 means too few steps in so few epochs.
  # The plateau rule must not see the test images.
  config.optimizer.schedule = 'steps'
  config.optimizer.drop_epochs = (22.0,)  # Three quarters through.
  config.train.epochs = 30.0  # The error has settled.
  # Half a minute of training: look, and save, every few seconds.
  config.train.log_every_steps = 20
  config.train.eval_every_epochs = 3.0
  config.train.checkpoint_every_steps = 50
  config.train.plateau_warning_steps = 200  # Learning begins well before.
  return config
