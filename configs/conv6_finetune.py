r"""Section 6, second half: the sixth layer's net, fine-tuned on ILSVRC-2012.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/conv6_finetune.py --workdir=runs/conv6_finetune

Starts from the parameters of runs/conv6, which configs/conv6.py trains, with a
new classifier. The original source logs 38.99% top-1 and 16.62% top-5 error for
its run 146-2012-2011 on the validation set, ten views (the paper's "1 CNN*").
Not reproduced here: the run gave fc8 ten times the rate of the other layers
from step 300 to epoch 9. Not run yet.
"""

from configs import source


def get_config():
  config = source.get_config()
  # layers-146: 256 kernels of 3x3 on both towers' maps, after the last pooling.
  config.model.conv_features = (96, 256, 384, 384, 256, 256)
  config.input.dataset = 'imagenet2012'  # section 6
  config.optimizer.learning_rate = 0.001  # layer-params-146-2012-2011.
  config.optimizer.bias_rate_factor = 20.0  # The biases keep their 0.02.
  config.optimizer.drop_epochs = (22.0, 42.0)  # layer-params-146-2012-2011.
  # layer-params-146-2012-2011: 0.0001 from the start, 0.00001 from epoch 5 on.
  config.optimizer.conv1_drop_epochs = (0.0, 5.0)
  config.optimizer.conv1_freeze_epoch = 7.0  # layer-params-146-2012-2011.
  config.augment.color_end_epoch = 38.0  # layer-params-146-2012-2011.
  config.train.epochs = 54.0  # layer-params-146-2012-2011: "epoch 54: killed".
  config.train.init_from = 'runs/conv6'  # section 6
  return config
