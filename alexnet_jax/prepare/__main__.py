r"""Prepares a data set for training, once (section 2 of the paper).

    python -m alexnet_jax.prepare --source=folder:DIR --name=NAME

creates DATA_DIR/NAME/1.0.0, an ordinary tfds data set of ArrayRecord shards.
The module prepare.py in this folder describes the data set, the memory that
preparation needs, and how it continues after an interruption.

    python -m alexnet_jax.prepare --verify --name=NAME

compares every file of a prepared data set with the digest of its preparation.
"""

import logging
import sys

from alexnet_jax.runtime import command
from alexnet_jax.runtime import signals

if __name__ == '__main__':
  command.import_jax()  # A library of preparation imports it.

from absl import flags

from alexnet_jax import dataset as dataset_lib
from alexnet_jax.prepare import prepare
from alexnet_jax.prepare import sources
from alexnet_jax.prepare import verify

SOURCE = flags.DEFINE_string(
  'source', None, f'Where the images are: {sources.FORMS}.'
)
NAME = flags.DEFINE_string('name', None, 'Name of the data set.', required=True)
DATA_DIR = flags.DEFINE_string(
  'data_dir', dataset_lib.DATA_DIR, 'Folder of the prepared data sets.'
)
SIZE = flags.DEFINE_integer(
  'size', 256, 'Height and width of the stored images in pixels.'
)
QUALITY = flags.DEFINE_integer(
  'quality', 95, 'JPEG quality of the stored images, 1 to 100.'
)
MAX_BAD = flags.DEFINE_integer(
  'max_bad', 10, 'Maximum number of unreadable images to skip.'
)
SEED = flags.DEFINE_integer(
  'seed', 0, 'Seed of the order of the examples, and of --val_fraction.'
)
VAL_FRACTION = flags.DEFINE_float(
  'val_fraction',
  0.0,
  'Part of every class to hold out for validation, if folder:DIR holds class'
  ' folders and no train/ and val/.',
)
WORKERS = flags.DEFINE_integer(
  'workers', 0, 'Number of worker processes; 0: one per CPU core.'
)
VERIFY = flags.DEFINE_bool(
  'verify',
  False,
  'Read the prepared data set --name and compare it with its digests; exit code'
  ' 1 if a file is damaged, missing or extra.',
)


def main(_) -> None:
  logging.getLogger('alexnet_jax').setLevel(logging.INFO)
  signals.resume_hint = 'the same command continues'
  try:
    if VERIFY.value:
      signals.resume_hint = 'the same command begins again'
      sys.exit(1 if verify.verify(NAME.value, DATA_DIR.value) else 0)
    if SOURCE.value is None:
      raise ValueError(f'--source is missing; it is {sources.FORMS}')
    prepare.prepare(
      SOURCE.value,
      NAME.value,
      DATA_DIR.value,
      size=SIZE.value,
      quality=QUALITY.value,
      max_bad=MAX_BAD.value,
      seed=SEED.value,
      val_fraction=VAL_FRACTION.value,
      workers=WORKERS.value,
    )
  except (ValueError, OSError, RuntimeError, MemoryError) as error:
    sys.exit(f'{type(error).__name__}: {error}{command.refusal(error)}')
  except KeyboardInterrupt as stopped:
    raise signals.ended(stopped) from stopped


if __name__ == '__main__':
  command.run(main)
