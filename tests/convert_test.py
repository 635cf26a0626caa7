"""Nets of others in and out: which net, bitwise round trips, hostile files."""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import zipfile

from absl.testing import flagsaver
import jax
import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from alexnet_jax import evaluate
from alexnet_jax import main
from alexnet_jax import net as net_lib
from alexnet_jax import pretrained
from alexnet_jax import run as run_lib
from alexnet_jax.convert import convert
from alexnet_jax.convert import forms
from alexnet_jax.prepare import prepare
from configs import caffe
from configs import torchvision
from tests import narrow_nets

torch = pytest.importorskip(
  'torch', reason='PyTorch is the oracle: pip install torch'
)
foreign_nets = pytest.importorskip('tests.foreign_nets')

ROOT = pathlib.Path(convert.__file__).parents[2]
TEN = [f'class {i}' for i in range(10)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Narrow nets of every foreign form, and names of their ten classes."""
  path = tmp_path_factory.mktemp('foreign')
  path.joinpath('names.txt').write_text('\n'.join(TEN) + '\n')
  for name, net in NETS.items():
    torch.save(foreign_nets.state_dict(net), path / f'{name}.pt')
  blobs = foreign_nets.caffe_blobs(foreign_nets.NARROW[2])
  for encoding in foreign_nets.ENCODINGS:
    path.joinpath(f'{encoding}.caffemodel').write_bytes(
      foreign_nets.caffemodel(blobs, encoding)
    )
  return path


NETS = {
  'one': foreign_nets.random_net(
    foreign_nets.Torchvision(foreign_nets.NARROW[1])
  ),
  'two': foreign_nets.random_net(
    foreign_nets.TwoGroups(foreign_nets.NARROW[2])
  ),
}


def read(path, **kwargs):
  names = path.parent / 'names.txt'
  return convert.read(path, class_names=names, **kwargs)


def copy(folder, source, name, tmp_path):
  tmp_path.joinpath('names.txt').write_bytes(
    (folder / 'names.txt').read_bytes()
  )
  path = tmp_path / name
  path.write_bytes(source)
  return path


def refusal(path, **kwargs):
  """The message of the one error that reading the file gives."""
  with pytest.raises(ValueError) as error:
    read(path, **kwargs)
  assert str(path) in str(error.value)
  assert str(error.value).count('\n') <= 2
  return str(error.value)


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name, x in one.items():
    np.testing.assert_array_equal(x, other[name], err_msg=name)


def flat(params):
  return {
    f'{n}/{k}': x for n, layer in params.items() for k, x in layer.items()
  }


@pytest.mark.parametrize(
  ('name', 'preset'),
  [
    ('one.pt', torchvision),
    ('two.pt', caffe),
    ('layer.caffemodel', caffe),
    ('layers.caffemodel', caffe),
  ],
)
def test_a_foreign_net_has_the_config_that_its_shapes_say(folder, name, preset):
  weights = read(folder / name)
  expected = preset.get_config()
  expected.model.conv_features, expected.model.fc_features, classes = (
    foreign_nets.NARROW[expected.model.num_towers]
  )
  expected.model.num_classes = classes
  if preset is caffe:
    expected.input.channel_means = (123.0, 117.0, 104.0)
  assert weights.config.to_dict() == expected.to_dict()
  assert weights.class_names == tuple(TEN)
  assert weights.mean_image is None
  where = f'configs/{preset.__name__.rpartition(".")[2]}.py'
  source = f'converted from {name}, read with {where}'
  assert weights.about == {'source': source}


def test_both_encodings_of_caffe_hold_the_same_net(folder):
  one, other = (read(folder / f'{e}.caffemodel') for e in ('layer', 'layers'))
  assert_same(flat(one.params), flat(other.params))


def test_a_caffemodel_differs_from_its_port_in_the_order_of_colours(folder):
  """Both hold the same numbers; the port to PyTorch is taken to read R, G, B."""
  one, other = read(folder / 'layer.caffemodel'), read(folder / 'two.pt')
  one, other = flat(one.params), flat(other.params)
  kernel = one.pop('conv1/kernel')
  np.testing.assert_array_equal(kernel[:, :, ::-1], other.pop('conv1/kernel'))
  assert_same(one, other)


@pytest.mark.parametrize('suffix', ['.pt', '.pth', '.torch.safetensors'])
@pytest.mark.parametrize('name', NETS)
def test_a_state_dict_comes_back_bitwise(folder, tmp_path, name, suffix):
  ours = tmp_path / 'ours.safetensors'
  convert.write(ours, read(folder / f'{name}.pt'))
  path = convert.check_output(tmp_path / f'back{suffix}')
  convert.write(path, convert.read(ours))
  if suffix == '.torch.safetensors':
    back = safetensors.numpy.load_file(path)
  else:
    back = torch.load(path, weights_only=True)
    NETS[name].load_state_dict(back)  # The names and shapes of the module.
    back = {k: v.numpy() for k, v in back.items()}
  assert_same(back, {k: v.numpy() for k, v in NETS[name].state_dict().items()})
  tmp_path.joinpath('names.txt').write_bytes(
    (folder / 'names.txt').read_bytes()
  )
  again, first = read(path), convert.read(ours)
  assert_same(flat(again.params), flat(first.params))
  assert again.config == first.config


def test_ours_comes_back_bitwise(tmp_path):
  weights = paper_weights()
  convert.write(tmp_path / 'a.safetensors', weights)
  again = convert.read(tmp_path / 'a.safetensors')
  assert_same(flat(again.params), flat(weights.params))
  np.testing.assert_array_equal(again.mean_image, weights.mean_image)
  assert again.config == weights.config
  assert again.about == weights.about


def paper_weights():
  """A narrow net of the paper, with a mean image."""
  config = narrow_nets.preset('paper')
  config.mesh.layout = 'data'
  return narrow_nets.weights(config)


def test_the_paper_s_net_gives_pytorch_the_same_logits(tmp_path):
  weights = paper_weights()
  convert.write(tmp_path / 'x.pt', weights)
  model = weights.config.model
  widths = model.conv_features, model.fc_features, model.num_classes
  net = foreign_nets.TwoGroups(
    widths, k=2.0, alpha=5e-4, across=False, overhang=3
  )
  net.load_state_dict(torch.load(tmp_path / 'x.pt', weights_only=True))
  images = np.random.default_rng(1).integers(0, 256, (2, 256, 256, 3), np.uint8)
  inputs = foreign_nets.centre(images - weights.mean_image, 224)
  expected = foreign_nets.torch_activations(net, inputs)['fc8']
  logits = net_lib.Net(weights).features(images, 'fc8')
  # Sums of up to a few hundred products in float32.
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  # The factor 1/2 of dropout has become part of the kernels, which is exact.
  tmp_path.joinpath('names.txt').write_text('\n'.join(TEN))
  tmp_path.joinpath('mean.binaryproto').write_bytes(
    foreign_nets.blob(
      weights.mean_image[..., ::-1].transpose(2, 0, 1)[None], True
    )
  )
  again = read(
    tmp_path / 'x.pt', config=weights.config, mean=tmp_path / 'mean.binaryproto'
  )
  assert_same(flat(again.params), flat(weights.params))
  np.testing.assert_array_equal(again.mean_image, weights.mean_image)
  assert again.config == weights.config


@pytest.mark.parametrize('size', [240, 256])
def test_a_mean_image_takes_the_place_of_the_published_mean(
  folder, tmp_path, size
):
  mean = np.random.default_rng(0).uniform(0, 255, (3, size, size))
  path = tmp_path / 'mean.binaryproto'
  path.write_bytes(foreign_nets.blob(mean))
  weights = read(folder / 'layer.caffemodel', mean=path)
  assert weights.config.input.channel_means == ()
  assert weights.config.input.image_size == size
  np.testing.assert_array_equal(
    weights.mean_image, mean.astype('float32')[::-1].transpose(1, 2, 0)
  )


def test_a_factor_of_dropout_is_in_the_kernels_of_the_layers_that_read_it():
  config = narrow_nets.variant(
    dropout_inputs=('fc6', 'fc8'), dropout_rate=0.25, inverted_dropout=False
  )
  params = narrow_nets.weights(config).params
  found, factor = flat(forms.scaled(params, config, 1)), np.float32(0.75)
  assert_same(
    found,
    flat(params)
    | {
      name: params[name.partition('/')[0]]['kernel'] * factor
      for name in ('fc6/kernel', 'fc8/kernel')
    },
  )


def test_a_thousand_classes_have_ilsvrc_s_names(tmp_path):
  widths = foreign_nets.NARROW[1][:2] + (1000,)
  net = foreign_nets.random_net(foreign_nets.Torchvision(widths))
  torch.save(net.state_dict(), tmp_path / 'x.pth')
  names = convert.read(tmp_path / 'x.pth').class_names
  assert len(names) == 1000 and sorted(names) == [*names]
  assert names[0] == 'n01440764' and names[-1] == 'n15075141'


@pytest.mark.parametrize('wrapper', ['state_dict', 'model'])
def test_a_checkpoint_of_a_training_script_is_read(folder, tmp_path, wrapper):
  state = {
    name.replace('features.', 'features.module.'): x
    for name, x in NETS['one'].state_dict().items()
  }
  path = copy(folder, b'', 'x.pth', tmp_path)
  torch.save({wrapper: state, 'epoch': 3}, path)
  assert_same(flat(read(path).params), flat(read(folder / 'one.pt').params))


# Files that are refused.

BLOBS = foreign_nets.caffe_blobs(foreign_nets.NARROW[2])
WHOLE = foreign_nets.caffemodel(BLOBS)
chunk, number = foreign_nets.chunk, foreign_nets.number


def doubled_inputs(layer):
  kernel, bias = BLOBS[layer]
  return np.concatenate([kernel, kernel], axis=1), bias


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'it holds 0 layers'),
    (b'<!DOCTYPE html>', 'is it complete?'),
    (WHOLE[:1000], 'is it complete?'),
    (WHOLE[: len(WHOLE) // 2], 'is it complete?'),
    (chunk(100, b'') * 1001, 'it holds 1001 layers'),
    (foreign_nets.caffemodel(BLOBS, name='CaffeNet'), 'CaffeNet'),
    (foreign_nets.caffemodel(BLOBS, name='mine', swap=True), 'CaffeNet (mine)'),
    (
      foreign_nets.caffemodel(
        BLOBS, norm=number(1, 5) + foreign_nets.single(2, 1)
      ),
      'norm1 has alpha=1, not 0.0001',
    ),
    (
      foreign_nets.caffemodel(BLOBS, more=number(4, 9)),
      'conv1 has kernel_size=[9, 11]',
    ),
    (
      foreign_nets.caffemodel(BLOBS, norm=number(1, 5)),
      'norm1 has alpha=1, not 0.0001',
    ),
    (
      foreign_nets.caffemodel(BLOBS, norm=foreign_nets.NORM + number(4, 1)),
      'norm1 has norm_region=1, not 0',
    ),
    (
      foreign_nets.caffemodel(
        BLOBS, norm=foreign_nets.NORM + number(9, 1) * 999
      ),
      'norm1 has too many settings',
    ),
    (
      WHOLE + foreign_nets.layer('layer', 'bn', 'BatchNorm', BLOBS['fc8']),
      'InnerProduct, BatchNorm, not Convolution, LRN',
    ),
    (chunk(2, chunk(1, b'abc')), "Caffe's first version (V0)"),
    (
      foreign_nets.caffemodel(
        BLOBS | {'fc7': (BLOBS['fc7'][0][:, 1:], BLOBS['fc7'][1])}
      ),
      'fc7/kernel is (23, 20) there, but (24, 20) in the net',
    ),
    (  # Shapes that only a net of one tower has.
      foreign_nets.caffemodel(BLOBS | {'conv2': doubled_inputs('conv2')}),
      'is not an AlexNet of 2 towers, as conv2 reads 8 of the 8 maps of conv1',
    ),
    (
      foreign_nets.caffemodel(
        BLOBS | {'conv1': (BLOBS['conv1'][0][:, :1], BLOBS['conv1'][1])}
      ),
      'conv1 does not read the 3 colours of an image: conv1 [8, 1, 11, 11]',
    ),
    (
      foreign_nets.caffemodel(BLOBS | {'fc7': BLOBS['fc7'][:1]}),
      'fc7 has 1 arrays, not a kernel and a bias',
    ),
    (
      foreign_nets.caffemodel(
        BLOBS | {'fc7': (BLOBS['fc7'][0], BLOBS['fc8'][1])}
      ),
      'fc7 has a kernel of shape [20, 24] and a bias of shape [10]',
    ),
    (
      foreign_nets.caffemodel(
        BLOBS | {'fc8': (BLOBS['fc8'][0] * np.inf, BLOBS['fc8'][1])}
      ),
      'fc8 has weights that are not finite',
    ),
  ],
)
def test_a_damaged_or_other_caffemodel_is_refused(
  folder, tmp_path, content, message
):
  path = copy(folder, content, 'x.caffemodel', tmp_path)
  assert message in refusal(path)


@pytest.mark.parametrize(
  'shape',
  [(1 << 40, 1 << 20, 1, 1), (-1, 3, 11, 11), (0, 3, 11, 11), (), (2,) * 9],
)
def test_a_caffemodel_with_a_shape_that_its_data_lack_is_refused(
  folder, tmp_path, shape
):
  encoded = foreign_nets.blob(BLOBS['conv1'][0], shape=shape)
  whole = foreign_nets.blob(BLOBS['conv1'][0])
  content = WHOLE.replace(chunk(7, whole), chunk(7, encoded))
  outer = content.index(chunk(1, 'conv1'))
  old = len(WHOLE) - len(content)
  # The layer's own length changes with it.
  start = WHOLE.index(chunk(1, 'conv1'))
  head = foreign_nets.varint(100 << 3 | 2)
  at = WHOLE.rindex(head, 0, start) + len(head)
  length = int(sum((b & 127) << 7 * i for i, b in enumerate(WHOLE[at:start])))
  content = WHOLE[:at] + foreign_nets.varint(length - old) + content[outer:]
  path = copy(folder, content, 'x.caffemodel', tmp_path)
  assert 'bytes for the shape' in refusal(path)


def test_a_mean_of_another_shape_or_range_is_refused(folder, tmp_path):
  path = tmp_path / 'mean.binaryproto'
  for mean, message in [
    (np.zeros((1, 256, 256)), 'not a mean image [3, size, size]'),
    (np.full((3, 256, 256), np.nan), 'cannot give'),
  ]:
    path.write_bytes(foreign_nets.blob(mean))
    with pytest.raises(ValueError, match='mean.binaryproto') as error:
      read(folder / 'layer.caffemodel', mean=path)
    assert message in str(error.value)


EVIL = pathlib.Path(tempfile.gettempdir(), f'alexnet_jax_evil_{os.getpid()}')


class Evil:
  """Would run code if its pickle were read."""

  def __reduce__(self):
    return pathlib.Path.touch, (EVIL,)


def torch_file(path, value):
  torch.save(value, path)
  return path.read_bytes()


ONE = dict(NETS['one'].state_dict())


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (NETS['one'], 'could run any code; save the net again'),
    ({'a.weight': Evil()}, 'could run any code; save the net again'),
    ([1, 2], 'no state dict'),
    ({}, 'it also holds nothing'),
    (ONE | {'features.0.weight': 3}, 'no state dict'),
    (
      ONE | {'bn.running_mean': torch.zeros(4)},
      'also holds bn.running_mean [4]',
    ),
    (
      ONE
      | {'features.3.weight': torch.zeros(1).expand(12, 8, 1 << 20, 1 << 10)},
      'more bytes than the file',
    ),
    (
      ONE | {'features.3.weight': torch.zeros(12, 5, 5, 5)},
      'features.3 reads 5 of the 8 maps of features.0',
    ),
    (
      ONE | {'classifier.4.weight': torch.zeros(20, 7)},
      'fc7/kernel is (7, 20) there, but (24, 20) in the net',
    ),
    (
      {k: v for k, v in ONE.items() if not k.startswith('classifier.6')},
      'is not an AlexNet, which has 5 or 6 convolutional and 3 fully',
    ),
    (
      ONE | {'classifier.6.bias': torch.full((10,), torch.nan)},
      'classifier.6 has weights that are not finite',
    ),
    (ONE | {'a\nb\nc\nd.weight': torch.zeros(8)}, 'that cannot be printed'),
    (ONE | {'a' * 201: torch.zeros(8)}, 'names of over 200 characters'),
    (
      ONE | {'features.0.weight': torch.zeros(8, 3, 11, 11).to_sparse()},
      'sparse or not real',
    ),
  ],
)
def test_another_or_hostile_state_dict_is_refused(
  folder, tmp_path, value, message
):
  content = torch_file(tmp_path / 'y', value)
  path = copy(folder, content, 'x.pt', tmp_path)
  assert message in refusal(path)
  assert not EVIL.exists()


def test_parameters_that_require_a_gradient_are_read(folder, tmp_path):
  value = {k: torch.nn.Parameter(v) for k, v in ONE.items()}
  content = torch_file(tmp_path / 'y', value)
  found = read(copy(folder, content, 'x.pt', tmp_path))
  bias = ONE['features.0.bias'].numpy()
  np.testing.assert_array_equal(found.params['conv1']['bias'], bias)


def test_a_truncated_or_compressed_state_dict_is_refused(folder, tmp_path):
  whole = folder.joinpath('one.pt').read_bytes()
  path = copy(folder, whole[: len(whole) // 2], 'x.pt', tmp_path)
  assert 'is it complete?' in refusal(path)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x/data/0', bytes(1_000_000))
  assert 'is a compressed archive' in refusal(path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'is it complete'),
    ((1 << 60).to_bytes(8, 'little') + b'{', 'is it complete'),
    ((2).to_bytes(8, 'little') + b'{}', 'it also holds nothing'),
    ((200_000).to_bytes(8, 'little') + b'{"a":' * 40_000, 'is it complete'),
  ],
)
def test_a_damaged_state_dict_in_safetensors_is_refused(
  folder, tmp_path, content, message
):
  path = copy(folder, content, 'x.safetensors', tmp_path)
  assert message in refusal(path)


def test_a_pickled_array_is_refused_with_the_way_out(folder, tmp_path):
  np.save(tmp_path / 'x.npy', {'conv1': [np.zeros(3)]}, allow_pickle=True)
  content = (tmp_path / 'x.npy').read_bytes()
  for name in ('x.npy', 'x.bin'):
    path = copy(folder, content, name, tmp_path)
    assert 'save the arrays as a state dict' in refusal(path)


def test_a_file_without_a_known_format_or_too_large_is_refused(
  folder, tmp_path
):
  path = copy(folder, b'abc', 'x.h5', tmp_path)
  assert 'has no known format' in refusal(path)
  for suffix in ('.caffemodel', '.pt', '.safetensors'):
    huge = tmp_path / f'huge{suffix}'
    with open(huge, 'wb') as file:
      file.truncate(1 << 40)  # Sparse: it takes no space.
    assert 'bytes, more than' in refusal(huge)


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    ('a\nb\n', 'has 10 classes, but 2 names are given'),
    ('a\n' * 10, 'must have one name a line, none empty or twice'),
    ('\n', 'must have one name a line, none empty or twice'),
  ],
)
def test_wrong_class_names_are_refused(folder, tmp_path, names, message):
  path = tmp_path / 'names.txt'
  path.write_text(names)
  with pytest.raises(ValueError) as error:
    convert.read(folder / 'one.pt', class_names=path)
  assert message in str(error.value)


@pytest.mark.parametrize('flag', ['path', 'mean', 'class_names'])
def test_a_missing_file_is_named(folder, flag):
  given = {'path': folder / 'one.pt', flag: folder / 'none'}
  with pytest.raises(FileNotFoundError, match='none: no such file or folder'):
    convert.read(**{'class_names': folder / 'names.txt', **given})


def test_missing_class_names_are_asked_for(folder):
  with pytest.raises(ValueError, match='10 classes, but no names are given'):
    convert.read(folder / 'one.pt')


@pytest.mark.parametrize(
  ('name', 'crops', 'message'),
  [
    ('x.h5', False, 'must be a file that ends with one of .torch.safetensors'),
    ('x.safetensors', True, '--crops belongs to .onnx and .stablehlo'),
    ('none/x.safetensors', False, 'there is no folder'),
  ],
)
def test_an_output_is_checked_before_anything_is_read(
  tmp_path, name, crops, message
):
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    convert.check_output(tmp_path / name, crops)
  assert message in str(error.value)


def test_ours_can_get_other_class_names_but_no_flag_for_foreign_files(
  folder, tmp_path
):
  path = tmp_path / 'x.safetensors'
  convert.write(path, read(folder / 'one.pt'))
  tmp_path.joinpath('names.txt').write_text('\n'.join('abcdefghij'))
  assert convert.read(path).class_names == tuple(TEN)
  assert read(path).class_names == tuple('abcdefghij')
  with pytest.raises(ValueError, match='--mean is for files of others'):
    convert.read(path, mean='mean.binaryproto')


def test_towers_without_links_cannot_become_a_state_dict(tmp_path):
  weights = paper_weights()
  weights.config.unlock().model.tower_links = False
  with pytest.raises(ValueError, match='cannot hold towers without links'):
    convert.write(tmp_path / 'x.pt', weights)
  assert [*tmp_path.iterdir()] == []


def test_the_command_writes_a_net_of_crops_and_its_card(folder, tmp_path):
  onnx = pytest.importorskip('onnx')
  command = [
    *(sys.executable, '-m', 'alexnet_jax.convert', '--crops'),
    *(f'--input={folder / "one.pt"}', f'--output={tmp_path / "net.onnx"}'),
    *(f'--class_names={folder / "names.txt"}', '--license=MIT'),
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'read with configs/torchvision.py' in done.stderr
  model = onnx.load(tmp_path / 'net.onnx')
  assert [x.name for x in model.graph.input] == ['crops']
  assert [x.name for x in model.graph.output] == ['logits']
  card = (tmp_path / 'README.md').read_text()
  assert 'license: mit' in card
  assert 'imagenet2012' not in card  # Nothing says what it learnt from.


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  """A data set of the narrow nets' ten classes, of 256 pixels."""
  folder = tmp_path_factory.mktemp('photographs')
  rng = np.random.default_rng(3)
  for split in ('train', 'val'):
    for name in TEN:
      path = folder / split / name / '0.png'
      path.parent.mkdir(parents=True)
      pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
      Image.fromarray(pixels).resize((256, 256)).save(path)
  prepare.prepare(f'folder:{folder}', 'mine256', folder / 'data')
  return folder / 'data'


def printed_command(preset):
  """The words of the command of docs/finetuning.md for a preset."""
  text = (ROOT / 'docs/finetuning.md').read_text()
  lines = text.replace('\\\n', ' ').splitlines()
  (line,) = (x for x in lines if f'--config=configs/{preset}' in x)
  return shlex.split(line)[3:]


@pytest.fixture(
  params=[('caffe', 'layer.caffemodel'), ('torchvision', 'one.pt')],
  ids=['caffe', 'torchvision'],
)
def fine_tuning(request, folder, photographs, tmp_path, monkeypatch):
  """A converted net, and the parsed command that fine-tunes it, few features.

  The command is that of docs/finetuning.md.
  """
  preset, source = request.param
  weights = read(folder / source)
  conv1 = weights.params['conv1']
  conv1['kernel'] = conv1['kernel'] / 60  # Activations of about one.
  file = tmp_path / 'foreign.safetensors'
  convert.write(file, weights)
  widths, units, _ = foreign_nets.NARROW[weights.config.model.num_towers]
  values = {
    'config.train.init_from': file,
    'config.model.conv_features': widths,
    'config.model.fc_features': units,
    'config.input.data_dir': photographs,
    'config.input.batch_size': 4,
    'config.eval.batch_size': 4,
    'config.train.epochs': 0.5,
    'workdir': tmp_path / 'tuned',
  }
  argv = printed_command(preset)
  assert {'--workdir', '--config.train.init_from'} <= {
    word.partition('=')[0] for word in argv
  }
  argv += [f'--{name}={value}' for name, value in values.items()]
  argv = ['main', *argv, '--num_processes=1']
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, 'argv', argv)  # config_flags reads it.
  sys.modules.pop('config_config', None)  # From an earlier command.
  with flagsaver.flagsaver():
    main.parse_flags(argv)
    yield weights, main.CONFIG.value


# ml_collections loads the config file with the deprecated load_module().
deprecated = pytest.mark.filterwarnings(
  r'ignore:the load_module\(\) method:DeprecationWarning'
)


@deprecated
def test_the_documented_commands_start_from_foreign_nets(fine_tuning):
  weights, config = fine_tuning
  state = pretrained.create_train_state(run_lib.open_run(config))
  params = jax.device_get(state.params)
  assert params.pop('fc8')['kernel'].shape[1] == 10
  assert_same(
    flat(params),
    {name: x for name, x in flat(weights.params).items() if 'fc8' not in name},
  )


@pytest.mark.slow
@deprecated
def test_the_documented_commands_fine_tune_foreign_nets(
  fine_tuning, photographs, tmp_path
):
  weights, _ = fine_tuning
  main.main([])
  tuned = tmp_path / 'tuned'
  found = evaluate.evaluate([tuned], data_dir=str(photographs))
  assert np.isfinite([*found.values()]).all()
  net = net_lib.load(tuned, data_dir=photographs)
  assert net.class_names == weights.class_names
  for name in ('conv1', 'conv3', 'fc7'):  # One step from the foreign ones.
    change = net.params[name]['kernel'] - weights.params[name]['kernel']
    assert 0 < np.abs(change).max() < 0.1


def test_a_foreign_net_is_evaluated_on_a_data_set_of_its_classes(
  folder, photographs, tmp_path
):
  file = tmp_path / 'foreign.safetensors'
  convert.write(file, read(folder / 'one.pt'))
  found = evaluate.evaluate(
    [file], views='one', data_dir=str(photographs), dataset='mine256'
  )
  net = net_lib.load(file)
  images = [photographs.parent / f'val/{name}/0.png' for name in TEN]
  shares = net.probabilities(images)[range(10), range(10)]
  assert found['eval/loss'] == pytest.approx(-np.log(shares).mean(), rel=1e-4)
