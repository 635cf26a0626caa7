"""Conversion of trained nets, from and to the formats of others.

The command is `python -m alexnet_jax.convert`; see convert.py.
"""
