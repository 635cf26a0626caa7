"""experiments/README.md: every claim has its row, command, record and verdict.

`docs_test` compares the figures of the page with their records.
"""

import collections
import csv
import importlib
import importlib.util
import json
import math
import pathlib
import re
import shlex
import sys
from unittest import mock

from absl import flags
from ml_collections import config_flags
import pytest
from scipy import stats

from alexnet_jax import config as config_lib
from experiments import ablation_table
from experiments import colour_split
from experiments import summary
from tests import docs_test

ROOT = pathlib.Path(__file__).parents[1]
REPORT = 'experiments/README.md'
# What the paper says of its own nets, by section; not the numbers of other systems.
CLAIMS = {
  'abstract': ['parameters', 'layers', 'neurons', 'competition'],
  '3.1': ['figure1'],
  '3.2': [
    *('traffic', 'one_gpu_parameters', 'two_gpus', 'two_gpus_time'),
    'one_tower_small',
  ],
  '3.3': ['lrn', 'lrn_cifar10', 'lrn_small'],
  '3.4': ['pooling_windows', 'pooling'],
  '3.5': ['softmax', 'towers'],
  '4.1': ['views', 'augmentation', 'pca_colour', 'pca_colour_small'],
  '4.2': ['dropout', 'dropout_iterations'],
  '5': ['weight_decay', 'initial_biases', 'days'],
  'Table 1': ['table1'],
  'footnote 5': ['table1_one_view', 'ten_views'],
  'Table 2': [
    *('table2_one', 'table2_five', 'table2_pretrained', 'table2_seven'),
    *('averaging', 'pretraining_photos', 'pretraining_cifar10'),
  ],
  '6': ['fall2009'],
  '7': ['middle_layers', *(f'conv{i}_small' for i in (2, 3, 4, 5))],
  'Fig. 2': ['conv1_neurons'],
  'Fig. 3': ['figure3', 'figure3_every_run'],
  'Fig. 4': ['figure4_top5', 'figure4_nearest'],
}
# The nets of the source whose errors the paper does not give.
SOURCE = ['cifar10_26', 'cifar10_18']
NAMES = sorted(SOURCE + sum(CLAIMS.values(), []))
VERDICTS = (
  'reproduced',
  'same sign, smaller',
  'noise',
  'contradicted',
  'not run: needs ImageNet',
  'not run yet',
)
# 97.5% quantiles of Student's t, by number of seeds.
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def table(*columns):
  """The cells of these columns by claim."""
  rows = docs_test.document_table(REPORT, 'claim', *columns)
  names = [name.strip('`') for name, *_ in rows]
  assert len(names) == len({*names})
  return dict(zip(names, (cells for _, *cells in rows), strict=True))


def results():
  return table('what', 'paper', 'ours ± se (n)', 'verdict')


def commands():
  found = table('data', 'command', 'figure', 'commit')
  return {n: re.findall('`([^`]+)`', row[1]) for n, row in found.items()}


def test_every_claim_of_the_paper_has_a_result_and_a_command():
  assert sorted(results()) == NAMES
  assert sorted(commands()) == NAMES
  assert all(commands().values())


@pytest.mark.parametrize('section', CLAIMS)
def test_a_claim_names_its_section(section):
  found = results()
  wrong = [n for n in CLAIMS[section] if f'({section})' not in found[n][0]]
  assert wrong == []


def test_verdicts_are_of_the_list_and_follow_from_what_was_measured():
  for name, (_, paper, ours, verdict) in results().items():
    assert verdict in VERDICTS, name
    measured = [verdict for verdict in VERDICTS if verdict[:3] != 'not']
    if verdict in measured:
      assert ours != '-', name
      assert paper != '-' or name in SOURCE, name
  assert {f'| {v} |' for v in VERDICTS} == {
    f'| {row[0]} |'
    for row in docs_test.document_table(REPORT, 'verdict', 'meaning')
  }


def expected_verdict(paper, mean, error, number):
  """The verdict on a difference, by the rules of the page."""
  if number < 3:
    return 'not run yet'
  least, most = mean - T[number] * error, mean + T[number] * error
  if least > 0:
    return 'same sign, smaller' if most < paper else 'reproduced'
  return 'contradicted' if most < 0 else 'noise'


def measured_differences():
  """(name, size by the paper, mean, error, n, verdict) of the differences."""
  for name, (_, paper, ours, verdict) in results().items():
    for _, target, title in docs_test.LINK.findall(ours):
      if ' - ' in title:
        with open(ROOT / 'experiments' / target, newline='') as file:
          rows = list(csv.DictReader(file))
        found = docs_test.mean_error_and_number(rows, title)
        size = re.search(r'[\d.]+', paper)  # None if the paper gives none.
        yield name, float(size[0]) if size else 0.0, *found, verdict


def test_the_verdict_on_a_difference_follows_from_its_interval():
  checked = []
  for name, *found, verdict in measured_differences():
    assert verdict == expected_verdict(*found), name
    checked.append(name)
  assert len(checked) >= 14


def test_the_first_page_names_the_noise_that_is_below_the_papers_size():
  below = [
    f'`{name}`'
    for name, paper, mean, error, number, verdict in measured_differences()
    if verdict == 'noise' and 0 < mean + T[number] * error < paper
  ]
  logs, _ = dropout_factors()
  mean, error = summary.mean_and_standard_error(logs)
  if mean + T[len(logs)] * error < math.log(2):
    below.append('`dropout_iterations`')
  text = ' '.join(docs_test.read(REPORT).split('## What was easy')[0].split())
  (named,) = re.findall(r'the intervals of ([^.]*?) exclude the paper', text)
  assert sorted(re.findall('`[^`]+`', named)) == sorted(below)


def test_the_table_of_ablations_is_that_of_its_runs():
  folder = ROOT / 'experiments/results/ablations'
  rows = ablation_table.table_rows(summary.read_runs(folder))
  with open(folder / ablation_table.FILE, newline='') as file:
    recorded = list(csv.DictReader(file))
  assert [row['row'] for row in recorded] == [row['row'] for row in rows]
  for row, found in zip(recorded, rows, strict=True):
    for column, value in found.items():
      if isinstance(value, float):  # Another SciPy may round otherwise.
        assert float(row[column]) == pytest.approx(value), column
      else:
        assert row[column] == ('' if value is None else str(value)), column


def test_the_verdict_on_an_error_of_the_source_follows_from_its_mean():
  found = table("source's log", 'ours ± se (n)', 'verdict')
  checked = []
  for name in SOURCE:
    log, ours, verdict = found[name]
    for _, target, title in docs_test.LINK.findall(ours):
      with open(ROOT / 'experiments' / target, newline='') as file:
        rows = list(csv.DictReader(file))
      mean, _, number = docs_test.mean_error_and_number(rows, title)
      is_near = abs(mean - float(log)) <= 1
      assert verdict == ('reproduced' if is_near else 'contradicted'), name
      assert number >= 3
      checked.append(name)
  assert checked


def test_the_verdict_on_a_ratio_of_times_follows_from_its_interval():
  _, _, ours, verdict = results()['two_gpus_time']
  (target,) = {target for _, target, _ in docs_test.LINK.findall(ours)}
  record = json.loads((ROOT / 'experiments' / target).read_text())
  seconds = record['figures']['seconds']
  two, one = (
    seconds[name]
    for name in ('two towers, two devices', 'one tower, one device')
  )
  found = sorted(a / b for a, b in zip(two, one, strict=True))
  number = len(found)
  # So many rounds lie below the median with a probability of at most 0.025.
  outside = int(stats.binom.ppf(0.025, number, 0.5))
  if stats.binom.cdf(outside, number, 0.5) > 0.025:
    outside -= 1
  assert outside >= 0
  least, most = found[outside], found[number - 1 - outside]
  right = 'contradicted' if least > 1 else 'noise'
  assert verdict == ('reproduced' if most < 1 else right)


def test_the_verdicts_on_the_split_follow_from_its_runs():
  rows = summary.read_runs(ROOT / 'experiments/results/figure3')
  auc, p = (summary.values_of(rows, 'two_towers', m) for m in ('auc', 'p'))
  found = results()
  assert found['figure3'][3] == colour_split.verdict_of(auc, p)
  assert found['figure3_every_run'][3] == colour_split.every_run_verdict(p)


def test_the_verdict_on_figure_1_follows_from_all_seeds():
  """The interval of all three ratios, less 1: 0 is no difference."""
  rows = summary.read_runs(ROOT / 'experiments/results/figure1')
  epochs = {
    (row['variant'], row['seed']): row['epochs_to_target'] for row in rows
  }
  ratios = [epochs['tanh_0.004', s] / epochs['relu_0.001', s] for s in range(3)]
  mean, error = summary.mean_and_standard_error(ratios)
  _, paper, _, verdict = results()['figure1']
  size = float(re.search(r'[\d.]+', paper)[0]) - 1
  assert verdict == expected_verdict(size, mean - 1, error, len(ratios))


def dropout_factors():
  """The logarithms of the factors, and the variants with lower bounds."""
  folder = ROOT / 'experiments/results/dropout_convergence'
  with open(folder / 'convergence.csv', newline='') as file:
    rows = {(row['variant'], row['seed']): row for row in csv.DictReader(file)}
  logs, late = [], set()
  for seed in '012':
    pair = [rows[variant, seed] for variant in ('dropout_0.5', 'dropout_0')]
    logs.append(math.log(float(pair[0]['epochs']) / float(pair[1]['epochs'])))
    late |= {r['variant'] for r in pair if r['is_lower_bound'] == 'True'}
  return logs, late


def test_the_verdict_on_dropout_follows_from_the_epochs_of_its_runs():
  """The interval of the logarithms, and what a bound allows."""
  logs, late = dropout_factors()
  mean, error = summary.mean_and_standard_error(logs)
  expected = expected_verdict(math.log(2), mean, error, len(logs))
  assert late == {'dropout_0'}  # So the factor is an upper bound.
  assert expected in ('noise', 'contradicted')
  _, paper, _, verdict = results()['dropout_iterations']
  assert (paper, verdict) == ('about 2', expected)


def test_the_verdict_on_neighbours_follows_from_figure_4():
  with open(
    ROOT / 'experiments/results/figure4/cifar10/runs.csv', newline=''
  ) as file:
    rows = {row['variant']: row for row in csv.DictReader(file)}
  share, queries = {}, int(rows['fc7']['queries'])
  for layer in ('pixels', 'fc7', 'chance'):
    share[layer] = float(rows[layer]['precision_at_6'])
  error = (share['fc7'] * (1 - share['fc7']) / queries) ** 0.5
  is_above = share['fc7'] - max(share['pixels'], share['chance']) > 2 * error
  is_far = float(rows['fc7']['nearer_by_pixels']) > 0.01
  verdict = results()['figure4_nearest'][3]
  assert (verdict == 'reproduced') == (is_above and is_far)


@pytest.mark.parametrize(
  ('paper', 'measured', 'verdict'),
  [
    # The interval of three seeds is ± 4.303 standard errors.
    (1.5, (1.44, 0.15, 3), 'reproduced'),
    (1.5, (0.8, 0.1, 3), 'same sign, smaller'),
    (1.5, (4.0, 0.1, 3), 'reproduced'),
    (1.5, (0.8, 0.3, 3), 'noise'),
    (1.5, (-0.8, 0.3, 3), 'noise'),
    (1.5, (-0.8, 0.1, 3), 'contradicted'),
    (1.5, (1.5, 0.01, 2), 'not run yet'),
  ],
)
def test_the_rules_of_verdicts(paper, measured, verdict):
  assert expected_verdict(paper, *measured) == verdict


def test_every_number_of_ours_is_a_link_to_a_record():
  bare = {}
  for name, (_, _, ours, _) in results().items():
    rest = docs_test.LINK.sub(lambda link: '' if link[3] else link[0], ours)
    if re.search(r'\d', rest):
      bare[name] = rest
  assert bare == {}


def test_the_figures_of_the_first_page_are_those_of_the_table():
  first, _ = docs_test.read(REPORT).split('\n## Claims\n')
  found = re.findall(r'[\d.]+ ± [\d.]+', first)
  ours = ' '.join(row[2] for row in results().values())
  assert len(found) >= 3
  assert [figure for figure in found if f'[{figure} (' not in ours] == []


def test_the_first_page_counts_the_verdicts():
  counts = collections.Counter(row[-1] for row in results().values())
  (line,) = re.findall(r'^1\. (Of .*)$', docs_test.read(REPORT), re.MULTILINE)
  parts = [f'{n} {"is" if n == 1 else "are"} {v}' for v, n in counts.items()]
  found = re.findall(r'\d+ (?:is|are) [^;.]*', line)
  assert sorted(found) == sorted(parts)
  assert line.startswith(f'Of {len(NAMES)} rows ')


def defined_flags(module):
  """Names of the flags that a command defines, read from the source."""
  path = pathlib.Path(importlib.util.find_spec(module).origin)
  text = path.read_text()
  for other in ('net_flags', 'evaluate', 'sweep'):
    if f'{other}.define' in text or f'{other} as {other}_lib' in text:
      folder = 'experiments' if other == 'sweep' else 'alexnet_jax'
      text += (ROOT / folder / f'{other}.py').read_text()
  names = re.findall(r"DEFINE_\w+\(\s*'(\w+)'", text)
  return {*names, *(['sheet'] if 'define_sheet' in text else [])}


def checked_config(words):
  """Sets the keys as main does; raises what an unknown key or `check` raises."""
  path, *keys = (word.removeprefix('--config=') for word in words)
  assert pathlib.PurePath(path).parent.name == 'configs'
  module = importlib.import_module(f'configs.{pathlib.PurePath(path).stem}')
  values, words = flags.FlagValues(), ['main', *keys]
  with mock.patch.object(sys, 'argv', words):  # It reads the keys from there.
    config = config_flags.DEFINE_config_dict(
      'config', module.get_config(), flag_values=values
    )
    values(words)
  config_lib.check(config.value, 1)


COMMANDS = sorted({c for found in commands().values() for c in found})


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_exists_and_takes_its_flags(command):
  python, dash_m, module, *words = shlex.split(command)
  assert (python, dash_m) == ('python', '-m')
  keys = [word for word in words if word.startswith('--config')]
  given = {w[2:].partition('=')[0] for w in words if w[:2] == '--'}
  unknown = (
    given - defined_flags(module) - {k[2:].partition('=')[0] for k in keys}
  )
  assert unknown == set()
  if module == 'alexnet_jax.main' and '--mode=evaluate' not in words:
    checked_config(keys)


def test_a_wrong_key_or_value_is_found():
  config = '--config=configs/paper.py'
  with pytest.raises(AttributeError, match='dropout'):
    checked_config([config, '--config.model.dropout=0.0'])
  with pytest.raises(ValueError, match='dropout_rate'):
    checked_config([config, '--config.model.dropout_rate=1.5'])
  with pytest.raises(ModuleNotFoundError):
    checked_config(['--config=configs/other.py'])


def test_a_row_with_a_figure_or_a_record_has_a_commit():
  rows = table('data', 'command', 'figure', 'commit')
  found = results()
  for name, (_, _, figure, commit) in rows.items():
    assert (commit == '-') == (found[name][2] == '-'), name
    assert re.fullmatch('-|[0-9a-f]{7}', commit), name
    for _, target, _ in docs_test.LINK.findall(figure):
      assert (ROOT / 'experiments' / target).exists(), name
