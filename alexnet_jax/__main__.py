"""The commands, by name: `alexnet-jax NAME`, or `python -m alexnet_jax NAME`."""

import difflib
import runpy
import sys

from alexnet_jax.runtime import signals

# The module of each command, and what the command does.
COMMANDS = {
  'train': ('main', 'train a net, or evaluate one with --mode=evaluate'),
  'evaluate': ('evaluate', 'the errors of trained nets and of their ensemble'),
  'prepare': ('prepare', 'make a data set of images, once'),
  'predict': ('predict', 'classify images'),
  'features': ('features', 'write the outputs of a layer for images'),
  'retrieve': ('retrieve', 'find images with similar features'),
  'convert': ('convert', 'read and write weights in other formats'),
}
MODULES = {'main': 'main'} | {name: row[0] for name, row in COMMANDS.items()}


def main() -> None:
  """Runs the command that the first argument names, or lists all."""
  signals.install()
  name, *arguments = sys.argv[1:] or ['--help']
  if name in ('-h', '--help', 'help'):
    print(
      'alexnet-jax COMMAND [FLAGS], or python -m alexnet_jax COMMAND [FLAGS]'
    )
    for command, (_, purpose) in COMMANDS.items():
      print(f'  {command:9} {purpose}')
    print('The flags of a command: alexnet-jax COMMAND --help')
    return
  if name not in MODULES:
    meant = difflib.get_close_matches(name, COMMANDS, n=1)
    way_out = f'did you mean {meant[0]}? ' if meant else ''
    sys.exit(
      f'{name} is not a command; {way_out}the commands are'
      f' {", ".join(COMMANDS)}'
    )
  sys.argv[1:] = arguments
  module = f'alexnet_jax.{MODULES[name]}'
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def check_module(module: str) -> None:
  """Exits with one line if a module is not a command, such as train.py.

  Args:
    module: full name of the module that `python -m` is about to run.
  """
  name = module.removesuffix('.__main__').removeprefix('alexnet_jax.')
  if name in MODULES.values():
    return
  found = MODULES.get(name.partition('.')[0])
  way_out = f'run python -m alexnet_jax.{found}; ' if found else ''
  sys.exit(
    f'{module} is not a command; {way_out}python -m alexnet_jax lists them'
  )


if __name__ == '__main__':
  main()
