"""Figure 4 with its precision: against scikit-learn, all orders, and a search."""

import itertools
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
from PIL import Image
import pytest
from sklearn import metrics

from alexnet_jax import feature_file
from alexnet_jax import nearest
from alexnet_jax import net as net_lib
from experiments import figure4
from experiments import ranking
from experiments import summary
from experiments import sweep

FIXTURE = pathlib.Path(__file__).parent / 'fixtures/workdir_ed611a7'


def feature_rows(rows, classes):
  return feature_file.FeatureFile(pathlib.Path(), rows, {'classes': classes})


def test_the_mean_average_precision_is_that_of_scikit_learn(monkeypatch):
  monkeypatch.setattr(nearest, 'BLOCK_VALUES', 4 * 7)
  monkeypatch.setattr(ranking, 'RANKED', 3)
  rng = np.random.default_rng(0)
  index, queries = (
    feature_rows(
      rng.normal(size=(n, 4)).astype(np.float16), [*rng.choice(classes, n)]
    )
    for n, classes in ((50, ['a', 'b', 'c']), (11, ['a', 'b', 'c', 'd']))
  )
  scores = []
  for row, name in zip(queries.rows, queries.about['classes'], strict=True):
    if name != 'd':  # The index has none of it.
      distances = np.linalg.norm((index.rows - row).astype(float), axis=1)
      same = np.array(index.about['classes']) == name
      scores.append(metrics.average_precision_score(same, -distances))
  assert 0 < len(scores) < 11
  found = ranking.mean_average_precision(index, queries)
  assert found == pytest.approx(np.mean(scores), rel=1e-6)


def test_the_median_place_of_neighbours_is_that_in_all_distances(monkeypatch):
  monkeypatch.setattr(nearest, 'BLOCK_VALUES', 4 * 7)
  monkeypatch.setattr(ranking, 'RANKED', 3)
  rng = np.random.default_rng(0)
  index, queries = (
    feature_rows(rng.normal(size=(n, 4)).astype(np.float16), ['a'] * n)
    for n in (51, 11)
  )
  neighbours = rng.integers(0, 51, (11, 3))
  places = []
  for query, own in zip(queries.rows, neighbours, strict=True):
    distances = np.linalg.norm((index.rows - query).astype(float), axis=1)
    places += [(distances < distances[i]).sum() / 50 for i in own]
  found = ranking.median_place(index, queries, neighbours)
  assert found == pytest.approx(np.median(places))
  nearest_two = nearest.search(index.rows, queries.rows, 2)[1]
  found = ranking.median_place(index, queries, nearest_two)
  assert found == pytest.approx(0.5 / 50)  # Places 0 and 1.


def test_chance_is_the_mean_over_all_orders():
  classes = ['a', 'a', 'b', 'a', 'b']
  scores = []
  for order in itertools.permutations(range(5)):
    rows = np.array(order, np.float16)[:, None] + 1
    index = feature_rows(rows, classes)
    queries = feature_rows(np.zeros((2, 1), np.float16), ['a', 'b'])
    scores.append(ranking.mean_average_precision(index, queries))
  expected = ((3 / 5 + 2 / 5) / 2, np.mean(scores), 2)
  assert ranking.chance(index, queries) == pytest.approx(expected)


@pytest.fixture(scope='module')
def values(tmp_path_factory, data_dir):
  """The values of the flags that name a net for the digits."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  return {
    'workdir': str(shutil.copytree(FIXTURE, workdir)),
    'weights': None,
    'checkpoint': 'latest',
    'data_dir': str(data_dir),
    'compilation_cache_dir': '',
  }


def test_every_layer_has_a_row_and_both_parts_are_drawn(
  values, tmp_path, monkeypatch
):
  # One layer and full batches, so that little is compiled.
  monkeypatch.setattr(figure4, 'LAYERS', ('pixels', 'fc7'))
  rows = figure4.run([values], tmp_path, 64, 32, words={})
  assert [row['variant'] for row in rows] == [*figure4.LAYERS, 'chance']
  assert {(row['queries'], row['images']) for row in rows} == {(32, 64)}
  # What a search among the features that Python gives finds.
  net = net_lib.load(
    values['workdir'], checkpoint='latest', data_dir=values['data_dir']
  )
  features, labels, items = [], [], []
  for part in ('train[:64]', 'test[:32]'):
    split = figure4.image_files.Split(f'digits/{part}', values['data_dir'])
    items.append([*split])
    features.append(net.features([item.image for item in items[-1]], 'fc7'))
    labels.append(np.array([item.class_name for item in items[-1]]))
  distances = np.linalg.norm(features[1][:, None] - features[0], axis=2)
  order = np.argsort(distances, axis=1)[:, :6]
  precision = (labels[0][order] == labels[1][:, None]).mean()
  # Rounding to float16 may change the last of six.
  assert rows[1][figure4.PRECISION] == pytest.approx(precision, abs=1 / 90)
  assert [row['variant'] for row in summary.read_runs(tmp_path)] == [
    row['variant'] for row in rows
  ]
  # Six of 64 images: the third of them by pixels has two before it.
  assert rows[0][figure4.NEARER] == 2.5 / 63
  pixels = [np.stack([i.image for i in part]) for part in items]
  shape = (len(labels[1]), 1, -1)
  distances = np.linalg.norm(
    pixels[1].reshape(shape).astype(float) - pixels[0].reshape(1, 64, -1),
    axis=2,
  )
  places = np.argsort(np.argsort(distances, axis=1), axis=1)
  expected = np.median(np.take_along_axis(places, order, axis=1)) / 63
  assert rows[1][figure4.NEARER] == pytest.approx(expected, abs=1 / 63)
  assert f'| pixels | {100 * rows[0][figure4.PRECISION]:.1f} |' in (
    figure4.table(rows)
  )
  sizes = {}
  for name in ('left.png', 'right.png'):
    with Image.open(tmp_path / name) as image:
      sizes[name] = image.size
  assert sizes['left.png'][0] == 4 * 252 + 12  # Two rows of four.
  assert sizes['right.png'] == (12 + 7 * 172 + 24, 5 * 216 + 12)
  assert {file.name for file in tmp_path.iterdir()} == {
    *('left.png', 'right.png', 'runs.csv', 'summary.csv')
  }


def test_nets_of_one_seed_are_refused_before_anything_is_written(
  values, tmp_path
):
  with pytest.raises(
    sweep.InputError, match='an earlier net has the same seed'
  ):
    figure4.run([values, values], tmp_path, 100, 20, words={})
  assert [*tmp_path.iterdir()] == []


def test_features_that_do_not_fit_on_the_disk_are_refused_first(
  values, tmp_path, monkeypatch
):
  usage = types.SimpleNamespace(free=2 * 50 * 76 * 76 * 3 * 2 - 1)
  monkeypatch.setattr(figure4.shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(sweep.InputError, match='--images=50: the pixels of 50 '):
    figure4.run([values], tmp_path, 50, 20, words={})
  assert [*tmp_path.iterdir()] == []


@pytest.mark.slow  # It compiles the net for each of three layers.
def test_the_quick_command(values, tmp_path):
  pytest.importorskip('matplotlib')
  command = [sys.executable, '-m', 'experiments.figure4', '--quick']
  given = {name: values[name] for name in ('workdir', 'checkpoint', 'data_dir')}
  command += [f'--{name}={value}' for name, value in given.items()]
  done = subprocess.run(
    [*command, f'--output={tmp_path}'],
    cwd=pathlib.Path(__file__).parents[1],
    check=True,
    capture_output=True,
    text=True,
  )
  assert '| fc7 | ' in done.stdout
  assert [row['variant'] for row in summary.read_runs(tmp_path)] == [
    *(*figure4.LAYERS, 'chance')
  ]
  for name in ('left.png', 'right.png', 'figure.png'):
    assert (tmp_path / name).read_bytes()[:4] == b'\x89PNG'
