r"""The two-group net with the choices of Caffe's bvlc_alexnet.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/caffe.py --workdir=DIR

Values are those of models/bvlc_alexnet/train_val.prototxt and solver.prototxt
of BVLC/caffe, whose weights `python -m alexnet_jax.convert` reads
(docs/weights.md). Many ports subtract one mean per channel in place of the mean
image: --config.input.channel_means="(123.0, 117.0, 104.0)". Not reproduced
here: Caffe resizes images to 256x256 regardless of their aspect ratio instead
of cropping the centre. It feeds BGR; convert reorders conv1's kernels. Caffe
counts only whole windows of conv1 and keeps partial windows of pooling, which
makes no difference to crops of 227. Not run yet; Caffe's readme reports 57.1%
top-1 and 80.2% top-5 accuracy on one view.
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.model.lrn_k = 1.0  # lrn_param does not set k: Caffe's default.
  config.model.lrn_alpha = 2e-5  # Caffe divides its 1e-4 by local_size.
  config.model.lrn_across_towers = True  # norm1 and norm2 ignore the groups.
  config.mesh.layout = 'data'  # Keeps both towers on one device.
  config.model.fc67_init_std = 0.005  # weight_filler of fc6 and fc7.
  config.model.init_bias = 0.1  # bias_filler of conv2, conv4, conv5, fc6, fc7.
  config.model.inverted_dropout = True  # As in Caffe's Dropout layer.
  config.input.crop_size = 227  # crop_size
  config.input.batch_size = 256  # batch_size
  config.augment.color_std = 0.0  # Caffe has no colour noise.
  config.optimizer.schedule = 'steps'  # lr_policy
  # stepsize: 100,000 steps of 256 images.
  config.optimizer.drop_epochs = (19.98, 39.96, 59.95, 79.93)
  config.optimizer.bias_rate_factor = 2.0  # lr_mult
  config.optimizer.decay_biases = False  # decay_mult
  config.train.epochs = 89.92  # max_iter: 450,000 steps.
  return config
