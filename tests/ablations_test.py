"""Ablations and ensembles: their nets, numbers, tables and figures."""

import csv
import itertools
import json
import types

import numpy as np
import pytest

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import feature_maps
from alexnet_jax import predictions
from experiments import ablation_rows
from experiments import ablation_table
from experiments import ablations
from experiments import subset
from experiments import summary
from experiments import sweep
from experiments import table2_ensembles

ROWS = ablation_rows.ROWS


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The config of --quick, on digits of 32 pixels."""
  return ablation_rows.get_config(
    tmp_path_factory.mktemp('ablations'), 'none', quick=True
  )


@pytest.fixture(scope='module')
def configs(base, tmp_path_factory):
  variants = {name: row.overrides for name, row in ROWS.items()}
  output = tmp_path_factory.mktemp('plan')
  return {t.variant: t.config for t in sweep.plan(base, variants, 1, output)}


def map_sizes(config):
  model = config.model
  return list(
    feature_maps.sizes(
      config.input.crop_size,
      model.conv1_kernel,
      model.conv1_stride,
      model.conv1_padding,
      model.pool_size,
    ).values()
  )


def test_only_pooling_changes_the_maps(base, configs):
  assert map_sizes(base) == [16, 7, 3, 1]
  others = {'pooling_2': [16, 8, 4, 2], 'pooling_2_equal': [15, 7, 3, 1]}
  for name, config in configs.items():
    assert map_sizes(config) == others.get(name, [16, 7, 3, 1]), name


def test_rows_of_the_same_nets_have_the_same_overrides():
  shared = {n: r.same_net_as for n, r in ROWS.items() if r.same_net_as}
  assert shared == {'weight_decay_training': 'weight_decay_1e-4'}
  for name, other in shared.items():
    assert ROWS[name].overrides == ROWS[other].overrides
    assert ROWS[name].metric != ROWS[other].metric


def test_the_sizes_are_those_of_the_run_log_and_of_mishkin():
  base = 40.6640, 37.4727  # Run 145 on the sets of 2012 and of 2010.
  log = {
    'one_tower': 39.1680 - base[1],
    'unlinked': 41.8280 - base[0],
    'no_lrn': 42.0340 - base[0],
  }
  assert {n: r.log for n, r in ROWS.items() if r.log} == pytest.approx(
    log, abs=0.006
  )
  # Accuracies with the paper's choice and without: the error rises by
  accuracy = {
    'no_lrn': (0.470, 0.471),
    'pooling_2': (0.471, 0.484),
    'dropout_0.1': (0.471, 0.473),
    'bias_rate_2': (0.470, 0.471),
    'weight_decay_1e-4': (0.471, 0.450),
  }
  assert {n: r.mishkin for n, r in ROWS.items() if r.mishkin} == pytest.approx(
    {n: 100 * (a - b) for n, (a, b) in accuracy.items()}, abs=1e-9
  )


def row_of(variant, seed, error, **others):
  row = {'variant': variant, 'seed': seed, ablations.ERROR: error, **others}
  last = dict.fromkeys(summary.LAST_COLUMNS, '') | {'wall_seconds': 1.0}
  return row | last


def test_differences_are_taken_seed_by_seed():
  rows = [
    *(
      row_of('base', s, e, last_train_error=0.1)
      for s, e in enumerate((0.3, 0.32, 0.31))
    ),
    *(row_of('no_lrn', s, e) for s, e in enumerate((0.31, 0.325))),
    row_of('weight_decay_1e-4', 2, 0.3, last_train_error=0.15),
  ]
  assert ablation_table.differences(rows, 'no_lrn') == pytest.approx([1.0, 0.5])
  decay, training = 'weight_decay_1e-4', 'weight_decay_training'
  assert ablation_table.differences(rows, decay) == pytest.approx([-1.0])
  assert ablation_table.differences(rows, training) == pytest.approx([5.0])
  assert ablation_table.differences(rows, 'one_tower') == []
  found = ablation_table.table_rows(rows)
  assert [row['row'] for row in found] == ['no_lrn', decay, training]
  # The mean of 1.0 and 0.5 has a standard error of 0.25.
  assert ablation_table.table(found).splitlines()[2] == (
    '| response norms; none | 1.40 | 1.37 | -0.10 | 0.75 ± 0.25 (2) | - | - |'
    ' not run yet |'
  )


def test_the_changes_that_the_paper_does_not_speak_of():
  unclaimed = {name for name, row in ROWS.items() if not row.is_claimed}
  assert unclaimed == {
    *('unlinked', 'pooling_2', 'pooling_2_equal', 'no_crops', 'no_flips'),
    *('dropout_0.1', 'bias_rate_2', 'weight_decay_1e-4', 'init_0.02'),
  }
  changed = {key.partition('.')[0] for key in ROWS['no_augmentation'].overrides}
  assert changed == {'input', 'model', 'augment'}
  assert 'augment.color_std' not in ROWS['no_augmentation'].overrides


def test_a_row_of_failed_runs_is_not_left_out(tmp_path):
  rows = [row_of('base', s, 0.3) for s in range(3)]
  rows += [row_of('no_lrn', s, 0.31 + s / 1000) for s in range(3)]
  rows[-1] |= {ablations.ERROR: None, 'failed': 'train/loss is nan at step 2'}
  failed = {ablations.ERROR: None, 'failed': 'train/loss is nan at step 2'}
  rows += [row_of('dropout_0', s, 0.3) | failed for s in range(3)]
  found = ablation_table.table_rows(rows)
  assert [(r['row'], r['n'], r['failed'], r['verdict']) for r in found] == [
    *(('no_lrn', 2, 1, 'not run yet'), ('dropout_0', 0, 3, 'not run yet'))
  ]
  lines = ablation_table.table(found).splitlines()
  assert '| 1.05 ± 0.05 (2; 1 failed) |' in lines[2]
  assert '| - ± - (0; 3 failed) |' in lines[3]
  pytest.importorskip('matplotlib')
  summary.write_csv(
    tmp_path / ablation_table.FILE, ablation_table.COLUMNS, found
  )
  assert ablation_table.draw(tmp_path).read_bytes()[:4] == b'\x89PNG'


def test_the_number_of_all_rows_corrects_their_p_values():
  rows = [row_of('base', s, 0.3) for s in range(3)]
  for name, step in (('no_lrn', 1e-4), ('no_conv2', 0.002), ('no_colour', 0.1)):
    rows += [row_of(name, s, 0.31 + step * s) for s in range(3)]
  rows.append(row_of('no_flips', 0, 0.4))
  found = {row['row']: row for row in ablation_table.table_rows(rows)}
  p = {name: row['p'] for name, row in found.items() if row['p'] is not None}
  assert p['no_lrn'] < p['no_conv2'] < 0.05 < p['no_colour']
  corrected = {name: found[name]['p_holm'] for name in p}
  assert corrected == pytest.approx(
    {
      'no_lrn': len(ROWS) * p['no_lrn'],
      'no_conv2': (len(ROWS) - 1) * p['no_conv2'],
      'no_colour': min(1, (len(ROWS) - 2) * p['no_colour']),
    }
  )
  assert found['no_flips']['p_holm'] is found['no_flips']['low'] is None
  # Three seeds have intervals of 4.303 standard errors to each side.
  row = found['no_conv2']
  width = 4.3027 * row['standard_error']
  interval = row['difference'] - width, row['difference'] + width
  assert (row['low'], row['high']) == pytest.approx(interval, rel=1e-4)
  cell = f'| {interval[0]:.1f} to {interval[1]:.1f} |'
  assert cell in ablation_table.table([row])
  assert ablation_table.chance_line([*found.values()]) == (
    '3 verdicts share the nets of base; if no choice mattered, 0.2 of them would'
    ' not be noise on average'
  )


def test_a_choice_of_which_nothing_is_claimed_is_better_or_worse():
  rows = [row_of('base', s, 0.3, last_train_error=0.3) for s in range(3)]
  for name, error in (
    ('no_flips', 0.31),
    ('init_0.02', 0.29),
    ('no_lrn', 0.29),
  ):
    rows += [row_of(name, s, error + 1e-4 * s) for s in range(3)]
  found = {r['row']: r['verdict'] for r in ablation_table.table_rows(rows)}
  assert found == {
    **{'no_lrn': 'contradicted', 'no_flips': 'better', 'init_0.02': 'worse'}
  }


def test_the_pilot_tells_the_seeds_that_each_size_needs():
  # Differences of 0, 1 and 2 points: a deviation of 1.
  rows = [row_of('base', s, 0.3) for s in range(3)]
  rows += [row_of('no_lrn', s, 0.3 + 0.01 * s) for s in range(3)]
  first, *lines = ablations.pilot_lines(rows)
  # With 3 values the bounds are 1 / sqrt(7.38 / 2) and 1 / sqrt(0.0506 / 2).
  assert first.endswith(
    'of the difference to no_lrn: 1.00 (at level 0.95: 0.52 to 6.28); other'
    ' rows may differ'
  )
  assert 'no_conv3: 5 seeds for 2 points (3 to 80)' in lines
  assert not any(line.startswith('dropout') for line in lines)


def test_training_errors_are_means_over_steps():
  lines = ((10, 0.5, 0.9), (20, 1.0, 0.7), (25, 1.25, 0.6), (40, 2.0, 0.2))
  rows = [
    {'step': str(s), 'epoch': str(e), 'train/top1_error': str(x)}
    for s, e, x in lines
  ]
  mean = ablations.mean_training_error
  assert mean(rows, 0, 1.0) == pytest.approx(0.8)
  assert mean(rows, 1.0, 2.0) == pytest.approx((5 * 0.6 + 15 * 0.2) / 20)


def test_figures_of_a_sweep(tmp_path, monkeypatch):
  pytest.importorskip('matplotlib')
  rows = [row_of('base', s, 0.3 + 0.01 * s) for s in range(3)]
  rows += [row_of('no_lrn', s, 0.32) for s in range(3)]
  summary.write_csv(
    tmp_path / ablation_table.FILE,
    ablation_table.COLUMNS,
    ablation_table.table_rows(rows),
  )
  assert ablation_table.draw(tmp_path).read_bytes()[:4] == b'\x89PNG'


def test_an_unknown_row_is_refused_before_data_are_read(monkeypatch, tmp_path):
  given = types.SimpleNamespace(rows=['no_lrn', 'lrn'], output=str(tmp_path))
  monkeypatch.setattr(ablations, 'FLAGS', given)
  with pytest.raises(sweep.InputError, match='--rows=no_lrn,lrn: use some of'):
    ablations.main()
  assert [*tmp_path.iterdir()] == []


def test_the_base_keeps_its_checkpoints_for_ensembles(monkeypatch, tmp_path):
  asked = []

  def run(config, variants, seeds, path, measure, keep_checkpoints=True):
    asked.append((sorted(variants), seeds, keep_checkpoints))
    return []

  monkeypatch.setattr(sweep, 'run', run)
  names = ['weight_decay_1e-4', 'weight_decay_training']
  ablations.run(None, names, 3, tmp_path)
  assert asked == [(['base'], 3, True), (['weight_decay_1e-4'], 3, False)]


# Ensembles


def members(number):
  """Predictions of so many nets for 40 examples of six classes."""
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 6, 40)
  result = {}
  for seed in range(number):
    logits = rng.normal(size=(40, 6)) + 1.2 * (labels[:, None] == np.arange(6))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    result[seed] = predictions.Predictions(
      log_probs.astype(np.float32), labels, {}
    )
  return result


def test_every_set_of_nets_is_averaged():
  nets = members(3)
  rows = table2_ensembles.ensembles(nets, 'ten')
  assert [row['members'] for row in rows] == [
    *('0', '1', '2', '0+1', '0+2', '1+2', '0+1+2')
  ]
  for row in rows:
    chosen = [nets[int(seed)] for seed in row['members'].split('+')]
    mean = np.mean([np.exp(net.log_probs) for net in chosen], axis=0)
    rank = (-mean).argsort(1)
    wrong = rank[:, 0] != chosen[0].labels
    missed = (rank[:, :5] != chosen[0].labels[:, None]).all(1)
    assert row['nets'] == len(chosen)
    assert row['top1_error'] == pytest.approx(wrong.mean())
    assert row['top5_error'] == pytest.approx(missed.mean())


def test_gains_are_those_of_each_net(tmp_path):
  rows = [
    {'nets': n, 'views': v, 'members': m, 'top1_error': e, 'top5_error': e / 4}
    for n, v, m, e in (
      *((1, 'one', '0', 0.40), (1, 'one', '1', 0.44), (2, 'one', '0+1', 0.38)),
      *((1, 'ten', '0', 0.39), (1, 'ten', '1', 0.41), (2, 'ten', '0+1', 0.36)),
    )
  ]
  gains = table2_ensembles.gains(rows)
  averaged, views = table2_ensembles.gain_lines(gains)
  # 40 - 36 points; 1 and 3 points. Each ensemble that lacks a net is the other.
  assert averaged.startswith('averaging: 4.00 ± 0.00 points with 2 nets; ')
  assert views.startswith('ten views: 2.00 ± 1.00 points with 2 nets; ')
  assert averaged.endswith('the paper 2.6 with 5; not run yet')
  assert table2_ensembles.table(rows).splitlines()[2:] == [
    '| 1 | 2 | 42.00 / 10.50 | 40.00 / 10.00 |',
    '| 2 | 1 | 38.00 / 9.50 | 36.00 / 9.00 |',
  ]
  pytest.importorskip('matplotlib')
  columns = table2_ensembles.COLUMNS
  summary.write_csv(tmp_path / table2_ensembles.FILE, columns, rows)
  figure = table2_ensembles.draw(tmp_path)
  assert figure.read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(('number', 'verdicts'), [(4, 1), (5, 2), (1, 0)])
def test_the_spread_of_a_gain_is_the_jackknifes(number, verdicts):
  nets = members(number)
  rows = table2_ensembles.ensembles(nets, 'ten')
  rows += table2_ensembles.ensembles(nets, 'one')
  found = table2_ensembles.gains(rows)
  values = [
    np.array(summary.values_of(found, variant, 'top1_error'))
    for variant in ('one_net', 'all_nets')
  ]
  mean, error = summary.mean_and_standard_error(list(values[0] - values[1]))

  def gain(chosen):
    together = predictions.ensemble(chosen).errors()['top1_error']
    return np.mean([n.errors()['top1_error'] for n in chosen]) - together

  assert mean == pytest.approx(gain([*nets.values()]))
  lines = table2_ensembles.gain_lines(found)
  assert sum('not run yet' not in line for line in lines) == verdicts
  if number > 1:
    lacking = [gain([nets[j] for j in nets if j != i]) for i in nets]
    expected = np.sqrt((number - 1) * np.var(lacking))
    assert error == pytest.approx(expected)


# Commands


def quick(module, output, monkeypatch, **values):
  """Runs a command with --quick in this process."""
  given = {'output': str(output), 'data_dir': 'none', 'quick': True, 'seeds': 1}
  flags = types.SimpleNamespace(**given | values)
  monkeypatch.setattr(sweep, 'FLAGS', flags)
  monkeypatch.setattr(module, 'FLAGS', flags, raising=False)
  module.main()


@pytest.mark.slow
def test_the_quick_commands_share_their_nets(tmp_path, monkeypatch, capsys):
  pytest.importorskip('matplotlib')
  quick(ablations, tmp_path, monkeypatch, rows=[], pilot=False)
  quick(ablations, tmp_path, monkeypatch, rows=[], pilot=True)
  quick(table2_ensembles, tmp_path, monkeypatch, seeds=2)
  printed = capsys.readouterr().out
  trained = [f'{line}' for line in printed.splitlines() if line[:4] == 'run ']
  names = [line.partition(': ')[2].partition(';')[0] for line in trained]
  assert names == [
    *('base, seed 0', 'no_lrn, seed 0', 'dropout_0, seed 0'),
    *('base, seed 1', 'no_lrn, seed 1'),
  ]
  for row in summary.read_runs(tmp_path):
    assert 0 <= row['many_view_error'] <= 1
    assert 0 <= row['early_train_error'] <= 1
  nets = [path for path in tmp_path.glob('runs/*/seed*/checkpoints')]
  kept = {f'{p.parts[-3]}/{p.parts[-2]}' for p in nets}
  assert {'base/seed0', 'base/seed1'} <= kept
  assert not any(name.startswith('no_lrn') for name in kept)
  with open(tmp_path / 'ensembles.csv', newline='') as file:
    rows = {(r['views'], r['members']): r for r in csv.DictReader(file)}
  assert [*rows] == [*itertools.product(('one', 'ten'), ('0', '1', '0+1'))]
  result = json.loads((tmp_path / 'runs/base/seed1/result.json').read_text())
  found = float(rows['ten', '1']['top1_error'])
  assert found == pytest.approx(result['eval_ten_view/top1_error'])


def test_a_subset_has_the_first_images_of_each_class(base, tmp_path):
  digits = dataset_lib.open_dataset(base.input.data_dir, 'digits')
  limits = {'train': 3, 'test': 1}
  subset.prepare(digits, limits, ('1', '7'), 'few', tmp_path)
  few = dataset_lib.open_dataset(tmp_path / 'data', 'few')
  assert few.num_examples == {'train': 6, 'validation': 2}
  assert few.class_names == ('1', '7')
  assert few.image_size == digits.image_size
  subset.prepare(digits, {}, (), 'few', tmp_path)  # It is there.
