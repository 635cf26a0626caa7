"""What benchmarks.gpu makes of parts that end in every way, and all in small."""

import json
import os
import pathlib
import subprocess
import sys
import tarfile
import time
import types

import numpy as np
from PIL import Image
import psutil
import pytest

from alexnet_jax.prepare import prepare
from benchmarks import gpu
from benchmarks import gpu_parts

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'benchmarks' / 'gpu.sh'


@pytest.fixture
def command(tmp_path, monkeypatch):
  """Runs the command with shell scripts as parts; its exit code.

  A part may be a script or a `gpu_parts.Part`. 'machine' and 'numerics' do nothing.
  """

  def command(output='out', found='gpu', only=(), budget_s=420, **parts):
    parts = {'machine': 'true', 'numerics': 'true'} | parts
    parts = {
      name: part
      if isinstance(part, gpu_parts.Part)
      else gpu_parts.Part(part, 20)
      for name, part in parts.items()
    }
    monkeypatch.setattr(gpu_parts, 'PARTS', parts)
    monkeypatch.setattr(
      gpu, 'part_command', lambda name, _: ['sh', '-c', parts[name].words]
    )
    monkeypatch.setattr(gpu, 'backend', lambda: found)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'restored afterwards')
    monkeypatch.chdir(tmp_path)
    flags = types.SimpleNamespace(
      output=output,
      archive='new/out.tar.gz',
      data_dir='data',
      quick=False,
      only=list(only),
      budget_s=budget_s,
    )
    monkeypatch.setattr(gpu, 'FLAGS', flags)
    with pytest.raises(SystemExit) as ended:
      gpu.main([])
    return ended.value.code

  return command


def summary():
  found = json.loads(pathlib.Path('out/summary.json').read_text())
  return {name: one['problem'] for name, one in found.items()}


def test_a_part_that_fails_is_named_and_passed_over(command, capsys):
  assert command(a='echo it broke; exit 7', b='echo fine') == 0
  assert summary() == {
    'machine': '',
    'numerics': '',
    'a': 'exit code 7',
    'b': '',
  }
  assert pathlib.Path('out/a.txt').read_text() == 'it broke\n'
  assert pathlib.Path('out/b.txt').read_text() == 'fine\n'
  assert 'a: exit code 7, 0 s' in capsys.readouterr().out


@pytest.mark.parametrize('name', gpu.NECESSARY)
def test_the_first_two_decide_about_the_exit_code(command, name):
  assert command(**{name: 'exit 1'}, b='true') == 1
  assert summary()['b'] == ''  # It ran all the same.


def test_results_are_on_the_disk_before_the_next_part_begins(command):
  seen = 'grep machine out/summary.json && tar -tzf new/out.tar.gz'
  assert command(numerics=f'{seen}; mkdir out/checkpoints', b=seen) == 0
  listed = pathlib.Path('out/numerics.txt').read_text()
  assert 'out/summary.json' in listed and 'out/machine.txt' in listed
  assert 'out/numerics.txt' in pathlib.Path('out/b.txt').read_text()
  with tarfile.open('new/out.tar.gz') as archive:
    assert 'out/b.txt' in archive.getnames()
    assert 'out/checkpoints' not in archive.getnames()


def test_a_part_past_its_limit_ends_with_all_that_it_started(command):
  script = '(sleep 60 & echo $! > child; wait) & echo begun; wait'
  began = time.monotonic()
  assert command(slow=gpu_parts.Part(script, 1), b='true') == 0
  assert time.monotonic() - began < 15
  assert (summary()['slow'], summary()['b']) == ('ended after 1 s', '')
  assert pathlib.Path('out/slow.txt').read_text() == 'begun\n'
  child = int(pathlib.Path('child').read_text())
  while psutil.pid_exists(child):  # Killed, it may wait for init.
    if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
      break
    assert time.monotonic() - began < 15
    time.sleep(0.05)


def test_what_a_part_leaves_running_ends_with_it(command):
  began = time.monotonic()
  assert command(a='sleep 60 & echo $! > child', b='kill -0 $(cat child)') == 0
  assert time.monotonic() - began < 15
  assert summary()['b'] or _is_zombie(int(pathlib.Path('child').read_text()))


def _is_zombie(pid):
  return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_part_without_data_is_named_and_passed_over(command):
  assert command(a=gpu_parts.Part('true', 20, dataset='photos'), b='true') == 0
  problem = 'skipped: no prepared data set photos in data'
  assert (summary()['a'], summary()['b']) == (problem, '')
  assert not pathlib.Path('out/a.txt').exists()


def test_a_part_without_time_is_named_and_passed_over(command):
  parts = {
    'slow': gpu_parts.Part('true', 100),
    'fast': gpu_parts.Part('true', 5),
  }
  assert command(budget_s=40, machine='sleep 1', **parts) == 0
  assert summary()['slow'] == ''
  parts['machine'] = gpu_parts.Part('sleep 1.5', 9)
  parts['numerics'] = gpu_parts.Part('true', 9)
  assert command(budget_s=30, **parts) == 0
  assert summary()['slow'] == 'skipped: 28 s are left of --budget_s'
  assert summary()['fast'] == ''


@pytest.mark.parametrize(
  'flags, message',
  [
    ({'only': ['numerics', 'b', 'x']}, '--only=b is none of machine, numerics'),
    ({'budget_s': 39}, '--budget_s=39 is less than the 40 s of machine and'),
    ({'output': 'file/out'}, '--output or --archive is in no folder: '),
  ],
)
def test_a_wrong_flag_is_one_line_and_nothing_runs(
  command, tmp_path, flags, message
):
  (tmp_path / 'file').touch()
  found = command(machine='touch ran', **flags)
  assert found.startswith(message) and '\n' not in found
  assert not pathlib.Path('ran').exists()
  assert not pathlib.Path('out/summary.json').exists()


def test_only_names_parts_in_their_order(command):
  parts = {'a': 'exit 1', 'b': 'true'}
  assert command(only=['b', 'machine'], budget_s=20, **parts) == 0
  assert list(summary()) == ['b', 'machine']


@pytest.mark.parametrize('found, shown', [('cpu', 'cpu'), ('', 'missing')])
def test_without_a_gpu_one_line_and_exit_code_3(command, capsys, found, shown):
  assert command(found=found, machine='touch ran') == gpu.NO_GPU == 3
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert error.startswith(f'JAX sees no GPU (its backend is {shown})')
  assert not pathlib.Path('ran').exists()


def test_the_backend_is_asked_for_in_another_process():
  assert gpu.backend() == 'cpu'


def test_parts_come_in_the_order_of_the_docstring():
  kinds = dict.fromkeys(
    name.replace('_bfloat16', '_DTYPE').replace('_float32', '_DTYPE')
    if 'DTYPE' not in name
    else name
    for name in gpu_parts.PARTS
  )
  table = gpu.__doc__.partition('|---|---|')[2].partition('\n\n')[0]
  listed = [line.split(' |')[0].strip('| ') for line in table.splitlines()[1:]]
  documented = [name for cell in listed for name in cell.split(', ')]
  for cache in gpu_parts.CACHES:
    kinds = dict.fromkeys(
      'end_to_end_CACHE' if name == f'end_to_end_{cache}' else name
      for name in kinds
    )
  first = list(kinds)[: len(documented) - 1]
  assert first == documented[:-1] and documented[-1] == '...'
  assert all('_seed' in name for name in list(kinds)[len(documented) - 2 :])


@pytest.mark.parametrize('words', [[], ['run'], ['fly', 'out']])
def test_the_script_says_how_it_is_used(words):
  done = subprocess.run(
    ['bash', SCRIPT, *words], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert done.stderr.startswith('What comes before benchmarks.gpu on a rented')
  assert 'run OUT [FLAG..]' in done.stderr and 'set -eu' not in done.stderr


@pytest.mark.slow  # Minutes: 340 s on two cores with other work. To run it alone:
# python -m pytest -n0 -m slow tests/gpu_benchmark_test.py
def test_every_part_in_small(tmp_path):
  rng = np.random.default_rng(0)
  for name, size, suffix in (
    (gpu_parts.PHOTOGRAPHS, 256, '.jpg'),
    (gpu_parts.CIFAR10, 32, '.png'),
  ):
    for number in range(96):
      split, label = ('val', 'train')[number > 15], number % 10
      folder = tmp_path / 'files' / name / split / f'class{label}'
      folder.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
      Image.fromarray(pixels).save(folder / f'{number}{suffix}')
    source = f'folder:{tmp_path / "files" / name}'
    prepare.prepare(source, name, tmp_path / 'data', size=size)
  flags = ['--quick', '--budget_s=3000', f'--output={tmp_path / "out"}']
  flags += [f'--data_dir={tmp_path / "data"}']
  flags += [f'--archive={tmp_path / "out.tar.gz"}']
  before = os.times()
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.gpu', *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  after = os.times()
  found = json.loads((tmp_path / 'out/summary.json').read_text())
  problems = {n: one['problem'] for n, one in found.items() if one['problem']}
  texts = [(tmp_path / f'out/{n}.txt').read_text()[-500:] for n in problems]
  assert (done.returncode, problems, texts) == (0, {}, [])
  assert {*found} == {name for name in gpu_parts.PARTS if 'seed' not in name}
  assert (tmp_path / 'out.tar.gz').stat().st_size < 16 * 2**20
  seconds = sum(after[2:4]) - sum(before[2:4])
  assert seconds < 2 * 180  # CPU-seconds: two idle cores, three minutes.
