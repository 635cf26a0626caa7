"""The evaluation command on real checkpoints: predictions and ensembles."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest.mock

import jax
import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import evaluate
from alexnet_jax import evaluator
from alexnet_jax import images
from alexnet_jax import input_pipeline
from alexnet_jax import net as net_lib
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import trained_net
from alexnet_jax import weights as weights_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import processes
from configs import quickstart
from tests.evaluator_test import expected_metrics
from tests.evaluator_test import softmax

NETS = ('a', 'b', 'c')


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data_dir):
  """Folder of three work directories with a checkpoint of step 0 each."""
  folder = tmp_path_factory.mktemp('runs')
  for seed, name in enumerate(NETS):
    make_run(folder / name, tiny_config(data_dir, seed))
  return folder


def tiny_config(data_dir, seed):
  config = quickstart.get_config()
  config.seed = seed
  # Few layers, as each test traces them several times.
  config.model.conv_features = (4, 0, 4, 0, 4)
  config.model.fc_features = (0, 8)
  config.input.data_dir = str(data_dir)
  config.mesh.layout = 'data'
  config.eval.batch_size = 160  # The last batch of 300 is padded.
  return config


def make_run(workdir, config):
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
  metadata = train_state.CheckpointMetadata(
    config_lib.flatten(config), fingerprint, metrics={}
  )
  with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
    checkpoints.save(step, state, dataclasses.asdict(metadata), error)


def stored(workdir, views='five'):
  with np.load(workdir / f'predictions/test.{views}_view.npz') as arrays:
    return np.exp(arrays['log_probs'].astype(np.float64)), arrays['labels']


def evaluate_nets(runs, names=NETS, many=True, **kwargs):
  workdirs = [str(runs / name) for name in names]
  views = 'many' if many else 'one'
  return evaluate.evaluate(workdirs, 'latest', views, **kwargs)


def evaluate_checkpoint(config, workdir, which):
  """What `--mode=evaluate` does with `--config`."""
  return evaluate.evaluate([workdir], which, 'both', config=config)


def test_an_ensemble_has_the_errors_of_the_mean_probabilities(
  runs, capsys, monkeypatch
):
  decode = unittest.mock.Mock(side_effect=images.decode)
  monkeypatch.setattr(images, 'decode', decode)
  result = evaluate_nets(runs)
  assert decode.call_count == 300  # The three nets share the decoded images.
  file = json.loads((runs / 'a/evaluation.json').read_text())
  assert result.items() <= file.items()
  assert 'step' not in file  # Each member has its own.
  probs, labels = zip(*(stored(runs / name) for name in NETS), strict=True)
  assert labels[0].shape == (300,) and len(set(labels[0])) == 10
  members = [
    expected_metrics(p, n, '') for p, n in zip(probs, labels, strict=True)
  ]
  together = expected_metrics(np.mean(probs, axis=0), labels[0], '')
  assert len({m['/loss'] for m in [*members, together]}) == 4
  found = [{**member} for member in file['members']]
  rows = [str(runs / name) for name in NETS]
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
    f'{together["/top1_error"]:.2%}',
    f'{together["/top5_error"]:.2%}',
  ]


def test_an_ensemble_can_be_written_to_another_folder(
  runs, tmp_path, monkeypatch
):
  before = {path: path.stat().st_mtime_ns for path in runs.rglob('*')}
  output = tmp_path / 'new/folder'
  result = evaluate_nets(runs, output=output)
  after = {path: path.stat().st_mtime_ns for path in runs.rglob('*')}
  assert before == after
  file = json.loads((output / 'evaluation.json').read_text())
  assert result.items() <= file.items() and len(file['members']) == 3
  files = list((output / 'predictions').iterdir())
  assert len(files) == 3  # One for each net, under different names.
  assert {f.name.partition('.')[2] for f in files} == {'test.five_view.npz'}
  monkeypatch.setattr(evaluator, 'evaluate', None)  # A call would raise.
  assert evaluate_nets(runs, 'cba', output=output) == pytest.approx(result)


def test_both_evaluates_one_and_many_views(runs, capsys):
  workdirs = [str(runs / name) for name in 'ab']
  both = evaluate.evaluate(workdirs, 'latest', 'both')
  one = evaluate_nets(runs, 'ab', many=False)
  many = evaluate_nets(runs, 'ab')
  assert both == one | many and len(both) == 6
  header = capsys.readouterr().out.splitlines()[2]
  assert [cell.split(', ')[-1] for cell in re.split('  +', header)[1:]] == [
    'one view)',
    'one view)',
    'five views)',
    'five views)',
  ]


def test_nets_with_and_without_reflections_can_form_an_ensemble(
  runs, data_dir, tmp_path, capsys
):
  config = tiny_config(data_dir, 15)
  config.augment.flip = True
  make_run(tmp_path, config)
  result = evaluate.evaluate([str(tmp_path), str(runs / 'a')], 'latest', 'many')
  assert {tag.partition('/')[0] for tag in result} == {'eval_many_view'}
  assert 'Top-1 (test, five or ten views)' in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_named_before_any_work(
  runs, tmp_path, monkeypatch
):
  (tmp_path / 'file').write_text('')
  monkeypatch.setattr(trained_net.TrainedNet, 'predict_split', None)
  with pytest.raises(ValueError, match='--output=.*file/x cannot be written'):
    evaluate_nets(runs, output=tmp_path / 'file/x')
  with pytest.raises(ValueError, match='--output= is empty; name a folder'):
    evaluate_nets(runs, output='')


def test_a_read_only_workdir_is_named_before_any_work(runs, monkeypatch):
  access = os.access  # Faked, since root may write everywhere.
  monkeypatch.setattr(
    os, 'access', lambda path, mode: path.name != 'b' and access(path, mode)
  )
  monkeypatch.setattr(trained_net.TrainedNet, 'predict_split', None)
  message = r'--output=.*/b \(the default\) cannot be written .* name a folder'
  with pytest.raises(ValueError, match=message):
    evaluate_nets(runs)


def test_a_comma_in_the_name_of_a_folder_is_explained(runs):
  with pytest.raises(FileNotFoundError, match="--workdirs.*double quotes: '"):
    evaluate.evaluate([runs / 'lr=1', 'b=2'])


def test_predictions_on_disk_are_used_again(runs, monkeypatch):
  first = evaluate_nets(runs)
  monkeypatch.setattr(evaluator, 'evaluate', None)  # A call would raise.
  assert evaluate_nets(runs) == first
  assert evaluate_nets(runs, 'ba') != first
  with pytest.raises(TypeError):
    evaluate_nets(runs, many=False)  # These views are not on disk.


def test_one_view_and_five_are_written_to_separate_files(runs):
  evaluate_nets(runs, 'a')
  evaluate_nets(runs, 'a', many=False)
  one, five = (stored(runs / 'a', views)[0] for views in ('one', 'five'))
  assert one.shape == five.shape == (300, 10) and not np.allclose(one, five)
  file = json.loads((runs / 'a/evaluation.json').read_text())
  assert file['step'] == 0 and 'members' not in file  # One net is no ensemble.


def test_another_split_is_evaluated_when_asked_for(runs, capsys):
  evaluate_nets(runs, 'a', many=False, split='train')
  with np.load(runs / 'a/predictions/train.one_view.npz') as arrays:
    assert arrays['log_probs'].shape == (1497, 10)
  assert 'Top-1 (train, one view)' in capsys.readouterr().out


def test_evaluating_a_checkpoint_leaves_predictions_for_an_ensemble(
  runs, data_dir, tmp_path
):
  make_run(tmp_path, tiny_config(data_dir, 5))
  result = evaluate_checkpoint(tiny_config(data_dir, 5), tmp_path, 'latest')
  for views, prefix in (('one', 'eval'), ('five', 'eval_five_view')):
    expected = expected_metrics(*stored(tmp_path, views), prefix)
    assert (
      expected.items()
      <= {k: pytest.approx(v, rel=1e-6) for k, v in result.items()}.items()
    )


def test_only_the_first_process_writes_and_prints(
  runs, tmp_path, monkeypatch, capsys
):
  for name in ('config.json', 'checkpoints'):
    there = runs / 'a' / name
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


def test_predictions_of_an_earlier_step_are_not_used_again(data_dir, tmp_path):
  config = tiny_config(data_dir, 6)
  make_run(tmp_path, config)
  evaluate.evaluate([str(tmp_path)], 'latest', 'one')
  before, _ = stored(tmp_path, 'one')
  config.seed = 16
  save(tmp_path, 1, drawn_state(run_lib.open_run(config)))
  evaluate.evaluate([str(tmp_path)], 'latest', 'one')
  assert not np.allclose(stored(tmp_path, 'one')[0], before)


def test_nets_evaluated_on_different_splits_cannot_form_an_ensemble(
  runs, data_dir, tmp_path
):
  config = tiny_config(data_dir, 7)
  config.input.eval_split = 'train'
  make_run(tmp_path / 'd', config)
  workdirs = [str(runs / 'a'), str(tmp_path / 'd')]
  with pytest.raises(ValueError, match=r'd is evaluated on digits \(train\)'):
    evaluate.evaluate(workdirs, 'latest', 'one')


def test_a_folder_without_a_training_run_is_named(runs, tmp_path):
  with pytest.raises(
    FileNotFoundError, match=f'no {tmp_path}/checkpoints; train'
  ):
    evaluate.evaluate([str(tmp_path)], 'latest', 'one')


@pytest.mark.parametrize(
  'workdirs', [[], [''], ['a', 'a'], ['a', 'a/'], ['a', ''], ['a', 'b/../a']]
)
def test_the_workdirs_must_differ(workdirs):
  with pytest.raises(ValueError, match='name one or more different'):
    evaluate.evaluate(workdirs, 'latest', 'one')


def test_nets_of_different_images_cannot_form_an_ensemble(data_dir, tmp_path):
  other = tmp_path / 'data'
  shutil.copytree(data_dir / 'digits', other / 'digits')
  (file,) = other.rglob('statistics.npz')
  with np.load(file) as arrays:
    changed = dict(arrays) | {'fingerprint': np.array('0123')}
  np.savez(file, **changed)
  (file.parent / 'digests.json').unlink()
  for name, folder in (('a', data_dir), ('b', other)):
    make_run(tmp_path / name, tiny_config(folder, 8))
  workdirs = [str(tmp_path / name) for name in 'ab']
  with pytest.raises(ValueError, match='need the same prepared data set'):
    evaluate.evaluate(workdirs, 'latest', 'one')


def test_the_data_may_have_moved(data_dir, tmp_path):
  make_run(tmp_path / 'a', tiny_config(data_dir, 9))
  shutil.copytree(data_dir, tmp_path / 'moved')
  record = json.loads((tmp_path / 'a/config.json').read_text())
  record['input.data_dir'] = str(tmp_path / 'gone')
  (tmp_path / 'a/config.json').write_text(json.dumps(record))
  evaluate.evaluate(
    [str(tmp_path / 'a')], 'latest', 'one', data_dir=str(tmp_path / 'moved')
  )


def test_predictions_of_an_earlier_run_in_the_same_folder_are_not_used(
  data_dir, tmp_path
):
  probs = []
  for seed in (10, 11):
    shutil.rmtree(tmp_path / 'checkpoints', ignore_errors=True)
    (tmp_path / 'config.json').unlink(missing_ok=True)
    make_run(tmp_path, tiny_config(data_dir, seed))
    evaluate.evaluate([str(tmp_path)], 'latest', 'one')
    probs.append(stored(tmp_path, 'one')[0])
  assert not np.allclose(*probs)


@pytest.mark.parametrize(('flip', 'views'), [(False, 'five'), (True, 'ten')])
def test_the_views_of_the_config_are_averaged(data_dir, tmp_path, flip, views):
  config = tiny_config(data_dir, 12)
  config.augment.flip = flip
  make_run(tmp_path, config)
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
  # float32 rounding through five layers.
  np.testing.assert_allclose(
    stored(tmp_path, views)[0][:3], probs.mean(0), rtol=1e-4
  )
  others = probs[:5] if flip else probs[:4]
  assert not np.allclose(others.mean(0), probs.mean(0), rtol=1e-2)


@pytest.mark.parametrize(('which', 'step'), [('best', 0), ('latest', 1)])
def test_the_requested_checkpoint_is_evaluated(
  data_dir, tmp_path, which, step, capsys
):
  config = tiny_config(data_dir, 13)
  make_run(tmp_path, config)
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
  # One sums in float64, the other in float32.
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


def test_the_command_prints_the_table(runs, data_dir, tmp_path):
  for name in 'ab':
    shutil.copytree(runs / name, tmp_path / name)
    config = workdir_lib.read_config(tmp_path / name)
    state = drawn_state(run_lib.open_run(config))
    save(tmp_path / name, 1, state, error=0.95)  # Not the best one.
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
    (
      ['--workdirs=a,a'],
      'ValueError: name one or more different work directories',
    ),
    (['--workdirs=a', 'b'], 'b is not a flag; folders are separated by commas'),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line(run_command, flags, message):
  status, _, err = run_command('evaluate', *flags, net=())
  (line,) = err.splitlines()
  assert status == 1 and line.startswith(message)


def test_the_mean_is_subtracted_as_the_config_says(data_dir, tmp_path):
  probs = {}
  for central in (False, True):
    config = tiny_config(data_dir, 0)
    config.augment.central_mean = central
    run = run_lib.open_run(config)
    params = drawn_state(run).params
    for many in (False, True):
      evaluator.Evaluator(run)(params, many=many, predictions=(found := []))
      probs[central, many] = found[0][0]
  np.testing.assert_array_equal(probs[False, False], probs[True, False])
  assert not np.allclose(
    probs[False, True], probs[True, True]
  )  # Differ at the corners.


@pytest.fixture(scope='module')
def file(runs, data_dir):
  """The net b in a file, beside a data set of its images and another mean."""
  path = runs / 'b.safetensors'
  weights_lib.save(path, net_lib.open_weights(runs / 'b', data_dir=data_dir))
  other = shutil.copytree(data_dir / 'digits', runs / 'data/other')
  (statistics,) = other.rglob('statistics.npz')
  with np.load(statistics) as arrays:
    changed = dict(arrays) | {'fingerprint': np.array('0123')}
  changed['mean_image'] = np.zeros((76, 76, 3), np.float32)
  np.savez(statistics, **changed)
  (statistics.parent / 'digests.json').unlink()
  return path


def test_a_file_is_evaluated_with_its_own_mean_image(runs, file, capsys):
  before = {*runs.rglob('*')}
  found = evaluate.evaluate(
    [file], views='one', data_dir=str(runs / 'data'), dataset='other'
  )
  assert {*runs.rglob('*')} == before  # The result is printed alone.
  out = capsys.readouterr().out
  assert out.startswith(f'weights file: {file}\nModel ')
  assert found == pytest.approx(evaluate_nets(runs, 'b', many=False))
  assert f'{found["eval/top1_error"]:.2%}' in out.splitlines()[-1]


def test_a_file_may_be_a_member_of_an_ensemble(
  runs, file, data_dir, tmp_path, monkeypatch
):
  expected = evaluate_nets(runs, 'ab', many=False)
  nets = [file, runs / 'a']
  kwargs = {'data_dir': str(data_dir), 'output': tmp_path}
  found = evaluate.evaluate(nets, 'latest', 'one', **kwargs)
  assert found == pytest.approx(expected)
  written = json.loads((tmp_path / 'evaluation.json').read_text())
  assert found.items() <= written.items() and written['checkpoint'] == 'latest'
  file_row, workdir_row = written['members']
  assert file_row['weights'] == str(file) and 'step' not in file_row
  assert (workdir_row['workdir'], workdir_row['step']) == (str(nets[1]), 0)
  monkeypatch.setattr(evaluator, 'evaluate', None)  # A call would raise.
  assert evaluate.evaluate(nets, 'latest', 'one', **kwargs) == found
  other = {'data_dir': str(runs / 'data'), 'dataset': 'other'}
  with pytest.raises(TypeError):  # Predictions for other images are not used.
    evaluate.evaluate([file], views='one', **(kwargs | other))
  alone = evaluate.evaluate([file], views='one', **kwargs)
  written = json.loads((tmp_path / 'evaluation.json').read_text())
  assert written.pop('weights') == str(file)
  assert alone == {k: v for k, v in written.items() if k in alone}
  assert written.keys() - alone.keys() == {'dataset', 'split'}


def change(weights, **changes):
  """Weights with other class names, or keys of config.input."""
  config = weights.config.copy_and_resolve_references().unlock()
  names = changes.pop('class_names', weights.class_names)
  mean_image = weights.mean_image
  if size := changes.get('image_size'):
    mean_image = np.zeros((size, size, 3), np.float32)
  config.input.update(changes)
  return dataclasses.replace(
    weights, config=config.lock(), class_names=names, mean_image=mean_image
  )


@pytest.mark.parametrize(
  ('changes', 'kwargs', 'message'),
  [
    (
      {'image_size': 90},
      {},
      'takes images of 90 pixels, but .* of 76; prepare',
    ),
    (
      {'class_names': tuple('1023456789')},
      {},
      r"2 labels mean other classes, such as 0: '1' in the net, '0' in .*\n"
      r'.*alexnet_jax.predict --weights=.* digits/test --data_dir=.*$',
    ),
    (
      {},
      {'split': 'validation'},
      'no examples; use one of the splits train, test',
    ),
    ({}, {'dataset': 'mine'}, r'\(it holds digits.* name another: --dataset='),
    ({}, {'config': quickstart.get_config()}, 'has its own config; leave'),
  ],
)
def test_a_file_that_does_not_fit_the_data_set_is_refused_before_any_work(
  file, data_dir, tmp_path, monkeypatch, changes, kwargs, message
):
  monkeypatch.setattr(trained_net.TrainedNet, 'predict_split', None)
  path = tmp_path / 'net.safetensors'
  weights_lib.save(path, change(weights_lib.load(file), **changes))
  with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
    evaluate.evaluate([path], data_dir=str(data_dir), **kwargs)
  assert str(error.value).count('\n') <= 2


def test_another_data_set_is_for_files(runs):
  message = '--dataset=x is for --weights.*convert --input=.*/a --output='
  with pytest.raises(ValueError, match=message):
    evaluate_nets(runs, 'a', dataset='x')


def test_a_file_of_others_is_converted_first(tmp_path):
  (tmp_path / 'net.pt').write_text('')
  with pytest.raises(ValueError, match='alexnet_jax.convert reads other form'):
    evaluate.evaluate([tmp_path / 'net.pt'])
