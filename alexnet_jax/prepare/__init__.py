"""Preparation of a data set, once, before training.

Training never imports this subpackage: it reads what `prepare.prepare` wrote
(see `alexnet_jax.dataset`). The command is `python -m alexnet_jax.prepare`.
"""
