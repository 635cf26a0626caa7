r"""Towers without links, and wider, as the source ran them: run 150.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/run150.py --workdir=DIR

The original source logs 41.83% top-1 and 19.33% top-5 error for this run on
ILSVRC-2012's validation set, ten views. Values are those of layers-150.cfg and
layer-params-150.cfg, which say "like #145 but with no column communication,
trained on 2012". Not run yet.
"""

from configs import source


def get_config():
  config = source.get_config()
  config.model.tower_links = False  # layers-150
  config.model.conv_features = (96, 320, 384, 384, 256)  # layers-150
  config.model.fc_features = (8192, 4096)  # layers-150
  config.input.dataset = 'imagenet2012'  # "trained on 2012".
  config.optimizer.drop_epochs = (25.0, 49.0, 79.0)  # layer-params-150
  config.optimizer.conv1_drop_epochs = (66.0,)  # layer-params-150
  config.augment.color_end_epoch = 66.0  # layer-params-150
  config.train.epochs = 92.0  # layer-params-150: "epoch 92: killed".
  return config
