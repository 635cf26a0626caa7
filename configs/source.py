r"""AlexNet as the original source trained it: run 145 on ILSVRC-2010.

    python -m alexnet_jax.prepare --source=folder:DIR --name=ilsvrc2010
    python -m alexnet_jax.main --config=configs/source.py --workdir=DIR

The original source (computerhistory/AlexNet-Source-Code, commit 2f8b81f) logs
37.47% top-1 and 17.00% top-5 error for this run on the test split, ten views:
the paper's Table 1. Values are those of layers-145.cfg, its run notes in
layer-params-145-2010.cfg, and convdata_jpeg.py. For the same net on ILSVRC-2012
(40.66 / 18.21, Table 2) the rates changed at epochs 25, 51, 67 (only that of
conv1, when the colour noise ends), 72 (conv1 frozen) and 79, and the run
stopped at 91 (layer-params-145.cfg, which then continues at a higher rate:
docs/deviations.md).

The notes count epochs from 1, so their epoch 23 is the 23rd pass; here a change
takes effect after 23 passes.

Not reproduced here: one crop for every 32 consecutive images (S9), the same
order of examples in every epoch (S10), and partial pooling windows (S12, which
makes no difference at this size). Not run yet. Other runs of the source are
run147.py, run148.py and run150.py; see docs/nets.md.
"""

from configs import ilsvrc2010


def get_config():
  config = ilsvrc2010.get_config()
  config.model.lrn_alpha = 2e-5  # Deviation S2: 1e-4, divided by the 5 maps.
  config.model.lrn_before_activation = ('conv1',)  # Deviation S3
  config.model.within_map_norm_layers = ('conv2',)  # Deviation S3
  config.model.conv345_init_std = 0.03  # Deviation S4
  config.augment.color_square_root = True  # Deviation S7
  config.augment.color_divide = True  # Deviation S7
  config.augment.color_end_epoch = 68.0  # Deviation S6
  config.augment.central_mean = True  # Deviation S8
  config.optimizer.schedule = 'steps'  # Deviation S6
  config.optimizer.drop_epochs = (23.0, 51.0, 78.0)  # Deviation S6
  config.optimizer.conv1_drop_epochs = (68.0,)  # Deviation S6
  config.optimizer.conv1_freeze_epoch = 72.0  # Deviation S6
  config.optimizer.bias_rate_factor = 2.0  # Deviation S5: 0.02.
  # Deviation S5: the notes lower only the rate of the weights. The last rate of
  # the biases in the file is 0.002 (0.02 in 2012), with no note of the change.
  config.optimizer.drop_bias_rate = False
  config.optimizer.decay_biases = False  # Deviation S5
  config.train.epochs = 93.0  # Deviation S6: "epoch 93: killed".
  return config
