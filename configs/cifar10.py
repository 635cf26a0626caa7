r"""A narrow AlexNet on CIFAR-10.

    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m alexnet_jax.main --config=configs/cifar10.py --workdir=DIR

DIR holds train/CLASS/*.png and val/CLASS/*.png, val/ being the test images.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_classes = 10
  # A third of the paper's widths: half an hour on two cores.
  config.model.conv_features = (32, 96, 128, 128, 96)
  config.model.fc_features = (512, 512)
  # 32 pixels are too few for 11x11 kernels with stride 4: crops of 28 give
  # maps of 28, 13, 6 and 2 pixels.
  config.model.conv1_kernel = 5
  config.model.conv1_stride = 1
  config.model.conv1_padding = 2
  config.model.init_std = 0.05  # As in quickstart.py.
  config.model.conv345_init_std = 0.05
  config.input.dataset = 'cifar10'
  config.input.image_size = 32
  config.input.crop_size = 28
  # 'validation' is CIFAR-10's test set: the plateau rule must not see it.
  config.optimizer.schedule = 'steps'
  config.optimizer.drop_epochs = (12.0, 15.0)
  config.train.epochs = 16.0
  config.train.checkpoint_every_steps = 500
  config.eval.batch_size = 500
  return config
