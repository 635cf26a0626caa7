r"""Converts a trained net from and to the formats of others.

    python -m alexnet_jax.convert --input=FILE_OR_WORKDIR --output=FILE

The endings of the names say the formats; docs/weights.md lists them. A model
card is written beside the output.
"""

import logging

from alexnet_jax.runtime import command

if __name__ == '__main__':
  command.import_jax()

from absl import app
from absl import flags
from ml_collections import config_flags

from alexnet_jax.convert import convert
from alexnet_jax.runtime import config_file
from alexnet_jax.runtime import jax_settings
from alexnet_jax.runtime import utf8

INPUT = flags.DEFINE_string(
  'input',
  None,
  'Work directory, file that ends with .safetensors, .caffemodel, .pt or .pth,'
  ' or cifar10, the net of the package.',
  required=True,
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  f'File that ends with {", ".join(convert.ENDINGS)}.',
  required=True,
)
CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config of a foreign net, for what its shapes do not say; configs/caffe.py or'
  ' configs/torchvision.py by default.',
  lock_config=True,
)
MEAN = flags.DEFINE_string(
  'mean', None, 'Mean image of a foreign net, a .binaryproto file.'
)
CLASS_NAMES = flags.DEFINE_string(
  'class_names',
  None,
  "File with one class name a line; ILSVRC's for 1,000 classes by default.",
)
CROPS = flags.DEFINE_bool(
  'crops', False, 'ONNX and StableHLO: the bare net, from crops to logits.'
)
SOURCE = flags.DEFINE_string(
  'source', None, 'Where the net comes from, for its metadata and model card.'
)
LICENSE = flags.DEFINE_string(
  'license', None, 'Its license, for its metadata and model card.'
)
CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'latest'], 'Checkpoint of a work directory.'
)
DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Folder of the data sets of a work directory.'
)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags; a wrong config exits with one line, not a traceback."""
  argv = config_file.find_configs(argv) or argv
  with config_file.one_line_errors(argv):
    rest = command.parse_flags(argv)
    if CONFIG.present:
      config_file.check(CONFIG.value)
  return rest


def main(_) -> None:
  with command.one_line_errors('the same command starts again'):
    output = convert.check_output(OUTPUT.value, CROPS.value)
    jax_settings.start()
    weights = convert.read(
      INPUT.value,
      config=CONFIG.value,
      mean=MEAN.value,
      class_names=CLASS_NAMES.value,
      checkpoint=CHECKPOINT.value,
      data_dir=DATA_DIR.value,
    )
    log = logging.getLogger('alexnet_jax')
    log.info('Source: %s.', weights.about.get('source'))
    about = {'source': SOURCE.value, 'license': LICENSE.value}
    weights.about.update({k: v for k, v in about.items() if v is not None})
    convert.write(output, weights, CROPS.value)
    log.info('Wrote %s.', output)


if __name__ == '__main__':
  utf8.use_utf8()
  app.run(main, flags_parser=parse_flags)
