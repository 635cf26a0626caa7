"""cifar10_nets and figure1_relu_vs_tanh: recipes, tables, figures, commands."""

import dataclasses
import json
import types

import pytest

from experiments import cifar10_config
from experiments import cifar10_nets
from experiments import cuda_convnet
from experiments import curves
from experiments import figure1_relu_vs_tanh as figure1
from experiments import minibatches
from experiments import summary
from experiments import sweep

METRICS_HEADER = 'epoch,train/top1_error,eval/top1_error\n'


def row_of(variant, seed, **measured):
  rest = {'commit': 'abc', 'device': '1 x cpu', 'dataset': 'digest'}
  first = {'variant': variant, 'seed': seed, **measured}
  return {**first, 'wall_seconds': 1.5, 'failed': '', **rest}


@pytest.fixture
def written(tmp_path):
  """A folder of two sweeps with two runs each, and their metrics.csv."""
  for name, lines in {
    '26pct': ('1,0.5,0.4\n', '2,0.3,\n'),
    '18pct': ('1,0.6,0.5\n', '2,0.2,0.25\n'),
  }.items():
    for seed in range(2):
      workdir = tmp_path / name / 'runs' / name / f'seed{seed}'
      workdir.mkdir(parents=True)
      (workdir / 'metrics.csv').write_text(METRICS_HEADER + ''.join(lines))
    rows = [row_of(name, s, error=0.25 + 0.02 * s, epochs=2.0) for s in (0, 1)]
    summary.write(tmp_path / name, rows)
  return tmp_path


def test_recipes_have_the_authors_epochs_and_rates():
  parts = {
    net: minibatches.parts(overrides['optimizer.stages'], 50_000)
    for name in cifar10_nets.SWEEPS
    for net, overrides in cifar10_nets.variants(name).items()
  }
  epochs = {
    net: sum(p.stop - p.start for p in own) / 50_000
    for net, own in parts.items()
  }
  # 350 epochs on four of the five batches are 280 of all.
  assert epochs == {
    '26pct': 10,
    '18pct': 140,
    '13pct': 80 + 40 + 20,
    '11pct': 280 + 150 + 20,
    '11pct_without_norm': 280 + 150 + 20,
  }
  assert {p.stop for p in parts['13pct'][: 100 * 4]} == {
    10_000,
    20_000,
    30_000,
    40_000,
  }
  lowered = [p.epoch for p in parts['13pct'] if p.rate < 1e-3]
  assert (lowered[0], lowered[-1]) == pytest.approx((140.2, 160))
  tenth = cifar10_nets.variants('norm', 0.1)['11pct']['optimizer.stages']
  parts = minibatches.parts(tenth, 50_000)
  assert parts[-1].epoch == pytest.approx(52)
  assert {p.rate for p in parts} == {1e-3, 1e-4, 1e-5}


def test_only_the_released_nets_on_crops_keep_the_rate_of_biases():
  keys = {
    name: {
      overrides.get('optimizer.drop_bias_rate', True)
      for overrides in cifar10_nets.variants(name).values()
    }
    for name in cifar10_nets.SWEEPS
  }
  assert keys == {'26pct': {True}, '18pct': {True}, 'norm': {False}}


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
  rows = cifar10_nets.gather(written)  # Both sweeps of the folder.
  found = cifar10_nets.net_rows(rows)
  assert cifar10_nets.table(found).splitlines()[2:] == [
    '| 26pct | 26 | 26.0 ± 1.0 | 2 | 2 |',
    '| 18pct | 18 | 26.0 ± 1.0 | 2 | 2 |',
  ]
  assert len((written / 'nets.csv').read_text().splitlines()) == 3
  assert (
    curves.read(written, '26pct', 'train_error')
    == [([1.0, 2.0], [0.5, 0.3])] * 2
  )
  assert curves.read(written, '26pct', 'test_error') == [([1.0], [0.4])] * 2
  pytest.importorskip('matplotlib')
  figure = cifar10_nets.draw(written, rows)
  assert figure.read_bytes()[:4] == b'\x89PNG'


def test_dots_are_the_errors_on_ten_views(written, monkeypatch):
  pytest.importorskip('matplotlib')
  from matplotlib import axes

  dots, plot = [], axes.Axes.plot

  def recorded(self, x, y, *args, **kwargs):
    if 'o' in args:
      dots.append((self.get_title(), x, y))
    return plot(self, x, y, *args, **kwargs)

  monkeypatch.setattr(axes.Axes, 'plot', recorded)
  rows = cifar10_nets.gather(written)
  rows.append(row_of('11pct', 0, error=0.5, epochs=9.0))
  cifar10_nets.draw(written, rows)
  assert [found[1:] for found in dots] == [([9.0], [50.0])]


def test_runs_that_failed_have_no_curve(written):
  sweep_path = written / '26pct'
  rows = [row_of('26pct', 0), row_of('26pct', 1) | {'failed': 'nan'}]
  summary.write(sweep_path, rows)
  (sweep_path / 'runs' / '26pct' / 'seed1' / 'metrics.csv').unlink()
  curves.write(written, [sweep_path])
  assert len(curves.read(written, '26pct', 'train_error')) == 1


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


def test_five_nets_are_drawn_in_two_lines(tmp_path, monkeypatch):
  pytest.importorskip('matplotlib')
  figures, new_figure = [], summary.new_figure

  def kept(*args):
    figures.append(new_figure(*args))
    return figures[-1]

  monkeypatch.setattr(summary, 'new_figure', kept)
  summary.write_csv(tmp_path / curves.CURVES_FILE, curves.COLUMNS, [])
  nets = [net for names in cifar10_nets.SWEEPS.values() for net in names]
  rows = [row_of(net, 0, error=0.2, epochs=9.0) for net in nets]
  cifar10_nets.draw(tmp_path, rows)
  assert [axes.get_title() for axes in figures[0].axes] == nets
  labelled = [axes for axes in figures[0].axes if axes.get_ylabel()]
  assert [axes.get_title() for axes in labelled] == [nets[0], nets[3]]


# Figure 1

NAMES = {'relu': 'relu_0.1', 'tanh': 'tanh_0.1'}


def figure1_row(variant, seed, reached, epochs=40.0, failed=''):
  measured = {figure1.METRIC: reached, 'epochs': reached or epochs}
  row = row_of(variant, seed, **measured, train_error=0.5)
  return row | {'failed': failed}


def figure1_rows(relu, tanh):
  both = zip(NAMES.values(), (relu, tanh), strict=True)
  return [
    figure1_row(name, seed, value)
    for name, values in both
    for seed, value in enumerate(values)
  ]


@pytest.mark.parametrize(
  ('relu', 'tanh', 'seeds', 'ratios', 'bounded'),
  [
    # Seed 0 chose the rates: it counts if there are fewer than two others.
    ((4, 5, 5), (20, 30, 35), [1, 2], [6, 7], False),
    ((4, 5), (20, 30), [0, 1], [5, 6], False),
    ((4, 5), (20, None), [0, 1], [5, 8], True),  # 40 epochs at least.
    ((4, None), (20, 30), [0], [5], False),
    ((None,), (None,), [], [], False),
  ],
)
def test_the_factor_is_the_mean_over_seeds(relu, tanh, seeds, ratios, bounded):
  found = figure1.ratio(figure1_rows(relu, tanh), NAMES)
  assert (found['seeds'], found['ratios']) == (seeds, ratios)
  assert found['is_lower_bound'] is bounded
  assert found['ratio'] == (sum(ratios) / len(ratios) if ratios else None)
  assert (found['standard_error'] is None) == (bounded or len(ratios) < 2)


def test_seeds_that_miss_the_target_are_counted_and_can_go_on():
  found = figure1.ratio(figure1_rows((4, 5), (20, None)), NAMES)
  assert found['reached'] == {'relu': '2 of 2', 'tanh': '1 of 2'}
  assert figure1.remarks(found | {'at_edge': ['relu']}, 40.0) == [
    'relu: the best rate is at the edge of the rates tried',
    'tanh: 1 of 2 seeds reached the target in 40 epochs; the same command with'
    ' --epochs=80 continues',
  ]


def test_a_run_that_diverged_is_no_bound():
  rows = figure1_rows((4,), ())
  rows.append(row_of('tanh_0.1', 0) | {'failed': 'nan'})
  found = figure1.ratio(rows, NAMES)
  assert (found['ratio'], found['reached']['tanh']) == (None, '0 of 1')


def test_the_fastest_rate_is_that_of_the_fewest_epochs():
  rows = [
    figure1_row('relu_0.001', 0, 7.0),
    figure1_row('relu_0.002', 0, 3.0),
    figure1_row('relu_0.004', 0, None),
    figure1_row('relu_0.004', 1, 1.0),
    figure1_row('tanh_0.001', 0, None),
    row_of('tanh_0.002', 0) | {'failed': 'nan'},
  ]
  assert figure1.fastest(rows, 'relu') == (3.0, 'relu_0.002')
  assert figure1.fastest(rows, 'tanh') == (float('inf'), 'tanh_0.001')
  assert figure1.fastest(rows[-1:], 'tanh') == (float('inf'), '')
  order = figure1.from_the_middle(figure1.RATES)
  assert order == [0.001, 0.0005, 0.002, 0.00025, 0.004]


def test_epochs_to_the_target_are_read_from_the_rows(tmp_path):
  (tmp_path / 'config.json').write_text('{"train.target_error": 0.25}')
  lines = ['epoch,train/top1_error', '0.2,0.5', '0.4,0.25']
  for stop, epochs, error in ((3, 0.4, 0.25), (2, 0.2, 0.5)):
    (tmp_path / 'metrics.csv').write_text('\n'.join(lines[:stop]))
    assert figure1.measure(tmp_path) == {
      figure1.METRIC: epochs if stop == 3 else None,
      'epochs': epochs,
      'train_error': error,
    }


@pytest.fixture
def trained_at_once(monkeypatch):
  """Replaces training; returns a list of the variant, seed and cap of each run.

  ReLU takes 0.01 / rate epochs to its target, tanh five times as many.
  """
  runs = []

  def end(config, workdir):
    ((_, rate, _),) = config.optimizer.stages
    name, cap = workdir.parts[-2], config.train.max_epochs
    runs.append((name, config.seed, cap))
    needed = 0.01 / rate * (5 if name.startswith('tanh') else 1)
    error = 0.2 if needed <= cap else 0.5
    workdir.mkdir(parents=True, exist_ok=True)
    recorded = json.dumps(cifar10_config.recorded(config))
    (workdir / 'config.json').write_text(recorded)
    if rate == 0.004:
      raise FloatingPointError('the loss is nan')
    row = f'{min(needed, cap)},{error},\n'
    (workdir / 'metrics.csv').write_text(f'{METRICS_HEADER}{row}')
    assert not (workdir / 'result.json').exists()
    result = {'wall_seconds': 1.0, 'commit': 'abc', 'devices': ['cpu']}
    (workdir / 'result.json').write_text(json.dumps(result))

  program = dataclasses.replace(
    figure1.cifar10_training.PROGRAM,
    fingerprint=lambda config: 'digest',
    train=end,
  )
  monkeypatch.setattr(figure1.cifar10_training, 'PROGRAM', program)
  return runs


def test_no_rate_takes_longer_than_the_best_and_no_run_is_trained_twice(
  trained_at_once, tmp_path
):
  run = lambda epochs: figure1.run(
    cifar10_config.get_config(), tmp_path, 3, 0.25, figure1.RATES, epochs
  )
  found = run(20.0)  # Tanh takes at least 25.
  assert trained_at_once == [
    *(('relu_0.001', 0, 20.0), ('tanh_0.001', 0, 20.0)),
    *(('relu_0.0005', 0, 10.0), ('tanh_0.0005', 0, 20.0)),
    *(('relu_0.002', 0, 10.0), ('tanh_0.002', 0, 20.0)),
    *(('relu_0.00025', 0, 5.0), ('tanh_0.00025', 0, 20.0)),
    *(('relu_0.004', 0, 5.0), ('tanh_0.004', 0, 20.0)),
  ]
  assert (found['ratio'], found['is_lower_bound']) == (4.0, True)
  assert found['reached'] == {'relu': '1 of 1', 'tanh': '0 of 1'}
  assert json.loads((tmp_path / 'ratio.json').read_text()) == found
  trained_at_once.clear()
  found = run(30.0)
  assert trained_at_once == [
    *(('tanh_0.001', 0, 30.0), ('tanh_0.0005', 0, 30.0)),
    *(('tanh_0.002', 0, 30.0), ('tanh_0.00025', 0, 25.0)),
    *(('relu_0.002', 1, 30.0), ('tanh_0.002', 1, 30.0)),
    *(('relu_0.002', 2, 30.0), ('tanh_0.002', 2, 30.0)),
  ]
  assert (found['ratio'], found['seeds']) == (5.0, [1, 2])
  assert (found['is_lower_bound'], found['at_edge']) == (False, [])
  trained_at_once.clear()
  assert run(60.0) == found and trained_at_once == []


def test_a_unit_that_diverged_at_every_rate_is_one_line(
  trained_at_once, tmp_path
):
  with pytest.raises(sweep.InputError, match='relu diverged at every rate'):
    figure1.run(cifar10_config.get_config(), tmp_path, 1, 0.25, (0.004,), 20.0)


def test_both_units_train_without_decay_to_the_same_target():
  for unit in figure1.UNITS:
    overrides = figure1.overrides(unit, 0.1, 0.25, 9.0)
    assert overrides['model.activation'] == unit
    assert overrides['optimizer.stages'][0][1:] == (0.1, 1.0)
    assert overrides['model.has_decay'] is False
    assert overrides['train.target_error'] == 0.25
    assert overrides['train.max_epochs'] == 9.0


@pytest.mark.parametrize('epochs', [0.0, 1001.0])
def test_wrong_epochs_are_refused(monkeypatch, epochs):
  given = types.SimpleNamespace(epochs=epochs)
  monkeypatch.setattr(figure1, 'FLAGS', given)
  with pytest.raises(sweep.InputError, match='above 0 and at most 1000'):
    figure1.main()


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
  command += [f'--output={tmp_path}', f'--data_dir={data_dir}']
  subprocess.run(command, check=True)
  assert [*tmp_path.glob('*.png')]
