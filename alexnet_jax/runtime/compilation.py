"""How XLA compiles: options for programs, and what it keeps between commands."""

import os
import pathlib

import jax

# Default, description: of the flag --compilation_cache_dir.
CACHE_DIR = (
  os.environ.get('JAX_COMPILATION_CACHE_DIR', '~/.cache/alexnet_jax/xla'),
  'Folder of compiled programs, kept for later commands; empty for none.',
)


def enable_compilation_cache(folder: str) -> None:
  """Has JAX keep what it compiles in `folder`; nowhere if it is empty."""
  path = str(pathlib.Path(folder).expanduser()) if folder else None
  jax.config.update('jax_compilation_cache_dir', path)
  # JAX's own limit, a second, leaves out most programs of a small net.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def network_options() -> dict[str, str]:
  """Options for `jax.jit` of the network on the backend at hand.

  On CPU, XLA's default sends convolutions to YNNPACK, where they are 1.3 to 2
  times slower than on Eigen; dots are better left there. The option is
  experimental: a version of XLA that does not know it gets none.
  """
  if jax.default_backend() != 'cpu':
    return {}
  options = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_DOT'}
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except (jax.errors.JaxRuntimeError, ValueError):
    return {}
  return options


def fast_compile_options() -> dict[str, int]:
  """Options for `jax.jit` of a program that runs once or twice.

  On CPU it compiles in about half the time; sums may differ in their last bits.
  """
  if jax.default_backend() != 'cpu':
    return {}
  return {'xla_backend_optimization_level': 1}
