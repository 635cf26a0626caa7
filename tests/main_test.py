"""Mistakes on the command line: one error with a way out, and no traceback.

Most commands go through the parser and `main` in this process; a few run as a
user runs them. What training itself does is tested in train_test.py.
"""

import errno
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys

from absl import logging as absl_logging
from absl.testing import flagsaver
import jax
import pytest

from alexnet_jax import evaluate
from alexnet_jax import main
from alexnet_jax import workdir as workdir_lib
from configs import quickstart

# ml_collections loads the config file with the deprecated load_module().
pytestmark = pytest.mark.filterwarnings(
  r'ignore:the load_module\(\) method:DeprecationWarning'
)

ROOT = pathlib.Path(main.__file__).parents[1]
FIXTURE = ROOT / 'tests/fixtures/workdir_ed611a7'
PAPER = f'--config={ROOT}/configs/paper.py'
QUICKSTART = f'--config={ROOT}/configs/quickstart.py'


@pytest.fixture
def no_compilation():
  """Makes the test fail if anything is compiled."""

  def listen(name, seconds, **kwargs):
    assert 'compile' not in name, 'the command got as far as compiling'

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def fail(monkeypatch, capsys, tmp_path, no_compilation):
  """Runs a command that must fail; returns what the user reads."""

  def run(*flags):
    argv = ['main', *flags]
    if flags[0].startswith('--config='):  # Only then are its keys flags.
      argv.insert(2, f'--config.input.data_dir={tmp_path}/data')
    # JAX has started, so on a cluster this process could not join the others.
    if not any('process' in flag or 'coordinator' in flag for flag in flags):
      argv.append('--num_processes=1')
    monkeypatch.setattr(sys, 'argv', argv)  # config_flags reads it.
    sys.modules.pop('config_config', None)  # From an earlier command.
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
      main.main(main.parse_flags(argv))
    printed = capsys.readouterr()
    if isinstance(exit_.value.code, str):  # Python prints it and exits with 1.
      return printed.err + exit_.value.code
    assert exit_.value.code not in (0, None)
    return printed.err + printed.out

  verbosity = absl_logging.get_verbosity()
  yield run
  absl_logging.set_verbosity(verbosity)
  for name in ('alexnet_jax', 'jax'):
    logging.getLogger(name).setLevel(logging.NOTSET)


def run_command(*flags):
  return run_module('alexnet_jax.main', *flags)


def run_module(*arguments):
  command = [sys.executable, '-m', *arguments]
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True
  )


def missing_data_set(tmp_path, name):
  return (
    f'FileNotFoundError: no prepared data set config.input.dataset={name} under'
    f' config.input.data_dir={tmp_path}/data; prepare it: python -m'
    f' alexnet_jax.prepare --source=imagenet:DIR --name={name}'
    f' --size=256 --data_dir={tmp_path}/data, DIR being the folder of its'
    ' images'
  )


def test_training_the_paper_net_says_how_to_prepare_imagenet(tmp_path):
  done = run_command(
    '--config=configs/paper.py',
    f'--workdir={tmp_path}/run',
    f'--config.input.data_dir={tmp_path}/data',
  )
  assert done.returncode == 1
  assert done.stderr == missing_data_set(tmp_path, 'imagenet2012') + '\n'
  assert not (tmp_path / 'run').exists()


def test_a_missing_data_set_is_found_before_anything_is_written(fail, tmp_path):
  message = fail(PAPER, f'--workdir={tmp_path}/run')
  assert message == missing_data_set(tmp_path, 'imagenet2012')
  assert list(tmp_path.iterdir()) == []


def test_a_compilation_would_be_noticed(no_compilation):
  with pytest.raises(AssertionError, match='compiling'):
    jax.jit(lambda x: x + 1)(1)


@pytest.mark.parametrize(
  'flag, words',
  [
    (
      '--config.modle.num_classes=3',
      ['modle', 'mean --config.model.num_classes?'],
    ),
    (
      '--config.model.num_clases=3',
      ['num_clases', 'mean --config.model.num_classes?'],
    ),
    ('--config.model.num_classes=ten', ['config.model.num_classes=ten', 'int']),
    ('--config.input.batch_size=12.5', ['config.input.batch_size=12.5', 'int']),
    ('--config.train.epochs=many', ['config.train.epochs=many', 'float']),
    ('--config.augment.flip=maybe', ['config.augment.flip=maybe', 'boolean']),
    ('--config.model=3', ['config.model=3']),
    ('--mode=evalute', ['--mode=evalute', '<train|evaluate>']),
    ('--checkpoint=newest', ['--checkpoint=newest', '<best|latest>']),
    ('--wrkdir=x', ['--wrkdir is not a flag; did you mean --workdir?']),
    ('--epochs=1', ['not a flag; did you mean --config.train.epochs?']),
    (
      '--batch_size=1',
      ['--config.input.batch_size', '--config.eval.batch_size'],
    ),
    ('--lr=1', ['did you mean --config.optimizer.learning_rate?']),
    ('--qqqqq=1', ['--qqqqq is not a flag; --help lists the flags']),
    ('--num_processes=two', ['--num_processes=two', '; --help lists the fl']),
    ('configs/paper.py', ['configs/paper.py']),
  ],
)
def test_a_wrong_flag_is_named_with_its_value(fail, tmp_path, flag, words):
  message = fail(QUICKSTART, f'--workdir={tmp_path}/run', flag)
  assert [word for word in words if word not in message] == []
  assert '\n' not in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('key', 'given', 'expected'),
  [
    ('optimizer.drop_epochs', ['(10,)', '(20,)'], (20,)),
    ('optimizer.drop_epochs', ['(10,)', '(10,)'], (10,)),
    ('optimizer.drop_epochs', ['10', '20'], (20,)),
    ('optimizer.drop_epochs', ['(10, 20)', '()'], ()),
    ('optimizer.drop_epochs', ['[5, 6]'], (5, 6)),
    ('model.lrn_layers', ["('conv1',)", 'conv2'], ('conv2',)),
    ('model.conv_features', ['1,2,3,4,5', '5,4,3,2,1'], (5, 4, 3, 2, 1)),
    ('optimizer.learning_rate', ['1', '2', '3'], 3.0),
    ('augment.flip', ['true', 'false'], False),
    ('input.dataset', ['a', 'b'], 'b'),
    ('seed', ['1', '2'], 2),
  ],
)
def test_for_a_key_given_twice_the_last_value_wins(
  monkeypatch, key, given, expected
):
  flags = [f'--config.{key}={value}' for value in given]
  argv = ['main', QUICKSTART, '--workdir=x', *flags]
  monkeypatch.setattr(sys, 'argv', argv)
  sys.modules.pop('config_config', None)
  with flagsaver.flagsaver():
    main.parse_flags(argv)
    section, _, name = key.rpartition('.')
    config = main.CONFIG.value
    assert (config[section] if section else config)[name] == expected


def test_a_missing_workdir_is_named(fail):
  message = 'ValueError: --workdir= is missing or empty; name a folder'
  assert message == fail(QUICKSTART) == fail(QUICKSTART, '--workdir=')


@pytest.mark.parametrize('flags', [[], ['--workdir='], ['--weights=']])
def test_evaluation_needs_a_net(fail, flags):
  message = fail('--mode=evaluate', *flags)
  assert 'name one or more different work directories (--workdirs)' in message


@pytest.mark.parametrize(
  'flag', ['--workdir', '--config.input.data_dir', '--config.train.init_from']
)
def test_an_address_is_refused_at_the_start(
  fail, tmp_path, monkeypatch, flag, data_dir
):
  monkeypatch.chdir(tmp_path)
  message = fail(
    QUICKSTART,
    f'--config.input.data_dir={data_dir}',
    *(['--workdir=run'] if flag != '--workdir' else []),
    f'{flag}=gs://bucket/x',
  )
  assert f'{flag.rpartition(".")[2]}=gs://bucket/x is an address' in message
  assert 'mount it' in message.splitlines()[-1]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'flag', ['--workdir=gs://b', '--output=gs://b', '--data_dir=gs://b']
)
def test_evaluation_refuses_an_address_at_the_start(
  fail, tmp_path, monkeypatch, flag
):
  (tmp_path / 'checkpoints').mkdir()
  shutil.copy(FIXTURE / 'config.json', tmp_path)
  monkeypatch.chdir(tmp_path)
  message = fail('--mode=evaluate', f'--workdir={tmp_path}', flag)
  assert f'{flag.removeprefix("--")} is an address' in message
  assert sorted(os.listdir()) == ['checkpoints', 'config.json']


@pytest.mark.parametrize('override', [[], ['--config.seed=1']])
@pytest.mark.parametrize(
  ('value', 'words'),
  [
    ('config.to_dict()', 'get_config returns a dict, but must return an ml_c'),
    ('None', 'get_config returns a NoneType, but must return an ml_collectio'),
    ('[config]', 'get_config returns a list, but must return an ml_collectio'),
    (
      'ml_collections.FrozenConfigDict(config)',
      'get_config returns a FrozenConfigDict, but must return an ml_collectio',
    ),
    ('config.unlock().update(seed=None) or config', 'seed is None; set it in'),
  ],
)
def test_a_config_file_must_yield_a_whole_config(
  fail, tmp_path, value, words, override
):
  if override and 'seed' in value:
    override = ['--config.seed=1']  # ml_collections would refuse it.
  file = tmp_path / 'mine.py'
  file.write_text(
    'import ml_collections\n'
    'from configs import paper\n'
    'def get_config():\n'
    '  config = paper.get_config()\n'
    f'  return {value}\n'
  )
  message = fail(f'--workdir={tmp_path}/run', f'--config={file}', *override)
  assert str(file) in message
  assert words in message
  assert message.count('\n') <= 2
  assert os.listdir(tmp_path) == ['mine.py']


def test_a_value_of_another_type_is_one_error(fail, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from configs import paper\n'
    'def get_config():\n'
    '  config = paper.get_config()\n'
    '  with config.ignore_type():\n'
    '    config.train.epochs = "3"\n'
    '  return config\n'
  )
  message = fail(f'--workdir={tmp_path}/run', f'--config={file}')
  assert "config.train.epochs='3' must be a number, such as 90.0" in message
  assert message.count('\n') == 0


def test_help_fits_a_screen(capsys):
  with pytest.raises(SystemExit) as ended:
    main.parse_flags(['main.py', '--help'])
  assert not ended.value.code
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) <= 40 and max(map(len, lines)) < 80
  assert any(line.startswith('  --views: ') for line in lines)
  assert any(line.startswith('  --config.KEY=VALUE') for line in lines)


def test_help_lists_the_flags_of_evaluation():
  flags = main.flags.FLAGS.get_key_flags_for_module(main)
  assert {flag.name for flag in flags} >= {'config', 'views', 'split', 'output'}


def test_training_needs_a_config(fail, tmp_path):
  message = fail(f'--workdir={tmp_path}/run')
  assert message.startswith('ValueError: --mode=train needs --config=FILE')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('flags', [[], ['--mode=evaluate']])
def test_a_config_key_without_a_config_file_is_refused(tmp_path, flags):
  # A process of its own, since the parser of this one may know the key.
  done = run_command(
    f'--workdir={tmp_path}/run', '--config.input.eval_split=train', *flags
  )
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  assert '--config.input.eval_split' in done.stderr
  assert 'needs --config=FILE' in done.stderr
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('flag', 'way_out'),
  [
    ('--split=train', 'use --config.input.eval_split'),
    ('--data_dir=x', 'use --config.input.data_dir'),
    ('--dataset=x', 'use --config.input.dataset'),
    ('--weights=x', 'use --config.train.init_from'),
    ('--views=one', 'leave it out'),
    ('--checkpoint=latest', 'leave it out'),
    ('--output=x', 'leave it out'),
  ],
)
def test_training_refuses_the_flags_of_evaluation(
  fail, tmp_path, flag, way_out
):
  message = fail(QUICKSTART, f'--workdir={tmp_path}/run', flag)
  name = flag.partition('=')[0]
  assert message.startswith(f'ValueError: {name} belongs to --mode=evaluate')
  assert message.endswith(way_out)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('override', [[], ['--config.seed=1']])
@pytest.mark.parametrize(
  'content',
  [
    None,
    'def get_config(:',
    'import no_such_module',
    'x = 1',
    'def get_config(name): pass',
    'def get_config(): float("three")',
  ],
  ids=['missing', 'syntax', 'import', 'no get_config', 'argument', 'value'],
)
def test_an_unusable_config_file_is_named_in_one_line(
  fail, tmp_path, content, override
):
  file = tmp_path / 'mine.py'
  if content is not None:
    file.write_text(content)
  message = fail(f'--workdir={tmp_path}/run', f'--config={file}', *override)
  assert str(file) in message
  assert message.count('\n') == 0


@pytest.mark.parametrize(
  'line, words',
  [
    ('assert 0', 'line 2: AssertionError:'),
    ('1 / 0', 'line 2: ZeroDivisionError: division by zero'),
    ('raise KeyError', 'line 2: KeyError:'),
  ],
)
def test_an_error_in_a_config_file_is_reported_with_its_line(
  fail, tmp_path, line, words
):
  file = tmp_path / 'mine.py'
  file.write_text(f'def get_config():\n  {line}\n')
  message = fail(f'--workdir={tmp_path}/run', f'--config={file}')
  assert str(file) in message
  assert words in message
  assert message.count('\n') == 0


@pytest.mark.parametrize(
  ('key', 'way_out'),
  [
    ('lr', 'did you mean --config.optimizer.learning_rate?'),
    ('learning_rate', 'did you mean --config.optimizer.learning_rate?'),
    ('train.learning_rate', 'did you mean --config.optimizer.learning_rate?'),
    ('model.num_clases', 'did you mean --config.model.num_classes?'),
    ('modle.num_classes', 'did you mean --config.model.num_classes?'),
    ('modl.num_clases', 'did you mean --config.model.num_classes?'),
    ('dropout', 'did you mean --config.model.dropout_rate or'),
    ('train.epochs.x', 'did you mean --config.train.epochs?'),
    (
      'batch_size',
      'did you mean --config.input.batch_size or --config.eval.batch_size?',
    ),
    ('train.zzz', 'there are train.epochs, train.init_from'),
    ('zzz', 'there are seed, model, input, augment, optimizer, mesh, eval'),
    ('keys', 'there are seed, model, input'),
    ('model-x', 'there are seed, model, input'),
  ],
)
def test_for_an_unknown_key_the_nearest_ones_are_named(
  fail, tmp_path, key, way_out
):
  message = fail(QUICKSTART, f'--workdir={tmp_path}/run', f'--config.{key}=1')
  file = QUICKSTART.partition('=')[2]
  start, _, end = message.partition('; ')
  assert start == f'--config.{key} is not a key of {file}'
  words = lambda text: {*re.findall(r'[\w.-]+', text)}
  assert words(way_out) <= words(end)  # In any order.
  assert '\n' not in message


RENAMED = 'config.train.init_workdir is now config.train.init_from'


def test_a_renamed_key_on_the_command_line_is_refused_with_its_new_name(
  fail, tmp_path
):
  flags = (QUICKSTART, f'--workdir={tmp_path}/run')
  message = fail(*flags, '--config.train.init_workdir=runs/x')
  assert message == f'--{RENAMED.replace("now ", "now --")}'


@pytest.mark.parametrize(
  'lines',
  [
    "  config.train.init_workdir = 'runs/x'",
    "  with config.unlocked():\n    config.train.init_workdir = 'runs/x'",
  ],
)
def test_a_renamed_key_in_a_config_file_is_refused_with_its_new_name(
  fail, tmp_path, lines
):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from configs import quickstart\ndef get_config():\n'
    f'  config = quickstart.get_config()\n{lines}\n  return config\n'
  )
  message = fail(f'--config={file}', f'--workdir={tmp_path}/run')
  assert RENAMED in message and str(file) in message
  assert message.count('\n') == 0
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('override', [[], ['--config.seed=1']])
@pytest.mark.parametrize('separator', ['=', ' '])
@pytest.mark.parametrize(
  ('given', 'meant'),
  [
    ('configs/quikstart.py', 'configs/quickstart.py'),
    ('configs/quickstart', 'configs/quickstart.py'),
    ('quickstar', 'configs/quickstart.py'),
    ('quickstart.py', 'configs/quickstart.py'),
    ('config/paper.py', 'configs/paper.py'),
    ('paper.py:argument', 'configs/paper.py'),
    ('configs', None),
    ('', None),
    ('nothing/like/it', None),
  ],
)
def test_for_a_misspelt_config_file_the_nearest_one_and_all_are_named(
  fail, tmp_path, given, meant, separator, override
):
  flag = f'--config={given}'.split('=' if separator == ' ' else '\n')
  message = fail(f'--workdir={tmp_path}/run', *flag, *override)
  path = given.partition(':')[0]
  mean = f'did you mean {meant}? ' if meant else ''
  colon = ' (a colon ends its name)' if ':' in given else ''
  start = (
    f'--config={path} is not a file{colon}; {mean}configs holds caffe.py, '
  )
  assert message.startswith(start)
  assert message.endswith(', torchvision.py')
  assert '\n' not in message


def test_the_configs_are_found_from_another_folder(fail, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  message = fail(f'--workdir={tmp_path}/run', '--config=configs/quickstart.py')
  names = 'the configs by name are caffe, cifar10, '
  assert f' is not a file; did you mean quickstart? {names}' in message
  (tmp_path / 'mine.py').write_text('def get_config(): pass')
  message = fail(f'--workdir={tmp_path}/run', '--config=quikstart')
  assert f'; did you mean quickstart? . holds mine.py; {names}' in message


@pytest.mark.parametrize('more', [[], ['--config.optimizer.momentum=2']])
def test_several_broken_rules_are_reported_in_at_most_three_lines(
  fail, tmp_path, more
):
  message = fail(
    QUICKSTART,
    f'--workdir={tmp_path}/run',
    *more,
    '--config.input.batch_size=126',
    '--config.mesh.layout=data',
    '--config.model.dropout_rate=1',
    '--config.optimizer.schedule=linear',
  )
  found = [line.split('=')[0] for line in message.split('\n')]
  assert found == [
    'ValueError: config.model.dropout_rate',
    'config.optimizer.momentum' if more else 'config.optimizer.schedule',
    'and 2 more rules are broken' if more else 'config.input.batch_size',
  ]
  assert list(tmp_path.iterdir()) == []


@pytest.fixture
def digits(data_dir):
  """Flag of the folder that holds the prepared digits."""
  return f'--config.input.data_dir={data_dir}'


def test_a_workdir_that_cannot_be_written_is_named(fail, tmp_path, digits):
  (tmp_path / 'file').write_text('')
  message = fail(QUICKSTART, f'--workdir={tmp_path}/file/run', digits)
  assert f'ValueError: --workdir={tmp_path}/file/run cannot be' in message
  assert message.endswith('; name a folder that can')


def test_no_digits_are_prepared_for_a_run_that_cannot_begin(fail, tmp_path):
  (tmp_path / 'file').write_text('')
  message = fail(QUICKSTART, f'--workdir={tmp_path}/file/run')
  assert f'ValueError: --workdir={tmp_path}/file/run cannot be' in message
  assert not (tmp_path / 'data').exists()


def test_mode_and_flags_of_evaluation_must_be_the_same_on_all_hosts(
  fail, tmp_path, monkeypatch
):
  seen = {}
  check = lambda command, file: seen.update(command)
  monkeypatch.setattr(main.installation, 'check', check)
  fail(QUICKSTART, f'--workdir={tmp_path}/run', '--mode=evaluate')
  assert {k: v for k, v in seen.items() if '--config' not in k} == {
    '--mode': 'evaluate',
    '--weights': '[]',
    '--dataset': 'None',
    '--checkpoint': 'best',
    '--views': 'both',
    '--split': 'None',
    '--data_dir': 'None',
    '--output': 'None',
  }


def test_a_workdir_made_with_another_config_is_named(fail, tmp_path, digits):
  workdir_lib.write_config(tmp_path / 'run', quickstart.get_config())
  (tmp_path / 'run/checkpoints/50').mkdir(parents=True)
  message = fail(
    QUICKSTART, f'--workdir={tmp_path}/run', digits, '--config.seed=3'
  )
  assert message.endswith(
    f'ValueError: {tmp_path}/run/config.json was made with another config; use a'
    ' fresh --workdir, or its values:\n'
    'config.seed is 0 there but 3 here'
  )
  recorded = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert recorded['seed'] == 0


def test_a_data_folder_that_cannot_be_written_is_named(fail, tmp_path):
  (tmp_path / 'file').write_text('')
  flag = f'--config.input.data_dir={tmp_path}/file/data'
  message = fail(QUICKSTART, f'--workdir={tmp_path}/run', flag)
  assert f'data_dir={tmp_path}/file/data is not a writable folder' in message


@pytest.mark.parametrize('which', ['best', 'latest'])
def test_evaluating_without_a_checkpoint_says_to_train(fail, tmp_path, which):
  message = fail(
    QUICKSTART,
    f'--workdir={tmp_path}/run',
    '--mode=evaluate',
    f'--checkpoint={which}',
  )
  assert f'{tmp_path}/run' in message
  assert message.endswith(
    '; train there first: python -m alexnet_jax.main --mode=train'
  )
  assert list(tmp_path.iterdir()) == []


ALL = '--coordinator_address, --num_processes, --process_id'


@pytest.mark.parametrize(
  'flags, expected',
  [
    (
      ['--coordinator_address=127.0.0.1:4321', '--num_processes=2'],
      f'--process_id must be given as well; or none of {ALL} where',
    ),
    (
      ['--process_id=0'],
      '--coordinator_address and --num_processes must be given as well; or',
    ),
    (
      ['--num_processes=2'],
      '--coordinator_address and --process_id must be given as well; or',
    ),
    (
      ['--num_processes=1', '--process_id=1'],
      '--coordinator_address must be given as well; or',
    ),
    (
      [
        '--coordinator_address=127.0.0.1',
        '--num_processes=2',
        '--process_id=1',
      ],
      '--coordinator_address=127.0.0.1 must be host:port of process 0',
    ),
    (
      ['--coordinator_address=:4321', '--num_processes=2', '--process_id=1'],
      '--coordinator_address=:4321 must be host:port of process 0',
    ),
    (
      ['--coordinator_address=a:b', '--num_processes=2', '--process_id=1'],
      '--coordinator_address=a:b must be host:port of process 0',
    ),
    (
      ['--coordinator_address=a:1', '--num_processes=2', '--process_id=2'],
      '--process_id=2 must be at least 0 and below --num_processes=2',
    ),
    (
      ['--coordinator_address=a:1', '--num_processes=2', '--process_id=-1'],
      '--process_id=-1 must be at least 0 and below --num_processes=2',
    ),
    (
      ['--coordinator_address=a:1', '--num_processes=0', '--process_id=0'],
      '--num_processes=0 must be at least 1',
    ),
  ],
)
def test_wrong_flags_of_a_cluster_are_named_before_anything_is_read(
  fail, tmp_path, flags, expected
):
  # The data set does not exist either, which nothing has noticed yet.
  message = fail(PAPER, f'--workdir={tmp_path}/run', *flags)
  assert message.startswith(f'ValueError: {expected}')
  assert message.count('\n') == 0
  assert list(tmp_path.iterdir()) == []


def test_a_process_told_that_it_is_alone_joins_no_cluster(
  fail, tmp_path, monkeypatch
):
  # Joining a cluster would raise ZeroDivisionError.
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *_, **__: 1 / 0)
  for alone in (['--num_processes=1'], ['--num_processes=1', '--process_id=0']):
    message = fail(PAPER, f'--workdir={tmp_path}/run', *alone)
    assert message == missing_data_set(tmp_path, 'imagenet2012')


def test_a_run_is_evaluated_with_its_own_config(tmp_path, data_dir, capsys):
  """Without `--config`, and as `alexnet_jax.evaluate` does it."""
  workdir = shutil.copytree(FIXTURE, tmp_path / 'run')
  done = run_module(
    'alexnet_jax.main',
    '--mode=evaluate',
    f'--workdir={workdir}',
    f'--data_dir={data_dir}',
    '--checkpoint=latest',
    '--split=train',
  )
  assert done.returncode == 0, done.stderr
  file = json.loads((workdir / 'evaluation.json').read_text())
  assert file['split'] == 'train' and file['step'] == 188
  # The stored predictions are those that the other command uses.
  again = evaluate.evaluate(
    [workdir], 'latest', split='train', data_dir=str(data_dir)
  )
  assert again.keys() == {
    f'{prefix}/{name}'
    for prefix in ('eval', 'eval_five_view')
    for name in ('loss', 'top1_error', 'top5_error')
  }
  assert again.items() <= file.items()
  assert json.loads((workdir / 'evaluation.json').read_text()) == file
  assert capsys.readouterr().out == done.stdout


@pytest.mark.parametrize(
  'path', [f'{"x" * 300}.py', 'closed/x.py', 'zz.py', 'x.py/y.py']
)
def test_a_config_file_that_cannot_be_opened_is_one_line(
  fail, tmp_path, monkeypatch, path
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / '.#q.py').symlink_to('nowhere')  # As Emacs locks a file.
  (tmp_path / 'q.py').symlink_to('nowhere')
  os.mkfifo(tmp_path / 'pipe.py')
  (tmp_path / 'folder.py').mkdir()
  (tmp_path / 'x.py').write_text('def get_config(): pass')
  (tmp_path / 'closed').mkdir()
  if path.startswith('closed'):  # For root no folder is without permission.
    stat = os.stat

    def closed(name, **options):
      if 'closed/' in str(name):
        raise PermissionError(errno.EACCES, 'Permission denied', str(name))
      return stat(name, **options)

    monkeypatch.setattr(os, 'stat', closed)
  message = fail('--workdir=run', f'--config={path}')
  assert message.startswith(f'--config={path} is not a file; ')
  assert 'q.py' not in message and 'pipe' not in message
  assert message.count('\n') == 0
