r"""AlexNet as the text of the paper describes it, on ILSVRC-2012.

    python -m alexnet_jax.prepare --source=imagenet:DIR --name=imagenet2012
    python -m alexnet_jax.main --config=configs/paper.py --workdir=DIR

Not run yet. The paper trained for 90 epochs, five to six days on two GTX 580
(section 5); one such net has 40.7% top-1 and 18.2% top-5 error on the
validation set (Table 2).

Every config key is here; other configs import this one and set only what
differs. "section" is a section of the paper, "ours" is our choice; a
"Deviation" is a point in which the original source differs from the text (see
source.py, and the table in docs/deviations.md).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0  # ours: for initial weights, order, augmentation and dropout

  config.model = model = ml_collections.ConfigDict()
  model.num_classes = 1000  # section 2; 0: as many as the data set has
  model.conv_features = (96, 256, 384, 384, 256)  # section 3.5, both towers
  model.fc_features = (4096, 4096)  # section 3.5, both towers
  model.conv1_kernel = 11  # section 3.5
  model.conv1_stride = 4  # section 3.5
  model.conv1_padding = 0  # ours: the paper does not say. Deviation S1
  model.conv1_ceil_mode = True  # ours, as the source. Deviation S1
  model.pool_size = 3  # section 3.4: overlapping; 2 does not overlap
  model.num_towers = 2  # section 3.5
  model.tower_links = True  # section 3.5: the towers meet at conv3, fc6, fc7
  model.activation = 'relu'  # section 3.1; or 'tanh'
  model.lrn_layers = ('conv1', 'conv2')  # section 3.3
  model.lrn_k = 2.0  # section 3.3
  model.lrn_alpha = 1e-4  # section 3.3. Deviation S2
  model.lrn_across_towers = False  # section 3.5: a GPU normalises its own maps
  model.lrn_before_activation = ()  # section 3.3. Deviation S3
  model.within_map_norm_layers = ()  # section 3.3. Deviation S3
  model.init_std = 0.01  # section 5
  model.conv345_init_std = 0.01  # section 5. Deviation S4
  model.fc67_init_std = 0.01  # section 5
  model.init_bias = 1.0  # section 5: in conv2, conv4, conv5, fc6, fc7
  model.dropout_rate = 0.5  # section 4.2
  model.inverted_dropout = False  # section 4.2. Deviation S11
  model.dropout_inputs = ('fc7', 'fc8')  # section 4.2. Deviation S11
  model.dtype = 'float32'  # ours; or 'bfloat16', for activations only

  config.input = input = ml_collections.ConfigDict()
  input.dataset = 'imagenet2012'  # section 2
  input.data_dir = '~/alexnet_jax_data'  # ours
  input.train_split = 'train'  # section 2
  input.eval_split = 'validation'  # section 2
  input.image_size = 256  # section 2
  input.crop_size = 224  # section 4.1
  input.channel_means = ()  # section 2: the mean image. Deviation S8
  input.channel_stds = ()  # section 2: not divided. Deviation S8
  input.batch_size = 128  # section 5, over all devices
  input.cache = 'auto'  # ours: decoded images; or 'none', 'host', 'device'
  input.max_bad_records = 0  # ours: damaged ones to leave out of each split

  config.augment = augment = ml_collections.ConfigDict()
  augment.flip = True  # section 4.1: reflections, in training and in testing
  augment.color_std = 0.1  # section 4.1: standard deviation of the a_i
  augment.color_square_root = False  # section 4.1. Deviation S7
  augment.color_divide = False  # section 4.1. Deviation S7
  augment.color_end_epoch = 0.0  # section 4.1: never ends. Deviation S6
  augment.central_mean = False  # section 2. Deviation S8

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.learning_rate = 0.01  # section 5: at the start
  optimizer.momentum = 0.9  # section 5
  optimizer.weight_decay = 0.0005  # section 5
  optimizer.schedule = 'plateau'  # section 5; or 'steps'; ours: 'cosine'
  optimizer.drop_factor = 10.0  # section 5: the rate is divided by it
  optimizer.drop_epochs = ()  # 'steps' only: epochs at which the rate drops
  optimizer.bias_rate_factor = 1.0  # section 5. Deviation S5
  optimizer.drop_bias_rate = True  # section 5. Deviation S5
  optimizer.decay_biases = True  # section 5. Deviation S5
  optimizer.conv1_drop_epochs = ()  # section 5. Deviation S6
  optimizer.conv1_freeze_epoch = 0.0  # section 5: never frozen. Deviation S6
  optimizer.frozen_layers = ()  # ours: layers that keep their weights
  optimizer.fc8_rate_factor = 1.0  # ours: Caffe fine-tunes with 10
  optimizer.plateau_drops = 3  # section 5: the next plateau ends the run
  optimizer.plateau_patience = 5  # ours: evaluations without a lower error

  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.layout = 'towers'  # section 3.5; or 'data', 'one_weird_trick'
  mesh.towers = 'auto'  # section 3.5: devices that share a network: '1', '2'

  config.train = train = ml_collections.ConfigDict()
  train.epochs = 90.0  # section 5: "roughly 90 cycles"; a maximum
  train.log_every_steps = 50  # ours
  train.eval_every_epochs = 1.0  # ours; a checkpoint is saved with each
  train.checkpoint_every_steps = 2000  # ours
  train.plateau_warning_steps = 5000  # ours: half an epoch at ln(classes)
  train.diagnostics_every_evals = 1  # ours: for TensorBoard; 0: none
  train.profile_step = 0  # ours: the first of the steps to profile; 0: none
  train.profile_steps = 5  # ours: how many
  train.init_from = ''  # section 6: work directory or .safetensors to fine-tune

  config.eval = eval_ = ml_collections.ConfigDict()
  eval_.batch_size = 128  # ours
  return config.lock()
