"""Notebooks: stripped, alike in their first cell, and at home on any machine."""

import importlib.util
import json
import pathlib
import re
import sys
import types

import pytest

NOTEBOOKS = sorted(pathlib.Path(__file__).parents[1].glob('notebooks/*.ipynb'))
each_notebook = pytest.mark.parametrize(
  'notebook', NOTEBOOKS, ids=lambda path: path.stem
)


def cells(notebook, kind):
  found = json.loads(notebook.read_text())['cells']
  return [cell for cell in found if cell['cell_type'] == kind]


def source(cell):
  return ''.join(cell['source'])


def test_there_are_three_notebooks():
  names = [path.stem for path in NOTEBOOKS]
  assert names == ['inside_alexnet', 'quickstart', 'two_towers']


@each_notebook
def test_a_notebook_is_stripped(notebook):
  for cell in cells(notebook, 'code'):
    assert (cell['outputs'], cell['execution_count']) == ([], None)
    assert cell['metadata'] == {}
  metadata = json.loads(notebook.read_text())['metadata']
  assert metadata['language_info'] == {'name': 'python'}
  assert metadata['kernelspec']['name'] == 'python3'


@each_notebook
def test_a_notebook_names_no_path_of_a_machine(notebook):
  path = r'(?<![\w.~])/(?:home|root|tmp|content|work|Users|mnt)\b|\b[A-Z]:\\'
  for cell in json.loads(notebook.read_text())['cells']:
    assert not re.search(path, source(cell))


@each_notebook
def test_the_files_that_a_notebook_names_exist(notebook):
  root = notebook.parents[1]
  named = set()
  for cell in cells(notebook, 'markdown'):
    folders = r'(?<![\w/.])(?:alexnet_jax|configs|docs|notebooks)/[\w./-]*\w'
    named.update(re.findall(folders, source(cell)))
    named |= {f'notebooks/{x}' for x in re.findall(r'\w+\.ipynb', source(cell))}
  assert [name for name in sorted(named) if not (root / name).exists()] == []


@each_notebook
def test_the_first_cell_on_colab_asks_for_the_repository(
  notebook, tmp_path, monkeypatch
):
  setup = source(cells(notebook, 'code')[0])
  assert setup == source(cells(NOTEBOOKS[0], 'code')[0])
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'google.colab', types.ModuleType('colab'))
  with pytest.raises(ValueError, match="^REPOSITORY = '' names no repository"):
    exec(setup, {})
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('start', ['.', 'notebooks'])
def test_the_first_cell_finds_the_clone(start, monkeypatch):
  root = NOTEBOOKS[0].parents[1]
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.chdir(root / start)
  setup = source(cells(NOTEBOOKS[0], 'code')[0])
  for _ in range(2):  # The cell may be run again.
    exec(setup, {})
    assert pathlib.Path.cwd() == root and sys.path[0] == str(root)


@pytest.mark.parametrize(
  ('installed', 'extra', 'kept'),
  [
    # New enough: with its plugin it stays as it is.
    (
      {'jax': '99.0', 'jax-cuda12-plugin': '99.0', 'protobuf': '5.29.6'},
      '',
      ['jax==99.0', 'protobuf==5.29.6'],
    ),
    ({'jax': '0.7.2', 'numpy': '2.0.2'}, '', ['numpy==2.0.2']),
    ({'jax': '0.7.2', 'jax-cuda12-plugin': '0.7.2'}, '[gpu12]', []),
    ({'jax': '0.7.2', 'jax-cuda13-plugin': '0.7.2'}, '[gpu]', []),
    ({'jax': '0.7.2', 'libtpu': '0.0.20'}, '[tpu]', []),
    ({}, '', []),
  ],
)
def test_colab_keeps_its_jax_if_it_is_new_enough(installed, extra, kept):
  root = NOTEBOOKS[0].parents[1]
  path = root / 'notebooks' / 'colab.py'
  spec = importlib.util.spec_from_file_location('colab', path)
  colab = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(colab)
  arguments = colab.pip_arguments(installed)
  assert arguments[:2] == ['-e', f'{root}{extra}']
  assert sorted(arguments[2:]) == kept
