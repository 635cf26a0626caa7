"""Features in files, and the search among them against NumPy in float64."""

import json
import pathlib
import pickle

import numpy as np
from PIL import Image
import pytest

from alexnet_jax import feature_file
from alexnet_jax import nearest


@pytest.mark.parametrize('block', [7, 40, 10**6])
@pytest.mark.parametrize('top', [3, 100])
def test_the_search_finds_what_a_sort_of_all_distances_finds(
  monkeypatch, block, top
):
  monkeypatch.setattr(nearest, 'BLOCK_VALUES', 5 * block)
  monkeypatch.setattr(nearest, 'QUERIES', 4)
  rng = np.random.default_rng(0)
  rows = (rng.normal(size=(60, 5)) + 30).astype(np.float16)  # Far from zero.
  rows[50] = rows[20]  # Equal rows are in order of their indices.
  queries = np.concatenate([rng.normal(size=(9, 5)) + 30, rows[20:21]])
  queries = queries.astype(np.float32)
  distances, indices = nearest.search(rows, queries, top)
  exact = queries.astype(np.float16).astype(float)[:, None] - rows.astype(float)
  exact = np.sqrt((exact**2).sum(2))
  order = np.argsort(exact, axis=1, kind='stable')[:, :top]
  np.testing.assert_array_equal(indices, order)
  np.testing.assert_allclose(
    distances, np.take_along_axis(exact, order, 1), rtol=1e-12
  )
  assert distances[-1, :2].tolist() == [0, 0]
  assert indices[-1, :2].tolist() == [20, 50]


def test_rows_that_float32_cannot_order_far_from_zero_are_ordered():
  rng = np.random.default_rng(0)
  rows, queries = (
    (rng.normal(size=(n, 5)) * 0.1 + 30).astype(np.float32) for n in (400, 50)
  )
  _, indices = nearest.search(rows, queries, 6)
  exact = queries.astype(float)[:, None] - rows.astype(float)
  order = np.argsort((exact**2).sum(2), axis=1, kind='stable')[:, :6]
  np.testing.assert_array_equal(indices, order)


def index_of(rows, classes):
  return feature_file.FeatureFile(pathlib.Path(), rows, {'classes': classes})


def test_precision_counts_neighbours_of_the_same_class():
  # On a line: a a b a b; each asks for the two nearest others.
  rows = np.array([[0], [1], [2.5], [4.5], [7]], np.float16)
  index = index_of(rows, ['a', 'a', 'b', 'a', ''])
  # 0: 1a 2b; 1: 0a 2b; 2: 1a 3a; 3: 2b 4; the last one's class is not known.
  share, count = nearest.precision(index, 2)
  assert (share, count) == (pytest.approx((0.5 + 0.5 + 0 + 0) / 4), 4)
  queries = np.array([[0.2], [2.4]], np.float32)
  assert nearest.precision(index, 3, queries, ['a', 'b']) == (
    pytest.approx((2 / 3 + 1 / 3) / 2),
    2,
  )
  # The index has no image of c, such as a folder that is no class.
  assert nearest.precision(index, 3, queries, ['a', 'c']) == (
    pytest.approx(2 / 3),
    1,
  )
  with pytest.raises(ValueError, match='no query has a class of the index'):
    nearest.precision(index_of(rows, [''] * 5), 2)


def test_an_image_is_not_its_own_neighbour_even_with_many_equal_ones():
  rows = np.zeros((6, 3), np.float16)
  share, count = nearest.precision(index_of(rows, ['a'] * 5 + ['b']), 2)
  # The first of equal rows are taken: an image of a finds two of a, and so does
  # that of b.
  assert (share, count) == (pytest.approx(5 / 6), 6)


@pytest.mark.parametrize('layer', ['fc7', 'conv1', 'pixels'])
def test_features_are_those_of_the_net_with_names_beside_them(
  run_command, tiny_net, pictures, tmp_path, layer
):
  output = tmp_path / 'features.npy'
  code, out, err = run_command(
    'features', pictures, f'--output={output}', f'--layer={layer}'
  )
  assert code == 1 and 'bad.png' in err  # One is damaged.
  assert f'5 images, layer {layer}' in out
  about = json.loads((tmp_path / 'features.npy.json').read_text())
  assert about['classes'][:3] == ['ant', 'ant', 'bee']
  images = [np.asarray(Image.open(path)) for path in about['names']]
  found = np.load(output, allow_pickle=False)
  if layer == 'pixels':
    expected = np.stack(images).astype(np.float32)
  else:
    expected = tiny_net.features(images, layer)
  assert found.shape == expected.shape and found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_index_finds_the_picture_itself_first(
  run_command, tiny_net, pictures, tmp_path
):
  index, sheet = tmp_path / 'index.npy', tmp_path / 'sheet.png'
  code, _, _ = run_command(
    'retrieve', f'--index={index}', f'--images={pictures}'
  )
  assert code == 1 and np.load(index).dtype == np.float16
  query = pictures / 'bee/c.png'
  code, out, _ = run_command(
    'retrieve',
    f'--index={index}',
    f'--query={query}',
    f'--sheet={sheet}',
    '--top=3',
    net=(),  # The index names its net.
  )
  assert code == 0
  lines = out.splitlines()
  assert lines[0] == str(query) and len(lines) == 4
  rows = np.load(index).astype(float)
  names = json.loads((tmp_path / 'index.npy.json').read_text())['names']
  distances = np.linalg.norm(rows - rows[names.index(str(query))], axis=1)
  order = np.argsort(distances, kind='stable')[:3]
  assert [line.split()[1] for line in lines[1:]] == [names[i] for i in order]
  # The query's batch has another size: its features differ in the last bit.
  np.testing.assert_allclose(
    [float(line.split()[0]) for line in lines[1:]], distances[order], atol=5e-2
  )
  assert np.asarray(Image.open(sheet)).shape[1] > 4 * 160
  code, out, _ = run_command(
    'retrieve', f'--index={index}', '--precision', '--top=1', net=()
  )
  assert code == 0 and out.endswith('(5 queries)\n')
  code, out, err = run_command(
    'retrieve', f'--index={index}', f'--query={query}', '--layer=fc6', net=()
  )
  assert (code, out) == (1, '')
  assert err.splitlines()[-1] == (
    f'ValueError: --layer=fc6, but --index={index} has layer fc7; omit --layer,'
    ' or make another index'
  )


def test_a_split_of_a_data_set_is_indexed_and_shown(
  run_command, data_dir, tmp_path
):
  index, sheet = tmp_path / 'index.npy', tmp_path / 'sheet.png'
  argv = [f'--index={index}', f'--data_dir={data_dir}']
  code, _, _ = run_command('retrieve', *argv, '--images=digits/test[10:15]')
  assert code == 0
  about = json.loads((tmp_path / 'index.npy.json').read_text())
  assert about['rows'] == [10, 11, 12, 13, 14]
  assert {*about['classes']} <= {*'0123456789'}
  code, out, err = run_command(
    'retrieve', *argv, '--query=digits/test[12:13]', f'--sheet={sheet}'
  )
  assert (code, err) == (0, f'wrote {sheet}\n')
  assert len(out.splitlines()) == 6
  assert out.splitlines()[1].split()[1] == about['names'][2]
  assert sheet.exists()


def test_a_search_compares_as_many_queries_as_it_can(
  run_command, tiny_net, pictures, tmp_path, monkeypatch
):
  index = tmp_path / 'index.npy'
  run_command('retrieve', f'--index={index}', f'--images={pictures}')
  sizes, search = [], nearest.search

  def counted(rows, queries, top):
    sizes.append(len(queries))
    return search(rows, queries, top)

  monkeypatch.setattr(nearest, 'search', counted)
  monkeypatch.setattr(nearest, 'QUERIES', 64)
  queries = [f'--query={pictures}/bee'] * 70  # Read in batches of 32.
  code, out, _ = run_command('retrieve', f'--index={index}', *queries)
  assert code == 0 and out.splitlines().count(f'{pictures}/bee/c.png') == 70
  assert sizes == [64, 6]


def test_the_precision_of_queries_leaves_out_what_is_no_class_of_the_index(
  run_command, tiny_net, pictures, tmp_path
):
  index = tmp_path / 'index.npy'
  argv = [f'--index={index}', f'--images={pictures}/ant']
  run_command('retrieve', *argv, f'--images={pictures}/bee')
  code, out, err = run_command(
    'retrieve',
    f'--index={index}',
    f'--query={pictures}',  # Also fox, and e.png in no class folder.
    '--precision',
    '--top=3',
  )
  # All three rows are found: two of ant, twice, and one of bee.
  assert out == f'precision at 3: {(2 * 2 / 3 + 1 / 3) / 3:.2%} (3 queries)\n'
  assert code == 1 and 'bad.png' in err


def damage(index, kind):
  """Spoils an index in one way; returns a part of the message for it."""
  about = index.with_name(f'{index.name}.json')
  rows = np.load(index)
  if kind == 'pickled':
    np.save(index, np.array([{'a': 1}], object), allow_pickle=True)
    return 'is not a .npy file of numbers'
  if kind == 'pickle':
    index.write_bytes(pickle.dumps({'a': 1}))
    return 'is not a .npy file of numbers'
  if kind == 'truncated':
    index.write_bytes(index.read_bytes()[:-3])
    return 'is not a .npy file of numbers'
  if kind == 'empty':
    np.save(index, rows[:0])
    return 'must have rows of features'
  if kind == 'fewer':
    np.save(index, rows[:2])
    return 'has 2 rows, but'
  if kind == 'no names':
    about.unlink()
    return 'makes both'
  if kind == 'not JSON':
    about.write_text('[1, 2]')
    return 'does not describe features'
  if kind == 'other net':
    text = about.read_text()
    values = json.loads(text)
    about.write_text(text.replace(values['net'], 'f' * 16))
    return 'trained on (digest ffffffffffffffff, from'
  raise AssertionError(kind)


@pytest.mark.parametrize(
  'kind',
  [
    'pickled',
    'pickle',
    'truncated',
    'empty',
    'fewer',
    'no names',
    'not JSON',
    'other net',
  ],
)
def test_a_damaged_index_is_one_line(
  run_command, tiny_net, pictures, tmp_path, kind
):
  index, query = tmp_path / 'index.npy', pictures / 'e.png'
  names = [str(pictures / name) for name in ('e.png', 'bee/c.png', 'fox/d.png')]
  about = {
    'net': feature_file.digest(tiny_net.weights),
    'net_path': '',
    'checkpoint': 'best',
    'layer': 'fc7',
    'data_dir': '',
    'folder': '/',
    'names': names,
    'classes': [''] * 3,
    'rows': [-1] * 3,
  }
  count = feature_file.write(index, [np.ones((3, 8), np.float16)], about)
  assert count == 3
  message = damage(index, kind)
  code, out, err = run_command(
    'retrieve', f'--index={index}', f'--query={query}'
  )
  assert (code, out) == (1, '')
  assert message in err and len(err.splitlines()) <= 3


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--images=x', '--query=y'], 'name either --images=DIR, to make an index'),
    ([], 'name either --images=DIR, to make an index'),
    (['--images=x', '--layer=fc9'], '--layer=fc9 is no layer of this net; it'),
    (['--query=x', '--layer=fc6'], 'no file'),
    (['--query=x', '--top=0'], '--top=0 must be positive'),
    (['--images=x', '--sheet=x.png'], '--sheet shows the neighbours'),
    (
      ['--query=x', '--precision', '--sheet=x.png'],
      '--sheet shows the neighbours of a --query=IMAGE; omit --images and --prec',
    ),
  ],
)
def test_a_mistake_in_the_flags_is_one_line(
  run_command, tmp_path, argv, message, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code, out, err = run_command('retrieve', '--index=i.npy', *argv)
  assert (code, out) == (1, '') and message in err
  assert len(err.splitlines()) == 1 and [*tmp_path.iterdir()] == []


def test_values_that_float16_cannot_hold_are_refused(
  run_command, pictures, tmp_path, monkeypatch
):
  from alexnet_jax import features

  large = lambda net, images, layer: np.full((len(images), 2), 7e4, np.float32)
  monkeypatch.setattr(features, 'compute', large)
  code, _, err = run_command(
    'retrieve', f'--index={tmp_path}/i.npy', f'--images={pictures}'
  )
  assert code == 1 and 'has values that float16 cannot hold' in err
  assert [*tmp_path.iterdir()] == []
