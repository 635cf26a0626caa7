"""The pictures of the recorded figures: that they show the figures."""

import importlib.util
import json
import pathlib

import pytest

pytest.importorskip('matplotlib')  # Optional.

from absl.testing import flagsaver
from PIL import Image

from benchmarks import plots

ENVIRONMENT = {
  'machine': 'a machine',
  'cores': 2,
  'devices': ['cpu'],
  'jax': '0',
  'commit': '0123456789abcdef',
}
RATIO = {'median': 1.5, 'least': 1.25, 'most': 2.0}
LAYER = {'name': 'conv1', 'forward_seconds': 0.25, 'backward_seconds': 0.5}
FIGURES = {
  'train_step': {
    'rounds': 3,
    'float32': {
      'batches': {'32': {'ratios': {'PyTorch eager': RATIO}}},
      'layers': [LAYER],
    },
  },
  'inference': {'float32': {'32': {'ratios': {'PyTorch eager': RATIO}}}},
  'input_pipeline': {
    '1': {
      'ours': [[10.0, 20.0], [12.0, 24.0], [14.0, 22.0]],
      'ours, nothing decoded': [[900.0, 900.0]],
    },
    '2': {'ours': [[11.0, 40.0]]},
  },
  'end_to_end': {
    'segments': {'real': [{'images_per_second': x} for x in (7.0, 9.0, 8.0)]}
  },
  'startup': {
    'bar': 20.0,
    'starts': {'cold': [{'seconds': 13.0}], 'warm': [{'seconds': 5.0}]},
    'parts': {'imports': 2.5},
  },
  'scaling': {'fixed_seconds': {'one device': [0.003, 0.002, 0.004]}},
  'switches': {
    'batch': 4,
    'dtype': 'bfloat16',
    'ratios': {'as it is': RATIO, 'another': RATIO | {'most': 3.0}},
  },
  'communication': [
    {'layout': 'data', 'mesh': '1x1', 'received_bytes': 0},
    {'layout': 'data', 'mesh': '2x1', 'received_bytes': 243_860_912},
  ],
}
# Lengths of the bars of each panel, in its unit, by hand.
LENGTHS = {
  'train_step': [[1.5], [250.0, 500.0]],
  'inference': [[1.5]],
  'input_pipeline': [[12.0, 11.0], [22.0, 40.0]],
  'end_to_end': [[8.0]],
  'startup': [[13.0, 5.0], [2.5]],
  'scaling': [[3.0]],
  'switches': [[1.5, 1.5]],
  'communication': [[243.860912]],
}


def write(folder, name, **changes):
  content = {'environment': ENVIRONMENT, 'figures': FIGURES[name]} | changes
  (folder / f'{name}.json').write_text(json.dumps(content))
  return folder / f'{name}.json'


def figure_of(name):
  return plots.draw_figure(*plots.find_panels(name)(FIGURES[name]))


def test_every_benchmark_with_panels_has_its_example():
  folder = pathlib.Path(plots.__file__).parent
  names = {path.stem for path in folder.glob('*.py')} - {'tf_data'}
  known = {name for name in names if plots.find_panels(name)}
  assert FIGURES.keys() == LENGTHS.keys() == known


def test_every_record_of_these_can_be_drawn():
  folder = pathlib.Path(plots.__file__).parent / 'results'
  for name in FIGURES:
    files = [*folder.rglob(f'{name}.json')]
    assert files
    for file in files:
      figures = json.loads(file.read_text())['figures']
      assert plots.draw_figure(*plots.find_panels(name)(figures)).axes


@pytest.mark.parametrize('name', FIGURES)
def test_bars_are_as_long_as_the_figures(name):
  axes = figure_of(name).axes
  lengths = [[bar.get_width() for bar in one.patches] for one in axes]
  assert lengths == [pytest.approx(expected) for expected in LENGTHS[name]]
  assert all(one.get_xlabel() for one in axes)


def test_lines_show_the_range_and_the_bar():
  (left, _) = figure_of('startup').axes
  assert [20.0, 20.0] in [list(line.get_xdata()) for line in left.lines]
  (left, _) = figure_of('train_step').axes
  lines = [list(line.get_xdata()) for line in left.lines]
  assert lines == [[1.25, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize('name', ['train_step', 'communication'])
def test_pictures_are_small_and_lie_beside_the_figures(name, tmp_path):
  said = plots.draw(write(tmp_path, name))
  assert said == str(tmp_path / f'{name}.png')
  with Image.open(said) as picture:
    assert picture.width == plots.WIDTH * plots.DPI
  assert (tmp_path / f'{name}.png').stat().st_size < 60_000


@pytest.mark.parametrize('figures', [{}, [], None, {'starts': 3}])
def test_other_figures_are_named_and_passed_over(figures, tmp_path):
  path = write(tmp_path, 'startup', figures=figures)
  assert plots.draw(path).startswith(f'{path}: no figures that this can draw')
  assert not path.with_suffix('.png').exists()


def command(folder):
  if 'results' not in plots.FLAGS:
    plots.flags.DEFINE_string('results', None, 'Folder of the records.')
  if not plots.FLAGS.is_parsed():
    plots.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(results=str(folder)):
    plots.main([])


def test_a_folder_without_figures_is_one_line(tmp_path):
  with pytest.raises(
    SystemExit, match='^--results=.* holds no record of a ben'
  ):
    command(tmp_path / 'nowhere')


def test_without_matplotlib_one_line_says_what_to_install(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(SystemExit, match='pip install matplotlib$'):
    command(tmp_path)


def test_the_command_draws_what_is_there(tmp_path, capsys):
  write(tmp_path, 'end_to_end')
  (tmp_path / 'towers.json').write_text('{}')
  command(tmp_path)
  assert capsys.readouterr().out == f'{tmp_path}/end_to_end.png\n'


@pytest.mark.parametrize(
  ('value', 'text'),
  [(1.234, '1.23'), (0.0205, '0.0205'), (1052.2, '1,052'), (99.96, '100')],
)
def test_values_have_three_figures(value, text):
  assert plots.short(value) == text
