"""The flags that name a net and the files to write, for several commands."""

from collections.abc import Mapping, Sequence
import os
import pathlib

from absl import flags

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import net as net_lib
from alexnet_jax import shipped_nets
from alexnet_jax import trained_net
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import files
from alexnet_jax.runtime import jax_settings

Values = Mapping[str, str | None]  # Of the flags of `define`, by name.


def define() -> list[flags.FlagHolder]:
  """Defines the flags that say which net is used, for three commands."""
  return [
    flags.DEFINE_string('workdir', None, 'Work directory of a trained net.'),
    flags.DEFINE_string(
      'weights', None, 'In its place, FILE.safetensors, or cifar10.'
    ),
    flags.DEFINE_enum(
      'checkpoint', 'best', ['best', 'latest'], 'Checkpoint of --workdir.'
    ),
    flags.DEFINE_string(
      'data_dir', None, 'Folder of data sets, instead of the one in the config.'
    ),
    flags.DEFINE_string('compilation_cache_dir', *compilation.CACHE_DIR),
  ]


def define_words() -> flags.FlagHolder:
  """Defines the flag of the file that `words.read` reads."""
  return flags.DEFINE_string(
    'words',
    None,
    'File of words for WordNet ids, n01440764 tench in a line; those of'
    " ILSVRC's classes by default.",
  )


def path(values: Values) -> str:
  """The path of the net that the flags of `define` name.

  Raises:
    ValueError: unless they name one.
  """
  if bool(values['workdir']) == bool(values['weights']):
    raise ValueError(
      'name one net: --workdir=RUN or --weights=FILE.safetensors'
    )
  flag = 'workdir' if values['workdir'] else 'weights'
  found = shipped_nets.find(values[flag]) if flag == 'weights' else values[flag]
  return str(files.local_path(found, f'--{flag}'))


def start(values: Values) -> None:
  """Starts JAX, with the cache of compiled programs that the flags name."""
  compilation.enable_compilation_cache(values['compilation_cache_dir'])
  jax_settings.start()


def open_net(values: Values) -> net_lib.Net:
  """The net that the flags of `define` name; starts JAX."""
  name = path(values)
  start(values)
  return net_lib.load(
    name, checkpoint=values['checkpoint'], data_dir=values['data_dir']
  )


def data_dir(values: Values) -> str:
  """The folder of data sets: of the flag, or of the config of the run."""
  if values['data_dir'] or values['weights']:
    return values['data_dir'] or dataset_lib.DATA_DIR
  return trained_net.read_config(pathlib.Path(path(values))).input.data_dir


def check_output(
  path: str | os.PathLike, flag: str, suffixes: Sequence[str]
) -> pathlib.Path:
  """The absolute path of a file that a command will write.

  Raises:
    ValueError: if it cannot be written, or its suffix is not in `suffixes`.
  """
  full = files.local_path(path, flag)
  if full.suffix.lower() not in suffixes or full.is_dir():
    raise ValueError(
      f'{flag}={path} must be a file whose name ends in {" or ".join(suffixes)}'
    )
  workdir_lib.check_writable(full.parent, f'{flag}={path}')
  return full
