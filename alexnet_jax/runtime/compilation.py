"""Compiler options, and the cache of compiled programs."""

import functools
import logging
import os
import re
import shlex
import stat

import jax

log = logging.getLogger(__name__)

DEFAULT_DIR = '~/.cache/alexnet_jax/xla'
# Default and help of the flag --compilation_cache_dir.
CACHE_DIR = (
  os.environ.get('JAX_COMPILATION_CACHE_DIR', DEFAULT_DIR),
  'Folder in which compiled programs are cached; empty to disable the cache.',
)


def enable_compilation_cache(folder: str) -> None:
  """Lets JAX cache compiled programs in `folder`; an empty one disables it.

  JAX runs the programs that it finds there. So the folder is made, and that of
  `DEFAULT_DIR` set, to be this user's alone. Logs a line, and disables the
  cache, if the folder cannot be written or others may write to it.
  """
  path = os.path.expanduser(folder)
  if path and (problem := _problem(path)):
    log.warning(
      'Compiled programs are not cached (%s); choose another folder with'
      ' --compilation_cache_dir.',
      problem,
    )
    path = ''
  jax.config.update('jax_compilation_cache_dir', path or None)
  # JAX's default, one second, would leave out most programs of a small net.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _problem(path):
  """Why the folder is not used; '' if it is, or if it is an address."""
  if '://' in path:
    return ''
  if re.match(r'[a-z][a-z0-9+.-]*:/', path):
    return f'{path} is an address with one slash in place of two'
  if path.startswith('~'):  # `expanduser` leaves it there.
    return f'there is no home folder for {path}'
  try:
    os.makedirs(path, 0o700, exist_ok=True)
    status = os.stat(path)
    if status.st_uid != os.geteuid():
      return f'{path} belongs to another user, whose programs would be run'
    if path == os.path.expanduser(DEFAULT_DIR):
      os.chmod(path, 0o700)
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
      return (
        f'other users may write to {path}, and their programs would be run; chmod'
        f' go-w {shlex.quote(path)}'
      )
  except OSError as error:
    return str(error)
  return '' if os.access(path, os.W_OK | os.X_OK) else f'{path} is read-only'


def network_options() -> dict[str, str]:
  """Compiler options of a train step for the default backend.

  On CPU, XLA runs convolutions with YNNPACK by default, which is 1.3 to 2 times
  slower than Eigen; matrix products stay on YNNPACK, which is faster for them.
  The option is experimental: if XLA does not know it, none is returned, and a
  line is logged once.
  """
  return _ynnpack('LIBRARY_FUSION_TYPE_DOT')


def inference_options() -> dict[str, str]:
  """Compiler options of a network without gradients, for the default backend.

  On CPU all runs on Eigen: with the options of a train step, two to eight
  images take five to eight times as long, nearly all of it in fc7, and 128
  images 1.2 times (experiments/LOG.md).
  """
  return _ynnpack('')


def _ynnpack(fusions):
  """The option that names what runs on YNNPACK; none except on CPU."""
  if jax.default_backend() != 'cpu':
    return {}
  options = {'xla_cpu_experimental_ynn_fusion_type': fusions}
  return options if _accepted(tuple(options.items())) else {}


@functools.cache
def _accepted(options):
  """Whether XLA accepts these (name, value) pairs; logs a line if not."""
  try:
    jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
  except (jax.errors.JaxRuntimeError, ValueError):
    log.warning(
      'JAX %s does not accept the option %s: on a CPU, this may take 1.3 to 2'
      ' times as long as with the versions in requirements.txt.',
      jax.__version__,
      options[0][0],
    )
    return False
  return True


def fast_compile_options() -> dict[str, int]:
  """Compiler options of a program that runs only once or twice.

  On CPU it compiles in about half the time; sums may differ in their last bits.
  """
  if jax.default_backend() != 'cpu':
    return {}
  return {'xla_backend_optimization_level': 1}
