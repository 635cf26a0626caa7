r"""The one-tower net of torchvision's alexnet.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/torchvision.py --workdir=DIR

Widths are those of "One weird trick" (Krizhevsky 2014, arXiv:1404.5997) as
torchvision has them: 61,100,840 parameters. `python -m alexnet_jax.convert`
gives torchvision's weights this config (docs/weights.md). Training follows its
reference script, references/classification/train.py. Not reproduced here: crops
of random scale and aspect ratio, bilinear resizing, and initial weights that are uniform, with a
range by fan-in. Not run yet; torchvision reports 56.5% top-1 and 79.1% top-5
accuracy on one view.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_towers = 1
  config.model.conv_features = (64, 192, 384, 256, 256)
  config.model.conv1_padding = 2
  config.model.conv1_ceil_mode = False  # Conv2d has only whole windows.
  config.model.lrn_layers = ()
  config.model.inverted_dropout = True  # As in nn.Dropout.
  config.model.dropout_inputs = ('fc6', 'fc7')
  # The deviations of its uniform distributions; 0.030, 0.014 and 0.009 in conv1, conv2, fc8.
  config.model.init_std = 0.02
  config.model.conv345_init_std = 0.012  # 0.014, 0.010 and 0.012
  config.model.fc67_init_std = 0.0075  # 0.006 and 0.009
  config.model.init_bias = 0.0
  config.input.channel_means = (123.675, 116.28, 103.53)  # 255 x 0.485, ...
  config.input.channel_stds = (58.395, 57.12, 57.375)  # 255 x 0.229, ...
  config.input.batch_size = 256  # 32 on each of 8 GPUs
  config.augment.color_std = 0.0
  config.optimizer.weight_decay = 1e-4  # --weight-decay
  config.optimizer.schedule = 'steps'
  config.optimizer.drop_epochs = (30.0, 60.0)  # --lr-step-size=30
  return config
