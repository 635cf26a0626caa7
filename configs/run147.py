r"""Pooling that does not overlap (section 3.4), as the source ran it: run 147.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/run147.py --workdir=DIR

The original source logs 41.06% top-1 and 18.51% top-5 error for this run on
ILSVRC-2012's validation set, ten views. Values are those of layers-147.cfg and
layer-params-147.cfg, which say "like #145 but with non-overlapping pooling".

Not reproduced here: the source keeps partial pooling windows (Deviation S12),
and this run pads conv2 by 1 pixel and conv5 by 0, so that the maps after pool1,
conv2, pool2, conv5 and pool5 have 28, 26, 13, 11 and 6 pixels, not 27, 27, 13,
13 and 6. The last rate of the biases in the file is 0.002, without a note of
when it changed. Not run yet.
"""

from configs import source


def get_config():
  config = source.get_config()
  config.model.pool_size = 2  # layers-147: sizeX=2, stride=2.
  config.input.dataset = 'imagenet2012'  # "validation multiview".
  config.optimizer.drop_epochs = (23.0, 51.0, 79.0)  # layer-params-147
  config.optimizer.conv1_drop_epochs = ()  # layer-params-147
  config.optimizer.conv1_freeze_epoch = 79.0  # layer-params-147
  config.augment.color_end_epoch = 0.0  # layer-params-147: it never ends.
  config.train.epochs = 90.0  # layer-params-147: "epoch 90: killed".
  return config
