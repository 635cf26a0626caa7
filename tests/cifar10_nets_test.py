"""cifar10_nets and figure1_relu_vs_tanh: recipes, tables, figures, commands."""

import json
import types

import pytest

from experiments import cifar10_nets
from experiments import cuda_convnet
from experiments import curves
from experiments import figure1_relu_vs_tanh as figure1
from experiments import minibatches
from experiments import summary
from experiments import sweep


def row_of(variant, seed, **measured):
  rest = {'commit': 'abc', 'device': '1 x cpu', 'dataset': 'digest'}
  first = {'variant': variant, 'seed': seed, **measured}
  return {**first, 'wall_seconds': 1.5, 'failed': '', **rest}


@pytest.fixture
def written(tmp_path):
  """A folder of two sweeps with two runs each, and their metrics.csv."""
  header = 'epoch,train/top1_error,eval/top1_error\n'
  for name, lines in {
    '26pct': ('1,0.5,0.4\n', '2,0.3,\n'),
    '18pct': ('1,0.6,0.5\n', '2,0.2,0.25\n'),
  }.items():
    for seed in range(2):
      workdir = tmp_path / name / 'runs' / name / f'seed{seed}'
      workdir.mkdir(parents=True)
      (workdir / 'metrics.csv').write_text(header + ''.join(lines))
    rows = [row_of(name, s, error=0.25 + 0.02 * s, epochs=2.0) for s in (0, 1)]
    summary.write(tmp_path / name, rows)
  return tmp_path


def test_recipes_have_the_authors_epochs_and_rates():
  epochs = {
    name: sum(
      part.stop - part.start
      for part in minibatches.parts(
        cifar10_nets.variants(name)[nets[0]]['optimizer.stages'], 50_000
      )
    )
    / 50_000
    for name, nets in cifar10_nets.SWEEPS.items()
  }
  # 350 epochs on four of the five batches are 280 of all.
  assert epochs == {'26pct': 10, '18pct': 140, 'norm': 280 + 150 + 20}
  parts = minibatches.parts(
    cifar10_nets.variants('norm', 0.1)['11pct']['optimizer.stages'], 50_000
  )
  assert parts[-1].epoch == pytest.approx(52)
  assert {p.rate for p in parts} == {1e-3, 1e-4, 1e-5}
  assert {p.stop for p in parts[: 35 * 4]} == {10_000, 20_000, 30_000, 40_000}


def test_every_net_is_in_one_sweep_and_has_its_published_error():
  nets = [net for names in cifar10_nets.SWEEPS.values() for net in names]
  assert sorted(nets) == sorted(cuda_convnet.NETS)
  # The names of the released nets are their errors.
  for net, error in cifar10_nets.PUBLISHED.items():
    assert error is None or net == f'{100 * error:.0f}pct'


def test_only_the_nets_on_crops_are_tested_on_ten_views(tmp_path):
  result = {'epoch': 2.0, 'eval/top1_error': 0.5}
  file = tmp_path / 'result.json'
  file.write_text(json.dumps({**result, 'eval_five_view/top1_error': 0.4}))
  assert cifar10_nets.measure(tmp_path) == {'error': 0.5, 'epochs': 2.0}
  file.write_text(json.dumps({**result, 'eval_ten_view/top1_error': 0.3}))
  assert cifar10_nets.measure(tmp_path)['error'] == 0.3
  flips = {
    name: cifar10_nets.variants(name)[nets[0]].get('augment.flip', False)
    for name, nets in cifar10_nets.SWEEPS.items()
  }
  assert flips == {'26pct': False, '18pct': False, 'norm': True}


def test_table_and_curves(written):
  names = ['26pct', '18pct']
  rows = [r for name in names for r in summary.read_runs(written / name)]
  found = cifar10_nets.net_rows(rows)
  assert cifar10_nets.table(found).splitlines()[2:] == [
    '| 26pct | 26 | 26.0 ± 1.0 | 2 | 2 |',
    '| 18pct | 18 | 26.0 ± 1.0 | 2 | 2 |',
  ]
  curves.write(written, [written / name for name in names])
  assert (
    curves.read(written, '26pct', 'train_error')
    == [([1.0, 2.0], [0.5, 0.3])] * 2
  )
  assert curves.read(written, '26pct', 'test_error') == [([1.0], [0.4])] * 2
  pytest.importorskip('matplotlib')
  figure = cifar10_nets.draw(written, names)
  assert figure.read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (
      {'nets': ['26pct', '12pct']},
      '--nets=26pct,12pct: use some of 26pct,18pct',
    ),
    ({'share': 0.0}, '--share=0.0 must be above 0 and at most 1'),
    ({'share': 1.5}, '--share=1.5 must be above 0 and at most 1'),
  ],
)
def test_wrong_flags_are_refused(monkeypatch, values, message):
  flags = {'nets': ['26pct'], 'share': 1.0, 'quick': False}
  given = types.SimpleNamespace(**flags | values)
  monkeypatch.setattr(cifar10_nets, 'FLAGS', given)
  with pytest.raises(sweep.InputError, match=message):
    cifar10_nets.main()


# Figure 1

EPOCHS = {'relu_0.1': (4.0, 5.0), 'tanh_0.1': (20.0, 30.0)}


def figure1_rows():
  return [
    row_of(name, seed, **{figure1.METRIC: value})
    for name, values in EPOCHS.items()
    for seed, value in enumerate(values)
  ]


def test_the_factor_is_the_mean_over_seeds():
  names = {'relu': 'relu_0.1', 'tanh': 'tanh_0.1'}
  found = figure1.ratio(figure1_rows(), names)
  assert found['ratios'] == [5.0, 6.0]
  assert (found['ratio'], found['n']) == (5.5, 2)
  assert found['standard_error'] == pytest.approx(0.5)
  assert found['epochs'] == {'relu': 4.5, 'tanh': 25.0}
  rows = figure1_rows()
  rows[3][figure1.METRIC] = None  # It did not reach the target.
  found = figure1.ratio(rows, names)
  assert (found['ratios'], found['standard_error']) == ([5.0], None)


def test_the_fastest_rate_is_that_of_the_fewest_epochs():
  rows = [
    row_of('relu_0.001', 0, **{figure1.METRIC: 7.0}),
    row_of('relu_0.002', 0, **{figure1.METRIC: 3.0}),
    row_of('relu_0.004', 0, **{figure1.METRIC: None}),
    row_of('tanh_0.001', 0, **{figure1.METRIC: None}),
  ]
  assert figure1.fastest(rows, 'relu') == 0.002
  with pytest.raises(sweep.InputError, match='tanh did not reach'):
    figure1.fastest(rows, 'tanh')


def test_epochs_to_the_target_are_read_from_the_rows(tmp_path):
  (tmp_path / 'config.json').write_text('{"train.target_error": 0.25}')
  lines = ['epoch,train/top1_error', '0.2,0.5', '0.4,0.25', '0.6,0.2']
  (tmp_path / 'metrics.csv').write_text('\n'.join(lines))
  assert figure1.measure(tmp_path) == {figure1.METRIC: 0.4}
  (tmp_path / 'metrics.csv').write_text('\n'.join(lines[:2]))
  assert figure1.measure(tmp_path) == {figure1.METRIC: None}


def test_both_units_train_without_decay_to_the_same_target():
  variants = figure1.variants({'relu': (0.1, 0.2), 'tanh': (0.1,)}, 0.25, 9.0)
  assert list(variants) == ['relu_0.1', 'relu_0.2', 'tanh_0.1']
  for name, overrides in variants.items():
    unit, rate = name.split('_')
    assert overrides['model.activation'] == unit
    assert overrides['optimizer.stages'] == ((9.0, float(rate), 1.0),)
    assert overrides['model.has_decay'] is False
    assert overrides['train.target_error'] == 0.25


def test_figure_1_has_a_line_for_every_seed(written):
  pytest.importorskip('matplotlib')
  curves.write(written, [written / '26pct', written / '18pct'])
  found = {'variants': {'relu': '26pct', 'tanh': '18pct'}}
  figure = figure1.draw(written, found, 0.25)
  assert figure.read_bytes()[:4] == b'\x89PNG'


@pytest.mark.slow
@pytest.mark.parametrize('module', ['cifar10_nets', 'figure1_relu_vs_tanh'])
def test_quick_commands_end_with_a_figure(module, data_dir, tmp_path):
  import subprocess
  import sys

  command = [sys.executable, '-m', f'experiments.{module}', '--quick']
  command += [f'--output={tmp_path}', f'--data_dir={data_dir}', '--seeds=1']
  subprocess.run(command, check=True)
  assert [*tmp_path.glob('*.png')]
