"""JAX's own settings, which a user may have set for all programs.

They come from environment variables such as JAX_ENABLE_X64 and XLA_FLAGS, or
from `jax.config.update` in a notebook. What is not listed here gives the same
results, to the bit, or is for the user to choose, as
JAX_DEFAULT_MATMUL_PRECISION is.
"""

import functools
import logging
import os
import subprocess
import sys

import jax

# How the names of variables that JAX reads begin.
VARIABLES = ('JAX_', 'XLA_', 'CUDA_VISIBLE_DEVICES')

log = logging.getLogger(__name__)

# Settings that would change the results or end in an error, with the values
# that we use: JAX's defaults. Each version of JAX has some of them.
PINNED = {
  # Other random numbers: weights, crops, dropout.
  'jax_default_prng_impl': 'threefry2x32',
  'jax_random_seed_offset': 0,
  'jax_threefry_partitionable': True,
  # float64 in place of float32; TPUs have none, and GPUs hardly.
  'jax_enable_x64': False,
  # Other sums, in their last bits.
  'jax_disable_most_optimizations': False,
  # Errors under `vmap`, with which augmentation draws crops.
  'jax_error_checking_behavior_nan': 'ignore',
  'jax_error_checking_behavior_divide': 'ignore',
  'jax_error_checking_behavior_oob': 'ignore',
  # Constants are copied to the devices during a step, which `train` forbids.
  'eager_constant_folding': False,
  # Nothing is compiled ahead of time, or nothing runs at all.
  'jax_disable_jit': False,
  'jax_no_tracing': False,
  'jax_no_execution': False,
  # `train.run_steps` sets its own guard; other transfers are intended.
  'jax_transfer_guard': 'allow',
  'jax_transfer_guard_host_to_device': 'allow',
  'jax_transfer_guard_device_to_device': 'allow',
  'jax_transfer_guard_device_to_host': 'allow',
}


def pin() -> None:
  """Sets the settings of `PINNED`, and logs which ones had other values.

  Raises:
    ValueError: if a context manager of JAX sets one of them.
  """
  changed = {}
  for name, value in PINNED.items():
    found = _value(name, value)
    if found != value:
      jax.config.update(name, value)
      changed[name] = f'{name}={found} to {value}'
    if _value(name, value) != value:
      raise ValueError(
        f'{name}={found} is set by a context manager; leave it, or set {value}'
      )
  if changed:
    log.warning(
      'Changed settings of JAX, with which training would differ or fail: %s.',
      ', '.join(changed.values()),
    )


def _value(name, default):
  """The value of a setting; `default` if it is not set or does not exist."""
  settings = jax.config.values
  value = getattr(jax.config, name, settings.get(name))
  value = getattr(value, 'value', value)  # Some are enums.
  return default if value is None else value


def start() -> None:
  """Pins the settings, and starts JAX on its devices.

  Raises:
    ValueError: if JAX or XLA refuses an environment variable, such as
      JAX_PLATFORMS=cuda where there is no GPU.
  """
  pin()
  if 'XLA_FLAGS' in os.environ:
    _check_xla_flags(os.environ['XLA_FLAGS'])
  try:
    jax.devices()
  except Exception as error:  # JAX may raise anything here.
    given = [k for k in sorted(os.environ) if k.startswith(VARIABLES)]
    platforms = jax.config.jax_platforms
    which = f'jax_platforms={platforms}' if platforms else 'any device'
    text = ' '.join(str(error).split())[:300] or 'there is none'
    raise ValueError(
      f'JAX cannot use {which} ({text}); correct or unset the variables below,'
      ' set JAX_PLATFORMS=cpu, or install JAX for your device: docs/devices.md'
      ' of the repository.\n'
      f'Variables that JAX reads: {", ".join(given) or "none are set"}'
    ) from error


@functools.cache
def _check_xla_flags(xla_flags):
  """Raises ValueError for flags for which XLA would abort this process."""
  # Another process creates XLA's options, which parses the flags.
  code = (
    'from jaxlib import _jax;'
    '_jax.CompileOptions().executable_build_options.debug_options'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  if 'parse_flags_from_env' in done.stderr:
    reason = done.stderr.partition('\n')[0].partition('] ')[2]
    raise ValueError(
      f'XLA refuses XLA_FLAGS={xla_flags} ({reason}); correct or unset it'
    )
