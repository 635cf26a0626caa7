"""Evaluation of fake nets with known logits against NumPy in float64.

And the command on real checkpoints: predictions, ensembles, Table 2.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import evaluate
from alexnet_jax import input_pipeline
from alexnet_jax import processes
from alexnet_jax import run as run_lib
from alexnet_jax import towers
from configs import quickstart

CLASSES = 7
IMAGE, CROP = 4, 2


class Lookup(nn.Module):
  """Logits from a table, by the red value of the view's first pixel."""

  data_split = ()

  @nn.compact
  def __call__(self, images):
    table = self.param('table', nn.initializers.zeros, (256, CLASSES))
    return table[images[:, 0, 0, 0].astype(jnp.int32)]


@pytest.fixture
def table():
  return np.random.default_rng(0).normal(size=(256, CLASSES)).astype('float32')


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


def padded_batches(images, labels, size):
  """Batches of `size`; the padding has a label and pixels of its own."""
  for start in range(0, len(labels), size):
    part = slice(start, start + size)
    missing = size - len(labels[part])
    yield {
      'image': np.pad(images[part], [(0, missing), (0, 0), (0, 0), (0, 0)]),
      'label': np.pad(labels[part], (0, missing), constant_values=3),
      'mask': np.arange(size) < size - missing,
    }


def run(
  table,
  images,
  labels,
  *,
  many,
  flip=True,
  mesh=None,
  num_examples=None,
  rows=None,
):
  put = lambda batch: towers.place(batch, mesh, towers.batch_spec())
  offsets = augment.view_offsets(IMAGE, CROP, many=many, flip=flip)
  return evaluate.evaluate(
    evaluate.make_eval_step(Lookup(), mesh, CROP),
    towers.place({'table': table}, mesh),
    map(put, padded_batches(images, labels, 8)),
    towers.place(np.zeros((IMAGE, IMAGE, 3), np.float32), mesh),
    towers.place(offsets, mesh),
    num_examples=len(labels) if num_examples is None else num_examples,
    prefix='p',
    rows=rows,
  )


def plain_images(values):
  """Images of one value each: every view of image i reads values[i]."""
  ones = np.ones((1, IMAGE, IMAGE, 3), np.uint8)
  return ones * np.asarray(values, np.uint8)[:, None, None, None]


def pixel_images(number):
  """Images whose 16 pixels all differ, and differ between images."""
  pixels = np.arange(number * IMAGE**2, dtype=np.uint8)
  pixels = pixels.reshape(number, IMAGE, IMAGE, 1)
  return np.repeat(pixels, 3, axis=-1)


@pytest.mark.parametrize('devices', [1, 4])
def test_known_logits_give_the_exact_metrics_of_every_example_once(
  table, devices
):
  # 21 examples in batches of 8: the tail is padded, on 4 devices one has none.
  mesh = towers.create_mesh('data', 'auto', jax.devices()[:devices])
  labels = np.random.default_rng(1).integers(0, CLASSES, 21).astype(np.int32)
  values = np.arange(21) + 50
  found = run(table, plain_images(values), labels, many=False, mesh=mesh)
  expected = expected_metrics(softmax(table[values]), labels, 'p')
  assert 0 < expected['p/top5_error'] < expected['p/top1_error'] < 1
  assert found.keys() == expected.keys()
  # float32 logarithms of 21 examples; the errors are counts.
  assert found['p/loss'] == pytest.approx(expected['p/loss'], rel=1e-6)
  for name in ('p/top1_error', 'p/top5_error'):
    assert found[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize('devices', [1, 4])
def test_the_rows_are_the_log_softmax_of_every_example_in_order(table, devices):
  mesh = towers.create_mesh('data', 'auto', jax.devices()[:devices])
  labels = np.random.default_rng(1).integers(0, CLASSES, 21).astype(np.int32)
  values, rows = np.arange(21) + 50, []
  run(table, plain_images(values), labels, many=False, mesh=mesh, rows=rows)
  log_probs, found_labels = map(np.concatenate, zip(*rows, strict=True))
  np.testing.assert_array_equal(found_labels, labels)
  # A few float32 roundings of values up to about 5.
  np.testing.assert_allclose(
    log_probs, np.log(softmax(table[values])), atol=5e-6
  )


# The first pixel of each view: four corners and the centre, then reflected.
PLAIN_PIXELS = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
REFLECTED_PIXELS = [(0, 1), (0, 3), (2, 1), (2, 3), (1, 2)]


@pytest.mark.parametrize(
  ('many', 'flip', 'pixels'),
  [
    (False, True, [(1, 1)]),
    (True, False, PLAIN_PIXELS),
    (True, True, PLAIN_PIXELS + REFLECTED_PIXELS),
  ],
  ids=['one', 'five', 'ten'],
)
def test_the_softmax_of_every_view_counts_alike(table, many, flip, pixels):
  images = pixel_images(11)
  labels = np.random.default_rng(2).integers(0, CLASSES, 11).astype(np.int32)
  found = run(table, images, labels, many=many, flip=flip)
  views = [softmax(table[images[:, y, x, 0]]) for y, x in pixels]
  expected = expected_metrics(np.mean(views, axis=0), labels, 'p')
  assert found == pytest.approx(expected, rel=1e-6)  # float32 exp and log.


@pytest.mark.parametrize(
  ('central', 'offset', 'value'),
  [(False, 0, 30 - 13), (False, 1, 30), (True, 0, 30 - 7), (True, 1, 30 - 7)],
)
def test_the_mean_image_is_subtracted_before_the_net_sees_a_view(
  table, central, offset, value
):
  mean = np.zeros((IMAGE, IMAGE, 3), np.float32)
  mean[0, 0] = 13  # The upper left corner's first pixel.
  mean[1, 1] = 7  # The centre's.
  sums, _ = evaluate.make_eval_step(Lookup(), None, CROP, central)(
    {'table': table},
    {
      'image': plain_images([30]),
      'label': np.array([2]),
      'mask': np.array([True]),
    },
    mean,
    np.array([(0, 2 * offset, 0)], np.int32),
  )
  expected = -np.log(softmax(table[value])[2])
  assert float(sums['loss']) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('num_examples', [20, 22, 0])
def test_another_number_of_examples_is_an_error(table, num_examples):
  labels = np.zeros(21, np.int32)
  images = plain_images(np.arange(21))
  with pytest.raises(RuntimeError, match=f'21 examples.* has {num_examples}'):
    run(table, images, labels, many=False, num_examples=num_examples)


def test_a_transfer_that_nobody_asked_for_is_an_error(table):
  with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-'):
    evaluate.evaluate(
      evaluate.make_eval_step(Lookup(), None, CROP),
      towers.place({'table': table}, None),
      padded_batches(plain_images([1]), np.zeros(1, np.int32), 8),
      jax.device_put(np.zeros((IMAGE, IMAGE, 3), np.float32)),
      jax.device_put(augment.view_offsets(IMAGE, CROP, many=False, flip=True)),
      num_examples=1,
      prefix='p',
    )


def test_no_batches_is_an_error_not_a_division_by_zero(table):
  none = np.zeros((0, IMAGE, IMAGE, 3), np.uint8)
  with pytest.raises(RuntimeError, match='evaluated 0 examples'):
    run(table, none, np.zeros(0, np.int32), many=False, num_examples=5)


def test_mean_log_probs_equals_numpy_in_double_precision():
  logits = np.random.default_rng(3).normal(0, 5, (10, 6, 9)).astype(np.float32)
  expected = np.log(softmax(logits).mean(0))
  found = evaluate.mean_log_probs(jnp.asarray(logits))
  # A few float32 roundings of values up to about 20.
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_mean_log_probs_stays_finite_where_float32_softmax_is_zero():
  logits = jnp.array([[[0.0, 200.0]], [[0.0, 200.0]]])
  found = evaluate.mean_log_probs(logits)
  np.testing.assert_allclose(found, [[-200.0, 0.0]])


def test_probabilities_are_averaged_not_logits():
  # Two views lean to class 0, one is all for class 1: the logits' mean is for
  # class 1, the probabilities' mean (0.59 to 0.41) for class 0.
  logits = jnp.array([[[2.0, 0.0]], [[2.0, 0.0]], [[0.0, 10.0]]])
  assert logits.mean(0).argmax() == 1
  assert evaluate.mean_log_probs(logits).argmax() == 0


@pytest.mark.parametrize(
  ('flip', 'prefix'), [(True, 'eval_ten_view'), (False, 'eval_five_view')]
)
def test_tags_name_the_number_of_views(flip, prefix):
  assert evaluate.tags(flip) == [
    'eval/loss',
    'eval/top1_error',
    'eval/top5_error',
    f'{prefix}/loss',
    f'{prefix}/top1_error',
    f'{prefix}/top5_error',
  ]


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
  run = run_lib.open_run(config, workdir)
  config_lib.open_workdir(workdir, config)
  save(workdir, 0, drawn_state(run))


def drawn_state(run):
  rng = np.random.default_rng(run.config.seed)
  draw = lambda x: jax.device_put(
    rng.normal(0, 0.3, x.shape).astype(x.dtype), x.sharding
  )
  return jax.tree.map(draw, run_lib.state_template(run))


def save(workdir, step, state, error=0.9):
  config = config_lib.read_config(workdir)
  fingerprint = run_lib.open_run(config, workdir).dataset.fingerprint
  record = run_lib.Record(config_lib.flatten(config), fingerprint, metrics={})
  with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
    checkpoints.save(step, state, dataclasses.asdict(record), error)


def stored(workdir, views='five'):
  with np.load(workdir / f'predictions/test.{views}_view.npz') as arrays:
    return np.exp(arrays['log_probs'].astype(np.float64)), arrays['labels']


def evaluate_nets(trainings, names=NETS, many=True, **kwargs):
  workdirs = [str(trainings / name) for name in names]
  return evaluate.evaluate_ensemble(workdirs, 'latest', many, **kwargs)


def test_an_ensemble_has_the_errors_of_the_mean_softmax(trainings, capsys):
  table = evaluate_nets(trainings)
  probs, labels = zip(*(stored(trainings / name) for name in NETS), strict=True)
  assert labels[0].shape == (300,) and len(set(labels[0])) == 10
  members = [
    expected_metrics(p, n, '') for p, n in zip(probs, labels, strict=True)
  ]
  together = expected_metrics(np.mean(probs, axis=0), labels[0], '')
  assert len({m['/loss'] for m in [*members, together]}) == 4
  rows = [*(f'1 CNN   {trainings / name}' for name in NETS), '3 CNNs']
  assert list(table) == rows
  for row, expected in zip(rows, [*members, together], strict=True):
    found = {f'/{name}': value for name, value in table[row].items()}
    assert found == pytest.approx(expected, rel=1e-6), row  # float32 sums.
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].split() == ['Model', 'Top-1', '(test)', 'Top-5', '(test)']
  assert lines[4].split() == [
    '3',
    'CNNs',
    f'{together["/top1_error"]:.1%}',
    f'{together["/top5_error"]:.1%}',
  ]


def test_predictions_on_disk_need_no_second_pass(trainings, monkeypatch):
  first = evaluate_nets(trainings)
  monkeypatch.setattr(evaluate, 'evaluate', None)  # Would be called.
  assert evaluate_nets(trainings) == first
  assert evaluate_nets(trainings, 'ba')['2 CNNs'] != first['3 CNNs']
  with pytest.raises(TypeError):
    evaluate_nets(trainings, many=False)  # Other views are other predictions.


def test_one_view_and_five_have_files_of_their_own(trainings):
  evaluate_nets(trainings, 'a')
  table = evaluate_nets(trainings, 'a', many=False)
  one, five = (stored(trainings / 'a', views)[0] for views in ('one', 'five'))
  assert one.shape == five.shape == (300, 10) and not np.allclose(one, five)
  assert list(table) == [f'1 CNN   {trainings / "a"}']  # No ensemble of one.


def test_another_split_is_evaluated_when_asked_for(trainings, capsys):
  evaluate_nets(trainings, 'a', many=False, split='train')
  with np.load(trainings / 'a/predictions/train.one_view.npz') as arrays:
    assert arrays['log_probs'].shape == (1497, 10)
  assert 'Top-1 (train)' in capsys.readouterr().out


def test_evaluating_a_checkpoint_leaves_predictions_for_an_ensemble(
  trainings, data_dir, tmp_path
):
  make_training(tmp_path, tiny_config(data_dir, 5))
  result = evaluate.evaluate_checkpoint(
    tiny_config(data_dir, 5), tmp_path, 'latest'
  )
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
  fake = lambda params, many, found: found.extend(rows)
  monkeypatch.setattr(evaluate, 'make_evaluator', lambda run: fake)
  config = config_lib.read_config(tmp_path)
  results = []
  for first in (False, True):
    monkeypatch.setattr(processes, 'is_first', lambda first=first: first)
    results.append(evaluate.evaluate_checkpoint(config, tmp_path, 'latest'))
    written = {path.name for path in tmp_path.iterdir()}
    new = {'evaluation.json', 'predictions'} if first else set()
    assert written == {'config.json', 'checkpoints'} | new
    assert bool(capsys.readouterr().out) == first
  assert results[0] == results[1]


def test_predictions_of_an_earlier_step_are_made_anew(data_dir, tmp_path):
  config = tiny_config(data_dir, 6)
  make_training(tmp_path, config)
  evaluate.evaluate_ensemble([str(tmp_path)], 'latest', False)
  before, _ = stored(tmp_path, 'one')
  config.seed = 16
  save(tmp_path, 1, drawn_state(run_lib.open_run(config, tmp_path / 'x')))
  evaluate.evaluate_ensemble([str(tmp_path)], 'latest', False)
  assert not np.allclose(stored(tmp_path, 'one')[0], before)


def test_nets_of_other_data_are_no_ensemble(trainings, data_dir, tmp_path):
  config = tiny_config(data_dir, 7)
  config.input.eval_split = 'train'
  make_training(tmp_path / 'd', config)
  workdirs = [str(trainings / 'a'), str(tmp_path / 'd')]
  with pytest.raises(ValueError, match=r'd was trained on digits \(train\)'):
    evaluate.evaluate_ensemble(workdirs, 'latest', False)


def test_a_folder_without_training_is_named(trainings, tmp_path):
  with pytest.raises(FileNotFoundError, match=f'{tmp_path}/config.json'):
    evaluate.evaluate_ensemble([str(tmp_path)], 'latest', False)


@pytest.mark.parametrize(
  'workdirs', [[], [''], ['a', 'a'], ['a', 'a/'], ['a', ''], ['a', 'b/../a']]
)
def test_the_workdirs_must_differ(workdirs):
  with pytest.raises(ValueError, match='must name one or more different'):
    evaluate.evaluate_ensemble(workdirs, 'latest', False)


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
  with pytest.raises(ValueError, match='needs one prepared data set'):
    evaluate.evaluate_ensemble(workdirs, 'latest', False)


def test_the_data_may_have_moved(data_dir, tmp_path):
  make_training(tmp_path / 'a', tiny_config(data_dir, 9))
  shutil.copytree(data_dir, tmp_path / 'moved')
  record = json.loads((tmp_path / 'a/config.json').read_text())
  record['input.data_dir'] = str(tmp_path / 'gone')
  (tmp_path / 'a/config.json').write_text(json.dumps(record))
  evaluate.evaluate_ensemble(
    [str(tmp_path / 'a')], 'latest', False, data_dir=str(tmp_path / 'moved')
  )


def test_another_training_in_the_same_folder_is_predicted_anew(
  data_dir, tmp_path
):
  probs = []
  for seed in (10, 11):
    shutil.rmtree(tmp_path / 'checkpoints', ignore_errors=True)
    (tmp_path / 'config.json').unlink(missing_ok=True)
    make_training(tmp_path, tiny_config(data_dir, seed))
    evaluate.evaluate_ensemble([str(tmp_path)], 'latest', False)
    probs.append(stored(tmp_path, 'one')[0])
  assert not np.allclose(*probs)


@pytest.mark.parametrize(('flip', 'views'), [(False, 'five'), (True, 'ten')])
def test_the_views_that_are_averaged_are_those_of_the_config(
  data_dir, tmp_path, flip, views
):
  config = tiny_config(data_dir, 12)
  config.augment.flip = flip
  make_training(tmp_path, config)
  evaluate.evaluate_ensemble([str(tmp_path)], 'latest', True)
  assert [f.name for f in (tmp_path / 'predictions').iterdir()] == [
    f'test.{views}_view.npz'
  ]
  run = run_lib.open_run(config, tmp_path)
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
  last = drawn_state(run_lib.open_run(config, tmp_path / 'x'))
  save(tmp_path, 1, last, error=0.95)
  config.seed = 13
  found = evaluate.evaluate_checkpoint(config, tmp_path, which)
  assert f'{which} checkpoint, step {step}:' in capsys.readouterr().out
  file = json.loads((tmp_path / 'evaluation.json').read_text())
  assert (file['step'], file['checkpoint']) == (step, which)
  run = run_lib.open_run(config, tmp_path)
  params = last.params if step else drawn_state(run).params
  expected = evaluate.make_evaluator(run)(params, many=False)
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
    config = config_lib.read_config(tmp_path / name)
    state = drawn_state(run_lib.open_run(config, tmp_path / name))
    save(tmp_path / name, 1, state, error=0.95)  # Not the best.
  workdirs = f'--workdirs={tmp_path}/a,{tmp_path}/b'
  status, out, err = command(
    workdirs, '--checkpoint=latest', '--views=one', '--split=train'
  )
  assert status == 0, err
  assert out.startswith('Model') and '\n2 CNNs ' in out and '(train)' in out
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
    run = run_lib.open_run(config, tmp_path)
    params = drawn_state(run).params
    for many in (False, True):
      evaluate.make_evaluator(run)(params, many, found := [])
      rows[central, many] = found[0][0]
  np.testing.assert_array_equal(rows[False, False], rows[True, False])
  assert not np.allclose(rows[False, True], rows[True, True])  # Its corners.
