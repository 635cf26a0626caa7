"""Every activation of a converted net against PyTorch and a NumPy Caffe.

The weights are random: real ones cannot be had here. `-m slow -s` prints the
table of differences at full size, with the seconds of each conversion.
"""

import time

import numpy as np
import pytest

from alexnet_jax import net as net_lib
from alexnet_jax.convert import convert

torch = pytest.importorskip(
  'torch', reason='PyTorch is the oracle: pip install torch'
)
foreign_nets = pytest.importorskip('tests.foreign_nets')

MEAN_BGR = (104, 117, 123)
# Largest difference of an activation, over the largest value of its layer. Sums
# of up to 9,216 products in float32; measured: 1.5e-6 in full nets.
TOLERANCE = 1e-5


def pictures(count):
  """Smooth images of 256 pixels: neighbours are alike, as in photographs."""
  rng = np.random.default_rng(2)
  coarse = rng.uniform(0, 255, (count, 16, 16, 3))
  return coarse.repeat(16, 1).repeat(16, 2).astype(np.uint8)


def torchvision(path, widths, images):
  net = foreign_nets.random_net(foreign_nets.Torchvision(widths))
  torch.save(foreign_nets.state_dict(net), path)
  inputs = foreign_nets.torchvision_inputs(images)
  return foreign_nets.torch_activations(net, inputs)


def two_groups(path, widths, images):
  net = foreign_nets.random_net(foreign_nets.TwoGroups(widths))
  torch.save(foreign_nets.state_dict(net), path)
  mean_rgb = np.float32(MEAN_BGR[::-1])
  inputs = foreign_nets.centre(images, 227) - mean_rgb
  return foreign_nets.torch_activations(net, inputs)


def caffe(path, widths, images):
  blobs = foreign_nets.caffe_blobs(widths)
  encoding = 'layers' if 'older' in path.name else 'layer'
  path.write_bytes(foreign_nets.caffemodel(blobs, encoding))
  return foreign_nets.caffe_activations(blobs, images, MEAN_BGR)


FORMS = {
  'torchvision.pth': (1, torchvision),
  'two_groups.pt': (2, two_groups),
  'newer.caffemodel': (2, caffe),
  'older.caffemodel': (2, caffe),
}


def activations(net, images):
  """The activations of a `Net` by name."""
  (_, found), *rest = net._outputs(images, layers=net.layer_names)
  assert not rest
  return {name: x[0] for name, x in found.items()}


def compare(folder, form, widths, images):
  """Differences by layer; seconds of reading and of writing ours."""
  towers, make = FORMS[form]
  expected = make(folder / form, widths[towers], images)
  names = folder / 'names.txt'
  names.write_text('\n'.join(map(str, range(widths[towers][2]))))
  times = [time.perf_counter()]
  weights = convert.read(folder / form, class_names=names)
  times.append(time.perf_counter())
  convert.write(folder / 'x.safetensors', weights)
  times.append(time.perf_counter())
  net = net_lib.load(folder / 'x.safetensors')
  found = activations(net, images)
  assert found.keys() == expected.keys() == {*foreign_nets.NAMES}
  differences = {}
  for name, x in found.items():
    assert x.shape == expected[name].shape, name
    difference = np.abs(x - expected[name]).max()
    differences[name] = difference / np.abs(expected[name]).max()
  assert (found['fc8'].argmax(1) == expected['fc8'].argmax(1)).all()
  return differences, np.diff(times)


@pytest.mark.parametrize('form', FORMS)
def test_every_activation_of_a_narrow_net_agrees(tmp_path, form):
  differences, _ = compare(tmp_path, form, foreign_nets.NARROW, pictures(2))
  assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.slow  # 60 million weights in each form: a minute.
def test_every_activation_of_a_full_net_agrees(tmp_path):
  images, table, seconds = pictures(4), {}, {}
  for form in FORMS:
    table[form], seconds[form] = compare(
      tmp_path, form, foreign_nets.FULL, images
    )
    (tmp_path / form).unlink()
  print('\n| layer |', ' | '.join(FORMS), '|')
  for name in foreign_nets.NAMES:
    row = [f'{table[form][name]:.1e}' for form in FORMS]
    print(f'| {name} |', ' | '.join(row), '|')
  for i, what in enumerate(('seconds to read', 'seconds to write ours')):
    print(f'| {what} |', ' | '.join(f'{seconds[f][i]:.1f}' for f in FORMS), '|')
  worst = {form: max(x.values()) for form, x in table.items()}
  assert max(worst.values()) < TOLERANCE, worst
