r"""A narrow AlexNet on CIFAR-10.

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m alexnet_jax.main --config=configs/cifar10.py --workdir=DIR

DIR holds train/CLASS/*.png and val/CLASS/*.png, val/ being the test images.
Two CPU cores: half an hour, 21.8% error on the centre view, 19.8% on ten
(n = 1, see experiments/results/cifar10).
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10  # As CIFAR-10 has.
  # A third of the paper's widths, and an eighth in fc6 and fc7: half an hour.
  config.model.conv_features = (32, 96, 128, 128, 96)
  config.model.fc_features = (512, 512)
  # 32 pixels are too few for 11x11 kernels with stride 4: crops of 28 give
  # maps of 28, 13, 6 and 2 pixels.
  config.model.conv1_kernel = 5
  config.model.conv1_stride = 1
  config.model.conv1_padding = 2
  # Narrow nets need more than the paper's 0.01: see quickstart.py.
  config.model.init_std = 0.05
  config.model.conv345_init_std = 0.05
  config.model.fc67_init_std = 0.05
  config.input.dataset = 'cifar10'
  config.input.image_size = 32  # As the images are.
  config.input.crop_size = 28  # Offsets of 0 to 4 pixels.
  # 'validation' is CIFAR-10's test set: the plateau rule must not see it.
  config.optimizer.schedule = 'steps'
  config.optimizer.drop_epochs = (12.0, 15.0)  # Late, for a short run.
  config.train.epochs = 16.0  # Half an hour.
  config.train.checkpoint_every_steps = 500  # Every two minutes.
  config.train.plateau_warning_steps = 500  # Learning begins well before.
  config.eval.batch_size = 500  # Small images: fewer, fuller batches.
  return config
