"""When a net has converged, by what dropout multiplies that, and the verdict."""

import csv
import json
import types

import pytest

from alexnet_jax import metrics
from experiments import dropout_convergence
from experiments import summary
from experiments import sweep


@pytest.mark.parametrize(
  ('errors', 'epochs', 'lowest', 'bound'),
  [
    # Smoothed: .525, .444, .395, .305 and then .3, but .333 at the end.
    ([0.7, 0.475, 0.4, 0.3, 0.2, 0.15, 0.45, 0.4], 8, 0.3, False),
    # One lucky evaluation is a fifth of a mean: .4, .4, .42, .36, .44, ...
    ([0.4, 0.4, 0.4, 0.4, 0.5, 0.1, 0.8, 0.6], 8, 0.36, False),
    # The last quarter begins after epoch 12.
    ([0.8, 0.8, 0.8, 0.3, 0.3, 0.3, 0.3, 0.3], 12, 0.3, False),
    ([0.8, 0.8, 0.8, 0.8, 0.3, 0.3, 0.3, 0.3], 14, 0.3, True),
  ],
)
def test_a_net_has_converged_near_its_lowest_error(
  errors, epochs, lowest, bound
):
  found = dropout_convergence.convergence(range(2, 18, 2), errors)
  assert (found.epochs, found.is_lower_bound) == (epochs, bound)
  assert found.lowest_error == pytest.approx(lowest)


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
    # Factors without spread: 2, 3, 1.5 and 0.5.
    ((8, 8, 8), (), 'reproduced'),
    ((12, 12, 12), ('dropout_0.5',), 'reproduced'),
    ((6, 6, 6), (), 'same sign, smaller'),
    ((6, 6, 6), ('dropout_0.5',), 'noise'),
    ((2, 2, 2), (), 'contradicted'),
    ((2, 2, 2), ('dropout_0.5',), 'noise'),
    ((8, 8, 8), ('dropout_0',), 'not run yet'),
    ((8, 8), ('dropout_0.5',), 'not run yet'),
  ],
)
def test_a_lower_bound_is_not_called_smaller(dropped, late, verdict):
  rows = convergences(dropped, (4,) * len(dropped), late)
  assert dropout_convergence.factors(rows)['verdict'] == verdict


def test_the_factor_of_dropout():
  found = dropout_convergence.factors(
    convergences((8, 16, 5), (4, 4, 5), ('dropout_0.5',))
  )
  assert found['factors'] == [2, 4, 1]
  # Logarithms to base 2: 1, 2 and 0, of mean 1 and standard error 0.577.
  assert found['spread'] == pytest.approx(2**0.57735)
  assert dropout_convergence.line(found) == (
    'dropout multiplies the epochs to converge by at least 2.00 ×/÷ 1.49 (3'
    ' seeds); the paper 2; noise'
  )
  assert dropout_convergence.line(dropout_convergence.factors([])).endswith(
    'not run yet'
  )


def test_the_files_of_a_sweep(monkeypatch, tmp_path):
  rows = []
  for variant, errors in (
    ('dropout_0.5', (0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)),
    ('dropout_0', (0.3,) * 8),
    ('failed', ()),
  ):
    workdir = tmp_path / 'runs' / variant / 'seed0'
    workdir.mkdir(parents=True)
    lines = ['step,epoch,train/top1_error,eval/top1_error', '1,0.5,0.5,']
    lines += [f'{2 * i},{2 * i}.0,0.5,{e}' for i, e in enumerate(errors, 1)]
    (workdir / metrics.CSV_FILE).write_text('\n'.join(lines))
    last = dict.fromkeys(summary.LAST_COLUMNS, '') | {'wall_seconds': 1.0}
    failed = {'failed': '' if errors else 'the loss was not finite'}
    rows.append({'variant': variant, 'seed': 0} | last | failed)
  summary.write(tmp_path, rows)
  monkeypatch.setattr(sweep, 'run', lambda *args: rows)
  found = dropout_convergence.run(None, 1, tmp_path)
  # Smoothed: .4, .375, .36, .32, .3 and so on.
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


@pytest.mark.parametrize('epochs', [0.0, -1.0, float('nan'), float('inf')])
def test_wrong_epochs_are_refused(monkeypatch, tmp_path, epochs):
  give_flags(monkeypatch, tmp_path, epochs=epochs)
  with pytest.raises(sweep.InputError, match='--epochs=.* must be finite'):
    dropout_convergence.main()


@pytest.mark.slow
def test_the_quick_command(monkeypatch, tmp_path, capsys):
  pytest.importorskip('matplotlib')
  give_flags(monkeypatch, tmp_path)
  dropout_convergence.main()
  assert 'not run yet' in capsys.readouterr().out
  assert {r['variant'] for r in summary.read_runs(tmp_path)} == {
    *('dropout_0.5', 'dropout_0')
  }
