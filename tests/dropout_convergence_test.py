"""When a net has converged, by what dropout multiplies that, and the verdict."""

import collections
import csv
import json
import statistics
import types

import ml_collections
import numpy as np
import pytest

from alexnet_jax import metrics
from experiments import ablation_rows
from experiments import dropout_convergence
from experiments import summary
from experiments import sweep


@pytest.mark.parametrize(
  ('errors', 'epochs', 'level', 'bound'),
  [
    # Smoothed: .493, .445, .416, .356, .316 and .3: within two points of .3.
    ([0.6, 0.5, 0.38, 0.3, *4 * [0.3]], 10, 0.3, False),
    # It rises again, as that of a net that overfits: .4, .375, .36, .3.
    ([0.6, *5 * [0.3], *(0.3 + 0.01 * i for i in range(18))], 8, 0.3, False),
    # One lucky evaluation changes a level of six by a point: .44, .42, .4.
    ([*5 * [0.5], *9 * [0.4], 0.34, *9 * [0.4]], 16, 0.39, False),
    # It falls to the end; of its first 18 evaluations the 15th is near.
    ([0.6 - 0.01 * i for i in range(24)], 40, 0.395, True),
  ],
)
def test_a_net_has_converged_near_its_level(errors, epochs, level, bound):
  found = dropout_convergence.convergence(
    [2 * i for i in range(1, len(errors) + 1)], errors
  )
  assert (found.epochs, found.is_lower_bound) == (epochs, bound)
  assert found.level == pytest.approx(level)


def convergences(dropped, without, late=()):
  """Rows of convergence.csv; `late` has the variants with lower bounds."""
  return [
    {'variant': v, 'seed': s, 'epochs': e, 'is_lower_bound': v in late}
    for v, own in (('dropout_0.5', dropped), ('dropout_0', without))
    for s, e in enumerate(own)
  ]


@pytest.mark.parametrize(
  ('dropped', 'late', 'verdict'),
  [
    # Factors without spread: 2, 3, 1.5 and 0.5; that of (3, 4, 6) has one.
    ((8, 8, 8), (), 'reproduced'),
    ((12, 12, 12), ('dropout_0.5',), 'reproduced'),
    ((6, 6, 6), (), 'same sign, smaller'),
    ((6, 6, 6), ('dropout_0.5',), 'not run yet'),
    ((2, 2, 2), (), 'contradicted'),
    ((2, 2, 2), ('dropout_0.5',), 'not run yet'),
    ((8, 8, 8), ('dropout_0',), 'not run yet'),
    ((6, 6, 6), ('dropout_0',), 'not run yet'),
    ((2, 2, 2), ('dropout_0',), 'contradicted'),
    ((3, 4, 6), ('dropout_0',), 'noise'),
    ((3, 4, 6), ('dropout_0.5',), 'not run yet'),
    ((3, 4, 6), ('dropout_0.5', 'dropout_0'), 'not run yet'),
    ((8, 8, 8), ('dropout_0.5', 'dropout_0'), 'not run yet'),
    ((3, 4, 6), (), 'noise'),
    ((8, 8), ('dropout_0.5',), 'not run yet'),
  ],
)
def test_a_bound_has_the_verdicts_that_it_allows(dropped, late, verdict):
  rows = convergences(dropped, (4,) * len(dropped), late)
  assert dropout_convergence.factors(rows)['verdict'] == verdict


def test_the_factor_of_dropout():
  found = dropout_convergence.factors(convergences((8, 16, 5), (4, 4, 5)))
  assert found['factors'] == [2, 4, 1]
  # Logarithms to base 2: 1, 2 and 0, of mean 1 and standard error 0.577.
  assert found['spread'] == pytest.approx(2**0.57735)
  assert dropout_convergence.line(found) == (
    'dropout multiplies the epochs to converge by 2.00 ×/÷ 1.49 (3 seeds); the'
    ' paper 2; noise'
  )
  assert dropout_convergence.line(dropout_convergence.factors([])).endswith(
    'not run yet'
  )


@pytest.mark.parametrize(
  ('late', 'line'),
  [
    (
      ('dropout_0.5',),
      'at least 2.00 (1 seed); the paper 2; not run yet (dropout_0.5 may',
    ),
    (
      ('dropout_0',),
      'at most 2.00 (1 seed); the paper 2; not run yet (dropout_0 may',
    ),
    (
      ('dropout_0.5', 'dropout_0'),
      '2.00 (1 seed); the paper 2; not run yet (dropout_0.5 and dropout_0 may',
    ),
  ],
)
def test_the_line_says_which_nets_may_not_have_converged(late, line):
  found = dropout_convergence.factors(convergences((8,), (4,), late))
  expected = f'dropout multiplies the epochs to converge by {line} not have'
  assert dropout_convergence.line(found).startswith(expected)


def test_the_files_of_a_sweep(monkeypatch, tmp_path):
  rows = []
  for variant, errors in (
    ('dropout_0.5', (0.6, 0.5, 0.4, *21 * (0.3,))),
    ('dropout_0', (0.3,) * 24),
    ('other', (0.3,) * 24),
  ):
    workdir = tmp_path / 'runs' / variant / 'seed0'
    workdir.mkdir(parents=True)
    lines = ['step,epoch,train/top1_error,eval/top1_error', '1,0.5,0.5,']
    lines += [f'{2 * i},{2 * i}.0,0.5,{e}' for i, e in enumerate(errors, 1)]
    (workdir / metrics.CSV_FILE).write_text('\n'.join(lines))
    last = dict.fromkeys(summary.LAST_COLUMNS, '') | {'wall_seconds': 1.0}
    rows.append({'variant': variant, 'seed': 0} | last)
  rows.append(rows[0] | {'seed': 1, 'failed': 'the loss is not finite'})
  summary.write(tmp_path, rows)
  monkeypatch.setattr(sweep, 'run', lambda *args, **kwargs: rows)
  found = dropout_convergence.run(None, 1, tmp_path)
  # Smoothed: .5, .45, .42, .36, .32 and so on.
  expected = {'dropout_0.5': 10.0, 'dropout_0': 2.0}
  assert {row['variant']: row['epochs'] for row in found} == expected
  with open(tmp_path / 'convergence.csv', newline='') as file:
    assert len(list(csv.DictReader(file))) == 2
  factor = json.loads((tmp_path / 'factor.json').read_text())
  assert factor['mean'] == pytest.approx(5)
  pytest.importorskip('matplotlib')
  figure = dropout_convergence.draw(tmp_path)
  assert figure.read_bytes()[:4] == b'\x89PNG'


def give_flags(monkeypatch, output, **values):
  """Gives the command these flags in this process."""
  given = {'output': str(output), 'data_dir': 'none', 'quick': True, 'seeds': 1}
  flags = types.SimpleNamespace(**given | {'epochs': 120.0} | values)
  monkeypatch.setattr(dropout_convergence, 'FLAGS', flags)


def test_the_rate_is_constant(monkeypatch, tmp_path):
  config = ml_collections.ConfigDict(
    {'optimizer': {'drop_epochs': (32.0,)}, 'train': {'epochs': 40.0}}
  )
  given = lambda *args: config.copy_and_resolve_references()
  monkeypatch.setattr(ablation_rows, 'get_config', given)
  found = dropout_convergence.get_config(tmp_path, 'none', 120.0)
  assert (found.optimizer.drop_epochs, found.train.epochs) == ((), 120.0)
  found = dropout_convergence.get_config(tmp_path, 'none', 120.0, quick=True)
  assert (found.optimizer.drop_epochs, found.train.epochs) == ((), 40.0)


@pytest.mark.parametrize('epochs', [0.0, -1.0, float('nan'), float('inf')])
def test_wrong_epochs_are_refused(monkeypatch, tmp_path, epochs):
  give_flags(monkeypatch, tmp_path, epochs=epochs)
  with pytest.raises(sweep.InputError, match='--epochs=.* must be finite'):
    dropout_convergence.main()


def simulated_factor(rng, fall, noise):
  """The factor of three seeds, and the share of runs that end too early.

  `fall(epoch, slower)` is the test error without noise, which has the standard
  deviation `noise`.
  """
  epochs, rows = np.arange(2, 121, 2.0), []
  for seed in range(3):
    for variant, slower in (('dropout_0.5', 2), ('dropout_0', 1)):
      errors = fall(epochs, slower) + rng.normal(0, noise, len(epochs))
      found = dropout_convergence.convergence([*epochs], [*errors])
      rows.append({'variant': variant, 'seed': seed} | vars(found))
  early = statistics.fmean(row['is_lower_bound'] for row in rows)
  return dropout_convergence.factors(rows), early


@pytest.mark.slow  # 1,600 trials. To see the figures of LOG.md, add -s.
def test_simulated_falls_with_a_factor_of_two():
  """The paper's factor is measured as somewhat less, and rarely as none."""
  rng = np.random.default_rng(0)
  for height in (0.25, 0.35):
    for scale in (7, 10, 14):
      for noise in (0.008, 0.012):
        fall = lambda t, slower, h=height, c=scale: (
          0.3 + h * np.exp(-t / c / slower)
        )
        trials = [simulated_factor(rng, fall, noise)[0] for _ in range(100)]
        mean = statistics.fmean(trial['mean'] for trial in trials)
        verdicts = collections.Counter(trial['verdict'] for trial in trials)
        print(height, scale, noise, f'{mean:.2f}', dict(verdicts))
        assert 1.6 <= mean <= 1.9
        assert 'contradicted' not in verdicts
        assert verdicts['noise'] <= 17
        assert verdicts['not run yet'] <= 24
  # A curve that never levels off has no epoch of convergence; noise may hide it.
  for power in (0.5, 1.0):
    for scale in (10, 20):
      fall = lambda t, slower, p=power, c=scale: (
        0.25 + 0.4 * (1 + t / c / slower) ** -p
      )
      trials = [simulated_factor(rng, fall, 0.008) for _ in range(100)]
      verdicts = collections.Counter(t['verdict'] for t, _ in trials)
      early = statistics.fmean(early for _, early in trials)
      print(power, scale, f'{early:.2f}', dict(verdicts))
      assert verdicts['not run yet'] >= 89


@pytest.mark.slow
def test_the_quick_command(monkeypatch, tmp_path, capsys):
  pytest.importorskip('matplotlib')
  give_flags(monkeypatch, tmp_path)
  dropout_convergence.main()
  assert 'not run yet' in capsys.readouterr().out
  assert {r['variant'] for r in summary.read_runs(tmp_path)} == {
    *('dropout_0.5', 'dropout_0')
  }
