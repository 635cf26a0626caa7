"""What a sweep trains: AlexNet, as `alexnet_jax.main` does, or another net."""

from collections.abc import Callable
import dataclasses
import pathlib

import jax
import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax import digits
from alexnet_jax import recorded_config
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import signals
from experiments import run_files

# Config keys that may have other values when a sweep is continued.
MAY_CHANGE = frozenset({'input.data_dir'})


@dataclasses.dataclass(frozen=True)
class Program:
  """The functions with which a sweep trains a config.

  Its configs have at least the keys seed, input.data_dir and input.dataset.

  Attributes:
    check: raises ValueError if a config is wrong, without reading data.
    check_recorded: raises ValueError if a config differs from the one that was
      recorded in a file, config.json of its work directory.
    fingerprint: the fingerprint of the data set of a config, which is checked.
    train: trains a config in a work directory to its end, resuming from its
      checkpoint; writes result.json there; raises FloatingPointError if the
      loss is not finite.
  """

  check: Callable[[ml_collections.ConfigDict], None]
  check_recorded: Callable[[ml_collections.ConfigDict, pathlib.Path], None]
  fingerprint: Callable[[ml_collections.ConfigDict], str]
  train: Callable[[ml_collections.ConfigDict, pathlib.Path], object]


def _check_recorded(config, file):
  if not file.exists():
    raise run_files.lost(file)
  recorded = config_lib.flatten(workdir_lib.read_config(file.parent))
  recorded_config.check_unchanged(config, recorded, str(file), MAY_CHANGE)


def _fingerprint(config):
  digits.prepare_if_missing(config)
  return run_lib.open_run(config).dataset.fingerprint


ALEXNET = Program(
  check=lambda config: config_lib.check(config, jax.device_count()),
  check_recorded=_check_recorded,
  fingerprint=_fingerprint,
  train=lambda config, workdir: train.train_and_evaluate(
    config, workdir, signals.received
  ),
)
