"""Commands in locales and on terminals that are not UTF-8."""

import locale
import os
import pathlib
import subprocess
import sys

import pytest

from alexnet_jax.runtime import utf8

ROOT = pathlib.Path(utf8.__file__).parents[2]
PROGRAM = """
import pathlib, sys
from alexnet_jax.runtime import utf8
utf8.use_utf8()
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / 'names').write_text(folder.name)
print(folder.name, '\\udce9')
"""


@pytest.mark.parametrize(
  'variables, printed',
  [
    ({'LC_ALL': 'C.UTF-8'}, 'café 猫 \\udce9'),
    ({'LC_ALL': 'C', 'PYTHONUTF8': '0'}, 'café 猫 \\udce9'),
    ({'LC_ALL': 'POSIX', 'PYTHONCOERCECLOCALE': '0'}, 'café 猫 \\udce9'),
    (
      {'LC_ALL': 'C.UTF-8', 'PYTHONIOENCODING': 'ascii'},
      'caf\\xe9 \\u732b \\udce9',
    ),
    (
      {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONIOENCODING': 'latin-1'},
      'café \\u732b \\udce9',
    ),
  ],
)
def test_paths_and_files_are_utf8_and_nothing_fails_to_print(
  tmp_path, variables, printed
):
  folder = tmp_path / 'café 猫'
  environment = {k: v for k, v in os.environ.items() if k[:4] != 'PYTH'}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, os.fsencode(folder)],
    cwd=ROOT,
    env=environment | variables,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  encoding = variables.get('PYTHONIOENCODING', 'utf-8')
  assert done.stdout.decode(encoding).strip() == printed
  assert (folder / 'names').read_bytes() == 'café 猫'.encode()


def test_a_program_restarts_with_its_arguments_in_another_locale(monkeypatch):
  calls = []
  monkeypatch.setattr(os, 'execv', lambda *args: calls.append(args))
  monkeypatch.setenv('PYTHONUTF8', '0')
  for encoding in ('UTF-8', 'utf-8', 'ISO-8859-1'):
    monkeypatch.setattr(locale, 'getpreferredencoding', lambda _, e=encoding: e)
    utf8.use_utf8()
  argv = [sys.executable, '-Xutf8', *sys.orig_argv[1:]]
  assert calls == [(sys.executable, argv)]
  assert os.environ['PYTHONUTF8'] == '1'


def test_without_an_output_nothing_fails(monkeypatch):
  monkeypatch.setattr(sys, 'stdout', None)
  utf8.use_utf8()
