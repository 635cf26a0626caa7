r"""The quick start: a narrow AlexNet on scikit-learn's handwritten digits.

    python -m alexnet_jax.main --config=configs/quickstart.py --workdir=DIR

The data come with scikit-learn and are prepared on first use. The test error
and the time on two CPU cores are in experiments/results/quickstart; those of
seeds 1 and 2 are beside it, in quickstart_seed1 and quickstart_seed2.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10  # The digits 0 to 9.
  # A quarter of the paper's widths, and a sixteenth in fc6 and fc7.
  config.model.conv_features = (24, 64, 96, 96, 64)
  config.model.fc_features = (256, 256)
  # With the paper's 0.01 the loss of so narrow a net stays at ln(10)
  # (experiments/LOG.md).
  config.model.init_std = 0.05
  config.model.conv345_init_std = 0.05
  config.model.fc67_init_std = 0.05
  config.input.dataset = 'digits'  # Embedded: nothing to download.
  config.input.eval_split = 'test'  # The digits have no third split.
  # The digits are 8x8 pixels. 67 is the smallest crop in which every 11x11
  # window lies inside the crop and no layer is empty: maps of 15, 7, 3 and 1.
  config.input.image_size = 76
  config.input.crop_size = 67
  config.augment.flip = False  # A reflected digit is another symbol.
  config.augment.color_std = 0.0  # The digits are grey.
  config.input.batch_size = 64  # With 128 there would be too few steps.
  # The plateau rule must not see the test images.
  config.optimizer.schedule = 'steps'
  config.optimizer.drop_epochs = (22.0,)  # After three quarters.
  config.train.epochs = 30.0  # The error has settled.
  # The training is short: evaluate and save every few seconds.
  config.train.log_every_steps = 20
  config.train.eval_every_epochs = 3.0
  config.train.diagnostics_every_evals = 7  # They cost as much as five steps.
  config.train.checkpoint_every_steps = 50
  config.train.plateau_warning_steps = 200  # Learning begins well before.
  return config
