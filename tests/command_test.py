"""Words that are no flags, errors of a config, and what libraries log.

More of it is in main_test.py.
"""

import ast
import errno
import logging
import os
import pathlib
import subprocess
import sys

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags
import pytest

from alexnet_jax.runtime import command
from alexnet_jax.runtime import config_file

ROOT = pathlib.Path(command.__file__).parents[2]


@pytest.fixture
def values(monkeypatch):
  """Flags of their own, as of a command."""
  found = flags.FlagValues()
  flags.DEFINE_string(
    'source', None, 'Where from.', flag_values=found, required=True
  )
  flags.DEFINE_string(
    'name', None, 'The name.', flag_values=found, required=True
  )
  flags.DEFINE_integer('size', 256, 'The size.', flag_values=found)
  flags.DEFINE_bool('quick', False, 'Be quick.', flag_values=found)
  flags.DEFINE_multi_string('more', [], 'Others.', flag_values=found)
  monkeypatch.setattr(flags, 'FLAGS', found)
  monkeypatch.setattr(command, 'FLAGS_OF', (__name__.partition('.')[0],))
  return found


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (
      ['--source=folder:/my', 'pics', '--name=x'],
      "pics is not a flag; quote a value that has spaces: --source='folder:/my"
      " pics'",
    ),
    (
      ['--source=folder:/my', 'new', 'pics', '--name=x', 'y'],
      "new is not a flag; quote a value that has spaces: --source='folder:/my"
      " new pics'",
    ),
    (['size=32'], 'size=32 is not a flag; write --size=32'),
    (['–size=32'], '–size=32 is not a flag; write --size=32'),
    (['—size', '32'], '—size is not a flag; write --size'),
    (['32', '--size=3'], '32 is not a flag; flags have the form --name=value'),
    (['--quick', 'true'], 'true is not a flag; write --quick=true'),
    (['--', '--size=32'], '--size=32 is not a flag; write --size=32'),
    (['-'], '- is not a flag; flags have the form --name=value'),
    ([''], "'' is not a flag; flags have the form --name=value"),
  ],
)
def test_a_word_that_is_no_flag_is_refused_with_a_way_out(
  values, words, message
):
  needed = [] if '--name=x' in words else ['--source=digits', '--name=x']
  if words[0].startswith('--') or not needed:
    argv = ['command', *needed, *words]
  else:
    argv = ['command', *words, *needed]
  with pytest.raises(SystemExit) as ended:
    command.parse_flags(argv)
  assert ended.value.code == message


def test_a_command_that_takes_words_gets_them(values, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  argv = ['command', '--source=a', '-', 'b c', '--name=x', '--', '--d.png']
  words = command.parse_flags(argv, takes_words=True)
  assert words == ['command', '-', 'b c', '--d.png']
  argv = ['command', '--source=a', '--name=x', '–size=32']
  with pytest.raises(SystemExit) as ended:
    command.parse_flags(argv, takes_words=True)
  assert ended.value.code == '–size=32 is not a flag; write --size=32'
  (tmp_path / '–size=32').touch()  # Now it is a file.
  assert command.parse_flags(argv, takes_words=True)[1:] == argv[3:]


def test_flags_alone_are_parsed(values):
  argv = ['command', '--source', 'a b', '--name=x', '--size=8', '--noquick']
  assert command.parse_flags(argv) == ['command']
  assert (values.source, values.size, values.quick) == ('a b', 8, False)


@pytest.mark.parametrize('word', ['--help', '-help', '-h', '--helpfull'])
def test_help_is_printed_and_is_no_error(values, capsys, word):
  with pytest.raises(SystemExit) as ended:
    command.parse_flags(['command', '--size=x', word])
  assert not ended.value.code
  lines = capsys.readouterr().out.splitlines()
  assert lines[-5:] == [
    '  --source: Where from.',
    '  --name: The name.',
    '  --size: The size. (default: 256)',
    '  --[no]quick: Be quick.',
    '  --more: Others. It may be repeated.',
  ]


def test_help_says_where_the_config_keys_stand(values, capsys):
  config_flags.DEFINE_config_file('config', None, flag_values=values)
  with pytest.raises(SystemExit):
    command.parse_flags(['command', '--help', '--config=configs/paper.py'])
  out = capsys.readouterr().out
  assert '--config.KEY=VALUE' in out and 'configs/paper.py' in out
  assert out.count('--config.') == 2  # No list of all keys.


COMMANDS = sorted(
  '.'.join(path.relative_to(ROOT).with_suffix('').parts)
  for folder in ('alexnet_jax', 'benchmarks', 'experiments')
  for path in (ROOT / folder).rglob('*.py')
  if "__name__ == '__main__'" in path.read_text()
  and path.name != 'workers.py'  # Only quotes it.
  and path.parent.name + path.name != 'alexnet_jax__main__.py'  # Has no flags.
)


@pytest.mark.parametrize('module', COMMANDS)
def test_the_help_of_every_command_fits_a_screen(module):
  purpose = ast.get_docstring(
    ast.parse((ROOT / f'{module.replace(".", "/")}.py').read_text())
  )
  # The flags follow: 9 lines of most experiments, 16 of `figure4`.
  limit = {'experiments.figure4': 24}.get(module, 31)
  shown = command._help(purpose).partition('\n\nflags:')[0].splitlines()
  assert len(shown) <= limit
  prose = [line for line in shown if line[:1] not in ' *|']
  assert max(map(len, prose)) < 80


@pytest.mark.slow
@pytest.mark.parametrize('module', COMMANDS)
def test_the_whole_help_fits_a_screen(module):
  shown = subprocess.run(
    [sys.executable, '-m', module.removesuffix('.__main__'), '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  lines = shown.stdout.splitlines()
  assert len(lines) <= 40
  assert max(map(len, lines)) <= 88  # Tables may be wider than prose.


@pytest.mark.parametrize('module', COMMANDS)
def test_every_command_parses_its_flags_so(module):
  path = ROOT / f'{module.replace(".", "/")}.py'
  text = path.read_text()
  shared = (
    'command.run(',
    'command.parse_flags',
    'harness.run(',
    'run_command',
  )
  assert any(way in text for way in shared) or module == 'benchmarks.tf_data'
  assert 'parse_flags_with_usage' not in text


@pytest.mark.parametrize(
  'module', ['alexnet_jax.prepare', 'benchmarks.scaling']
)
def test_a_command_refuses_a_word(module, tmp_path):
  flag = {'alexnet_jax.prepare': '--data_dir'}.get(module, '--output')
  argv = [f'{flag}={tmp_path}/my', 'folder', '--source=digits', '--name=x']
  if module != 'alexnet_jax.prepare':
    argv = argv[:2]
  else:  # By its name.
    module, argv = 'alexnet_jax', ['prepare', *argv]
  done = subprocess.run(
    [sys.executable, '-m', module, *argv],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr == (
    'folder is not a flag; quote a value that has spaces:'
    f" {flag}='{tmp_path}/my folder'\n"
  )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'argv, where',
  [
    (['main', '--config=a.py', '--mode=train'], ' in --config=a.py'),
    (['main', '--config', 'a.py', '--mode=train'], ' in a.py'),
    (['main', '--mode=train'], ''),
    (['main', '--config'], ''),
  ],
)
def test_a_config_error_is_one_line_that_names_the_file(argv, where):
  with pytest.raises(SystemExit) as ended:
    with config_file.one_line_errors(argv):
      raise ValueError(KeyError('no "x"\n  here'))
  expected = f'wrong config key or value{where}: no "x" here'
  assert str(ended.value) == expected


def test_without_an_error_nothing_is_printed_or_raised():
  with config_file.one_line_errors(['main']):
    pass


def test_libraries_log_only_errors_but_jax_also_warnings():
  names = ('alexnet_jax.run', 'jax._src.xla_bridge', 'orbax')
  loggers = [logging.getLogger(name) for name in (*names, 'absl')]
  levels = [logging.getLogger(n).level for n in ('alexnet_jax', 'jax', None)]
  verbosity = absl_logging.get_verbosity()
  try:
    logging.getLogger().setLevel(logging.ERROR)  # As absl.app.run sets it.
    with command.one_line_errors('again'):
      found = [logger.getEffectiveLevel() for logger in loggers]
  finally:
    absl_logging.set_verbosity(verbosity)
    for name, level in zip(('alexnet_jax', 'jax', None), levels, strict=True):
      logging.getLogger(name).setLevel(level)
  error = logging.ERROR
  assert found == [logging.INFO, logging.WARNING, error, error]


@pytest.mark.parametrize(
  'number, way_out',
  [
    (errno.EACCES, 'give your user the permission, or name another path'),
    (errno.EROFS, 'give your user the permission, or name another path'),
    (errno.ENAMETOOLONG, 'names have at most 255 bytes, paths 4,095: name a'),
    (errno.ENOSPC, 'make space; the same command continues'),
  ],
)
def test_a_file_that_the_system_refuses_ends_with_one_line(number, way_out):
  error = OSError(number, os.strerror(number), '/some/file')
  with pytest.raises(SystemExit) as ended, command.one_line_errors('again'):
    _raise(error)
  message = ended.value.code
  expected = f'{type(error).__name__}: {error}; {way_out}'
  assert message.startswith(expected) and '\n' not in message


def test_lines_are_plain_and_end_at_column_120():
  text = lambda level, message: command._Lines().format(
    logging.LogRecord('a', level, 'a.py', 1, message, (), None)
  )
  assert text(logging.INFO, 'Compiling.') == 'Compiling.'
  assert text(logging.WARNING, 'Slow.\n\n  b') == 'Warning: Slow.\n\n  b'
  found = text(logging.ERROR, 'word ' * 60 + 'x/' * 70)
  first, *_, last = found.split('\n')
  assert first.startswith('Error: word') and 115 < len(first) <= 120
  assert last == '  ' + 'x/' * 70
  assert len(found.split()) == 62


def test_another_error_of_a_library_keeps_its_traceback():
  for error in (OSError('no number'), ConnectionResetError(104, 'reset')):
    with pytest.raises(OSError, match=str(error)[-5:]):
      with command.one_line_errors('again'):
        _raise(error)


def _raise(error):
  raise error


def test_a_log_line_of_a_library_is_kept_without_its_traceback(caplog):
  command.quiet_libraries()
  try:
    raise OSError(errno.ENOSPC, 'No space left on device')
  except OSError:
    absl_logging.error('Failed to save', exc_info=True)
  absl_logging.error('Another error')
  assert caplog.messages == ['Failed to save', 'Another error']
  assert 'Traceback' not in caplog.text and 'No space' not in caplog.text
