"""Model cards: README.md with YAML on top, beside a file of a net.

What is not known is left out, or said to be unknown.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib

import alexnet_jax
from alexnet_jax import weights as weights_lib
from alexnet_jax.runtime import files

CARD = 'README.md'
# How a file is used, by its ending; the first that fits counts.
USES = {
  '.torch.safetensors': """\
import safetensors.torch
state_dict = safetensors.torch.load_file({file!r})""",
  '.safetensors': """\
import alexnet_jax
net = alexnet_jax.load({file!r})
print(net.predict(['photo.jpg']))""",
  '.onnx': """\
import onnxruntime
session = onnxruntime.InferenceSession({file!r})
(outputs,) = session.run(None, {{'{input}': {input}}})""",
  '.stablehlo': """\
import pathlib, jax.export
net = jax.export.deserialize(bytearray(pathlib.Path({file!r}).read_bytes()))
outputs = net.call({input})""",
  '': """\
import torch
state_dict = torch.load({file!r}, weights_only=True)""",
}
# Licenses that cards name, by their identifiers on the Hugging Face Hub:
# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = {
  *('afl-3.0', 'agpl-3.0', 'apache-2.0', 'artistic-2.0', 'bsd', 'bsl-1.0'),
  *('bsd-2-clause', 'bsd-3-clause', 'bsd-3-clause-clear', 'cc', 'cc0-1.0'),
  *('cc-by-2.0', 'cc-by-3.0', 'cc-by-4.0', 'cc-by-sa-3.0', 'cc-by-sa-4.0'),
  *('cc-by-nc-2.0', 'cc-by-nc-3.0', 'cc-by-nc-4.0', 'cc-by-nd-4.0'),
  *('cc-by-nc-sa-3.0', 'cc-by-nc-sa-4.0', 'cc-by-nc-nd-4.0', 'ecl-2.0'),
  *('epl-1.0', 'epl-2.0', 'eupl-1.1', 'gfdl', 'gpl', 'gpl-2.0', 'gpl-3.0'),
  *('isc', 'lgpl', 'lgpl-2.1', 'lgpl-3.0', 'mit', 'mpl-2.0', 'ms-pl', 'ncsa'),
  *('odbl', 'odc-by', 'openrail', 'osl-3.0', 'pddl', 'postgresql', 'unknown'),
  *('unlicense', 'wtfpl', 'zlib'),
}
STATE_DICTS = '.torch.safetensors', '.pt', '.pth'  # Endings.


def write(
  path: str | os.PathLike, weights: weights_lib.Weights, crops: bool = False
) -> pathlib.Path:
  """Writes the model card of the file `path` beside it; returns its path.

  It is README.md, or the file's name with .md after it if the folder has a
  README.md that is not the card of that file.

  Args:
    path: the file of the net, whose suffix says its format.
    weights: the net.
    crops: whether the file holds the bare net, from crops to logits.
  """
  path = pathlib.Path(path)
  card = path.with_name(CARD)
  if os.path.lexists(card) and not _is_card_of(card, path.name):
    card = path.with_name(f'{path.name}.md')
  files.write_bytes(card, text(path.name, weights, crops).encode())
  return card


def _mark(name):
  return f'# The model card of {json.dumps(name)}, by alexnet_jax.'


def _is_card_of(card, name):
  try:
    lines = card.read_text().splitlines()
  except (OSError, UnicodeDecodeError):
    return False
  return lines[:2] == ['---', _mark(name)]


def text(name: str, weights: weights_lib.Weights, crops: bool = False) -> str:
  """The model card of a file; for the arguments see `write`."""
  about = {key: _plain(value) for key, value in weights.about.items()}
  source = about.pop('source', 'unknown')
  license_ = about.pop('license', 'unknown')
  datasets = [f'datasets: [{_quoted(weights.config.input.dataset)}]']
  if source.startswith('converted from'):  # Nothing says what it learnt from.
    datasets = []
  num_classes = len(weights.class_names)
  versions = alexnet_jax.__version__, importlib.metadata.version('jax')
  use = next(use for ending, use in USES.items() if name.endswith(ending))
  use = use.format(file=name, input='crops' if crops else 'images')
  lines = [
    '---',
    _mark(name),
    *_license(license_),
    *datasets,
    'library_name: alexnet_jax',
    'pipeline_tag: image-classification',
    '---',
    f'# AlexNet: {_plain(name)}',
    '',
    f'- Source: {source}',
    f'- License: {license_}',
    f'- Classes: {num_classes}',
    *(f'- {key.capitalize()}: {about[key]}' for key in sorted(about)),
    '- Written on {} by alexnet_jax {} with JAX {}'.format(
      datetime.date.today(), *versions
    ),
    '',
    '## Use',
    '',
    *_interface(weights, crops, name.endswith(STATE_DICTS)),
    '',
    '```python',
    use,
    '```',
    '',
    '## Classes',
    '',
    'In the order of the outputs:',
    '',
    *(
      f'    {label} {_plain(words)}'
      for label, words in enumerate(weights.class_names)
    ),
  ]
  return '\n'.join(lines) + '\n'


def _plain(text):
  """The text on one line, of characters that can be printed."""
  return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())


def _quoted(text):
  """The text as a string of YAML."""
  return json.dumps(_plain(text), ensure_ascii=False)


def _license(text):
  """Lines of YAML: an identifier, or 'other' with what is said of it."""
  if text.lower() in LICENSES:
    return [f'license: {text.lower()}']
  return ['license: other', f'license_name: {_quoted(text)}']


def _interface(weights, crops, is_state_dict):
  inputs = weights.config.input
  size, crop = inputs.image_size, inputs.crop_size
  classes = len(weights.class_names)
  stds = ', '.join(f'{std:g}' for std in inputs.channel_stds)
  if crops or is_state_dict:
    shape = f'3, {crop}, {crop}' if is_state_dict else f'{crop}, {crop}, 3'
    mean = 'the mean image, which the .safetensors file has'
    if inputs.channel_means:
      mean = ', '.join(f'{mean:g}' for mean in inputs.channel_means)
    divided = f', divided by {stds}' if stds else ''
    return [
      f'Takes crops: float32 [batch, {shape}], RGB values of 0 to 255 less'
      f' {mean}{divided}.',
      f'Returns logits: float32 [batch, {classes}].',
    ]
  divided = f' and divides by {stds}' if stds else ''
  return [
    f'Takes images: uint8 [batch, {size}, {size}, 3], RGB, resized so that the'
    f' shorter side has {size} pixels, and cropped to their centre. The net'
    f' itself takes the central {crop} pixels, subtracts the mean{divided}.',
    f'Returns probabilities: float32 [batch, {classes}].',
  ]
