"""Figure 3: kernels kept in training, tables and figures of made-up kernels."""

import csv
import json
import types

import jax
import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import progress as progress_lib
from alexnet_jax import train
from alexnet_jax import trained_net
from alexnet_jax import workdir as workdir_lib
from configs import caffe
from configs import paper
from configs import source
from experiments import colour_split
from experiments import conv1_training
from experiments import figure3_drawing
from experiments import figure3_kernels
from experiments import figure3_nets
from experiments import summary


def test_kernels_are_kept_at_doubled_steps_and_with_each_checkpoint():
  kept = conv1_training.kept_steps
  assert kept(30, 500) == [0, 25, 30]
  assert kept(900, 300) == [0, 25, 50, 100, 200, 300, 400, 600, 800, 900]
  assert kept(200, 500) == [0, 25, 50, 100, 200]


@pytest.fixture
def tiny(data_dir):
  config = figure3_nets.get_config(str(data_dir), quick=True)
  config.model.conv_features = (4, 4, 0, 0, 4)
  config.model.fc_features = (0, 8)
  config.model.init_std = config.model.fc67_init_std = 0.1
  config.input.batch_size = 8
  config.eval.batch_size = 100
  config.train.epochs = 4 * 8 / 1497
  config.train.checkpoint_every_steps = 2
  config.train.eval_every_epochs = config.train.epochs
  return config


def test_a_resumed_run_has_the_kernels_of_the_train_loop(
  tiny, tmp_path, monkeypatch
):
  report = progress_lib.Progress.report

  def killed(self, step, *args):
    if step == 4:
      raise KeyboardInterrupt
    report(self, step, *args)

  workdir = tmp_path / 'kept'
  with monkeypatch.context() as patch:
    patch.setattr(progress_lib.Progress, 'report', killed)
    with pytest.raises(KeyboardInterrupt):
      conv1_training.train_and_evaluate(tiny, workdir)
  assert checkpoint.saved_steps(workdir) == [2]
  assert not (workdir / 'result.json').exists()
  conv1_training.train_and_evaluate(tiny, workdir)
  steps, kept = zip(*conv1_training.read_kernels(workdir), strict=True)
  assert steps == (0, 2, 4)
  train.train_and_evaluate(tiny, tmp_path / 'trained')
  net = trained_net.open_net(tmp_path / 'trained', 'latest')
  params = jax.device_get(net.params)
  for layer in ('conv1', 'conv2'):
    assert (kept[-1][layer] == params[layer]['kernel']).all()
    assert not (kept[0][layer] == params[layer]['kernel']).all()
  found, expected = (
    json.loads((path / 'result.json').read_text())['eval/loss']
    for path in (workdir, tmp_path / 'trained')
  )
  assert found == pytest.approx(expected, rel=1e-6)


FULL_GEOMETRY = (
  *('model.conv345_init_std', 'model.fc67_init_std', 'input.', 'mesh.'),
  *('optimizer.schedule', 'optimizer.drop_epochs', 'optimizer.conv1_'),
  *('augment.color_end_epoch', 'train.epochs'),
)
GREY, HUE = colour_split.GREY, colour_split.RED_GREEN


def kernels_of(shares):
  """A kernel of 3x3 pixels for each share of its energy that is coloured."""
  vectors = [np.sqrt(1 - s) * GREY + np.sqrt(s) * HUE for s in shares]
  return np.broadcast_to(np.transpose(vectors), (3, 3, 3, len(shares)))


# The kernels of tower 1 are coloured at the end, at step 25, and not before.
SHARES = {
  0: [0.5, 0.6, 0.7, 0.8, 0.9, 0.5, 0.6, 0.71, 0.81, 0.91],
  25: [0.1, 0.2, 0.15, 0.25, 0.12, 0.9, 0.8, 0.95, 0.85, 0.82],
  50: [0.1, 0.2, 0.15, 0.25, 0.12, 0.9, 0.8, 0.95, 0.85, 0.11],
}


@pytest.fixture
def written(tmp_path):
  """A sweep of two variants with made-up kernels."""
  rows = []
  for variant, overrides in figure3_nets.VARIANTS.items():
    if variant not in ('two_towers', 'one_tower'):
      continue
    config = figure3_nets.get_config('none')
    config.update_from_flattened_dict(overrides)
    workdir = tmp_path / 'runs' / variant / 'seed0'
    workdir_lib.write_config(workdir, config)
    workdir_lib.write_result(
      workdir, 50, 1.0, 5.0, 'a', {'eval/top1_error': 0.5}
    )
    for step, shares in SHARES.items():
      conv2 = np.array(shares)[:, None] * [1.0, 2.0]  # Proportional to colour.
      params = {'conv1': kernels_of(shares), 'conv2': conv2[None, None]}
      conv1_training._keep(
        workdir, step, {name: {'kernel': k} for name, k in params.items()}
      )
    row = {'variant': variant, 'seed': 0} | figure3_kernels.measure(workdir)
    last = dict.fromkeys(summary.LAST_COLUMNS, '') | {'wall_seconds': 1.0}
    rows.append(row | last)
  summary.write(tmp_path, rows)
  return tmp_path


def test_what_a_run_says(written):
  two, one = summary.read_runs(written)
  # 21 of 25 pairs: 0.11 of tower 1 is above 0.1 alone.
  assert two['auc'] == pytest.approx(21 / 25)
  assert two['coloured'] == 1
  exact = colour_split.split(np.array(SHARES[50])).p
  assert two['p'] == pytest.approx(exact)
  assert exact > 0.05
  assert two['split_step'] is None
  assert two['mean_index_coloured'] == pytest.approx(0.722)
  assert two['mean_index_grey'] == pytest.approx(0.164)
  assert two['agreement'] == pytest.approx(1)  # Both indices rise with colour.
  assert two['test_error'] == 0.5
  assert two['singular_vector'] is None
  # The weights to conv2 are proportional to the colour, and of rank one.
  assert one['singular_vector'] == pytest.approx(1)
  assert 0 < one['p_centred'] <= 1


@pytest.mark.parametrize(
  ('auc', 'p', 'verdict', 'every'),
  [
    (
      *([0.9, 0.95, 1, 1, 1], [0.01, 0.04, 0.001, 0.01, 0.01]),
      *('reproduced', 'reproduced'),
    ),
    # Significant, but too weak to be seen; in some runs; in none.
    (*([0.65] + [0.95] * 4, [0.04] * 5), *('same sign, smaller', 'reproduced')),
    (
      *([0.95] * 5, [0.01, 0.06, 0.04, 0.01, 0.01]),
      *('same sign, smaller', 'contradicted'),
    ),
    ([0.6] * 5, [0.3, 0.06, 0.5, 0.4, 0.6], 'noise', 'contradicted'),
    ([1.0] * 4, [0.001] * 4, 'not run yet', 'not run yet'),
  ],
)
def test_the_verdicts_on_a_split_and_on_every_run(auc, p, verdict, every):
  assert colour_split.verdict_of(auc, p) == verdict
  assert colour_split.every_run_verdict(p) == every
  first, second = colour_split.verdict_lines(auc, p)
  large = sum(value >= 0.9 for value in auc)
  assert first.startswith(f'two towers split: {verdict}; {large} of {len(p)} ')
  small = sum(value < 0.05 for value in p)
  assert second.startswith(f'in every run: {every}; {small} of {len(p)} runs')


def test_a_large_split_has_a_small_p():
  """What `every_run_verdict` says of 64 kernels."""
  rest = np.arange(32, dtype=float)
  index = np.concatenate([rest, rest + 17.5])
  found = colour_split.split(index)
  assert 0.88 <= found.auc <= 0.9
  assert found.p < 1e-7


def test_runs_of_older_code_are_measured_again(written):
  expected = summary.read_runs(written)
  older = [row | {'auc': 0.1, 'left_out_since': 1.0} for row in expected]
  summary.write(written, older)
  assert figure3_kernels.measure_again(written) == expected
  assert summary.read_runs(written) == expected


def test_a_failed_run_is_not_measured(written):
  rows = summary.read_runs(written)
  rows[1] |= {'failed': 'train/loss is nan at step 2', 'auc': None}
  summary.write(written, rows)
  found = figure3_kernels.measure_again(written)
  assert found[0] == rows[0]
  assert found[1]['auc'] is None and found[1]['failed']


def test_the_split_of_responses_is_that_of_the_same_tower(written, monkeypatch):
  """Responses that call the other tower the coloured one."""
  index = colour_split.response_index
  monkeypatch.setattr(colour_split, 'response_index', lambda k: 1 - index(k))
  found = figure3_kernels.measure(written / 'runs' / 'two_towers' / 'seed0')
  assert found['coloured'] == 1
  assert found['auc_responses'] == pytest.approx(4 / 25)


def test_tables_and_figures(written):
  figure3_kernels.gather(written)
  with open(written / 'split.csv', newline='') as file:
    splits = list(csv.DictReader(file))
  assert [row['step'] for row in splits] == ['0', '25', '50'] * 2
  assert float(splits[1]['auc']) == 1
  assert float(splits[1]['p']) == pytest.approx(2 / 252)  # Of C(10, 5).
  with open(written / 'kernels.csv', newline='') as file:
    kernels = list(csv.DictReader(file))
  assert [row['tower'] for row in kernels[:10]] == ['0'] * 5 + ['1'] * 5
  found = [float(row['weights_index']) for row in kernels[:10]]
  assert found == pytest.approx(SHARES[50], abs=1e-6)
  rows = summary.read_runs(written)
  lines = figure3_kernels.table(rows).splitlines()
  assert lines[2].startswith('| two_towers | 0.84 | 0 of 1 | ')
  assert lines[2].endswith('| - | 1.00 | - |')
  assert '| 1.00 | 1.00; ' in lines[3]
  assert len(lines) == 4
  pytest.importorskip('matplotlib')
  figure = figure3_drawing.draw(written)
  assert figure.read_bytes()[:4] == b'\x89PNG'


def test_presets_have_three_seeds_at_most(monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(
    figure3_kernels.sweep,
    'run',
    lambda config, variants, seeds, *args, **kwargs: asked.append(
      (sorted(variants), seeds)
    ),
  )
  for name in ('gather', 'measure_again'):
    monkeypatch.setattr(figure3_kernels, name, lambda path: None)
  figure3_kernels.run(None, 5, tmp_path)
  assert asked == [
    (['one_tower', 'two_towers', 'unlinked'], 5),
    (['caffe_preset', 'source_preset'], 3),
  ]


@pytest.mark.parametrize('full', [False, True])
def test_only_the_variants_keys_differ(tmp_path, full):
  config = figure3_nets.get_config('none', full=full)
  plan = figure3_kernels.sweep.plan(
    config, figure3_nets.VARIANTS, 1, tmp_path, conv1_training.PROGRAM
  )
  models = {t.variant: t.config.model for t in plan}
  assert models['two_towers'].num_towers == 2
  assert models['one_tower'].num_towers == 1
  assert not models['unlinked'].tower_links
  flat = {t.variant: config_lib.flatten(t.config) for t in plan}
  for name, preset in (('source_preset', source), ('caffe_preset', caffe)):
    values = config_lib.flatten(preset.get_config())
    for key in figure3_nets.PRESET_KEYS:
      assert flat[name][key] == values[key], key
    # What else differs from the text is of the full geometry.
    text = config_lib.flatten(paper.get_config())
    rest = {k for k in values if values[k] != text[k]}
    rest -= {*figure3_nets.PRESET_KEYS}
    assert {k for k in rest if not k.startswith(FULL_GEOMETRY)} == set()
  for training in plan:
    assert training.config.optimizer.schedule != 'plateau'
    assert training.config.optimizer.weight_decay == 0.0005
    assert training.config.model.init_std == figure3_nets.INIT_STD
    # Finished runs have this value; another would be refused.
    assert training.config.train.diagnostics_every_evals == 0


@pytest.mark.slow
def test_the_quick_command(tmp_path, monkeypatch, capsys, data_dir):
  pytest.importorskip('matplotlib')
  given = {'output': str(tmp_path), 'data_dir': str(data_dir), 'seeds': 1}
  flags = types.SimpleNamespace(**given, quick=True, full=False)
  monkeypatch.setattr(figure3_kernels, 'FLAGS', flags)
  figure3_kernels.main()
  printed = capsys.readouterr().out
  assert printed.count('run ') >= 3
  assert '| one_tower | ' in printed
  assert 'two towers split: not run yet; ' in printed
  for name in ('figure.png', 'figure3.png'):
    assert (tmp_path / name).read_bytes()[:4] == b'\x89PNG'
  # A second time nothing is trained, and all is written anew.
  tables = ('runs.csv', 'summary.csv', 'kernels.csv', 'split.csv')
  before = [(tmp_path / name).read_text() for name in tables]
  figure3_kernels.main()
  assert 'run 1' not in capsys.readouterr().out
  assert [(tmp_path / name).read_text() for name in tables] == before
