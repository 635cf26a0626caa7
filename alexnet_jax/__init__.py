"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax."""

import sys

if sys.argv[:1] == ['-m']:  # Python imports this package to find the module.
  _words = [word.removeprefix('-m') for word in sys.orig_argv]
  _module = next((w for w in _words if w.startswith('alexnet_jax')), '')
  if '.' in _module:
    from alexnet_jax import __main__

    __main__.check_module(_module)
