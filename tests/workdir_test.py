"""A work directory: the config that it records, and paths that it refuses.

Also the commit of the code that a result records.
"""

import contextlib
import errno
import importlib
import json
import os
import pathlib
import shutil
import subprocess

import jax
import pytest

import alexnet_jax
from alexnet_jax import checkpoint_files
from alexnet_jax import config as config_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes
from configs import paper

NAMES = sorted(
  path.stem for path in pathlib.Path(paper.__file__).parent.glob('[!_]*.py')
)


def changed(**values):
  """paper.py with other values; `a__b` stands for the key a.b."""
  config = paper.get_config()
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in values.items()}
  )
  return config


def record(workdir, config):
  """Checks a work directory and records the config, as a command does."""
  path = workdir_lib.check_workdir(workdir, config)
  workdir_lib.write_config(path, config)
  return path


def test_a_work_directory_is_created_and_its_config_recorded(tmp_path):
  config = paper.get_config()
  path = record(tmp_path / 'runs' / 'first', config)
  assert path == tmp_path / 'runs' / 'first'
  assert os.listdir(path) == ['config.json']
  recorded = json.loads((path / 'config.json').read_text())
  assert recorded == config_lib.flatten(config)


def test_a_relative_path_is_relative_to_the_current_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert record('run', paper.get_config()) == tmp_path / 'run'


def test_an_empty_path_is_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='--workdir= '):
    record('', paper.get_config())
  assert os.listdir(tmp_path) == []


def test_a_path_under_a_regular_file_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  workdir = tmp_path / 'file' / 'run'
  with pytest.raises(ValueError) as error:
    record(workdir, paper.get_config())
  assert str(error.value).startswith(f'--workdir={workdir} cannot be written (')
  assert str(error.value).endswith('; name a folder that can')


def test_no_permission_or_too_long_a_name_is_named(tmp_path, monkeypatch):
  config = paper.get_config()
  for path in (tmp_path / ('x' * 256), tmp_path / '/'.join(30 * ['y' * 200])):
    words = f'^--workdir={path}: names have at most 255 bytes, paths 4,095'
    with pytest.raises(ValueError, match=words):
      record(path, config)
  assert os.listdir(tmp_path) == []
  # Checkpoints without permission: config.json must not be replaced.
  checkpoints = record(tmp_path / 'run', config) / 'checkpoints'
  checkpoints.mkdir()
  may = lambda path, _: path != checkpoints  # Root has all.
  monkeypatch.setattr(os, 'access', may)
  with pytest.raises(
    ValueError, match=f'{checkpoints} is not a writable folder'
  ):
    record(tmp_path / 'run', changed(seed=3))


@pytest.mark.parametrize(
  'trained',
  ['checkpoints/7', 'checkpoints/damaged.7', 'result.json', 'evaluation.json'],
)
def test_another_config_is_refused_and_the_recorded_one_is_kept(
  tmp_path, trained
):
  record(tmp_path, changed(seed=1))
  (tmp_path / trained).mkdir(parents=True)
  file = tmp_path / 'config.json'
  with pytest.raises(ValueError) as error:
    record(tmp_path, changed(seed=2))
  first, second = str(error.value).split('\n')
  assert first.startswith(f'{file} was made with another config; use a fresh')
  assert second == 'config.seed is 1 there but 2 here'
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 1


def test_a_config_recorded_before_the_lock_was_taken_is_kept(
  tmp_path, monkeypatch
):
  locked = files.locked

  def locked_late(path):  # Another run records its config, and ends, first.
    record(path, changed(seed=1))
    (path / 'checkpoints/5').mkdir(parents=True)
    return locked(path)

  monkeypatch.setattr(files, 'locked', locked_late)
  with pytest.raises(ValueError, match='config.seed is 1 there but 2 here'):
    with workdir_lib.owned_workdir(tmp_path / 'run', changed(seed=2)):
      pass
  assert json.loads((tmp_path / 'run/config.json').read_text())['seed'] == 1


@pytest.mark.parametrize('content', ['', '{"seed"', '[]', 'null', '\xff'])
def test_a_damaged_config_is_set_aside_if_a_checkpoint_has_it(
  tmp_path, content
):
  record(tmp_path, changed(seed=1))
  file = tmp_path / 'config.json'
  saved = tmp_path / 'checkpoints/7/record/metadata'
  saved.parent.mkdir(parents=True)
  file.replace(saved)
  file.write_text(content, 'latin-1')
  (tmp_path / 'checkpoints/8/record').mkdir(parents=True)  # Damaged as well.
  with pytest.raises(ValueError, match=f'^{file} is damaged .*fresh --workdir'):
    record(tmp_path, changed(seed=1))
  saved.write_text(
    json.dumps({'config': json.loads(saved.read_text()), 'metrics': {}})
  )
  assert workdir_lib.read_config(tmp_path).seed == 1
  assert file.read_text('latin-1') == content  # Reading changes nothing.
  with pytest.raises(ValueError, match='config.seed is 1 there but 2 here'):
    record(tmp_path, changed(seed=2))
  record(tmp_path, changed(seed=1))
  assert json.loads(file.read_text())['seed'] == 1
  assert file.with_name('config.json.damaged').read_text('latin-1') == content


def test_a_folder_that_is_not_shared_is_refused_whatever_is_in_it(
  tmp_path, monkeypatch
):
  record(tmp_path, paper.get_config())  # Of an earlier run on this host.
  monkeypatch.setattr(processes, 'is_first', lambda: False)
  monkeypatch.setattr(processes, 'is_single_process', lambda: False)
  monkeypatch.setattr(processes, 'gather', lambda values: values[None])
  monkeypatch.setattr(processes, 'barrier', lambda _: None)
  with pytest.raises(ValueError, match='must be on a file system that all'):
    with workdir_lib.owned_workdir(tmp_path, paper.get_config()):
      pass


def test_what_a_killed_command_left_to_see_whether_hosts_share_is_removed(
  tmp_path, monkeypatch
):
  with workdir_lib.owned_workdir(tmp_path, paper.get_config()):
    pass
  (tmp_path / 'shared.0123abcd.tmp').touch()
  # A single process asks nobody.
  monkeypatch.setattr(workdir_lib.pathlib.Path, 'touch', None)
  assert workdir_lib._is_shared(tmp_path)
  monkeypatch.undo()
  monkeypatch.setattr(processes, 'is_single_process', lambda: False)
  monkeypatch.setattr(processes, 'gather', lambda values: values[None])
  monkeypatch.setattr(processes, 'barrier', lambda _: None)
  assert workdir_lib._is_shared(tmp_path)
  assert not list(tmp_path.glob('shared.*'))


def test_a_result_is_written_once(tmp_path):
  write = lambda seconds: workdir_lib.write_result(
    tmp_path, 3, 0.5, seconds, 'commit', {'train/loss': 0.25}
  )
  write(1.0)
  before = (tmp_path / 'result.json').read_text()
  write(2.0)
  assert (tmp_path / 'result.json').read_text() == before
  workdir_lib.remove_result(tmp_path)
  workdir_lib.remove_result(tmp_path)  # There is none.
  write(2.0)
  assert json.loads((tmp_path / 'result.json').read_text()) == {
    'step': 3,
    'epoch': 0.5,
    'wall_seconds': 2.0,
    'commit': 'commit',
    'devices': ['cpu'] * len(jax.devices()),
    'train/loss': 0.25,
  }


@pytest.mark.parametrize(
  'left', ['lock', 'checkpoints', 'checkpoints/7.orbax-checkpoint-tmp', 'x.csv']
)
def test_a_config_without_a_checkpoint_counts_for_nothing(tmp_path, left):
  record(tmp_path, changed(seed=1))
  (tmp_path / left).mkdir(parents=True)
  record(tmp_path, changed(seed=2))
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 2


def test_the_config_json_of_another_program_is_kept(tmp_path):
  text = '{"model_type": "bert", "seed": 0}'
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match='config.json is not a config of this'):
    record(tmp_path, paper.get_config())
  assert (tmp_path / 'config.json').read_text() == text
  with pytest.raises(ValueError, match='config.json is not a config of this'):
    workdir_lib.read_config(tmp_path)


def test_keys_that_may_change_are_recorded_with_their_new_values(tmp_path):
  record(tmp_path, changed(train__epochs=1.0))
  record(tmp_path, changed(train__epochs=2.0))
  assert json.loads((tmp_path / 'config.json').read_text())['train.epochs'] == 2


def test_a_truncated_config_json_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed"')
  with pytest.raises(ValueError) as error:
    record(tmp_path, paper.get_config())
  assert f'{tmp_path}' in str(error.value)
  assert 'config.json' in str(error.value)


def test_config_json_is_replaced_atomically(tmp_path, monkeypatch):
  record(tmp_path, changed(train__epochs=1.0))
  replace, seen = os.replace, []

  def watched(new, old):
    seen.append([json.loads(pathlib.Path(p).read_text()) for p in (old, new)])
    replace(new, old)

  monkeypatch.setattr(os, 'replace', watched)
  record(tmp_path, changed(train__epochs=2.0))
  ((old, new),) = seen
  assert (old['train.epochs'], new['train.epochs']) == (1, 2)


@pytest.mark.parametrize('name', NAMES)
def test_a_recorded_config_is_read_back_unchanged(name, tmp_path):
  config = importlib.import_module(f'configs.{name}').get_config()
  record(tmp_path, config)
  found = workdir_lib.read_config(tmp_path)
  # Types are compared as well: tuples and lists, 90.0 and 90.
  typed = lambda config: {
    section: {k: (type(v), v) for k, v in values.items()}
    for section, values in config.to_dict().items()
    if section != 'seed'
  }
  assert typed(found) == typed(config)
  assert (found.seed, type(found.seed)) == (0, int)
  assert found.is_locked and found.model.is_locked
  config_lib.check(found, 1)


def test_reading_the_config_of_a_folder_without_a_run_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    workdir_lib.read_config(tmp_path)
  assert str(error.value) == (
    f'no {tmp_path / "config.json"}; name a --workdir in which --mode=train has'
    ' been run'
  )


@pytest.mark.parametrize(
  'text',
  [
    *('', '{"seed"', '[]', 'null', '7'),
    *('{"model.a.b": 1}', '{"model": 1, "model.a": 1}'),
  ],
)
def test_a_damaged_config_json_is_named(text, tmp_path):
  (tmp_path / 'config.json').write_text(text)
  for command in (
    lambda: workdir_lib.read_config(tmp_path),
    lambda: workdir_lib.check_workdir(tmp_path, paper.get_config()),
  ):
    with pytest.raises(ValueError) as error:
      command()
    assert str(error.value).startswith(
      f'{tmp_path / "config.json"} is damaged ('
    )
    assert str(error.value).endswith('); remove it, or use a fresh --workdir')


@pytest.mark.parametrize('step', ['mkdir', 'lock', 'rename'])
@pytest.mark.parametrize(
  ('number', 'error', 'words'),
  [
    (
      errno.EIO,
      ValueError,
      '--workdir=.*/run cannot be written .*Input/output',
    ),
    (errno.ENOSPC, OSError, 'disk full at .*/run; nothing is lost$'),
  ],
)
def test_a_disk_that_fails_is_named_with_the_work_directory(
  tmp_path, monkeypatch, step, number, error, words
):
  def fail(*_, **__):
    raise OSError(number, os.strerror(number))

  if step == 'mkdir':
    monkeypatch.setattr(pathlib.Path, 'mkdir', fail)
  elif step == 'lock':
    monkeypatch.setattr(files, 'locked', fail)
  else:
    monkeypatch.setattr(files.os, 'replace', fail)
  with pytest.raises(error, match=words):
    with workdir_lib.owned_workdir(tmp_path / 'run', paper.get_config()):
      pass


@pytest.mark.parametrize('has_locks', [True, False])
def test_checkpoints_use_locks_only_where_there_are_any(
  tmp_path, monkeypatch, has_locks
):
  called = []
  monkeypatch.setattr(
    checkpoint_files, 'save_without_locks', lambda: called.append(1)
  )
  monkeypatch.setattr(
    files, 'locked', lambda _: contextlib.nullcontext(has_locks)
  )
  with workdir_lib.owned_workdir(tmp_path / 'run', paper.get_config()):
    assert called == ([] if has_locks else [1])


ROOT = pathlib.Path(workdir_lib.__file__).parents[1]


def git(folder, *arguments):
  names = {'GIT_AUTHOR_NAME': 'a', 'GIT_COMMITTER_NAME': 'a'}
  emails = {'GIT_AUTHOR_EMAIL': 'a@b.c', 'GIT_COMMITTER_EMAIL': 'a@b.c'}
  return subprocess.run(
    ['git', *arguments],
    cwd=folder,
    env=os.environ | names | emails,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()


def commit_all(folder):
  """Makes a repository of everything in a folder; returns the commit."""
  git(folder, 'init', '-q')
  git(folder, 'add', '-A')
  git(folder, 'commit', '-q', '-m', 'all')
  return git(folder, 'rev-parse', 'HEAD')


def unpack(folder, setup=True):
  """Copies the package, as an unpacked archive has it."""
  folder.mkdir(parents=True, exist_ok=True)
  ignore = shutil.ignore_patterns('__pycache__')
  shutil.copytree(ROOT / 'alexnet_jax', folder / 'alexnet_jax', ignore=ignore)
  if setup:
    shutil.copy(ROOT / 'setup.cfg', folder)
  return folder


def commit_of(folder, monkeypatch):
  """What `current_commit` returns for the package in a folder."""
  file = str(folder / 'alexnet_jax/workdir.py')
  monkeypatch.setattr(workdir_lib, '__file__', file)
  return workdir_lib.current_commit()


@pytest.mark.parametrize('tracked', [True, False])
def test_the_commit_of_a_repository_around_the_package_is_not_taken(
  tmp_path, monkeypatch, tracked
):
  (tmp_path / 'mine.txt').write_text('')
  if tracked:
    unpack(tmp_path / 'third_party')
  commit_all(tmp_path)
  if not tracked:
    unpack(tmp_path / 'third_party')
  assert (
    commit_of(tmp_path / 'third_party', monkeypatch) == alexnet_jax.__version__
  )


def test_the_commit_of_a_repository_that_does_not_track_it_is_not_taken(
  tmp_path, monkeypatch
):
  (tmp_path / 'mine.txt').write_text('')
  commit_all(tmp_path)
  assert commit_of(unpack(tmp_path), monkeypatch) == alexnet_jax.__version__


def test_the_commit_of_its_own_repository_is_taken(tmp_path, monkeypatch):
  unpack(tmp_path / 'clone')
  commit = commit_all(tmp_path / 'clone')
  (tmp_path / 'link').symlink_to(tmp_path / 'clone')
  assert commit_of(tmp_path / 'clone', monkeypatch) == commit
  assert commit_of(tmp_path / 'link', monkeypatch) == commit
  (tmp_path / 'clone/alexnet_jax/workdir.py').write_text('')
  assert commit_of(tmp_path / 'clone', monkeypatch) == f'{commit}+'


def test_a_repository_named_by_the_environment_is_not_taken(
  tmp_path, monkeypatch
):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/mine.txt').write_text('')
  commit_all(tmp_path / 'mine')
  clone = unpack(tmp_path / 'clone')
  unpacked = unpack(tmp_path / 'unpacked')
  commit = commit_all(clone)
  monkeypatch.setenv('GIT_DIR', str(tmp_path / 'mine/.git'))
  assert commit_of(clone, monkeypatch) == commit
  monkeypatch.setenv('GIT_WORK_TREE', str(unpacked))
  assert commit_of(unpacked, monkeypatch) == alexnet_jax.__version__


def test_without_git_and_setup_cfg_the_installed_version_is_taken(
  tmp_path, monkeypatch
):
  site = unpack(tmp_path / 'site', setup=False)
  monkeypatch.setenv('PATH', str(tmp_path))
  monkeypatch.setattr(
    workdir_lib.importlib.metadata, 'version', lambda name: f'{name} 9.9'
  )
  assert commit_of(site, monkeypatch) == 'alexnet_jax 9.9'
  (site / 'setup.cfg').write_text('[metadata]\nname = mine\nversion = 7\n')
  assert commit_of(site, monkeypatch) == 'alexnet_jax 9.9'
  (site / 'setup.cfg').write_bytes(b'\xff')
  assert commit_of(site, monkeypatch) == 'alexnet_jax 9.9'
