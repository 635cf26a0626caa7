r"""Section 6, first half: a sixth convolutional layer, on all of ImageNet.

    python -m alexnet_jax.prepare --source=folder:DIR --name=imagenet_fall2011
    python -m alexnet_jax.main --config=configs/conv6.py --workdir=runs/conv6

The net of run 146-2011 of the original source; configs/conv6_finetune.py
fine-tunes it. Not reproduced here: the run started from the convolutions of a
net trained on Fall 2009, at a tenth of the rate until epoch 6; it had another
bias rate in conv6, and 1,024 linear units before its 21,843 classes. Not run
yet.
"""

from configs import source


def get_config():
  config = source.get_config()
  # layers-146: 256 kernels of 3x3 on both towers' maps, after the last pooling.
  config.model.conv_features = (96, 256, 384, 384, 256, 256)
  config.model.num_classes = 21_843  # layers-146-2011
  config.mesh.layout = 'data'  # Two devices cannot halve 21,843 classes.
  config.input.dataset = 'imagenet_fall2011'  # section 6
  config.optimizer.drop_epochs = (6.0,)  # layer-params-146-2011.
  config.optimizer.conv1_drop_epochs = ()  # layer-params-146-2011.
  config.optimizer.conv1_freeze_epoch = 0.0  # layer-params-146-2011.
  config.augment.color_end_epoch = 0.0  # layer-params-146-2011.
  # layer-params-146-2011: killed at "8.11295", batch 11,295 of its 8th epoch.
  config.train.epochs = 8.0
  return config
