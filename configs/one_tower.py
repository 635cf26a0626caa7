r"""The one-GPU net of section 3.2: half the kernels, and no second tower.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/one_tower.py --workdir=DIR

The last convolutional layer and the fully connected layers are those of the
two-GPU net, so that it has about as many parameters: 59,798,312. According to
the paper the two-GPU net is better by 1.7 points top-1 and 1.2 top-5. The
original source logs 39.17 / 18.23 for run 145-half on ILSVRC-2010, against
37.47 / 17.00 with two towers. Not run yet.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.num_towers = 1  # section 3.2
  # section 3.2 and its footnote: conv5 keeps its width, as fc6 and fc7 do.
  config.model.conv_features = (48, 128, 192, 192, 256)
  return config
