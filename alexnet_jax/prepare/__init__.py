"""Preparation of a data set, once, before training.

The command is `python -m alexnet_jax.prepare`; see prepare.py. Training does
not import this subpackage: it reads the files that preparation has written
(see `alexnet_jax.dataset`).
"""
