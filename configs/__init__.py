"""The configs: `configs` in a clone, `alexnet_jax.configs` when installed."""

import pkgutil
import sys

# In both cases a config says `from configs import paper`. Other folders of that
# name keep their modules.
sys.modules.setdefault('configs', sys.modules[__name__])
__path__ = pkgutil.extend_path(__path__, 'configs')
