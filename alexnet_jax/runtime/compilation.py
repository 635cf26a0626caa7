"""Compiler options, and the cache of compiled programs."""

import os

import jax

# Default and help of the flag --compilation_cache_dir.
CACHE_DIR = (
  os.environ.get('JAX_COMPILATION_CACHE_DIR', '~/.cache/alexnet_jax/xla'),
  'Folder in which compiled programs are cached; empty to disable the cache.',
)


def enable_compilation_cache(folder: str) -> None:
  """Lets JAX cache compiled programs in `folder`; an empty one disables it.

  So does one that begins with `~` where there is no home folder.
  """
  path = os.path.expanduser(folder)  # Leaves `~` where there is no home.
  enabled = path and not path.startswith('~')
  jax.config.update('jax_compilation_cache_dir', path if enabled else None)
  # JAX's default, one second, would leave out most programs of a small net.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def network_options() -> dict[str, str]:
  """Compiler options of the network for the default backend.

  On CPU, XLA runs convolutions with YNNPACK by default, which is 1.3 to 2 times
  slower than Eigen; matrix products stay on YNNPACK, which is faster for them.
  The option is experimental: no option is returned if XLA does not know it.
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
  """Compiler options of a program that runs only once or twice.

  On CPU it compiles in about half the time; sums may differ in their last bits.
  """
  if jax.default_backend() != 'cpu':
    return {}
  return {'xla_backend_optimization_level': 1}
