"""A net of a few thousand weights on the digits: 24 steps take a second.

It logs after every fifth step and saves after every sixth; it is evaluated
after steps 10, 19 and 24, and the rate drops after step 16.
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.model.conv_features = (4, 8, 8, 8, 8)
  config.model.fc_features = (16, 16)
  config.model.conv1_kernel = 5
  config.model.conv1_stride = 1
  config.model.init_std = 0.1
  config.model.fc67_init_std = 0.1
  config.input.image_size = 28
  config.input.crop_size = 24
  config.input.batch_size = 16
  config.mesh.layout = 'data'
  config.optimizer.drop_epochs = (0.17,)
  config.train.epochs = 0.25
  config.train.log_every_steps = 5
  config.train.checkpoint_every_steps = 6
  config.train.eval_every_epochs = 0.1
  config.eval.batch_size = 100
  return config
