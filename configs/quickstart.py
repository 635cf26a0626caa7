r"""The quick start: a narrow AlexNet on scikit-learn's handwritten digits.

    python -m alexnet_jax.main --config=configs/quickstart.py --workdir=DIR

The data come with scikit-learn and are prepared on first use.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10
  # An eighth to a quarter of the paper's widths: minutes on a laptop.
  config.model.conv_features = (24, 64, 96, 96, 64)
  config.model.fc_features = (256, 256)
  # On so narrow a net the paper's 0.01 stays at ln(10): see experiments/LOG.md.
  config.model.init_std = 0.05
  config.model.conv345_init_std = 0.05
  config.input.dataset = 'digits'
  config.input.eval_split = 'test'  # The digits have no third split.
  config.input.image_size = 76
  config.input.crop_size = 67  # Maps of 15, 7, 3 and 1 pixels.
  config.augment.flip = False  # A reflected digit is another sign.
  config.augment.color_std = 0.0  # The digits are grey.
  # The plateau rule must not see the test split.
  config.optimizer.schedule = 'steps'
  config.optimizer.drop_epochs = (15.0,)
  config.train.epochs = 20.0
  config.train.log_every_steps = 10
  config.train.eval_every_epochs = 2.0
  config.train.checkpoint_every_steps = 50
  return config
