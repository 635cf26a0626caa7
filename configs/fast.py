r"""AlexNet on ILSVRC-2012 as fast as one data-centre GPU trains it.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/fast.py --workdir=DIR

The paper's net and augmentation; activations in bfloat16, batches of 1024, and
a rate that falls along a cosine. Not run on ImageNet; docs/speed.md has its
speed on an H200, and experiments/results/photographs_fast its errors on ten
classes of photographs, with batches of 256.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.dtype = 'bfloat16'
  # Deviation S4: as in the source. With the text's 0.01, learning begins later
  # (experiments/LOG.md).
  config.model.conv345_init_std = 0.03
  config.input.batch_size = 1024
  # 0.01 times the square root of 1024 / 128: Krizhevsky 2014, section 5.
  config.optimizer.learning_rate = 0.028
  config.optimizer.schedule = 'cosine'
  config.train.epochs = 60.0  # The rate has fallen to zero by then.
  config.eval.batch_size = 512
  return config
