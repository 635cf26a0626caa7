"""Home folders, atomic writes, and locks that end with the process that holds them."""

import json
import pathlib
import pwd
import subprocess
import sys

import pytest

from alexnet_jax.runtime import files


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / 'values.json'
  files.write_json(path, {'a': [1, 2.5, None]})
  with pytest.raises(TypeError):
    files.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': [1, 2.5, None]}
  assert list(tmp_path.iterdir()) == [path]


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
  code = (
    'import pathlib, sys, time; from alexnet_jax.runtime import files\n'
    'with files.locked(pathlib.Path(sys.argv[1])):\n'
    '  print("locked", flush=True); time.sleep(60)\n'
  )
  holder = subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE
  )
  with holder:
    assert holder.stdout.readline() == b'locked\n'
    with pytest.raises(ValueError, match=f'another process .* {tmp_path};'):
      with files.locked(tmp_path):
        pass
    holder.kill()
  with files.locked(tmp_path):
    pass


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'values.json'
  files.write_json(path, 1)

  def interrupted(self, text):
    with open(self, 'w') as file:
      file.write(text[:1])
    raise KeyboardInterrupt

  monkeypatch.setattr(pathlib.Path, 'write_text', interrupted)
  with pytest.raises(KeyboardInterrupt):
    files.write_json(path, {'a': 2})
  assert path.read_text() == '1\n'


def test_a_home_folder_that_does_not_exist_is_named(monkeypatch):
  monkeypatch.setenv('HOME', '/home/one')
  assert files.expand_home('~/x') == pathlib.Path('/home/one/x')
  monkeypatch.delenv('HOME')

  def no_account(_):
    raise KeyError

  monkeypatch.setattr(pwd, 'getpwuid', no_account)
  for path, home in (('~/x', '~'), ('~nobody-here/x', '~nobody-here')):
    with pytest.raises(
      ValueError, match=f'^{path}: {home} has no home folder here; set HOME, or'
    ):
      files.expand_home(path)
  assert files.expand_home('x/~') == pathlib.Path('x/~')
