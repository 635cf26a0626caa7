"""The structure of the package: which module may import what.

Also the sizes of modules and functions, docstrings, and names not to be used.
Nearly all of it is read from the source.
"""

import ast
import functools
import json
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
  '__main__',
  'convert.__main__',
  'convert.convert',
  'main',
  'train',
  'dashboard',
  'run_summary',
  'evaluate',
  'digits',
  'retrieve',
  'features',
  'predict',
  'nearest',
  'feature_file',
  'report',
  'sheet',
  'image_files',
  'net_flags',
  'net',
  'error_table',
  'file_net',
  'trained_net',
  'convert.caffemodel',
  'convert.torch_weights',
  'convert.forms',
  'convert.model_card',
  'convert.onnx_graph',
  'convert.stablehlo',
  'words',
  'pictures',
  'evaluator',
  'divergence',
  'diagnostics',
  'observation',
  'train_step',
  'pretrained',
  'weights',
  'train_state',
  'predictions',
  'run',
  'chance_loss',
  'prepare.__main__',
  'prepare.verify',
  'prepare.prepare',
  'prepare.metadata',
  'prepare.plan',
  'prepare.workers',
  'prepare.shards',
  'prepare.sources',
  'prepare.imagenet',
  'prepare.tfds_sets',
  'prepare.class_names',
  'prepare.folders',
  'prepare.examples',
  'workdir',
  'recorded_config',
  'shipped_nets',
  'config',
  'ranges',
  'mesh_rules',
  'input_pipeline',
  'cache',
  'buffer_pool',
  'records',
  'dataset',
  'images',
  'image_metadata',
  'timetable',
  'checkpoint',
  'checkpoint_handlers',
  'checkpoint_retention',
  'rising_loss',
  'checkpoint_files',
  'checkpoint_path',
  'progress',
  'metrics',
  'metrics_file',
  'events',
  'augment',
  'colour_index',
  'model',
  'feature_maps',
  'layers',
  'pooling',
  'towers',
  'placement',
  'mesh',
  'optimizer',
  'runtime.agreement',
  'runtime.installation',
  'runtime.replicas',
  'runtime.command',
  'runtime.config_file',
  'runtime.digests',
  'runtime.files',
  'runtime.compilation',
  'runtime.huge_pages',
  'runtime.memory',
  'runtime.utf8',
  'runtime.profiler',
  'runtime.processes',
  'runtime.peers',
  'runtime.waiting',
  'runtime.jax_settings',
  'runtime.signals',
]

# The modules that import a library; no other may.
USERS_OF_LIBRARIES = {
  'PIL': ['images', 'prepare.sources', 'sheet'],
  'absl': [
    'convert.__main__',
    'evaluate',
    'features',
    'main',
    'net_flags',
    'predict',
    'prepare.__main__',
    'retrieve',
    'runtime.command',
    'runtime.config_file',
  ],
  'array_record': ['prepare.shards', 'prepare.tfds_sets'],
  'benchmarks': [],
  'clu': ['train_state'],
  'configs': [],
  'experiments': [],
  'google': ['convert.caffemodel', 'prepare.tfds_sets', 'records'],
  'grain': ['input_pipeline'],
  'ml_collections': [
    'chance_loss',
    'config',
    'convert.__main__',
    'convert.convert',
    'convert.forms',
    'digits',
    'evaluate',
    'file_net',
    'main',
    'mesh_rules',
    'net',
    'recorded_config',
    'rising_loss',
    'run',
    'runtime.config_file',
    'train',
    'train_step',
    'trained_net',
    'weights',
    'workdir',
  ],
  'psutil': ['runtime.memory'],
  'optax': ['diagnostics', 'divergence', 'optimizer', 'train_step'],
  'onnx': ['convert.onnx_graph'],
  'onnxruntime': [],
  'orbax': [
    'checkpoint',
    'checkpoint_files',
    'checkpoint_handlers',
    'checkpoint_path',
    'checkpoint_retention',
  ],
  'safetensors': ['convert.torch_weights', 'weights'],
  'simplejpeg': ['images'],
  'sklearn': ['prepare.sources'],
  'tensorboardX': ['events'],
  'tensorflow': [],
  'tensorflow_datasets': [
    'dataset',
    'prepare.class_names',
    'prepare.imagenet',
    'prepare.metadata',
    'prepare.shards',
    'prepare.tfds_sets',
    'records',
  ],
  'tests': [],
  'torch': ['convert.torch_weights'],
  'tqdm': [
    'image_files',
    'prepare.prepare',
    'progress',
    'report',
    'run_summary',
  ],
}

# The modules that use these names; no other may. Few modules communicate
# between processes, and a library does not end its process.
USERS_OF_PARTS = {
  'jax.distributed': ['runtime.processes'],
  'multihost_utils': ['placement', 'runtime.processes'],
  'os._exit': ['prepare.workers', 'runtime.signals'],
  'sys.exit': [
    '__main__',
    'main',
    'prepare.__main__',
    'runtime.command',
    'runtime.config_file',
  ],
}

# They define flags that `main` defines too, so one process cannot import both.
COMMANDS = ('convert.__main__', 'prepare.__main__')

# Removed from JAX or deprecated, or slow in our measurements (see
# towers.grouped_conv).
BANNED = {
  'batch_group_count',
  'device_put_replicated',
  'device_put_sharded',
  'feature_group_count',
  'pmap',
  'tree_map',
  'xmap',
}

# The most lines of a module and of a function.
MODULE_LINES, FUNCTION_LINES = 300, 60
# Exceptions: their limits, with the reason.
LONG_MODULES = {}
LONG_FUNCTIONS = {
  # The loop is the documentation of the project: it reads from top to bottom.
  ('train', 'train_and_evaluate'): 93
}
# The most lines of all modules that explain training; see CONTRIBUTING.md.
CORE_LINES = 2445


def path_of(module):
  return PACKAGE / f'{module.replace(".", "/")}.py'


@functools.cache
def tree(module):
  return ast.parse(path_of(module).read_text())


@functools.cache
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


# What preparation knows of folders of images, and how it prints their names.
FOLDERS = 'prepare.folders'
USERS_OF_FOLDERS = {'image_files', 'report', 'retrieve', 'sheet'}


def test_few_import_preparation_and_only_commands_import_digits():
  users = {
    module
    for module in MODULES
    if not module.startswith('prepare.')
    and any(
      m.startswith('prepare.') for m in imported_modules(module) - {FOLDERS}
    )
  }
  assert users == {'convert.convert', 'digits'}  # The former: class names.
  users = {m for m in MODULES if FOLDERS in imported_modules(m)}
  users = {m for m in users if not m.startswith('prepare.')}
  assert users == USERS_OF_FOLDERS
  users = {m for m in MODULES if 'digits' in imported_modules(m)}
  assert users == {'main', 'evaluate'}


@pytest.mark.parametrize(
  'module', [m for m in MODULES if m.startswith('runtime.')]
)
def test_the_runtime_imports_nothing_else_of_the_package(module):
  others = {m for m in imported_modules(module) if not m.startswith('runtime.')}
  assert others == set()


@pytest.mark.parametrize('library', USERS_OF_LIBRARIES)
def test_a_library_is_imported_only_by_its_users(library):
  users = [
    module
    for module in MODULES
    if any(name.split('.')[0] == library for name in imported(module))
  ]
  assert users == USERS_OF_LIBRARIES[library]


@functools.cache
def dotted(module):
  """What a module imports, and every dotted name in it."""
  nodes = ast.walk(tree(module))
  attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
  return imported(module) | {ast.unparse(node) for node in attributes}


@pytest.mark.parametrize('part', USERS_OF_PARTS)
def test_a_restricted_name_is_used_only_by_its_users(part):
  users = [
    module
    for module in MODULES
    if any(f'.{part}.' in f'.{name}.' for name in dotted(module))
  ]
  assert users == USERS_OF_PARTS[part]


@pytest.mark.parametrize('module', MODULES)
def test_only_commands_and_what_they_share_use_flags(module):
  is_command = any(
    isinstance(node, ast.If)
    and ast.unparse(node.test) == "__name__ == '__main__'"
    for node in tree(module).body
  )
  uses_flags = any(name.startswith('absl.flags') for name in imported(module))
  shared = module in ('net_flags', 'runtime.command', 'runtime.config_file')
  runs_others = module == '__main__'
  assert (is_command or shared) == (uses_flags or runs_others)


@pytest.mark.parametrize('module', MODULES)
def test_a_config_is_read_without_default_values(module):
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
    and node.name != 'main'  # Documented by the module's docstring.
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
  for path in (ROOT / folder).rglob('*.py'):
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
  total = sum(num_lines(path) for path in (ROOT / 'benchmarks').rglob('*.py'))
  # A half is benchmarks/faults/, which also damages files for the tests.
  assert total <= 6790


IMPORTS = f"""
import importlib, json, sys

class NoTensorFlow:
  def find_spec(name, path=None, target=None):
    if name.partition('.')[0] == 'tensorflow':
      raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

# An import hook, since a module in sys.modules would be taken for TensorFlow.
sys.meta_path.insert(0, NoTensorFlow)
loaded = {{}}
importlib.import_module('alexnet_jax.train')
loaded['training'] = [*sys.modules]
for module in {[m for m in MODULES if m not in COMMANDS]}:
  importlib.import_module('alexnet_jax.' + module)
loaded['all'] = [*sys.modules]
print(json.dumps(loaded))
"""


@pytest.fixture(scope='module')
def loaded():
  """The modules in sys.modules after imports without TensorFlow."""
  done = subprocess.run(
    [sys.executable, '-c', IMPORTS], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.returncode, done.stderr[-2000:]) == (0, '')
  return json.loads(done.stdout)


def test_training_imports_no_preparation_module(loaded):
  assert 'alexnet_jax.train' in loaded['training']
  prefix = 'alexnet_jax.prepare'
  assert [m for m in loaded['training'] if m.startswith(prefix)] == []


def test_no_module_imports_what_takes_a_second(loaded):
  assert not {'sklearn', 'torch'} & set(loaded['all'])


def test_the_package_needs_no_tensorflow(loaded):
  assert 'tensorflow' not in loaded['all']
