r"""No normalisation (section 3.3), as the source ran it: run 148.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/run148.py --workdir=DIR

The original source logs 42.03% top-1 and 19.36% top-5 error for this run on
ILSVRC-2012's validation set, ten views. Values are those of layers-148.cfg and
layer-params-148.cfg, which say "like #145 but without normalization layers".
Not run yet.
"""

from configs import source


def get_config():
  config = source.get_config()
  config.model.lrn_layers = ()  # layers-148
  config.model.lrn_before_activation = ()  # layers-148: there are no norms.
  config.model.within_map_norm_layers = ()  # layers-148
  config.input.dataset = 'imagenet2012'  # "validation multiview".
  config.optimizer.drop_epochs = (22.0, 44.0, 86.0)  # layer-params-148
  config.optimizer.conv1_drop_epochs = (69.0,)  # layer-params-148
  config.optimizer.conv1_freeze_epoch = 73.0  # layer-params-148
  config.augment.color_end_epoch = 69.0  # layer-params-148
  config.train.epochs = 97.0  # layer-params-148: "epoch 97: killed".
  return config
