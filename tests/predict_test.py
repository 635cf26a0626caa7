"""The command that classifies pictures, with a tiny net of random weights.

What its outputs say is compared with the probabilities that the net gives for
the same pixels.
"""

import csv
import dataclasses
import io
import json
import sys

import numpy as np
from PIL import Image
import pytest

from alexnet_jax import image_files
from alexnet_jax import report
from alexnet_jax import weights as weights_lib
from alexnet_jax import words as words_lib
from tests import narrow_nets


def expected(net, paths, views='one'):
  """For each path the classes and probabilities, best first, by NumPy."""
  images = [np.asarray(Image.open(path)) for path in paths]
  table = net.probabilities(images, views=views)
  return [
    sorted(
      zip(narrow_nets.ANIMALS, row.tolist(), strict=True), key=lambda c: -c[1]
    )[:5]
    for row in table
  ]


@pytest.mark.parametrize('views', ['one', 'many'])
def test_json_has_a_line_for_each_picture_with_its_five_classes(
  run_command, tiny_net, pictures, views
):
  code, out, err = run_command(
    'predict', pictures, '--json', f'--views={views}'
  )
  lines = [json.loads(line) for line in out.splitlines()]
  names = ['ant/a.png', 'ant/more/b.png', 'bee/c.png', 'e.png', 'fox/d.png']
  assert [line['path'] for line in lines] == [f'{pictures}/{n}' for n in names]
  found = [
    [(p['class'], p['probability']) for p in line['predictions']]
    for line in lines
  ]
  wanted = expected(tiny_net, [pictures / n for n in names], views)
  assert [[c for c, _ in row] for row in found] == [
    [c for c, _ in row] for row in wanted
  ]
  for row, other in zip(found, wanted, strict=True):
    assert [p for _, p in row] == pytest.approx([p for _, p in other], rel=1e-4)
  true = [line.get('true_class') for line in lines]
  assert true == ['ant', 'ant', 'bee', None, 'fox']
  ranks = [
    [name for name, _ in row].index(t) if t in dict(row) else 5
    for row, t in zip(wanted, true, strict=True)
    if t
  ]
  top1, top5 = (np.mean([r >= n for r in ranks]) for n in (1, 5))
  assert (
    f'4 images of known class: top-1 error {top1:.2%}, top-5 error {top5:.2%}\n'
    in err
  )
  # The damaged picture is named, and the exit code says so.
  assert code == 1 and f'{pictures}/ant/bad.png (' in err


@pytest.mark.parametrize(
  ('num_classes', 'more'), [(6, ', top-5 error 25.00%'), (5, '')]
)
def test_errors_count_the_images_of_known_class(num_classes, more):
  errors = report.Errors(num_classes)
  classes = [(name, 0.1) for name in narrow_nets.ANIMALS[:5]]
  # Right; second; fifth; not among the five; not known.
  for true in ('ant', 'bee', 'eel', 'gnu', ''):
    errors.add(report.Prediction(image_files.Item('a', true, 'a'), classes))
  expected = f'4 images of known class: top-1 error 75.00%{more}'
  assert str(errors) == expected


def test_names_from_standard_input_and_csv(
  run_command, tiny_net, pictures, tmp_path, monkeypatch
):
  paths = [pictures / 'e.png', pictures / 'fox']
  monkeypatch.setattr(
    sys, 'stdin', io.TextIOWrapper(io.BytesIO(f'{paths[0]}\r\n\n'.encode()))
  )
  output = tmp_path / 'new/out.csv'
  code, out, _ = run_command('predict', '-', paths[1], f'--output={output}')
  assert code == 0 and out.startswith('1 image of known class: ')
  header, *rows = csv.reader(output.read_text().splitlines())
  assert header[:4] == ['path', 'true_class', 'class_1', 'probability_1']
  assert [row[:2] for row in rows] == [
    [f'{pictures}/e.png', ''],
    [f'{pictures}/fox/d.png', 'fox'],
  ]
  wanted = expected(tiny_net, [row[0] for row in rows])
  assert [row[2::2] for row in rows] == [[c for c, _ in w] for w in wanted]
  assert [file.name for file in output.parent.iterdir()] == ['out.csv']


def test_text_has_words_for_wordnet_ids(
  run_command, tiny_net, tiny_net_file, pictures, tmp_path
):
  # Any class name with words in the file is shown with them.
  words = tmp_path / 'words.txt'
  words.write_text(
    'n01440764 tench, Tinca tinca\nn01443537 goldfish \n1\tn02102040\tspringer\n'
  )
  found = words_lib.read(words)
  assert found == {
    'n01440764': 'tench, Tinca tinca',
    'n01443537': 'goldfish',
    'n02102040': 'springer',
  }
  path = pictures / 'e.png'
  code, out, _ = run_command('predict', path, f'--words={words}')
  ((name, share), *_), *_ = expected(tiny_net, [path])
  assert code == 0
  assert out.splitlines()[:2] == [str(path), f'  {share:7.2%}  {name}']
  weights = weights_lib.load(tiny_net_file)
  ids = tuple(words_lib.ilsvrc())[: len(weights.class_names)]
  renamed = tmp_path / 'ilsvrc.safetensors'
  weights_lib.save(renamed, dataclasses.replace(weights, class_names=ids))
  argv = [path, '--json']
  _, out, _ = run_command('predict', *argv, net=(f'--weights={renamed}',))
  first, *_ = json.loads(out)['predictions']
  assert first['class'] == ids[weights.class_names.index(name)]
  assert first['words'] == words_lib.ilsvrc()[first['class']]  # By default.
  words.write_bytes(words.read_bytes() + b'\nn02102040 caf\xe9')
  assert len(words_lib.read(words)) == 3  # Not UTF-8: shown as it can be.


def test_the_red_bar_is_that_of_the_true_class_though_words_are_alike():
  bird, machine = 'n02012849', 'n03126707'
  item = image_files.Item('crane.jpg', bird, 'crane.jpg')
  made = report.Prediction(item, [(machine, 0.6), (bird, 0.3)])
  shown = report.picture(made, {bird: 'crane', machine: 'crane'})
  assert shown.bars == [('crane', 0.6), ('crane', 0.3)] and shown.true_bar == 1
  other = report.Prediction(item, [(machine, 0.6)])
  assert report.picture(other, {}).true_bar not in range(1)


def test_sheets_show_the_first_pictures_and_the_confident_errors(
  run_command, pictures, tmp_path
):
  names = ('sheet', 'show_errors')
  files = [f'--{name}={tmp_path}/{name}.png' for name in names]
  run_command('predict', pictures, *files)
  heights, widths, _ = zip(
    *(np.asarray(Image.open(tmp_path / f'{name}.png')).shape for name in names),
    strict=True,
  )
  # Five pictures, and the errors among four of known class, side by side.
  assert widths[0] > widths[1] > 0 and heights[0] == heights[1]


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], 'ValueError: name a PATH: a picture, a folder, or - for a list'),
    (['/none.png'], 'FileNotFoundError: /none.png is neither a file, nor a'),
    (['views=many'], 'views=many is not a flag; write --views=many'),
    (['{empty}'], 'ValueError: {empty}: no files in this folder'),
    (['{text}'], 'ValueError: none of the 1 files is an image ({text} (not an'),
    (['{text}', '--output=x.txt'], 'ValueError: --output=x.txt must be a file'),
    (['{text}', '--sheet=x.gif'], 'ValueError: --sheet=x.gif must be a file'),
    (['{text}', '--words={text}'], 'ValueError: --words={text} has no line su'),
    (['{text}', '--words=none.txt'], 'FileNotFoundError: --words=none.txt: '),
    (['{text}', '--json', '--output=x.csv'], 'ValueError: --json prints and'),
    (['{text}', '--workdir=x'], 'ValueError: name one net: --workdir=RUN or'),
    (['--show_errors=x.png'], 'ValueError: name a PATH: a picture'),
    (['digits/val', '--data_dir={data}'], 'ValueError: digits/val: '),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
  run_command, tmp_path, data_dir, argv, message, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'text.png').write_text('text')
  values = {
    'empty': tmp_path / 'empty',
    'text': tmp_path / 'text.png',
    'data': data_dir,
  }
  argv = [word.format(**values) for word in argv]
  code, out, err = run_command('predict', *argv)
  *_, last = err.splitlines()
  assert code == 1 and last.startswith(message.format(**values))
  assert out == '' and len(last) < 400
  assert sorted(f.name for f in tmp_path.iterdir()) == ['empty', 'text.png']


def test_a_csv_file_survives_an_error(run_command, tmp_path):
  output, text = tmp_path / 'out.csv', tmp_path / 'text.png'
  output.write_text('old')
  text.write_text('text')
  run_command('predict', text, f'--output={output}')
  assert output.read_text() == 'old'
  assert sorted(f.name for f in tmp_path.iterdir()) == ['out.csv', 'text.png']
