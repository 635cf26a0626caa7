"""README, docs/ and configs: what they name exists, and figures have records.

CONTRIBUTING.md ("Figures") describes how documents quote figures.
"""

import ast
import configparser
import csv
import fnmatch
import functools
import importlib
import importlib.util
import itertools
import json
import pathlib
import re
import statistics

import jax
from packaging import requirements
from packaging import utils
import pytest

import alexnet_jax
from alexnet_jax import config as config_lib
from alexnet_jax import model
from experiments import ablation_table
from experiments import summary

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'alexnet_jax'
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*.py'))
PAGES = sorted(
  str(path.relative_to(ROOT)) for path in (ROOT / 'docs').glob('*.md')
)
# Documents whose figures are compared with records.
QUOTING = [
  *('README.md', *PAGES),
  *('experiments/README.md', 'experiments/results/README.md'),
]
DOCUMENTS = [
  *QUOTING,
  'CONTRIBUTING.md',
  *(f'configs/{path.name}' for path in CONFIGS),
]


def read(document):
  return (ROOT / document).read_text()


def test_commands_in_documents_name_modules_that_exist():
  modules = {
    module
    for document in DOCUMENTS
    for module in re.findall(r'python3? -m ([\w.]+)', read(document))
  }
  assert {'alexnet_jax.main', 'alexnet_jax.prepare'} <= modules
  missing = {m for m in modules if importlib.util.find_spec(m) is None}
  assert sorted(missing) == []


@pytest.mark.parametrize('document', DOCUMENTS)
def test_the_files_that_a_document_names_exist(document):
  folders = '|'.join(
    [
      'alexnet_jax',
      'benchmarks',
      'configs',
      'docs',
      'experiments',
      'notebooks',
      'tests',
    ]
  )
  paths = re.findall(rf'(?<![\w/.])(?:{folders})/[\w./-]*\w', read(document))
  assert [path for path in paths if not (ROOT / path).exists()] == []


LINK = re.compile(r'\[([^\]]+)\]\(([^) ]+)(?: "([^"]+)")?\)')


@pytest.mark.parametrize('document', [*QUOTING, 'CONTRIBUTING.md'])
def test_the_files_that_a_document_links_to_exist(document):
  text = re.sub(r'`[^`]*`', '', read(document))
  folder = (ROOT / document).parent
  targets = [
    target.partition('#')[0]
    for _, target, _ in LINK.findall(text)
    if not target.startswith('http')
  ]
  assert [target for target in targets if not (folder / target).exists()] == []


def test_the_readme_links_to_every_page():
  linked = {target for _, target, _ in LINK.findall(read('README.md'))}
  assert PAGES and sorted({*PAGES} - linked) == []


def test_the_readme_is_short():
  assert read('README.md').count('\n') <= 160


@pytest.mark.parametrize('document', QUOTING)
def test_code_is_not_cut_off(document):
  code = re.findall(r'```\w*\n(.*?)```', read(document), re.S)
  # GitHub shows 92 characters of code in a column of 850 pixels.
  too_long = [x for x in ''.join(code).splitlines() if len(x) > 90]
  assert too_long == []


def test_the_map_lists_every_module_once():
  folders, found = [], []
  for line in read('docs/map.md').splitlines():
    match = re.match(r'( {4,})([\w.]+/?) ', f'{line} ')
    if match:
      depth = (len(match[1]) - 4) // 2
      folders[depth:] = [match[2]]
      if match[2].endswith('.py') and folders[0] == 'alexnet_jax/':
        found.append(''.join(folders))
  modules = [
    str(path.relative_to(ROOT))
    for path in PACKAGE.rglob('*.py')
    if path.name != '__init__.py'
  ]
  assert sorted(found) == sorted(modules)


def test_the_section_that_a_warning_refers_to_exists():
  (title,) = re.findall(
    r'"([^"]+)" in docs/troubleshooting\.md',
    (PACKAGE / 'chance_loss.py').read_text(),
  )
  assert f'\n## {title}\n' in read('docs/troubleshooting.md')


def test_the_table_of_sections_names_code_keys_and_tests_that_exist():
  columns = ('section', 'code', 'key', 'test')
  names = lambda cell: re.findall('`([^`]+)`', cell)
  missing = []
  for _, code, keys, tests in document_table('docs/paper.md', *columns):
    for name in names(code):
      module, _, attribute = name.partition('.')
      if not hasattr(
        importlib.import_module(f'alexnet_jax.{module}'), attribute
      ):
        missing.append(name)
    for key in names(keys):
      if not fnmatch.filter(values('paper'), key):
        missing.append(key)
    for name in names(tests):
      if not (ROOT / 'tests' / f'{name}.py').exists():
        missing.append(name)
  assert missing == []


# Figures: what a document quotes, against the record.

UNITS = {
  '%': 100.0,
  's': 1.0,
  'ms': 1e3,
  'min': 1 / 60,
  'hours': 1 / 3600,
  'GB': 1e-9,
  'MB': 1e-6,
  'kB': 1e-3,
  'GiB': 2.0**-30,
  'images/s': 1.0,
}
NUMBER = r'\d[\d,]*(?:\.\d+)?'
# A measured number: one with a unit, or a ratio with its range.
FIGURE = re.compile(
  rf'{NUMBER}\s?(?:(?:{"|".join(map(re.escape, UNITS))})(?![\w/])|%)'
  rf'|{NUMBER} (?:images a second|minutes|seconds)'
  rf'|{NUMBER} \({NUMBER} to {NUMBER}\)'
)
# Errors of the form top-1 / top-5.
PAIR = re.compile(r'(?<![\d.])\d+\.\d+ / \d+\.\d+(?!\.?\d)')
TABLE = re.compile(r'<!-- table of (\S+) -->\n((?:\|.*\n)+)')
IMAGENET, EPOCHS = 1_281_167, 90  # Training examples; epochs of the paper.


def numbers(text):
  return re.findall(NUMBER, text)


def shown_as(text, value, scale=1.0):
  """The value with the decimals and separators of a number in a document."""
  decimals = len(text.partition('.')[2])
  comma = ',' if ',' in text or value * scale >= 1000 else ''
  return f'{value * scale:{comma}.{decimals}f}'


def walk(record, keys):
  """The value under keys separated by ' > '; for a list that of each item."""
  for key in keys.split(' > '):
    if isinstance(record, list):
      record = [item[key] for item in record]
    else:
      record = record[key]
  return record


def spread(values):
  return [statistics.median(values), min(values), max(values)]


def ratios(numerator, denominator):
  return [a / b for a, b in zip(numerator, denominator, strict=True)]


def recorded(record, title):
  """The [value] or [median, least, most] that a link's title names."""
  if title == 'hours of 90 epochs':
    seconds = record['figures']['float32']['batches']['32']['seconds']['ours']
    return [IMAGENET * EPOCHS * statistics.median(seconds) / 32]
  if match := re.fullmatch('ratio of (.+) over (.+)', title):
    return spread(ratios(*(walk(record, keys) for keys in match.groups())))
  if match := re.fullmatch('median of (.+)', title):
    return [statistics.median(walk(record, match[1]))]
  return [walk(record, title)]


def csv_numbers(path, title):
  """The numbers that a link's title names in a csv, in order, as text.

  Of claims.csv it names a claim, of runs.csv a metric in % or a difference of two,
  'METRIC of VARIANT - METRIC of VARIANT': mean, standard error and number of seeds.
  'METRIC < LIMIT of VARIANT' is the number of such seeds, and that of all.
  """
  with open(path, newline='') as file:
    rows = list(csv.DictReader(file))
  if 'computed' in rows[0]:
    cells = {row['claim']: row['computed'] for row in rows}
    return [number.rstrip(',') for number in numbers(cells[title])]
  if match := re.fullmatch(r'(\w+) < ([\d.]+) of (\w+)', title):
    metric, limit, variant = match.groups()
    found = [float(row[metric]) for row in rows if row['variant'] == variant]
    return [str(sum(x < float(limit) for x in found)), str(len(found))]
  mean, error, number = mean_error_and_number(rows, title)
  found = [mean, error, number] if number > 1 else [mean]
  return [f'{x:.9f}' for x in found]


def mean_error_and_number(rows, title):
  """Mean, standard error and n of what a title names in rows of runs.csv.

  Differences are taken seed by seed, over the seeds that all terms
  have; errors and other shares are in %. One value has no standard error: 0.
  """
  terms = []
  for term in title.split(' - '):
    metric, variant = term.split(' of ')
    shares = ('error', 'precision_at_6', 'nearer_by_pixels')
    scale = 100 if metric.endswith(shares) else 1
    own = [row for row in rows if row['variant'] == variant]
    terms.append({row['seed']: scale * float(row[metric]) for row in own})
  first, *rest = terms
  seeds = [s for s in first if all(s in term for term in rest)]
  found = [first[s] - sum(term[s] for term in rest) for s in seeds]
  error = 0.0
  if len(found) > 1:
    error = statistics.stdev(found) / len(found) ** 0.5
  return statistics.mean(found), error, len(found)


def quotes(document):
  """(text, path of the record, title) of the links with a title."""
  text = re.sub(r'`[^`]*`', '', read(document))
  for shown, target, title in LINK.findall(text):
    if title:
      yield ' '.join(shown.split()), target, title


def quoting_error(shown, path, title):
  """What is wrong with a quoted figure; None if it equals the record."""
  found = numbers(shown)
  if path.suffix == '.md':
    for paragraph in path.read_text().split('\n\n'):
      text = ' '.join(paragraph.split())
      if title in text and {*found} <= {*numbers(text)}:
        return None
    return f'{shown}: not in a paragraph of {path.name} with {title!r}'
  if path.suffix == '.csv':
    right = csv_numbers(path, title)
    signed = re.findall(rf'-?{NUMBER}', shown)
    found = [number.rstrip(',') for number in signed]
    if all('.' in number for number in right):  # Means, not rounded yet.
      right = [shown_as(f, float(r)) for f, r in zip(found, right, strict=True)]
    is_right = found and found == right[: len(found)]
    return None if is_right else f'{shown}: {right} by {title!r}'
  values = recorded(json.loads(path.read_text()), title)
  unit = re.search(rf'{NUMBER}\s?({"|".join(UNITS)})$', shown)
  scale = UNITS[unit[1]] if unit else 1.0
  if len(found) != len(values):
    return f'{shown}: {len(values)} numbers by {title!r}'
  right = [shown_as(f, v, scale) for f, v in zip(found, values, strict=True)]
  return None if found == right else f'{shown}: {right} by {title!r}'


@pytest.mark.parametrize('document', QUOTING)
def test_a_quoted_figure_equals_that_of_its_record(document):
  folder = (ROOT / document).parent
  found = [
    quoting_error(shown, folder / target, title)
    for shown, target, title in quotes(document)
  ]
  assert [wrong for wrong in found if wrong] == []


def train_step_rows(record):
  names = [
    'ours',
    'PyTorch eager',
    'PyTorch eager, channels last',
    'PyTorch compiled',
    'PyTorch compiled, channels last',
  ]
  batches = record['figures']['float32']['batches']
  for name in names:
    row = ['this step' if name == 'ours' else name]
    for size, batch in batches.items():
      row.append(f'{int(size) / statistics.median(batch["seconds"][name]):.1f}')
      ratio = batch['ratios'].get(name)
      row.append(three(ratio.values()) if ratio else '')
    row.append(f'{batches["32"]["compile_seconds"][name]:.0f}')
    row.append(f'{batches["32"]["peak_bytes"][name] / 2**30:.1f}')
    yield row


def three(values):
  median, least, most = values
  return f'{median:.2f} ({least:.2f} to {most:.2f})'


def input_pipeline_rows(record):
  names = {
    'this pipeline': 'ours',
    'decoding alone': 'decoding alone, a thread per core',
    'tf.data': 'tf.data',
    'torch DataLoader, simplejpeg': 'DataLoader, simplejpeg',
    'torch DataLoader, Pillow': 'DataLoader, Pillow',
    'the same on full-size photographs': 'photographs: DataLoader, Pillow',
  }
  one, two = record['figures']['1'], record['figures']['2']
  column = lambda rates, which: [rate[which] for rate in rates]
  for title, name in names.items():
    yield [
      title,
      f'{statistics.median(column(one[name], 0)):,.0f}',
      f'{statistics.median(column(two[name], 1)):,.0f}',
      *(
        ''
        if name == 'ours'
        else three(
          spread(ratios(column(cores['ours'], 0), column(cores[name], 0)))
        )
        for cores in (one, two)
      ),
    ]


def communication_rows(record):
  received = {
    (figure['layout'], figure['mesh']): figure['received_bytes']
    for figure in record['figures']
  }
  for devices in (2, 4, 8):
    yield [
      str(devices),
      *(
        f'{received[layout, mesh] / 1e6:.1f}'
        for layout, mesh in [
          ('towers', f'{devices // 2}x2'),
          ('data', f'{devices}x1'),
          ('one_weird_trick', f'{devices}x1'),
        ]
      ),
    ]


def faults_rows(record):
  for name, row in record['figures']['rows'].items():
    seen = [f'{what}: {n:,}' for what, n in sorted(row['seen'].items())]
    for figure, value in row.get('figures', {}).items():
      shown = f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
      seen.append(f'{figure.replace("_", " ")} {shown}')
    if row['broken']:
      seen.append(f'BROKEN: {row["broken"]:,}')
    yield [
      f'`{name}`',
      row['injected'],
      f'{row["count"]:,}' if 'figures' in row else f'{row["done"]:,}',
      '; '.join(seen) or row['not_run'],
      f'{row["date"]}, {row["commit"][:7]}',
    ]


def init_plateau_rows(rows):
  titles = {
    'text': 'text: 0.01',
    'source': 'source: 0.03 in conv3, conv4, conv5',
    'caffe': 'Caffe: 0.005 in fc6 and fc7, biases 0.1',
    'caffe_preset': 'all of `configs/caffe.py`',
    'caffe_warm_up': "Caffe's initial values, and a rate that rises for 67 steps",
  }
  for init, title in titles.items():
    runs = [row for row in rows if row['variant'] == init]
    left = [int(float(row['left_at'])) for row in runs if row['left_at']]
    yield [
      title,
      f'{len(left)} of {len(runs)}',
      '{:.0f} ({} to {})'.format(*spread(left)) if left else '-',
      f'{statistics.mean(float(row["last_loss"]) for row in runs):.2f}',
    ]


def finetuning_rows(rows):
  for few in ('20', '50', 'all'):
    row = [few]
    for variant in (f'scratch_{few}', f'finetuned_{few}'):
      errors = [
        100 * float(run['eval/top1_error'])
        for run in rows
        if run['variant'] == variant
      ]
      standard_error = statistics.stdev(errors) / len(errors) ** 0.5
      row.append(f'{statistics.mean(errors):.1f} ± {standard_error:.1f}')
    yield row


FIGURE4_METRICS = 'precision_at_6', 'mean_average_precision', 'nearer_by_pixels'


def figure4_rows(rows):
  for layer in ('pixels', 'conv5', 'fc6', 'fc7', 'chance'):
    row = [layer]
    for metric in FIGURE4_METRICS:
      values = [100 * float(x[metric]) for x in rows if x['variant'] == layer]
      row.append(f'{statistics.mean(values):.1f}')
      if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        row[-1] += f' ± {error:.1f}'
    yield row


def ablations_rows(record):
  del record  # `ablations` reads it.
  folder = ROOT / 'experiments/results/ablations'
  rows = ablation_table.table_rows(summary.read_runs(folder))
  return map(cells, ablation_table.table(rows).splitlines()[2:])


TABLES = {
  'benchmarks/results/train_step.json': train_step_rows,
  'benchmarks/results/input_pipeline.json': input_pipeline_rows,
  'benchmarks/results/communication.json': communication_rows,
  'benchmarks/results/faults.json': faults_rows,
  'experiments/results/init_plateau/runs.csv': init_plateau_rows,
  'experiments/results/ablations/runs.csv': ablations_rows,
  'experiments/results/finetuning/photographs/runs.csv': finetuning_rows,
  'experiments/results/finetuning/cifar10/runs.csv': finetuning_rows,
  'experiments/results/figure4/photographs/runs.csv': figure4_rows,
  'experiments/results/figure4/cifar10/runs.csv': figure4_rows,
}


def cells(line):
  return [cell.strip() for cell in line.strip().strip('|').split('|')]


@pytest.mark.parametrize('path', TABLES)
def test_a_table_of_figures_equals_its_record(path):
  tables = {
    record: table.splitlines()
    for document in QUOTING
    for record, table in TABLE.findall(read(document))
  }
  assert sorted(tables) == sorted(TABLES)
  with open(ROOT / path, newline='') as file:
    csv_file = path.endswith('.csv')
    record = list(csv.DictReader(file)) if csv_file else json.load(file)
  assert list(map(cells, tables[path][2:])) == list(TABLES[path](record))


def blocks(document):
  """Paragraphs, items and rows, without code and without quoted figures."""
  text = TABLE.sub('', read(document))
  text = re.sub(r'```.*?```|`[^`]*`', '', text, flags=re.DOTALL)
  text = LINK.sub(lambda link: '' if link[3] else link[1], text)
  for paragraph in text.split('\n\n'):
    yield from re.split(r'\n(?=\||- )', paragraph)


@pytest.mark.parametrize('document', QUOTING)
def test_a_figure_has_a_record_or_a_source(document):
  everywhere = '<!-- source of all errors: ' in read(document)
  bare = []
  for block in blocks(document):
    if '<!-- source: ' not in block:
      text = ' '.join(re.sub('<!--.*?-->', '', block, flags=re.DOTALL).split())
      bare += FIGURE.findall(text) + ([] if everywhere else PAIR.findall(text))
  assert bare == []


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_with_a_record_does_not_repeat_its_figures(path):
  text = ast.get_docstring(ast.parse(path.read_text()))
  assert not ('experiments/results/' in text and FIGURE.search(text))


def test_values_are_shown_with_the_decimals_of_the_document():
  assert shown_as('56.50', 0.565, UNITS['%']) == '56.50'
  assert shown_as('31', 1880.2, UNITS['min']) == '31'
  assert shown_as('1880', 1880.2) == '1,880'
  record = {'a': [{'b': 1.0}, {'b': 4.0}], 'c': [2.0, 2.0]}
  assert recorded(record, 'median of a > b') == [2.5]
  assert recorded(record, 'ratio of a > b over c') == [1.25, 0.5, 2.0]


@pytest.mark.parametrize(
  'text, found',
  {
    'It took 34 s.': ['34 s'],
    'an error of 1.33% on': ['1.33%'],
    '1.03 (0.90 to 1.07) of it': ['1.03 (0.90 to 1.07)'],
    '13,000 to 22,000 images a second': ['22,000 images a second'],
    '100,000 steps of 256 images': [],
    'a T4 with 16 GiB': ['16 GiB'],
  }.items(),
)
def test_figures_are_recognised(text, found):
  assert FIGURE.findall(text) == found


# The tables of deviations and of nets.


def document_table(document, *columns):
  """The cells of these columns in the table that has them all."""
  lines = read(document).splitlines()
  heads = [i for i, ln in enumerate(lines) if {*columns} <= {*cells(ln)}]
  assert len(heads) == 1, f'{document} needs one table with columns {columns}'
  wanted = [cells(lines[heads[0]]).index(column) for column in columns]
  rows = itertools.takewhile(
    lambda line: line.startswith('|'), lines[heads[0] + 2 :]
  )
  return [[cells(row)[i] for i in wanted] for row in rows]


def deviation_table():
  return document_table('docs/deviations.md', '', 'keys', 'test')


@functools.cache
def deviations():
  """(keys, names of tests) by S1 ... S12, from the table."""
  return {
    title.split()[0]: (
      set(re.findall(r'`(\w+\.\w+)`', keys)),
      re.findall(r'`(\w+_test)`', tests),
    )
    for title, keys, tests in deviation_table()
  }


def values(name):
  """The values of a config by dotted key, with lists for tuples."""
  module = importlib.import_module(f'configs.{name}')
  return config_lib.flatten(module.get_config())


DEVIATIONS = [f'S{i}' for i in range(1, 13)]


def test_the_deviation_table_has_every_row_once_and_in_order():
  titles = [title for title, *_ in deviation_table()]
  rows = [title.split()[0] for title in titles]
  assert rows == DEVIATIONS


@pytest.mark.parametrize('row', DEVIATIONS)
def test_a_deviation_names_keys_and_tests_that_exist(row):
  keys, tests = deviations()[row]
  assert sorted(keys - values('paper').keys()) == []
  assert tests
  missing = [t for t in tests if not (ROOT / 'tests' / f'{t}.py').exists()]
  assert missing == []


@pytest.mark.parametrize('row', DEVIATIONS)
def test_the_keys_of_a_deviation_are_those_that_the_source_or_caffe_changes(
  row,
):
  text, source, caffe = map(values, ('paper', 'source', 'caffe'))
  keys = deviations()[row][0]
  same = {k for k in keys if text[k] == source[k] == caffe[k]}
  # Only torchvision's net sets these.
  assert {k for k in same if text[k] == values('torchvision')[k]} == set()
  differs = {key for key in keys if text[key] != source[key]}
  # In these rows the preset equals the text: the source has the same input and
  # dropout, and its draws, order and partial windows are not reproduced.
  assert bool(differs) == (row not in ('S1', 'S9', 'S10', 'S11', 'S12'))


def test_the_deviation_table_has_every_key_of_the_source_preset():
  text, source = values('ilsvrc2010'), values('source')
  named = set().union(*(keys for keys, _ in deviations().values()))
  assert (
    sorted(k for k in text if text[k] != source[k] and k not in named) == []
  )


@pytest.mark.parametrize('config', ['paper', 'source'])
def test_a_deviation_marked_in_a_config_is_the_one_of_the_table(config):
  lines = (ROOT / 'configs' / f'{config}.py').read_text()
  marks = re.findall(
    r'^ +(?:config\.)?(\w+\.\w+) = .*# .*Deviation (S\d+)', lines, re.MULTILINE
  )
  assert len(marks) >= 10
  wrong = [(key, row) for key, row in marks if key not in deviations()[row][0]]
  assert wrong == []


def test_every_deviation_that_the_code_mentions_has_a_row():
  code = [*PACKAGE.rglob('*.py'), *CONFIGS]
  marks = {
    mark
    for path in code
    for marks in re.findall(
      r'Deviations? (S\d+(?:(?:,| and| to) S\d+)*)', path.read_text()
    )
    for mark in re.findall(r'S\d+', marks)
  }
  assert len(marks) >= 7
  assert sorted(marks - {*DEVIATIONS}) == []


NET_TABLE = ('net', 'config or keys', 'parameters')


def test_the_nets_of_the_table_have_its_numbers_of_parameters():
  wrong, rows = [], document_table('docs/nets.md', *NET_TABLE)
  assert len(rows) >= 10
  for net, keys, parameters in rows:
    expected = int(re.match(r'[\d,]+', parameters)[0].replace(',', ''))
    changes = {
      key: ast.literal_eval(value.strip('"')) if value[0] in '"TF2' else value
      for key, value in re.findall(
        r'--config\.model\.(\w+)=("[^"]*"|[^\s`]+)', keys
      )
    }
    for name in re.findall(r'configs/(\w+)\.py', keys) or ['paper']:
      config = importlib.import_module(f'configs.{name}').get_config()
      config.model.update(changes | {'num_classes': 1000})
      size = config.input.crop_size
      params = jax.eval_shape(
        model.AlexNet(**config.model).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, size, size, 3), 'float32'),
      )
      count = sum(x.size for x in jax.tree.leaves(params))
      if count != expected:
        wrong.append(f'{net}: {count:,}')
  assert wrong == []


def test_the_schedules_of_the_table_are_those_of_the_presets():
  rows = document_table(
    'docs/nets.md',
    'run',
    'rate of the weights drops at epoch',
    'conv1 drops once more, colour noise ends',
    'conv1 frozen',
    'stopped',
  )
  assert [run for run, *_ in rows] == ['147', '148', '150']
  for run, drops, conv1_drop, frozen, stopped in rows:
    found = values(f'run{run}')
    assert found['input.dataset'] == 'imagenet2012'
    assert found['optimizer.drop_epochs'] == list(map(float, drops.split(', ')))
    once = [] if conv1_drop == 'neither' else [float(conv1_drop)]
    assert found['optimizer.conv1_drop_epochs'] == once
    assert found['augment.color_end_epoch'] == sum(once)  # 0 if it never ends.
    assert found['optimizer.conv1_freeze_epoch'] == float(frozen)
    assert found['train.epochs'] == float(stopped)


def test_requirements_pin_versions_that_setup_allows():
  pins = {}
  for line in (ROOT / 'requirements.txt').read_text().splitlines():
    if line := line.partition('#')[0].strip():
      pin = requirements.Requirement(line)
      (specifier,) = pin.specifier
      assert specifier.operator == '==' and '*' not in specifier.version, line
      pins[utils.canonicalize_name(pin.name)] = specifier.version
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  wanted = [
    requirements.Requirement(line)
    for section, key in [
      ('options', 'install_requires'),
      ('options.extras_require', 'test'),
    ]
    for line in setup[section][key].split('\n')
    if line
  ]
  assert wanted
  name = lambda want: utils.canonicalize_name(want.name)
  assert [str(want) for want in wanted if name(want) not in pins] == []
  assert [
    str(want) for want in wanted if pins[name(want)] not in want.specifier
  ] == []


def test_setup_has_the_version_and_lists_every_package():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  version = alexnet_jax.__version__
  assert setup['metadata']['version'] == version
  assert f'\nversion: {version}\n' in read('CITATION.cff')
  assert re.search(r'^## (.+)$', read('CHANGELOG.md'), re.M)[1] == version
  packages = [
    '.'.join(path.parent.relative_to(ROOT).parts)
    for path in PACKAGE.rglob('__init__.py')
  ]
  assert setup['options']['packages'].split() == sorted(
    [*packages, 'alexnet_jax.configs']
  )
  data = [x for x in PACKAGE.iterdir() if x.is_file() and x.suffix != '.py']
  folders = [x for x in PACKAGE.iterdir() if x.is_dir() and x.name[0] != '_']
  others = [x for x in folders if not (x / '__init__.py').exists()]
  listed = setup['options.package_data']['alexnet_jax'].split()
  assert listed == [
    *(path.name for path in data),
    *(f'{path.name}/*' for path in others),
  ]
