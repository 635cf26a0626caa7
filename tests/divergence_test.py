"""What a run says of a loss that is not finite: step, layer, examples, norms.

Norms are compared with NumPy: the update rule gives the gradient of a step from
the parameters before and after it.
"""

import contextlib
import dataclasses
import re
import types

import jax
import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import divergence
from alexnet_jax import placement
from alexnet_jax import rising_loss
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step as train_step_lib
from configs import quickstart

RATE, DECAY = 0.01, 0.0005


def make_config(data_dir, layout='data'):
  config = quickstart.get_config()
  config.model.conv_features = (4, 8, 8, 8, 8)
  config.model.fc_features = (16, 16)
  config.input.data_dir = str(data_dir)
  config.input.batch_size = 16
  config.mesh.layout = layout
  return config


@pytest.fixture(scope='module')
def run(data_dir):
  return run_lib.open_run(make_config(data_dir))


def arguments_of(run, noise=()):
  """The arguments of steps; those after `noise` steps make the inputs NaN."""
  made = train_step_lib.StepArguments(run, train_step_lib.make_timetable(run))

  class Arguments(train_step_lib.StepArguments):
    def __init__(self):
      pass

    def __call__(self, step, plateau_drops=0):
      *others, color_std = made(step)
      std = np.float32(np.nan if step in noise else 0)
      return (*others, placement.place(std, run.mesh))

  return Arguments()


def message_of(run, arguments, workdir, error, steady=()):
  """The message of `explained`, with checkpoints of the steps `steady`."""
  with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
    for step in steady:
      loss = {'train/loss': 2.0}
      record = train_state.CheckpointMetadata({}, '', loss, steady_step=step)
      checkpoints.save(step, error.state, dataclasses.asdict(record), None)
    with pytest.raises(FloatingPointError) as raised:
      rising = rising_loss.RisingLossWarning(run.config, 2.0, 0)
      with divergence.explained(run, checkpoints, arguments, rising):
        raise error
  return str(raised.value).split('\n')


def host(tree):
  return jax.tree.map(np.array, placement.fetch(tree))


def norm(tree):
  squares = [
    np.square(x, dtype=np.float64).sum() for x in jax.tree.leaves(tree)
  ]
  return sum(squares) ** 0.5


def test_a_loss_that_is_not_finite_changes_nothing_and_is_explained(
  data_dir, tmp_path
):
  run = run_lib.open_run(make_config(data_dir, 'towers'))
  arguments = arguments_of(run, noise=[1])
  state = train_state.create_train_state(run)
  step = train_step_lib.compile_train_step(run, state, arguments(0))
  start = host(state.params)
  with contextlib.closing(run.train_batches(0)) as batches:
    state, sums = step(state, next(batches), *arguments(0))
    assert np.isfinite(placement.fetch(sums['loss']))
    good = host(state)
    state, sums = step(state, next(batches), *arguments(1))
    loss = placement.fetch(sums['loss'])
    assert np.isnan(loss)
    # The next step runs before that loss is known; its own loss is finite.
    state, sums = step(state, next(batches), *arguments(2))
    assert np.isfinite(placement.fetch(sums['loss']))
  assert placement.fetch(state.step) == -1
  found = host(state)
  jax.tree.map(np.testing.assert_array_equal, found.params, good.params)
  jax.tree.map(np.testing.assert_array_equal, found.opt_state, good.opt_state)

  with pytest.raises(divergence.NotFiniteError) as raised:
    divergence.check(loss, 'train/loss', 2, state, 1)
  cause, norms, way_back = message_of(
    run, arguments, tmp_path / 'run', raised.value, steady=[1]
  )
  assert cause.startswith(
    'train/loss is nan at step 2. First not finite: the activations conv1/linear'
    ' in step 2; examples '
  )
  assert cause.endswith('11 more (16 of 16 in its batch).')
  names = re.findall(r'\d+\.png', cause)
  assert len(names) == 5
  update = jax.tree.map(lambda a, b: a - b, good.params, start)
  gradient = jax.tree.map(lambda u, w: -u / RATE - DECAY * w, update, start)
  expected = [norm(good.params), norm(gradient), norm(update)]
  words = (
    r'At step 1, .*parameters (\S+), of the gradient (\S+), .*update (\S+)\.'
  )
  shown = [float(x) for x in re.fullmatch(words, norms).groups()]
  np.testing.assert_allclose(shown, expected, rtol=2e-3)
  # The checkpoint of this very state would end in the same way.
  folder = tmp_path / 'run/checkpoints'
  assert [path.name for path in folder.iterdir()] == ['diverged.1']
  assert way_back == (
    'No checkpoint has a steady loss before and after it; repeat the command with,'
    f' added at its end, --workdir={tmp_path}/run_2'
    ' --config.optimizer.learning_rate=0.001'
  )


def changed(run, layer, leaf, value, index=...):
  """A new state in which values of one parameter are replaced."""
  state = train_state.create_train_state(run)
  params = host(state.params)
  params[layer][leaf][index] = value
  params = placement.place(params, run.mesh, run.param_specs(params))
  return state.replace(params=params)


def test_the_first_layer_that_overflows_is_named(run, tmp_path):
  state = changed(run, 'conv3', 'kernel', 3e38)
  error = divergence.NotFiniteError('train/loss is inf at step 1', state, 0)
  cause, norms, _ = message_of(run, arguments_of(run), tmp_path, error)
  assert 'the activations conv3/linear in step 1; examples' in cause
  assert re.fullmatch(r'Before it, norm of the parameters \d.*e\+3\d\.', norms)


def test_only_the_examples_whose_loss_is_too_large_are_named(run, tmp_path):
  # Every logit and loss is finite, but the sum of two such losses is not.
  state = changed(run, 'fc8', 'bias', -3e38, 3)
  error = divergence.NotFiniteError('train/loss is inf at step 1', state, 0)
  cause, *_ = message_of(run, arguments_of(run), tmp_path, error)
  with contextlib.closing(run.train_batches(0)) as batches:
    labels = host(next(batches)['label'])
  count = (labels == 3).sum()
  assert 2 <= count <= 5
  assert 'the losses in step 1; examples' in cause
  assert cause.endswith(f'({count} of 16 in its batch).')
  every = divergence._names(run, 0, np.arange(16))
  named = re.findall(r'\d+\.png', divergence._names(run, 0, labels == 3))
  assert re.findall(r'\d+\.png', cause) == named
  assert len(named) == count and every.count('.png') == 5


@pytest.mark.parametrize('completed', [0, 7])
def test_a_step_that_has_spoilt_the_state_is_named_with_its_batch(
  run, tmp_path, completed
):
  state = changed(run, 'fc6', 'kernel', np.nan, 0)
  error = divergence.NotFiniteError('eval/loss is nan', state, completed)
  cause, norms, way_back = message_of(
    run, arguments_of(run), tmp_path / "a 'b", error, steady=[3]
  )
  words = 'the parameters of fc6 in step 7, whose loss was finite; its batch: '
  if not completed:
    words = 'the parameters of fc6 before the first step.'
  assert words in cause and 'unknown' in norms
  assert way_back.startswith('Checkpoint 3 is the newest with a steady loss')
  folder = tmp_path / "a 'b/checkpoints/3"
  quoted = str(folder).replace("'", "'\"'\"'")
  assert way_back.endswith(f"'--config.train.init_from={quoted}'")


def test_a_search_that_fails_does_not_hide_the_error(
  run, tmp_path, monkeypatch
):
  monkeypatch.setattr(divergence, '_find', lambda *_: [][0])
  error = divergence.NotFiniteError('train/loss is nan at step 9', None, 8)
  cause, norms, _ = message_of(run, arguments_of(run), tmp_path, error)
  assert cause.startswith(
    'train/loss is nan at step 9. Its cause was not found ('
  )


def test_several_processes_give_no_cause_if_the_search_fails(
  run, tmp_path, monkeypatch
):
  # Only this process may fail: the others do not come to the way back.
  monkeypatch.setattr(divergence, '_find', lambda *_: [][0])
  monkeypatch.setattr(divergence.processes, 'is_single_process', lambda: False)
  error = divergence.NotFiniteError('train/loss is nan at step 9', None, 8)
  lines = message_of(run, arguments_of(run), tmp_path, error)
  assert lines == ['train/loss is nan at step 9']


@pytest.mark.parametrize(
  ('rate', 'steps', 'lower'),
  [(1e20, [], 0.01), (0.05, [], 0.005), (1.0, [4], 0.1)],
)
def test_the_way_back_has_a_rate_of_use(
  tmp_path, monkeypatch, rate, steps, lower
):
  monkeypatch.setattr(
    divergence.checkpoint_retention,
    'newest_steady',
    lambda *_: steps[0] if steps else None,
  )
  checkpoints = types.SimpleNamespace(
    folder=tmp_path / 'run/checkpoints', steps=lambda: steps
  )
  line = divergence._way_back(checkpoints, 0, rate)
  assert f' --config.optimizer.learning_rate={lower} ' in f'{line} '
