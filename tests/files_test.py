"""Home folders, paths, atomic writes, and locks that end with their process."""

import errno
import fcntl
import json
import os
import pathlib
import pwd
import subprocess
import sys

import pytest

from alexnet_jax.runtime import files

URLS = {
  'gs://bucket/x': 'mount it',
  'gs:/bucket/x': 'mount it',  # As pathlib has it.
  ' S3://bucket': 'mount it',
  'hdfs://host:9000/x': 'mount it',
  'https://host/x': 'mount it',
  'host:/x': 'mount it',
  'file:///data/x': 'write the path alone: /data/x',
  'file:/data/x': 'write the path alone: /data/x',
  'file://localhost/data/x%20y': 'write the path alone: /data/x y',
  'file://host/data/x': 'mount it',
}


@pytest.mark.parametrize('url', URLS)
def test_an_address_is_refused_with_a_way_out(url):
  with pytest.raises(ValueError) as error:
    files.local_path(url, '--data_dir')
  assert str(error.value).startswith(f'--data_dir={url} is an address, not a')
  assert URLS[url] in str(error.value)
  assert '\n' not in str(error.value)


def test_paths_are_absolute_and_a_home_directory_is_expanded(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', '/home/me')
  path = lambda text: str(files.local_path(text, 'x'))
  assert path('a/b') == f'{tmp_path}/a/b'
  assert path('~/a') == '/home/me/a'
  assert path('./~no') == f'{tmp_path}/~no'
  assert path('a/~no') == f'{tmp_path}/a/~no'
  assert path('./gs:/a') == f'{tmp_path}/gs:/a'
  assert path('a:b/c') == f'{tmp_path}/a:b/c'
  # etils takes /s3/a for s3://a, but not //s3/a, which is the same folder.
  assert [path('/s3/a'), path('/gs')] == ['//s3/a', '//gs']
  assert path('/a/s3') == '/a/s3'


@pytest.mark.parametrize(
  ('path', 'words'),
  [
    (
      '~no_such_user/a',
      '~no_such_user has no home directory here; ./~no_such_user/a is a',
    ),
    ('a/\udcff', 'the path .*a/\udcff is not valid UTF-8; rename the folder'),
  ],
)
def test_a_path_that_cannot_be_opened_is_named(path, words):
  with pytest.raises(ValueError, match=f'^--output={path}: .*{words}'):
    files.local_path(path, '--output')


@pytest.mark.parametrize('code', ['ENOSYS', 'ENOTSUP', 'EOPNOTSUPP', 'ENOLCK'])
def test_a_file_system_without_locks_is_used_with_a_warning(
  tmp_path, monkeypatch, caplog, code
):
  def fail(*_):
    number = getattr(errno, code)
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', fail)
  with files.locked(tmp_path) as is_locked:
    assert not is_locked
  (record,) = caplog.records
  assert f'{tmp_path}: this file system has no locks' in record.getMessage()


def test_another_error_of_a_lock_is_not_taken_for_a_file_system_without(
  tmp_path, monkeypatch
):
  def fail(*_):
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(fcntl, 'flock', fail)
  with pytest.raises(OSError, match='Input/output'), files.locked(tmp_path):
    pass


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

  def interrupted(self, content):
    with open(self, 'wb') as file:
      file.write(content[:1])
    raise KeyboardInterrupt

  monkeypatch.setattr(pathlib.Path, 'write_bytes', interrupted)
  with pytest.raises(KeyboardInterrupt):
    files.write_json(path, {'a': 2})
  assert path.read_text() == '1\n'


def test_a_home_folder_that_does_not_exist_is_named(monkeypatch):
  monkeypatch.setenv('HOME', '/home/one')
  assert files.expand_home('~/x', '--x') == pathlib.Path('/home/one/x')
  monkeypatch.delenv('HOME')

  def no_account(_):
    raise KeyError

  monkeypatch.setattr(pwd, 'getpwuid', no_account)
  for expand in (files.expand_home, files.local_path):
    with pytest.raises(
      ValueError, match='^--x=~/x: ~ has no home directory here; set HOME, or'
    ):
      expand('~/x', '--x')
  assert files.expand_home('x/~', '--x') == pathlib.Path('x/~')


def test_a_full_disk_is_named_with_the_file_that_it_leaves(
  tmp_path, monkeypatch
):
  def fail(_):
    raise OSError(errno.ENOSPC, 'No space left on device')  # Has no name.

  file = tmp_path / 'result.json'
  files.write_json(file, {'step': 1})
  monkeypatch.setattr(files, 'sync', fail)
  words = f'disk full at {file}; it is as it was before$'
  with pytest.raises(OSError, match=words):
    files.write_json(file, {'step': 2})
  assert json.loads(file.read_text()) == {'step': 1}
  assert [*tmp_path.iterdir()] == [file]
