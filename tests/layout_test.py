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
# Dotted below the package: 'train', 'runtime.files', 'prepare.__main__'.
MODULES = sorted(
  '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
  for path in PACKAGE.rglob('*.py')
  if path.name != '__init__.py'
)

# Imports run one way: a module imports only modules named after it.
ORDER = [
  'main',
  'train',
  'evaluate',
  'digits',
  'trained_net',
  'pictures',
  'evaluator',
  'train_step',
  'pretrained',
  'train_state',
  'predictions',
  'run',
  'chance_loss',
  'prepare.__main__',
  'prepare.prepare',
  'prepare.metadata',
  'prepare.plan',
  'prepare.workers',
  'prepare.shards',
  'prepare.sources',
  'prepare.imagenet',
  'prepare.tfds_sets',
  'prepare.examples',
  'workdir',
  'recorded_config',
  'config',
  'input_pipeline',
  'buffer_pool',
  'dataset',
  'images',
  'timetable',
  'checkpoint',
  'metrics',
  'events',
  'augment',
  'model',
  'layers',
  'pooling',
  'towers',
  'placement',
  'mesh',
  'optimizer',
  'runtime.command',
  'runtime.files',
  'runtime.compilation',
  'runtime.huge_pages',
  'runtime.processes',
]

# Which modules may import a library; nobody else does.
WALLS = {
  'PIL': ['images', 'prepare.sources'],
  'absl': ['evaluate', 'main', 'prepare.__main__', 'runtime.command'],
  'array_record': ['prepare.shards', 'prepare.tfds_sets'],
  'benchmarks': [],
  'clu': ['train_state'],
  'configs': [],
  'experiments': [],
  'grain': ['input_pipeline'],
  'ml_collections': [
    'chance_loss',
    'config',
    'digits',
    'evaluate',
    'main',
    'recorded_config',
    'run',
    'train',
    'train_step',
    'trained_net',
    'workdir',
  ],
  'optax': ['optimizer', 'train', 'train_step'],
  'orbax': ['checkpoint'],
  'simplejpeg': ['images'],
  'sklearn': ['prepare.sources'],
  'tensorboardX': ['events'],
  'tensorflow': [],
  'tensorflow_datasets': [
    'dataset',
    'input_pipeline',
    'prepare.imagenet',
    'prepare.metadata',
    'prepare.shards',
    'prepare.tfds_sets',
  ],
  'tests': [],
  'torch': [],
  'tqdm': ['metrics', 'prepare.prepare'],
}

# Parts of JAX and of Python that few modules may use: many processes are the
# business of two, and a library does not end its program.
PARTS = {
  'jax.distributed': ['runtime.processes'],
  'multihost_utils': ['placement', 'runtime.processes'],
  'os._exit': ['prepare.workers', 'runtime.processes'],
  'sys.exit': ['evaluate', 'main', 'prepare.__main__', 'runtime.command'],
}

# Its flags are those of another command: one process cannot import both.
COMMAND = 'prepare.__main__'

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

# A module is at most this long, a function at most that.
MODULE_LINES, FUNCTION_LINES = 300, 60
# Longer ones, by name, with the lines that they may have and the reason.
LONG_MODULES = {}
LONG_FUNCTIONS = {
  # The loop is the documentation of the project: it reads from top to bottom.
  ('train', 'train_and_evaluate'): 79
}
# What one must read to understand training; CONTRIBUTING.md lists it in order.
CORE_LINES = 2200


def path_of(module):
  return PACKAGE / f'{module.replace(".", "/")}.py'


@functools.cache
def tree(module):
  return ast.parse(path_of(module).read_text())


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


def imported_modules(module):
  """The modules of the package that a module imports."""
  return {m for m in MODULES if f'alexnet_jax.{m}' in imported(module)}


def test_every_module_has_its_place_in_the_order():
  assert sorted(ORDER) == MODULES


@pytest.mark.parametrize('module', MODULES)
def test_imports_within_the_package_run_one_way(module):
  later = ORDER[ORDER.index(module) + 1 :]
  assert sorted(imported_modules(module) - {*later}) == []


def test_only_the_digits_connect_commands_with_preparation():
  users = {
    module
    for module in MODULES
    if not module.startswith('prepare.')
    and any(m.startswith('prepare.') for m in imported_modules(module))
  }
  assert users == {'digits'}
  users = {m for m in MODULES if 'digits' in imported_modules(m)}
  assert users == {'main', 'evaluate'}


@pytest.mark.parametrize(
  'module', [m for m in MODULES if m.startswith('runtime.')]
)
def test_the_runtime_knows_nothing_of_the_project(module):
  others = {m for m in imported_modules(module) if not m.startswith('runtime.')}
  assert others == set()


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


def num_lines(path):
  return len(path.read_text().splitlines())


@pytest.mark.parametrize('module', MODULES)
def test_a_module_can_be_read_in_one_sitting(module):
  assert len(LONG_MODULES) <= 2
  assert num_lines(path_of(module)) < LONG_MODULES.get(module, MODULE_LINES)


@pytest.mark.parametrize('module', MODULES)
def test_a_function_fits_on_a_screen(module):
  too_long = {
    node.name: length
    for node in ast.walk(tree(module))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    and (length := node.end_lineno - node.lineno + 1)
    > LONG_FUNCTIONS.get((module, node.name), FUNCTION_LINES)
  }
  assert too_long == {}


def test_the_core_can_be_read_in_an_afternoon():
  listed = re.findall(
    r'^\d+\. `alexnet_jax/(\w+)\.py`',
    (ROOT / 'CONTRIBUTING.md').read_text(),
    re.MULTILINE,
  )
  assert {'main', 'train', 'train_step', 'model', 'mesh'} <= {*listed}
  assert {'layers', 'towers', 'optimizer', 'augment', 'run'} <= {*listed}
  assert sum(num_lines(path_of(name)) for name in listed) <= CORE_LINES


@pytest.mark.parametrize('folder', ['benchmarks', 'experiments'])
def test_modules_outside_the_package_have_the_same_limits(folder):
  too_long = []
  for path in (ROOT / folder).glob('*.py'):
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    too_long += [
      f'{path.name}: {f.name}'
      for f in functions
      if f.end_lineno - f.lineno + 1 > FUNCTION_LINES
    ]
    too_long += [path.name] if num_lines(path) >= MODULE_LINES else []
  assert too_long == []


def test_benchmarks_stay_small():
  total = sum(num_lines(path) for path in (ROOT / 'benchmarks').glob('*.py'))
  assert total <= 2600


def test_the_package_needs_no_tensorflow():
  # An import hook, as a stand-in module in sys.modules would be taken for it.
  program = f"""
import importlib, sys

class Wall:
  def find_spec(name, path=None, target=None):
    if name.partition('.')[0] == 'tensorflow':
      raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Wall)
for module in {[m for m in MODULES if m not in ('events', COMMAND)]}:
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
