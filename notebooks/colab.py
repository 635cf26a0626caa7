"""Installs the package on Colab, beside what its session has loaded already.

    python notebooks/colab.py

The first cell of each notebook runs it in the clone. JAX stays as it is if the
package can use it, and so do NumPy and protobuf: a session that has loaded them, or
TensorFlow, would have to be restarted. An older JAX is replaced, which needs no
restart before it is loaded, with its plugin for the accelerator.
"""

from collections.abc import Mapping
import configparser
import importlib.metadata
import pathlib
import subprocess
import sys

from packaging import requirements
from packaging import utils

ROOT = pathlib.Path(__file__).parents[1]
KEPT = ('jax', 'numpy', 'protobuf')
# The extra of setup.cfg that installs JAX for an accelerator, by its package.
EXTRAS = {
  'jax-cuda12-plugin': 'gpu12',
  'jax-cuda13-plugin': 'gpu',
  'libtpu': 'tpu',
}


def pip_arguments(installed: Mapping[str, str]) -> list[str]:
  """What `pip install` is given, for the installed versions by package."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  lines = setup['options']['install_requires'].split('\n')
  needed = [requirements.Requirement(line) for line in lines if line]
  kept = [
    f'{one.name}=={installed[one.name]}'
    for one in needed
    if one.name in KEPT
    and one.name in installed
    and one.specifier.contains(installed[one.name], prereleases=True)
  ]
  extras = [extra for name, extra in EXTRAS.items() if name in installed]
  if any(one.startswith('jax==') for one in kept):
    extras = []  # The plugin stays, too.
  return ['-e', f'{ROOT}[{",".join(extras)}]' if extras else str(ROOT), *kept]


def main() -> None:
  installed = {
    utils.canonicalize_name(one.name): one.version
    for one in importlib.metadata.distributions()
  }
  arguments = pip_arguments(installed)
  print('pip install', *arguments)
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet']
  subprocess.run([*pip, *arguments], check=True)


if __name__ == '__main__':
  main()
