"""The evaluation command on real checkpoints: predictions, ensembles, Table 2."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import evaluate
from alexnet_jax import evaluator
from alexnet_jax import input_pipeline
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import trained_net
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import processes
from configs import quickstart


def softmax(logits):
  exp = np.exp(np.asarray(logits, np.float64))
  return exp / exp.sum(-1, keepdims=True)


def expected_metrics(probs, labels, prefix):
  """Loss, top-1 and top-5 error, by sorting (there are no ties)."""
  order = np.argsort(-probs, axis=1)
  hit = order == labels[:, None]
  of_label = probs[np.arange(len(labels)), labels]
  return {
    f'{prefix}/loss': -np.log(of_label).mean(),
    f'{prefix}/top1_error': 1 - hit[:, :1].any(1).mean(),
    f'{prefix}/top5_error': 1 - hit[:, :5].any(1).mean(),
  }


NETS = ('a', 'b', 'c')


@pytest.fixture(scope='module')
def trainings(tmp_path_factory, data_dir):
  """Folder of three work directories with a checkpoint of step 0 each."""
  folder = tmp_path_factory.mktemp('trainings')
  for seed, name in enumerate(NETS):
    make_training(folder / name, tiny_config(data_dir, seed))
  return folder


def tiny_config(data_dir, seed):
  config = quickstart.get_config()
  config.seed = seed
  config.model.conv_features = (4, 4, 4, 4, 4)
  config.model.fc_features = (8, 8)
  config.input.data_dir = str(data_dir)
  config.mesh.layout = 'data'
  config.eval.batch_size = 160  # 300 examples: the tail has a padding.
  return config


def make_training(workdir, config):
  """A checkpoint of step 0 whose weights depend on the seed."""
  run = run_lib.open_run(config)
  workdir_lib.write_config(workdir, config)
  save(workdir, 0, drawn_state(run))


def drawn_state(run):
  rng = np.random.default_rng(run.config.seed)
  draw = lambda x: jax.device_put(
    rng.normal(0, 0.3, x.shape).astype(x.dtype), x.sharding
  )
  return jax.tree.map(draw, train_state.state_template(run))


def save(workdir, step, state, error=0.9):
  config = workdir_lib.read_config(workdir)
  fingerprint = run_lib.open_run(config).dataset.fingerprint
  record = train_state.CheckpointMetadata(
    config_lib.flatten(config), fingerprint, metrics={}
  )
  with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
    checkpoints.save(step, state, dataclasses.asdict(record), error)


def stored(workdir, views='five'):
  with np.load(workdir / f'predictions/test.{views}_view.npz') as arrays:
    return np.exp(arrays['log_probs'].astype(np.float64)), arrays['labels']


def evaluate_nets(trainings, names=NETS, many=True, **kwargs):
  workdirs = [str(trainings / name) for name in names]
  views = 'many' if many else 'one'
  return evaluate.evaluate(workdirs, 'latest', views, **kwargs)


def evaluate_checkpoint(config, workdir, which):
  """What `--mode=evaluate` does with `--config`."""
  return evaluate.evaluate([workdir], which, 'both', config=config)


def test_an_ensemble_has_the_errors_of_the_mean_softmax(trainings, capsys):
  result = evaluate_nets(trainings)
  file = json.loads((trainings / 'a/evaluation.json').read_text())
  assert result.items() <= file.items()
  assert 'step' not in file  # Each member has its own.
  probs, labels = zip(*(stored(trainings / name) for name in NETS), strict=True)
  assert labels[0].shape == (300,) and len(set(labels[0])) == 10
  members = [
    expected_metrics(p, n, '') for p, n in zip(probs, labels, strict=True)
  ]
  together = expected_metrics(np.mean(probs, axis=0), labels[0], '')
  assert len({m['/loss'] for m in [*members, together]}) == 4
  found = [{**member} for member in file['members']]
  rows = [str(trainings / name) for name in NETS]
  assert [member.pop('workdir') for member in found] == rows
  assert [member.pop('step') for member in found] == [0, 0, 0]
  of_views = lambda errors: {
    f'eval_five_view{name}': pytest.approx(value, rel=1e-6)  # float32 sums.
    for name, value in errors.items()
  }
  assert found == [of_views(expected) for expected in members]
  assert result == of_views(together)
  lines = capsys.readouterr().out.splitlines()
  assert lines[:3] == [f'latest checkpoint, step 0: {row}' for row in rows]
  assert re.split('  +', lines[3])[-2:] == [
    'Top-1 (test, five views)',
    'Top-5 (test, five views)',
  ]
  assert [line.split()[:3] for line in lines[4:7]] == [
    ['1', 'CNN', row] for row in rows
  ]
  assert lines[7].split() == [
    '3',
    'CNNs',
    f'{together["/top1_error"]:.1%}',
    f'{together["/top5_error"]:.1%}',
  ]


def test_an_ensemble_can_be_written_to_another_folder(
  trainings, tmp_path, monkeypatch
):
  before = {path: path.stat().st_mtime_ns for path in trainings.rglob('*')}
  output = tmp_path / 'new/folder'
  result = evaluate_nets(trainings, output=output)
  after = {path: path.stat().st_mtime_ns for path in trainings.rglob('*')}
  assert before == after
  file = json.loads((output / 'evaluation.json').read_text())
  assert result.items() <= file.items() and len(file['members']) == 3
  files = list((output / 'predictions').iterdir())
  assert len(files) == 3  # One for each net: no two trainings share a file.
  assert {f.name.partition('.')[2] for f in files} == {'test.five_view.npz'}
  monkeypatch.setattr(evaluator, 'evaluate', None)  # Would be called.
  assert evaluate_nets(trainings, 'cba', output=output) == pytest.approx(result)


def test_one_and_many_views_in_one_evaluation(trainings, capsys):
  workdirs = [str(trainings / name) for name in 'ab']
  both = evaluate.evaluate(workdirs, 'latest', 'both')
  one = evaluate_nets(trainings, 'ab', many=False)
  many = evaluate_nets(trainings, 'ab')
  assert both == one | many and len(both) == 6
  header = capsys.readouterr().out.splitlines()[2]
  assert [cell.split(', ')[-1] for cell in re.split('  +', header)[1:]] == [
    'one view)',
    'one view)',
    'five views)',
    'five views)',
  ]


def test_nets_with_and_without_reflections_can_be_one_ensemble(
  trainings, data_dir, tmp_path, capsys
):
  config = tiny_config(data_dir, 15)
  config.augment.flip = True
  make_training(tmp_path, config)
  result = evaluate.evaluate(
    [str(tmp_path), str(trainings / 'a')], 'latest', 'many'
  )
  assert {tag.partition('/')[0] for tag in result} == {'eval_many_view'}
  assert 'Top-1 (test, five or ten views)' in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_named_before_any_work(
  trainings, tmp_path, monkeypatch
):
  (tmp_path / 'file').write_text('')
  monkeypatch.setattr(trained_net.TrainedNet, 'predict_split', None)
  with pytest.raises(ValueError, match='--output=.*file/x cannot be written'):
    evaluate_nets(trainings, output=tmp_path / 'file/x')
  with pytest.raises(ValueError, match='--output= is empty; name a folder'):
    evaluate_nets(trainings, output='')


def test_a_read_only_training_says_so_before_any_work(trainings, monkeypatch):
  access = os.access  # Root may write everywhere.
  monkeypatch.setattr(
    os, 'access', lambda path, mode: path.name != 'b' and access(path, mode)
  )
  monkeypatch.setattr(trained_net.TrainedNet, 'predict_split', None)
  message = r'--output=.*/b \(the default\) cannot be written .* name a folder'
  with pytest.raises(ValueError, match=message):
    evaluate_nets(trainings)


def test_predictions_on_disk_need_no_second_pass(trainings, monkeypatch):
  first = evaluate_nets(trainings)
  monkeypatch.setattr(evaluator, 'evaluate', None)  # Would be called.
  assert evaluate_nets(trainings) == first
  assert evaluate_nets(trainings, 'ba') != first
  with pytest.raises(TypeError):
    evaluate_nets(trainings, many=False)  # Other views are other predictions.


def test_one_view_and_five_have_files_of_their_own(trainings):
  evaluate_nets(trainings, 'a')
  evaluate_nets(trainings, 'a', many=False)
  one, five = (stored(trainings / 'a', views)[0] for views in ('one', 'five'))
  assert one.shape == five.shape == (300, 10) and not np.allclose(one, five)
  file = json.loads((trainings / 'a/evaluation.json').read_text())
  assert file['step'] == 0 and 'members' not in file  # No ensemble of one.


def test_another_split_is_evaluated_when_asked_for(trainings, capsys):
  evaluate_nets(trainings, 'a', many=False, split='train')
  with np.load(trainings / 'a/predictions/train.one_view.npz') as arrays:
    assert arrays['log_probs'].shape == (1497, 10)
  assert 'Top-1 (train, one view)' in capsys.readouterr().out


def test_evaluating_a_checkpoint_leaves_predictions_for_an_ensemble(
  trainings, data_dir, tmp_path
):
  make_training(tmp_path, tiny_config(data_dir, 5))
  result = evaluate_checkpoint(tiny_config(data_dir, 5), tmp_path, 'latest')
  for views, prefix in (('one', 'eval'), ('five', 'eval_five_view')):
    expected = expected_metrics(*stored(tmp_path, views), prefix)
    assert (
      expected.items()
      <= {k: pytest.approx(v, rel=1e-6) for k, v in result.items()}.items()
    )


def test_only_the_first_process_writes_and_prints(
  trainings, tmp_path, monkeypatch, capsys
):
  for name in ('config.json', 'checkpoints'):
    there = trainings / 'a' / name
    copy = shutil.copytree if there.is_dir() else shutil.copy
    copy(there, tmp_path / name)
  probs = np.random.default_rng(4).dirichlet(np.ones(10), 300)
  rows = [(np.log(probs), np.arange(300, dtype=np.int32) % 10)]
  fake = lambda params, many, predictions: predictions.extend(rows)
  monkeypatch.setattr(evaluator, 'Evaluator', lambda run: fake)
  config = workdir_lib.read_config(tmp_path)
  results = []
  for first in (False, True):
    monkeypatch.setattr(processes, 'is_first', lambda first=first: first)
    results.append(evaluate_checkpoint(config, tmp_path, 'latest'))
    written = {path.name for path in tmp_path.iterdir()}
    new = {'evaluation.json', 'predictions'} if first else set()
    assert written == {'config.json', 'checkpoints'} | new
    assert bool(capsys.readouterr().out) == first
  assert results[0] == results[1]


def test_predictions_of_an_earlier_step_are_made_anew(data_dir, tmp_path):
  config = tiny_config(data_dir, 6)
  make_training(tmp_path, config)
  evaluate.evaluate([str(tmp_path)], 'latest', 'one')
  before, _ = stored(tmp_path, 'one')
  config.seed = 16
  save(tmp_path, 1, drawn_state(run_lib.open_run(config)))
  evaluate.evaluate([str(tmp_path)], 'latest', 'one')
  assert not np.allclose(stored(tmp_path, 'one')[0], before)


def test_nets_of_other_data_are_no_ensemble(trainings, data_dir, tmp_path):
  config = tiny_config(data_dir, 7)
  config.input.eval_split = 'train'
  make_training(tmp_path / 'd', config)
  workdirs = [str(trainings / 'a'), str(tmp_path / 'd')]
  with pytest.raises(ValueError, match=r'd is evaluated on digits \(train\)'):
    evaluate.evaluate(workdirs, 'latest', 'one')


def test_a_folder_without_training_is_named(trainings, tmp_path):
  with pytest.raises(
    FileNotFoundError, match=f'no {tmp_path}/checkpoints; train'
  ):
    evaluate.evaluate([str(tmp_path)], 'latest', 'one')


@pytest.mark.parametrize(
  'workdirs', [[], [''], ['a', 'a'], ['a', 'a/'], ['a', ''], ['a', 'b/../a']]
)
def test_the_workdirs_must_differ(workdirs):
  with pytest.raises(ValueError, match='must name one or more different'):
    evaluate.evaluate(workdirs, 'latest', 'one')


def test_nets_of_other_images_are_no_ensemble(data_dir, tmp_path):
  other = tmp_path / 'data'
  shutil.copytree(data_dir / 'digits', other / 'digits')
  (file,) = other.rglob('statistics.npz')
  with np.load(file) as arrays:
    changed = dict(arrays) | {'fingerprint': np.array('0123')}
  np.savez(file, **changed)
  for name, folder in (('a', data_dir), ('b', other)):
    make_training(tmp_path / name, tiny_config(folder, 8))
  workdirs = [str(tmp_path / name) for name in 'ab']
  with pytest.raises(ValueError, match='need the same prepared data set'):
    evaluate.evaluate(workdirs, 'latest', 'one')


def test_the_data_may_have_moved(data_dir, tmp_path):
  make_training(tmp_path / 'a', tiny_config(data_dir, 9))
  shutil.copytree(data_dir, tmp_path / 'moved')
  record = json.loads((tmp_path / 'a/config.json').read_text())
  record['input.data_dir'] = str(tmp_path / 'gone')
  (tmp_path / 'a/config.json').write_text(json.dumps(record))
  evaluate.evaluate(
    [str(tmp_path / 'a')], 'latest', 'one', data_dir=str(tmp_path / 'moved')
  )


def test_another_training_in_the_same_folder_is_predicted_anew(
  data_dir, tmp_path
):
  probs = []
  for seed in (10, 11):
    shutil.rmtree(tmp_path / 'checkpoints', ignore_errors=True)
    (tmp_path / 'config.json').unlink(missing_ok=True)
    make_training(tmp_path, tiny_config(data_dir, seed))
    evaluate.evaluate([str(tmp_path)], 'latest', 'one')
    probs.append(stored(tmp_path, 'one')[0])
  assert not np.allclose(*probs)


@pytest.mark.parametrize(('flip', 'views'), [(False, 'five'), (True, 'ten')])
def test_the_views_that_are_averaged_are_those_of_the_config(
  data_dir, tmp_path, flip, views
):
  config = tiny_config(data_dir, 12)
  config.augment.flip = flip
  make_training(tmp_path, config)
  evaluate.evaluate([str(tmp_path)], 'latest', 'many')
  assert [f.name for f in (tmp_path / 'predictions').iterdir()] == [
    f'test.{views}_view.npz'
  ]
  run = run_lib.open_run(config)
  batches = input_pipeline.eval_batches(run.dataset, 'test', batch_size=3)
  with contextlib.closing(batches):
    images = next(batches)['image'] - run.dataset.mean_image
  places = [(0, 0), (0, 9), (9, 0), (9, 9), (4, 4)]  # 67 of 76 pixels.
  crops = [images[:, y : y + 67, x : x + 67] for y, x in places]
  crops += [crop[:, :, ::-1] for crop in crops] if flip else []
  net = jax.jit(lambda p, x: run.network.apply({'params': p}, x))
  logits = net(drawn_state(run).params, np.concatenate(crops))
  probs = softmax(logits).reshape(len(crops), 3, 10)
  # Float32 through eight layers; without the reflections it is far off.
  np.testing.assert_allclose(
    stored(tmp_path, views)[0][:3], probs.mean(0), rtol=1e-4
  )
  others = probs[:5] if flip else probs[:4]
  assert not np.allclose(others.mean(0), probs.mean(0), rtol=1e-2)


@pytest.mark.parametrize(('which', 'step'), [('best', 0), ('latest', 1)])
def test_the_checkpoint_that_is_asked_for_is_evaluated(
  data_dir, tmp_path, which, step, capsys
):
  config = tiny_config(data_dir, 13)
  make_training(tmp_path, config)
  config.seed = 14
  last = drawn_state(run_lib.open_run(config))
  save(tmp_path, 1, last, error=0.95)
  config.seed = 13
  found = evaluate_checkpoint(config, tmp_path, which)
  assert f'{which} checkpoint, step {step}:' in capsys.readouterr().out
  file = json.loads((tmp_path / 'evaluation.json').read_text())
  assert (file['step'], file['checkpoint']) == (step, which)
  run = run_lib.open_run(config)
  params = last.params if step else drawn_state(run).params
  expected = evaluator.Evaluator(run)(params, many=False)
  # float64 and float32 sums.
  assert found['eval/loss'] == pytest.approx(expected['eval/loss'], rel=1e-6)


def command(*flags):
  """The command as a user runs it: (exit status, output, errors)."""
  done = subprocess.run(
    [sys.executable, '-m', 'alexnet_jax.evaluate', *flags],
    cwd=pathlib.Path(evaluate.__file__).parents[1],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


def test_the_command_prints_the_table(trainings, data_dir, tmp_path):
  for name in 'ab':
    shutil.copytree(trainings / name, tmp_path / name)
    config = workdir_lib.read_config(tmp_path / name)
    state = drawn_state(run_lib.open_run(config))
    save(tmp_path / name, 1, state, error=0.95)  # Not the best.
  workdirs = f'--workdirs={tmp_path}/a,{tmp_path}/b'
  status, out, err = command(
    workdirs, '--checkpoint=latest', '--views=one', '--split=train'
  )
  assert status == 0, err
  assert '\nModel ' in out and '\n2 CNNs ' in out and '(train, one view)' in out
  with np.load(tmp_path / 'b/predictions/train.one_view.npz') as arrays:
    assert str(arrays['made_from/step']) == '1'


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--workdirs=a,a'], 'ValueError: --workdirs=a,a must name one or more'),
    (['--workdirs=a', 'b'], 'b is not a flag; folders are separated by commas'),
  ],
)
def test_a_mistake_in_the_command_is_one_line(flags, message):
  status, _, err = command(*flags)
  lines = err.strip().splitlines()
  assert status == 1 and lines[-1].startswith(message)
  assert 'Traceback' not in err


def test_a_run_evaluates_with_its_own_mean_crop(data_dir, tmp_path):
  rows = {}
  for central in (False, True):
    config = tiny_config(data_dir, 0)
    config.augment.central_mean = central
    run = run_lib.open_run(config)
    params = drawn_state(run).params
    for many in (False, True):
      evaluator.Evaluator(run)(params, many=many, predictions=(found := []))
      rows[central, many] = found[0][0]
  np.testing.assert_array_equal(rows[False, False], rows[True, False])
  assert not np.allclose(rows[False, True], rows[True, True])  # Its corners.
