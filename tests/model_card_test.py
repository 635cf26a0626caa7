"""Model cards: valid YAML, code that runs, and no file of others overwritten."""

import ast
import dataclasses
import os
import re

import numpy as np
import pytest
import yaml

from alexnet_jax import weights as weights_lib
from alexnet_jax.convert import model_card
from alexnet_jax.convert import onnx_graph
from alexnet_jax.convert import stablehlo
from tests import narrow_nets


@pytest.fixture(scope='module')
def weights():
  return narrow_nets.weights(narrow_nets.variant())


def header(card):
  begin, text, rest = card.split('---\n', 2)
  assert (begin, rest[:2]) == ('', '# ')
  return yaml.safe_load(text)


@pytest.mark.parametrize('crops', [False, True])
@pytest.mark.parametrize(
  ('suffix', 'write'),
  [
    ('.safetensors', lambda weights, path, _: weights_lib.save(path, weights)),
    ('.onnx', onnx_graph.export),
    ('.stablehlo', stablehlo.export),
  ],
)
def test_the_code_of_a_card_runs(
  weights, tmp_path, monkeypatch, suffix, write, crops
):
  if crops and suffix == '.safetensors':
    return
  file = tmp_path / f"""it's a "net"{suffix}"""
  write(weights, file, crops)
  card = model_card.write(file, weights, crops)
  assert card == tmp_path / 'README.md'
  (code,) = re.findall('```python\n(.*?)```', card.read_text(), re.DOTALL)
  monkeypatch.chdir(tmp_path)
  images = narrow_nets.images(weights.config, 2)
  given = {'images': images, 'crops': images[:, :67, :67].astype(np.float32)}
  if suffix == '.safetensors':
    from PIL import Image

    Image.fromarray(images[0]).save('photo.jpg')
  exec(code, given)
  if suffix != '.safetensors':
    assert given['outputs'].shape == (2, 10)
    sums = np.sum(given['outputs'], 1)
    assert np.allclose(sums, 1, atol=1e-5) != crops


def test_a_card_says_what_is_known(weights):
  about = {'source': 'step 9\nof a run', 'license': 'MIT', 'errors': '1% top-1'}
  weights = dataclasses.replace(weights, about=about)
  card = model_card.text('net.onnx', weights)
  assert header(card) == {
    'license': 'mit',
    'datasets': ['digits'],
    'library_name': 'alexnet_jax',
    'pipeline_tag': 'image-classification',
  }
  for line in (
    '- Source: step 9 of a run',
    '- Errors: 1% top-1',
    '    9 class 9',
  ):
    assert f'\n{line}\n' in card
  assert re.search(r'\n- Written on \d{4}-\d\d-\d\d .* with JAX \d', card)


@pytest.mark.parametrize(
  ('given', 'expected', 'name'),
  [
    (None, 'unknown', None),
    ('CC0-1.0', 'cc0-1.0', None),
    ('unrestricted: "any" use', 'other', 'unrestricted: "any" use'),
    ('No', 'other', 'No'),  # In YAML, without quotes: False.
    ('2.0', 'other', '2.0'),
    ('MIT-like', 'other', 'MIT-like'),
    ('a\x7fb\udcff\U0001f600', 'other', 'a b \U0001f600'),
  ],
)
def test_a_license_is_a_known_identifier_or_other(
  weights, given, expected, name
):
  about = {} if given is None else {'license': given}
  weights = dataclasses.replace(weights, about=about)
  found = header(model_card.text('net.onnx', weights))
  assert (found['license'], found.get('license_name')) == (expected, name)


@pytest.mark.parametrize(
  'name', ['"', "'", '\\', ': #', '\n---\n', '{a}', '\x7f', '\udcff', '猫']
)
def test_any_name_of_a_file_gives_a_whole_card(weights, tmp_path, name):
  file = tmp_path / f'{name}.torch.safetensors'
  card = model_card.write(file, weights)
  assert header(card.read_text())['license'] == 'cc0-1.0'
  (code,) = re.findall('```python\n(.*?)```', card.read_text(), re.DOTALL)
  constants = {
    x.value for x in ast.walk(ast.parse(code)) if isinstance(x, ast.Constant)
  }
  assert constants == {file.name}
  assert model_card.write(file, weights) == card  # It is known again.


def test_a_readme_of_others_stays(weights, tmp_path):
  first = model_card.write(tmp_path / 'a.onnx', weights)
  again = model_card.write(tmp_path / 'a.onnx', weights)
  assert first == again == tmp_path / 'README.md'
  before = first.read_text()
  # Another file, a file of others, bytes, and a link to nowhere.
  assert model_card.write(tmp_path / 'b.onnx', weights).name == 'b.onnx.md'
  assert first.read_text() == before
  for content in (b'# Mine\n', b'\xff'):
    first.write_bytes(content)
    assert model_card.write(tmp_path / 'a.onnx', weights).name == 'a.onnx.md'
    assert first.read_bytes() == content
  first.unlink()
  os.symlink('nowhere', first)
  assert model_card.write(tmp_path / 'a.onnx', weights).name == 'a.onnx.md'
  assert os.path.lexists(first)
