r"""A narrow AlexNet on CIFAR-10.

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m alexnet_jax.main --config=configs/cifar10.py --workdir=DIR

DIR holds train/CLASS/*.png and val/CLASS/*.png; val/ has the test images. The
errors on one view and on ten, and the time on two CPU cores (about half an
hour), are in experiments/results/cifar10.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10  # CIFAR-10 has ten.
  # A third of the paper's widths, and an eighth in fc6 and fc7.
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
  config.input.image_size = 32  # The size of the images.
  config.input.crop_size = 28  # Offsets of 0 to 4 pixels.
  # 'validation' is CIFAR-10's test set: the plateau rule must not see it.
  config.optimizer.schedule = 'steps'
  config.optimizer.drop_epochs = (12.0, 15.0)  # Late, as the run is short.
  config.train.epochs = 16.0  # About half an hour on two CPU cores.
  config.train.checkpoint_every_steps = 500  # Every two minutes.
  config.train.plateau_warning_steps = 500  # Learning begins well before.
  config.eval.batch_size = 500  # The images are small.
  return config
