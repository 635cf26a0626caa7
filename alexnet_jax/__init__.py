"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax.

`load` opens a trained net, `AlexNet` is the Flax module. Both import JAX when
they are first used, and no sooner.
"""

import importlib
import sys

__version__ = '0.2.0'

_MODULES = {'load': 'net', 'AlexNet': 'model'}


def __getattr__(name):
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
  return getattr(module, name)


def __dir__():
  return sorted([*globals(), *_MODULES])


if sys.argv[:1] == ['-m']:  # Python imports this package to find the module.
  _words = [word.removeprefix('-m') for word in sys.orig_argv]
  _module = next((w for w in _words if w.startswith('alexnet_jax')), '')
  if '.' in _module:
    importlib.import_module('alexnet_jax.__main__').check_module(_module)
    # Before anything else, so that Ctrl-C in an import is one line.
    importlib.import_module('alexnet_jax.runtime.signals').install()
