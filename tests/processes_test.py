"""Several real processes, connected by the loopback interface, against one.

They have CPU devices of their own. Some run a command as a user starts it; the
others are forks of a process that has imported the package, since that takes
seconds of computing. A few runs serve all tests. `_run_pair` below calls
functions of the package, in two processes, instead of a command.
"""

import collections
import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

from absl import app
import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
import tensorflow_datasets as tfds

from alexnet_jax import checkpoint
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import evaluate
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax import main
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import placement
from alexnet_jax import progress as progress_lib
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from alexnet_jax.runtime import installation
from alexnet_jax.runtime import peers
from alexnet_jax.runtime import processes
from alexnet_jax.runtime import replicas
from alexnet_jax.runtime import signals
from alexnet_jax.runtime import waiting
from benchmarks.faults import runs

ROOT = pathlib.Path(main.__file__).parents[1]
# The net has few layers, since every process compiles it. The last checkpoint
# is evaluated.
CONFIG = """
from configs import quickstart

def get_config():
  config = quickstart.get_config()
  config.model.conv_features = (4, 0, 8, 0, 8)
  config.model.fc_features = (0, 16)
  config.model.init_std = 0.1
  config.model.fc67_init_std = 0.1
  config.input.data_dir = {data_dir!r}
  config.input.batch_size = 16
  config.optimizer.drop_epochs = (0.1,)
  config.train.epochs = 0.19
  config.train.log_every_steps = 3
  config.train.checkpoint_every_steps = 6
  config.train.eval_every_epochs = 1.0
  config.eval.batch_size = 100
  return config
"""
ROWS = [3, 6, 9, 10, 12, 15, 18]  # The rate drops after step 10.
HEARTBEAT = 5  # seconds, instead of processes.HEARTBEAT_SECONDS
WAIT = 4  # seconds, instead of processes.START_SECONDS
MARGIN = 15  # seconds to notice, print and end on two busy cores
LIMIT = 240


@pytest.fixture(scope='module')
def config_file(data_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'tiny.py'
  path.write_text(CONFIG.format(data_dir=str(data_dir)))
  return path


def load(config_file):
  return runpy.run_path(str(config_file))['get_config']()


def cluster(number, port=0, module='alexnet_jax.main', **how):
  """The commands of all processes, without --config and --workdir."""
  how = [json.dumps(how)] if how else []
  all_flags = runs.cluster(number, port=port)
  return [['-m', module, *how, *flags] for flags in all_flags]


def forked_cluster(number, port=0, by=signal.SIGKILL, die_at=None):
  """Like `cluster`, with the arguments of `_main_that_dies`, in forks."""
  how = {'die_at': die_at or {}, 'by': by}
  return cluster(number, port, 'tests.processes_test', dies=how)


@pytest.fixture(scope='module')
def run_all(tmp_path_factory):
  """Function that runs commands at the same time, each on `devices` devices.

  It returns exit code, output and end of each. The process `stopped` does not
  end by itself; it is killed after the others.
  """
  # The last value counts. Level 0 halves the time of compiling.
  cheap = f'{os.environ["XLA_FLAGS"]} --xla_backend_optimization_level=0'
  with subprocess.Popen(
    [sys.executable, '-m', 'tests.processes_test'],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': cheap},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  ) as server:

    def run(commands, *flags, devices=1, stopped=None):
      folder = tmp_path_factory.mktemp('printed')
      commands = [[*command, *map(str, flags)] for command in commands]
      order = json.dumps([commands, str(folder), devices, stopped])
      print(order, file=server.stdin, flush=True)
      return [
        types.SimpleNamespace(
          code=code,
          out=(folder / f'{index}.out').read_text(),
          err=(folder / f'{index}.err').read_text(),
          ended=ended,
        )
        for index, (code, ended) in enumerate(
          json.loads(server.stdout.readline())
        )
      ]

    try:
      yield run
    finally:
      os.killpg(server.pid, signal.SIGKILL)


def succeed(done):
  assert [one.code for one in done] == [0] * len(done), [d.err for d in done]
  return done


def read_rows(workdir):
  with open(workdir / 'metrics.csv', newline='') as file:
    return list(csv.DictReader(file))


def assert_same_rows(workdir, expected):
  """Asserts that both have every step once, with the same numbers."""
  rows, wanted = read_rows(workdir), read_rows(expected)
  assert [int(row['step']) for row in rows] == ROWS
  assert [int(row['step']) for row in wanted] == ROWS
  for row, right in zip(rows, wanted, strict=True):
    assert row.keys() == right.keys()
    for tag in row.keys() - runs.TIMINGS:
      if tag.endswith('loss') and right[tag]:
        # float32 sums in another order differ by 1e-7 a step.
        assert float(row[tag]) == pytest.approx(float(right[tag]), rel=1e-5)
      else:  # Errors are counts.
        assert row[tag] == right[tag]


def saved_state(workdir, config):
  """The newest checkpoint, read by this one process."""
  run = run_lib.open_run(config)
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, read_only=True)
  ) as checkpoints:
    step = checkpoints.step_of('latest')
    return placement.fetch(
      checkpoints.restore(train_state.state_template(run), step)
    )


def assert_same_state(workdir, expected, config):
  found, wanted = (saved_state(w, config) for w in (workdir, expected))
  assert int(found.step) == int(wanted.step) == ROWS[-1]
  # The weights are about 0.1, v about 1e-3; see `assert_same_rows`.
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(near, found, wanted)


# A single process, and processes whose partners never come


@pytest.fixture(scope='module')
def waiting_in_vain(run_all, config_file, tmp_path_factory):
  """A single process that trains, and some whose partners never come."""
  folder = tmp_path_factory.mktemp('waiting_in_vain')
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    in_use = forked_cluster(2, port=taken.getsockname()[1])[0]
    first, second = (
      [*forked_cluster(2)[index], f'--start_seconds={WAIT}'] for index in (0, 1)
    )
    names = ('one', 'in_use', 'first', 'second')
    done = run_all(
      [
        ['-m', 'alexnet_jax.main', f'--workdir={folder}/one'],
        *([*c, f'--workdir={folder}/none'] for c in (in_use, first, second)),
      ],
      f'--config={config_file}',
    )
  assert not (folder / 'none').exists()
  return folder, dict(zip(names, done, strict=True))


@pytest.fixture(scope='module')
def one(waiting_in_vain):
  """The work directory of a single process, started without flags."""
  folder, done = waiting_in_vain
  succeed([done['one']])
  return folder / 'one'


@pytest.mark.parametrize(
  ('name', 'who', 'reason'),
  [
    ('first', 'process 0 waits at {} for the other 1', ''),
    ('second', 'process 1 waits for all 2 at {}', r' \(it refuses: .*\)'),
  ],
)
def test_a_process_that_waits_in_vain_says_so_at_once_and_at_the_end(
  waiting_in_vain, name, who, reason
):
  _, done = waiting_in_vain
  assert done[name].code == 1
  assert done[name].out == ''
  first, last = done[name].err.splitlines()
  address = r'127\.0\.0\.1:\d+'
  said = f'{who.format(address)}{reason}, at most {WAIT} s'
  assert re.fullmatch(rf'{said} \(--start_seconds\)', first)
  assert re.match(
    f'ValueError: not all 2 processes have connected to {address} within {WAIT}'
    f' s{reason}; start them with the same --coordinator_address',
    last,
  )


def test_a_port_in_use_is_named_without_a_stack_trace(waiting_in_vain):
  done = waiting_in_vain[1]['in_use']
  assert done.code == 1
  (line,) = done.err.splitlines()
  assert re.match(
    r'ValueError: process 0 cannot join the others at 127\.0\.0\.1:\d+ .*; name'
    ' a free port of the host of process 0 in --coordinator_address',
    line,
  )


def test_waiting_in_vain_in_a_detected_cluster_names_the_single_process(
  monkeypatch, capfd
):
  monkeypatch.setattr(waiting.signals, 'exit_at_once', sys.exit)
  with pytest.raises(SystemExit) as ended:
    waiting._give_up(None, None, None, 300)
  assert ended.value.code == 1
  (line,) = capfd.readouterr().err.splitlines()
  assert '(Slurm, MPI, Kubernetes or TPU)' in line
  assert '; for a single process add --num_processes=1; for several,' in line


# Which GPUs a Slurm task uses


@pytest.mark.parametrize(
  ('visible', 'tasks', 'hosts', 'others', 'expected'),
  [
    ('0,1,2,3', '1', '1', {}, [0, 1, 2, 3]),  # srun -n1 --gpus=4
    ('0,1,2,3', '2', '2', {}, [0, 1, 2, 3]),  # One task per host.
    ('0', '4', '1', {}, [0]),  # --gpus-per-task=1
    ('0,1', '4', '1', {'SLURM_GPUS_ON_NODE': '8'}, [0, 1]),  # ... =2
    # All tasks see all GPUs: task i takes GPU i, as JAX does.
    ('0,1,2,3', '4', '1', {'SLURM_GPUS_ON_NODE': '4'}, None),
    ('0,1,2,3', '4', '1', {}, None),
    ('0,1', '1', '1', {'JAX_LOCAL_DEVICE_IDS': '1'}, None),
    ('0,1', '1', '1', {'OMPI_MCA_orte_hnp_uri': '1.0'}, None),
    ('0,1', '', '', {}, None),  # sbatch without -n.
    ('', '1', '1', {}, None),
  ],
)
def test_a_slurm_task_uses_the_gpus_that_belong_to_it(
  monkeypatch, visible, tasks, hosts, others, expected
):
  asked = []

  def initialize(*args, local_device_ids, **_):
    asked.append(local_device_ids)
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  environment = {
    'CUDA_VISIBLE_DEVICES': visible,
    'SLURM_LOCALID': '0',
    'SLURM_NTASKS': tasks,
    'SLURM_STEP_NUM_NODES': hosts,
  }
  for name, value in (environment | others).items():
    monkeypatch.setenv(name, value)
  processes.initialize(None, None, None)
  monkeypatch.delenv('SLURM_LOCALID')  # Outside Slurm JAX chooses.
  processes.initialize(None, None, None)
  assert asked == [expected, None]


# Two processes train, one dies, both continue, one is told to stop, both go on


# A signal in step 15 is agreed on after the next step, or the one after that.
STOPPED_AT = (16, 17)


@pytest.fixture(scope='module')
def two(run_all, config_file, tmp_path_factory):
  """The work directory, and what each of the three runs printed."""
  workdir = tmp_path_factory.mktemp('two')
  flags = [f'--config={config_file}', f'--workdir={workdir}']
  short = f'--heartbeat_seconds={HEARTBEAT}'
  # The save of step 6 is done before that of step 12 begins.
  dead = run_all(forked_cluster(2, die_at={'0': 14}), *flags, short)
  stopped = run_all(
    forked_cluster(2, by=signal.SIGTERM, die_at={'1': 15}), *flags, short
  )
  last = run_all(cluster(2), *flags)
  return types.SimpleNamespace(
    workdir=workdir, dead=dead, stopped=stopped, last=succeed(last)
  )


def test_if_one_process_dies_the_other_ends_with_a_line_and_code(two):
  dead, survivor = two.dead
  assert dead.code == -signal.SIGKILL, dead.err
  assert survivor.code == peers.LOST
  assert survivor.ended - dead.ended < HEARTBEAT + MARGIN
  # JAX has aborted it: the line is still the last.
  assert re.fullmatch(
    r'process 0 of 2 is lost: not heard of .*\. Start all processes again: the'
    ' same command continues from its checkpoint',
    survivor.err.splitlines()[-1],
  )


def test_a_signal_to_one_process_stops_both_at_the_same_step(two):
  steps = set()
  for done in two.stopped:
    assert done.code == 128 + signal.SIGTERM, done.err
    last = re.fullmatch(
      r'interrupted by SIGTERM: step (\d+) is saved; the same command continues'
      ' from its checkpoint',
      done.err.splitlines()[-1],
    )
    steps.add(int(last[1]))
    assert 'Traceback' not in done.err and 'error above' not in done.err
  (step,) = steps
  assert step in STOPPED_AT
  assert f'Restored the checkpoint of step {step}.' in two.last[0].err


def test_two_processes_killed_and_stopped_train_like_a_single_one(
  two, one, config_file
):
  # The first process died after the save of step 6.
  assert 'Restored the checkpoint of step' in two.stopped[0].err
  assert_same_rows(two.workdir, one)
  assert_same_state(two.workdir, one, load(config_file))


def test_only_the_first_process_writes_and_logs(two):
  first, second = two.last
  assert 'step 18/18' in first.out
  assert '2 processes with 2 devices' in first.err
  assert 'Devices: 2 x cpu.' in first.err
  for text in (second.out, second.err, two.dead[1].out):
    assert not re.search('step|epoch|processes with|Devices|Restored', text)
  # One for each of the three runs, all of which process 0 started.
  assert len(list(two.workdir.glob('events.out.tfevents.*'))) == 3
  events = event_accumulator.EventAccumulator(str(two.workdir)).Reload()
  assert [e.step for e in events.Scalars('train/loss')] == ROWS
  result = json.loads((two.workdir / 'result.json').read_text())
  assert result['devices'] == ['cpu'] * 2
  assert result['step'] == ROWS[-1]


# Four processes resume a run of a single one, with another layout


@pytest.mark.slow  # Each of the four processes compiles, perhaps on two cores.
def test_four_processes_resume_a_run_of_a_single_one(
  run_all, one, config_file, tmp_path
):
  workdir = shutil.copytree(one, tmp_path / 'four')
  shutil.rmtree(workdir / 'checkpoints/18')
  done = succeed(
    run_all(
      cluster(4),
      f'--config={config_file}',
      f'--workdir={workdir}',
      '--config.mesh.layout=one_weird_trick',
    )
  )
  assert 'Restored the checkpoint of step 12' in done[0].err
  assert '4 processes with 4 devices' in done[0].err
  assert ['step' in one.out for one in done] == [True, False, False, False]
  assert_same_rows(workdir, one)
  assert_same_state(workdir, one, load(config_file))


# Errors in one process only


def test_an_error_in_only_the_first_process_ends_all(
  run_all, two, config_file, tmp_path
):
  shutil.copytree(two.workdir, tmp_path / 'run')
  before = (tmp_path / 'run/metrics.csv').read_bytes()
  with files.locked(tmp_path / 'run'):
    first, second = run_all(
      forked_cluster(2), f'--config={config_file}', f'--workdir={tmp_path}/run'
    )
  assert first.code == second.code == 1
  assert f'ValueError: another process is at work in {tmp_path}' in first.err
  assert 'Traceback' not in first.err
  assert 'process 0 of 2 ends with the error above' in first.err
  assert 'connection' not in first.err
  words = (
    'process 0 of 2 has ended with an error: ValueError: another process is'
  )
  assert words in second.err.splitlines()[-1]
  assert abs(first.ended - second.ended) < MARGIN
  assert (tmp_path / 'run/metrics.csv').read_bytes() == before


# Two processes call the package's functions


@pytest.fixture(scope='module')
def pair(run_all, two, config_file, tmp_path_factory):
  """What two processes report, and how they ended."""
  folder = tmp_path_factory.mktemp('pair')
  for copy in ('evaluated', 'damaged'):
    shutil.copytree(two.workdir, folder / copy)
  # The second process wrote these files, so only that one cannot read its half.
  written = folder / 'damaged/checkpoints/18/state/ocdbt.process_1/d'
  for file in written.iterdir():
    file.write_bytes(file.read_bytes()[:10])
  done = run_all(
    cluster(
      2, module='tests.processes_test', pair=[str(config_file), str(folder)]
    ),
    devices=2,
    stopped=1,
  )
  reports = [folder / f'{index}.json' for index in (0, 1)]
  assert all(report.exists() for report in reports), [d.err for d in done]
  return types.SimpleNamespace(
    folder=folder,
    reports=[json.loads(report.read_text()) for report in reports],
    done=done,
  )


def reported(pair, name):
  return [report[name] for report in pair.reports]


def test_any_process_gives_all_processes_the_same_answer(pair):
  assert reported(pair, 'any') == [[True, True, False, True]] * 2


def test_a_barrier_waits_for_the_last_process(pair):
  first, second = reported(pair, 'wait')
  # Arrival and departure, in seconds of the same clock.
  assert second[0] - first[0] > 0.5
  assert min(first[1], second[1]) >= second[0]


def test_all_processes_report_that_their_values_differ(pair):
  for name, words in (
    ('check_same', 'the second value'),
    ('config', 'the config'),
    ('workdir', '--workdir'),
    ('dataset', 'the data set'),
  ):
    for found in reported(pair, name):
      assert re.match(
        f'ValueError: {words}.* of the processes \\[1\\] differs from that of'
        ' process 0; all need the same command and the same prepared data',
        found,
      )


def test_processes_compare_code_and_command_before_they_read(pair):
  for same, other in reported(pair, 'command'):
    assert same == ''
    assert other == (
      'ValueError: --mode is mode 1 in process 1, but mode 0 in process 0; run'
      ' the same command with the same code and versions on all hosts'
    )


def test_copies_that_differ_are_named_in_all_processes(pair):
  for same, other in reported(pair, 'copies'):
    assert same == ''
    assert re.match(
      'ValueError: w/x in process 1 differs from its copy in process 0: .* All'
      ' copies were equal at checkpoint 6; nothing was saved since',
      other,
    )


def test_processes_with_equal_values_pass(pair):
  assert reported(pair, 'agree') == ['', '']


def test_a_workdir_that_one_process_does_not_see_is_named(pair):
  for found in reported(pair, 'unseen'):
    assert re.match(
      'ValueError: --workdir=.* must be on a file system that all hosts', found
    )


def stored_labels(data_dir):
  folder = dataset_lib.dataset_path(data_dir, 'digits')
  stored = tfds.builder_from_directory(folder).as_data_source('test')
  return [int(example['label']) for example in stored]


def test_each_process_reads_only_the_examples_of_its_devices(pair, data_dir):
  labels = stored_labels(data_dir)
  halves = reported(pair, 'halves')
  for batch in range(3):
    parts = [half['labels'][batch] for half in halves]
    assert parts[0] + parts[1] == labels[100 * batch : 100 * batch + 100]
  assert [half['indices'] for half in halves] == [
    list(range(50)),
    list(range(50, 100)),
  ]
  assert [half['decoded'] for half in halves] == [150, 150]  # Half of 300.
  for both in reported(pair, 'towers'):
    assert sum(both['labels'], []) == labels
    assert both['indices'] == list(range(100))
    assert both['decoded'] == 300
  # On the devices the batch is whole.
  assert reported(pair, 'placed') == [labels[:100]] * 2


def test_processes_with_the_images_on_their_devices_read_the_same(pair):
  for found in reported(pair, 'cached'):
    # Without a cache; then half of the images, the other half, and none.
    assert found == {'decoded': [150, 150, 150, 0], 'same': True}


def test_evaluation_by_two_processes_equals_that_of_one(
  pair, one, config_file, capfd
):
  found = reported(pair, 'evaluation')
  assert found[0] == found[1]
  expected = evaluate.evaluate([one], 'latest', config=load(config_file))
  printed = capfd.readouterr().out
  for tag, value in expected.items():
    near = 1e-5 if tag.endswith('loss') else 0  # See `assert_same_rows`.
    assert found[0][tag] == pytest.approx(value, rel=near, abs=0)
  workdir = pair.folder / 'evaluated'
  evaluation = json.loads((workdir / 'evaluation.json').read_text())
  assert evaluation.items() >= found[0].items()
  assert printed.startswith('latest checkpoint')
  # The columns are as wide as the name of the folder.
  words = lambda text: ' '.join(text.split())
  printed = words(printed.replace(str(one), str(workdir)))
  assert [printed in words(done.out) for done in pair.done] == [True, False]
  assert 'eval' not in pair.done[1].out


def test_a_checkpoint_that_one_process_cannot_read_is_skipped_by_all(pair):
  step, other = reported(pair, 'restored')
  assert step == other and step in STOPPED_AT
  folder = pair.folder / 'damaged/checkpoints'
  assert {path.name for path in folder.iterdir()} >= {str(step), 'damaged.18'}


def test_if_a_process_hangs_the_heartbeat_ends_the_other(pair):
  survivor = pair.done[0]
  assert survivor.code == peers.LOST
  stopped_at = pair.reports[0]['reported_at']
  assert survivor.ended - stopped_at < HEARTBEAT + MARGIN
  last = survivor.err.splitlines()[-1]
  assert re.match(
    rf'process 1 of 2 is lost: not heard of for {HEARTBEAT} s', last
  )


# What the processes run


def _run_pair(address, index, config_file, folder):
  """Calls functions of the package and writes their results to a file."""
  folder, report = pathlib.Path(folder), {}
  with processes.abort_all_on_error():
    processes.initialize(address, 2, index, heartbeat_seconds=HEARTBEAT)
    config = load(config_file)

    def error_of(function, *args):
      try:
        with contextlib.ExitStack() as stack:
          found = function(*args)
          if hasattr(found, '__enter__'):
            stack.enter_context(found)
      except ValueError as error:
        return f'ValueError: {error}'
      return ''

    report['any'] = [
      processes.any_process(value)
      for value in (index == 0, index == 1, False, True)
    ]
    came = time.monotonic()
    if index == 1:
      time.sleep(1)
      came = time.monotonic()
    processes.barrier('for the second')
    report['wait'] = [came, time.monotonic()]
    same, other = {'the first value': 'a'}, {'the second value': str(index)}
    report['agree'] = error_of(processes.check_same, same)
    report['check_same'] = error_of(processes.check_same, same | other)

    report['command'] = [
      error_of(installation.check, {'--mode': mode})
      for mode in ('same', f'mode {index}')
    ]
    mesh = mesh_lib.create_mesh('data', 'auto', jax.devices())
    report['copies'] = [
      error_of(_check_copies, {'w': {'x': _copies(mesh, value)}})
      for value in (0, index)
    ]

    workdir = folder / 'evaluated'
    run = run_lib.open_run(config)
    report['workdir'] = error_of(
      train.train_and_evaluate, config, folder / f'none{index}'
    )
    # Each has an old config of its own there.
    workdir_lib.write_config(folder / f'private{index}', config)
    report['unseen'] = error_of(
      workdir_lib.owned_workdir, folder / f'private{index}', config
    )
    open_dataset = dataset_lib.open_dataset
    dataset_lib.open_dataset = lambda *args: dataclasses.replace(
      open_dataset(*args), fingerprint=str(index)
    )
    report['dataset'] = error_of(run_lib.open_run, config)
    dataset_lib.open_dataset = open_dataset
    # One device of each process; each has a tower.
    mesh = mesh_lib.create_mesh('towers', '2', jax.devices()[::2])
    tower_run = dataclasses.replace(run, mesh=mesh)
    report['towers'] = _read_all(tower_run)
    config.mesh.layout = 'data'
    halves = run_lib.open_run(config)
    report['halves'] = _read_all(halves)
    report['cached'] = _read_cached(config)
    (batch,) = (
      placement.place_batch({'label': np.array(labels)}, halves.mesh)
      for labels in report['halves']['labels'][:1]
    )
    report['placed'] = placement.fetch(batch)['label'].tolist()
    config.mesh.layout = 'towers'
    config.train.log_every_steps = 1 + index
    report['config'] = error_of(run_lib.open_run, config)
    config = load(config_file)

    report['evaluation'] = evaluate.evaluate([workdir], 'latest', config=config)
    with contextlib.closing(
      checkpoint.Checkpoints(folder / 'damaged')
    ) as checkpoints:
      state, _ = checkpoints.restore_latest(
        train_state.state_template(tower_run), lambda metadata: None
      )
    report['restored'] = int(placement.fetch(state.step))
    report['reported_at'] = time.monotonic()
    (folder / f'{index}.json').write_text(json.dumps(report))
    processes.barrier('reports')
    if index == 1:
      os.kill(os.getpid(), signal.SIGSTOP)
    processes.barrier('for one that does not come')


def _copies(mesh, value):
  """An array on all devices; each process says what its copies hold."""
  numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
  numbers[1, 1] += 1e-6 * value  # The last bits.
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.make_array_from_callback((2, 3), sharding, lambda _: numbers)


def _check_copies(tree):
  replicas.check(tree, placement.fetch(replicas.digests(tree)), [6])


def _read_all(run):
  """Labels of the test split by batch, and the number of decoded images."""
  decode, decoded = images.decode, []
  images.decode = lambda *args: decoded.append(decode(*args))
  indices = placement.local_batch_indices(100, run.mesh)
  with contextlib.closing(
    input_pipeline.eval_batches(
      run.dataset, 'test', batch_size=100, batch_indices=indices
    )
  ) as batches:
    labels = [batch['label'].tolist() for batch in batches]
  images.decode = decode
  return {
    'labels': labels,
    'decoded': len(decoded),
    'indices': indices.tolist(),
  }


def _read_cached(config):
  """What an evaluation reads and decodes, in turn, with a cache on devices."""
  decode, decoded = images.decode, []
  images.decode = lambda *args: decoded.append(decode(*args))
  passes, counts = [], []
  for config.input.cache in ('none', 'device'):
    run = run_lib.open_run(config)
    for _ in range(1 if config.input.cache == 'none' else 3):
      decoded.clear()
      passes.append(placement.fetch(list(run.eval_batches())))
      counts.append(len(decoded))
  images.decode = decode
  same = lambda *arrays: bool(all((arrays[0] == x).all() for x in arrays))
  return {'decoded': counts, 'same': jax.tree.all(jax.tree.map(same, *passes))}


def _main_that_dies(argv, die_at, by=signal.SIGKILL):
  """Runs main.py; `die_at` maps a process to its last step."""
  update = progress_lib.Progress.update
  done = collections.Counter()

  def update_or_die(self):
    done[self] += 1
    index = str(jax.process_index())
    if index in die_at and self._start + done[self] == die_at[index]:
      os.kill(os.getpid(), by)
    update(self)

  progress_lib.Progress.update = update_or_die
  signals.install()
  app.run(main.main, argv=argv, flags_parser=main.parse_flags)


def _serve():
  """Runs lists of commands, one list a line, and prints how they have ended."""
  for line in sys.stdin:
    print(json.dumps(_run_commands(*json.loads(line))), flush=True)


def _run_commands(commands, folder, devices, stopped):
  """Exit code and time of each end; `stopped` is killed when it is the last."""
  pids, ended = [], {}
  signal.alarm(LIMIT)  # Ends this process, and so the tests.
  for index, command in enumerate(commands):
    pids.append(os.fork())
    if not pids[-1]:
      _become(command, f'{folder}/{index}', devices)
  while len(ended) < len(pids):
    if stopped is not None and len(ended) == len(pids) - 1:
      os.kill(pids[stopped], signal.SIGKILL)
    pid, status = os.wait()
    ended[pid] = os.waitstatus_to_exitcode(status), time.monotonic()
  signal.alarm(0)
  return [ended[pid] for pid in pids]


def _become(command, path, devices):
  """Replaces this process by a command, a program or a function; no return."""
  nothing = os.open(os.devnull, os.O_RDONLY)
  create = lambda kind: os.open(f'{path}.{kind}', os.O_WRONLY | os.O_CREAT)
  for target, source in enumerate((nothing, create('out'), create('err'))):
    os.dup2(source, target)
  os.environ['XLA_FLAGS'] += (
    f' --xla_force_host_platform_device_count={devices}'
  )
  if command[1] != 'tests.processes_test':
    os.execv(sys.executable, [sys.executable, *command])
  sys.exit(_run_forked(*command[2:]))


def _run_forked(how, *flags):
  how = json.loads(how)
  if 'pair' in how:
    address, _, index = (flag.split('=')[1] for flag in flags)
    return _run_pair(address, int(index), *how['pair'])
  sys.argv = ['main', *flags]  # config_flags reads it.
  return _main_that_dies(sys.argv, **how['dies'])


if __name__ == '__main__':
  _run_forked(*sys.argv[1:]) if sys.argv[1:] else _serve()
