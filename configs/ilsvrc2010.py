r"""AlexNet as the text of the paper describes it, on ILSVRC-2010 (Table 1).

    python -m alexnet_jax.prepare --source=folder:DIR --name=ilsvrc2010
    python -m alexnet_jax.main --config=configs/ilsvrc2010.py --workdir=DIR

DIR holds train/CLASS/*, val/CLASS/* and test/CLASS/*: 2010 is the only year
whose test labels are public. The validation split decides when the rate drops,
and selects the best checkpoint; Table 1 reports the test split:

    python -m alexnet_jax.main --mode=evaluate --workdir=DIR --split=test

Not run yet. The paper reports 37.5% top-1 and 17.0% top-5 error on ten views
(Table 1), and 39.0% and 18.3% on one (footnote 5).
"""

from configs import paper


def get_config():
  config = paper.get_config()
  config.input.dataset = 'ilsvrc2010'  # Table 1.
  return config
