"""What holds for an installed package as for a clone: configs, commands.

The slow test installs a wheel. In the others a copy of the package, with the
configs in it, stands for an installed one.
"""

import ast
import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest

import alexnet_jax
from alexnet_jax import __main__ as commands
from alexnet_jax.runtime import config_file

PACKAGE = pathlib.Path(commands.__file__).parent
ROOT = PACKAGE.parent
FIND = (
  'import runpy, sys; from alexnet_jax.runtime import config_file\n'
  'with config_file.one_line_errors(sys.argv):\n'
  '  word = config_file.find_configs(sys.argv)[1]\n'
  '  path = word.removeprefix("--config=").partition(":")[0]\n'
  '  print(path, runpy.run_path(path)["get_config"]().seed)\n'
)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """The folder of an installed package."""
  site = tmp_path_factory.mktemp('site')
  ignored = shutil.ignore_patterns('__pycache__')
  shutil.copytree(PACKAGE, site / 'alexnet_jax', ignore=ignored)
  shutil.copytree(
    ROOT / 'configs', site / 'alexnet_jax/configs', ignore=ignored
  )
  return site


def python(*arguments, path, cwd):
  done = subprocess.run(
    [sys.executable, '-Werror', *arguments],
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': str(path)},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('mine', ['mine.py', 'mine/configs/mine.py'])
@pytest.mark.parametrize('where', ['clone', 'installed'])
def test_a_config_imports_this_projects_configs_from_anywhere(
  installed, tmp_path, where, mine
):
  file = tmp_path / mine
  file.parent.mkdir(parents=True, exist_ok=True)
  (file.parent / 'base.py').write_text('from configs import paper')
  base = 'configs.base' if 'configs' in mine else 'configs'
  file.write_text(
    f'from {base} import paper\n'
    'from configs import here\n'
    'get_config = paper.get_config\n'
  )
  # A regular package of this name does not hide ours.
  (tmp_path / 'cwd/configs').mkdir(parents=True)
  (tmp_path / 'cwd/configs/__init__.py').write_text('1 / 0')
  (tmp_path / 'cwd/configs/here.py').write_text('')
  site = ROOT if where == 'clone' else installed
  done = python(
    '-c', FIND, f'--config={file}:x', path=site, cwd=tmp_path / 'cwd'
  )
  assert done == (0, f'{file} 0\n', '')


def test_an_installed_config_is_found_by_name(installed, tmp_path):
  done = python('-c', FIND, '--config=fast', path=installed, cwd=tmp_path)
  file = installed.resolve() / 'alexnet_jax/configs/fast.py'
  assert done == (0, f'{file} 0\n', '')


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['--config=fast', '--x=fast'], ['--config={}/fast.py', '--x=fast']),
    (
      ['--x', 'fast', '--config', 'fast'],
      ['--x', 'fast', '--config={}/fast.py'],
    ),
    (['--config=fast:fast'], ['--config={}/fast.py:fast']),
    (
      ['--config=fast', '--config=paper'],
      ['--config=fast', '--config={}/paper.py'],
    ),
    (['--config=mine'], ['--config=mine']),
    (['--config=source'], ['--config={}/source.py']),
    (['--config=run147'], ['--config=run147']),
    (['--config=fast.py'], ['--config=fast.py']),
    (['--config=__init__'], ['--config=__init__']),
    (['--config'], ['--config']),
    ([], []),
  ],
)
def test_a_name_means_our_config_unless_a_file_has_it(
  monkeypatch, tmp_path, words, expected
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'configs', None)
  (tmp_path / 'source').mkdir()
  (tmp_path / 'run147').write_text('')
  found = config_file.find_configs(['main', *words])
  folder = ROOT.resolve() / 'configs'
  assert found == ['main', *(word.format(folder) for word in expected)]


def test_a_program_imports_installed_configs_and_its_own(installed, tmp_path):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/mine.py').write_text('seed = 5')
  code = (
    'from alexnet_jax.configs import quickstart; from configs import mine\n'
    'print(quickstart.get_config().seed, mine.seed)'
  )
  done = python('-c', code, path=installed, cwd=tmp_path)
  assert done == (0, '0 5\n', '')


def test_the_commands_are_listed_in_a_line_each(tmp_path):
  code, listing, stderr = python('-m', 'alexnet_jax', path=ROOT, cwd=tmp_path)
  assert (code, stderr) == (0, '')
  names = [line.split()[0] for line in listing.splitlines() if line[:2] == '  ']
  assert names[:3] == ['train', 'evaluate', 'prepare']
  assert max(map(len, listing.splitlines())) <= 80


def test_every_command_is_listed():
  is_main = "__name__ == '__main__'"
  modules = {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
    for path in PACKAGE.rglob('*.py')
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.If) and ast.unparse(node.test) == is_main
  }
  modules = {name.removesuffix('.__main__') for name in modules - {'__main__'}}
  assert modules == {*commands.MODULES.values()}


@pytest.mark.parametrize(
  ('name', 'module'),
  [('train', 'main'), ('main', 'main'), ('prepare', 'prepare')],
)
def test_a_command_runs_its_module(monkeypatch, name, module):
  runs = []
  run = lambda *args, **kwargs: runs.append((*args, kwargs, sys.argv))
  monkeypatch.setattr(runpy, 'run_module', run)
  monkeypatch.setattr(sys, 'argv', ['alexnet-jax', name, '--a=b', 'train'])
  commands.main()
  how = {'run_name': '__main__', 'alter_sys': True}
  argv = ['alexnet-jax', '--a=b', 'train']
  assert runs == [(f'alexnet_jax.{module}', how, argv)]


@pytest.mark.parametrize(
  ('name', 'meant'),
  [('tarin', 'did you mean train? '), ('zzz', ''), ('--config=fast', '')],
)
def test_a_word_that_is_no_command_is_refused(monkeypatch, name, meant):
  monkeypatch.setattr(sys, 'argv', ['alexnet-jax', name])
  with pytest.raises(SystemExit) as ended:
    commands.main()
  start = f'{name} is not a command; {meant}the commands are train, evaluate, '
  assert str(ended.value).startswith(start)


@pytest.mark.parametrize(
  ('module', 'way_out'),
  [
    ('train', 'run python -m alexnet_jax.main; '),
    ('prepare.sources', 'run python -m alexnet_jax.prepare; '),
    ('model', ''),
    ('runtime.processes', ''),
    ('no_such', ''),
    ('__main__', ''),
  ],
)
def test_a_library_module_says_which_command_to_run(tmp_path, module, way_out):
  done = python('-m', f'alexnet_jax.{module}', path=ROOT, cwd=tmp_path)
  message = (
    f'alexnet_jax.{module} is not a command; {way_out}python -m alexnet_jax'
    ' lists them\n'
  )
  assert done == (1, '', message)


@pytest.mark.parametrize('word', ['main', 'prepare', 'prepare.__main__'])
def test_a_command_is_not_refused(word):
  commands.check_module(f'alexnet_jax.{word}')


@pytest.mark.slow  # It downloads and installs every requirement.
def test_the_quick_start_runs_from_a_wheel_anywhere(tmp_path):
  source, env, cwd = (tmp_path / name for name in ('source', 'env', 'cwd'))
  kept = shutil.ignore_patterns('.*', 'build', 'runs', 'data', '*.egg-info')
  shutil.copytree(ROOT, source, ignore=kept)
  cwd.mkdir()
  run = lambda *words: subprocess.run(words, cwd=cwd, env=variables, check=True)
  keep = lambda name: not name.startswith(('PYTHON', 'JAX_', 'XLA_'))
  variables = {k: v for k, v in os.environ.items() if keep(k)}
  run(sys.executable, '-m', 'venv', env)
  pip = (env / 'bin/python', '-m', 'pip', '--quiet')
  run(*pip, 'wheel', '--no-deps', f'--wheel-dir={tmp_path}', source)
  (wheel,) = tmp_path.glob('*.whl')
  run(*pip, 'install', f'--constraint={ROOT}/requirements.txt', wheel)
  assert not [*env.glob('lib/*/site-packages/configs')]
  run(
    *(env / 'bin/alexnet-jax', 'train', '--config=quickstart'),
    *('--workdir=run', '--config.input.data_dir=data'),
  )
  result = json.loads((cwd / 'run/result.json').read_text())
  assert result['eval/top1_error'] <= 0.03
  assert result['commit'] == alexnet_jax.__version__  # Without a repository.
  run(env / 'bin/python', '-m', 'alexnet_jax', 'evaluate', '--workdirs=run')
