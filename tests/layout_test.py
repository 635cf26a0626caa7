"""The walls of the package, read from its source: who may import what.

Also what the documents promise: commands, files and pinned versions exist.
"""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'alexnet_jax'
MODULES = sorted(path.stem for path in PACKAGE.glob('[!_]*.py'))

# Imports run one way: a module imports only modules named after it.
ORDER = [
  'main',
  'train',
  'evaluate',
  'predictions',
  'run',
  'prepare',
  'workers',
  'shards',
  'sources',
  'imagenet',
  'tfds_sets',
  'examples',
  'input_pipeline',
  'images',
  'config',
  'timetable',
  'checkpoint',
  'metrics',
  'events',
  'augment',
  'model',
  'pooling',
  'optimizer',
  'towers',
  'files',
  'command',
  'compilation',
  'large_pages',
  'processes',
]

# Who may import what comes from outside; nobody else.
WALLS = {
  'PIL': ['images', 'sources'],
  'absl': ['command', 'evaluate', 'main', 'prepare'],
  'array_record': ['shards', 'tfds_sets'],
  'benchmarks': [],
  'clu': ['run'],
  'configs': [],
  'experiments': [],
  'grain': ['input_pipeline'],
  'ml_collections': ['config', 'evaluate', 'main', 'run', 'train'],
  'optax': ['optimizer', 'train'],
  'orbax': ['checkpoint'],
  'simplejpeg': ['images'],
  'sklearn': ['sources'],
  'tensorboardX': ['events'],
  'tensorflow': [],
  'tensorflow_datasets': [
    'imagenet',
    'input_pipeline',
    'prepare',
    'shards',
    'tfds_sets',
  ],
  'tests': [],
  'torch': [],
  'tqdm': ['metrics', 'prepare'],
}

# Whose use is kept to few modules although JAX and Python come with it: many
# processes are a matter of two, and a library does not end its program.
PARTS = {
  'jax.distributed': ['processes'],
  'multihost_utils': ['metrics', 'processes'],
  'os._exit': ['processes', 'workers'],
  'sys.exit': ['command', 'evaluate', 'main', 'prepare'],
}

# Gone from JAX or on the way out, or measured too slow (towers.grouped_conv).
BANNED = {
  'batch_group_count',
  'device_put_replicated',
  'device_put_sharded',
  'feature_group_count',
  'pmap',
  'tree_map',
  'xmap',
}

DOCUMENTS = ['README.md', 'CONTRIBUTING.md'] + [
  f'configs/{path.name}' for path in sorted((ROOT / 'configs').glob('*.py'))
]


@functools.cache
def tree(module):
  return ast.parse((PACKAGE / f'{module}.py').read_text())


def imported(module):
  """Full names of what a module imports, also inside functions."""
  names = set()
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      source = 'alexnet_jax' if node.level else ''
      source = '.'.join(part for part in (source, node.module) if part)
      names |= {f'{source}.{alias.name}' for alias in node.names}
  return names


def test_every_module_has_its_place_in_the_order():
  assert sorted(ORDER) == MODULES


@pytest.mark.parametrize('module', MODULES)
def test_imports_within_the_package_run_one_way(module):
  own = {n.split('.')[1] for n in imported(module) if n.startswith('alexnet_')}
  assert sorted(own - set(ORDER[ORDER.index(module) + 1 :])) == []


@pytest.mark.parametrize('library', WALLS)
def test_a_library_stays_behind_its_wall(library):
  users = [
    module
    for module in MODULES
    if any(name.split('.')[0] == library for name in imported(module))
  ]
  assert users == WALLS[library]


@functools.cache
def dotted(module):
  """What a module imports, and every name with a dot in it."""
  nodes = ast.walk(tree(module))
  attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
  return imported(module) | {ast.unparse(node) for node in attributes}


@pytest.mark.parametrize('part', PARTS)
def test_a_part_of_a_library_stays_behind_its_wall(part):
  users = [
    module
    for module in MODULES
    if any(f'.{part}.' in f'.{name}.' for name in dotted(module))
  ]
  assert users == PARTS[part]


@pytest.mark.parametrize('module', MODULES)
def test_only_commands_read_flags(module):
  is_command = any(
    isinstance(node, ast.If)
    and ast.unparse(node.test) == "__name__ == '__main__'"
    for node in tree(module).body
  )
  uses_flags = any(name.startswith('absl.flags') for name in imported(module))
  assert is_command == uses_flags


@pytest.mark.parametrize('module', MODULES)
def test_a_config_is_read_without_fallbacks(module):
  configs = {'config', 'CONFIG', 'inputs', 'optim', 'net', 'mesh'}
  found = [
    ast.unparse(node)
    for node in ast.walk(tree(module))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr == 'get'
    and configs & set(re.findall(r'\w+', ast.unparse(node.func.value)))
  ]
  assert found == []


@pytest.mark.parametrize('module', MODULES)
def test_no_banned_name_is_used(module):
  used = set()
  for node in ast.walk(tree(module)):
    match node:
      case ast.Attribute(attr=name) | ast.Name(id=name) | ast.keyword(arg=name):
        used.add(name)
      case ast.alias(name=name) | ast.Constant(value=str(name)):
        used.add(name.rpartition('.')[2])
  assert sorted(used & BANNED) == []


@pytest.mark.parametrize('module', MODULES)
def test_public_functions_and_classes_have_docstrings(module):
  bare = [
    node.name
    for node in tree(module).body
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
    and not node.name.startswith('_')
    and node.name != 'main'  # The module's docstring is that of the command.
    and not ast.get_docstring(node)
  ]
  assert ast.get_docstring(tree(module)) and bare == []


@pytest.mark.parametrize('module', MODULES)
def test_no_name_is_defined_twice(module):
  names = [
    node.name
    for node in tree(module).body
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
  ]
  assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize('module', MODULES)
def test_a_module_can_be_read_in_one_sitting(module):
  assert len((PACKAGE / f'{module}.py').read_text().splitlines()) <= 450


def test_the_package_needs_no_tensorflow():
  # An import hook, as a stand-in module in sys.modules would be taken for it.
  program = f"""
import importlib, sys

class Wall:
  def find_spec(name, path=None, target=None):
    if name.partition('.')[0] == 'tensorflow':
      raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Wall)
for module in {[module for module in MODULES if module != 'events']}:
  importlib.import_module('alexnet_jax.' + module)
# Over a second each, for the digits and for event files alone.
assert not {{'sklearn', 'torch'}} & sys.modules.keys()
importlib.import_module('alexnet_jax.events')
assert 'tensorflow' not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.returncode, done.stderr[-2000:]) == (0, '')
