"""A net in use: what it says of images is what evaluation says of them."""

import contextlib
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

import alexnet_jax
from alexnet_jax import config as config_lib
from alexnet_jax import input_pipeline
from alexnet_jax import net as net_lib
from alexnet_jax import weights as weights_lib


@pytest.fixture(scope='module')
def net(old_workdir, data_dir):
  return alexnet_jax.load(old_workdir, checkpoint='latest', data_dir=data_dir)


@pytest.fixture(scope='module')
def images(trained):
  batches = input_pipeline.eval_batches(
    trained.run.dataset, 'test', batch_size=60
  )
  with contextlib.closing(batches):
    return next(batches)['image']


def test_the_package_imports_jax_when_it_is_used_and_no_sooner():
  code = (
    'import sys, alexnet_jax; assert "jax" not in sys.modules;'
    'assert alexnet_jax.__version__ and "load" in dir(alexnet_jax);'
    'alexnet_jax.AlexNet; assert "jax" in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
  with pytest.raises(AttributeError, match='no attribute'):
    _ = alexnet_jax.nothing


@pytest.mark.parametrize('views', ['one', 'many'])
def test_probabilities_are_those_of_evaluation(net, trained, images, views):
  # 60 images: a batch of 32 and one of 28, padded to 32.
  found = net.probabilities(images, views=views)
  stored = trained.predict_split(views == 'many').log_probs[:60]
  # The same float32 program, with batches of another size.
  np.testing.assert_allclose(found, np.exp(stored), rtol=1e-4, atol=1e-7)


def test_predictions_are_the_most_probable_classes_best_first(net, images):
  probabilities = net.probabilities(images[:3])
  found = net.predict(images[:3], top=4)
  for row, pairs in zip(probabilities, found, strict=True):
    order = sorted(range(10), key=lambda label: -row[label])[:4]
    assert [name for name, _ in pairs] == [str(label) for label in order]
    assert [p for _, p in pairs] == [float(row[label]) for label in order]
  assert [len(pairs) for pairs in net.predict(images[:2], top=99)] == [10, 10]
  assert net.predict([]) == []


def test_features_are_the_activations_before_dropouts_factor(net, images):
  names = net.layer_names
  assert names[:3] == ('conv1/linear', 'conv1', 'conv2/linear')
  assert names[-3:] == ('fc7/linear', 'fc7', 'fc8')
  linear = net.features(images[:3], 'fc7/linear')
  fc7 = net.features(images[:3])
  assert (fc7.dtype, fc7.shape) == (np.float32, (3, 16))
  np.testing.assert_array_equal(fc7, np.maximum(linear, 0))
  # fc8 reads the expectation under dropout (section 4.2).
  kept = 1 - net.config.model.dropout_rate
  fc8 = net.params['fc8']
  logits = kept * fc7 @ fc8['kernel'] + fc8['bias']
  found = net.features(images[:3], 'fc8')
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
  exps = np.exp(found - found.max(axis=1, keepdims=True))
  np.testing.assert_allclose(
    net.probabilities(images[:3]),
    exps / exps.sum(axis=1, keepdims=True),
    rtol=1e-4,
  )
  assert net.features(images[:2], 'conv1').shape == (2, 7, 7, 8)


def test_images_are_paths_pillow_images_and_arrays_of_any_size(
  net, images, tmp_path
):
  paths = [tmp_path / f'{i}.png' for i in range(3)]
  for path, image in zip(paths, images, strict=False):
    Image.fromarray(image).save(path)
  expected = net.probabilities(images[:3])
  opened = [Image.open(path) for path in paths]
  for given in (paths, [*map(str, paths)], opened, list(images[:3])):
    np.testing.assert_array_equal(net.probabilities(given), expected)
  large = np.repeat(np.repeat(images[0], 3, axis=0), 3, axis=1)
  assert net.stored(large).shape == (76, 76, 3)
  wide = np.zeros((50, 200, 3), np.uint8)
  wide[:, 75:125] = 255  # The central square.
  assert (net.stored(wide)[:, 5:-5] == 255).all()


def test_few_shapes_are_compiled(net, images, monkeypatch):
  shapes = set()

  def step(params, batch, mean_image, offsets):
    shapes.add(batch.shape)
    return np.zeros((len(batch), 10)), {}

  monkeypatch.setattr(net, '_step', lambda layers: step)
  for count in range(1, 34):
    assert len(net.probabilities(images[:count])) == count
  assert {shape[0] for shape in shapes} == {1, 2, 4, 8, 16, 32}


def _text(path):
  path.write_text('no image')


def _truncated(path):
  Image.new('RGB', (99, 99)).save(path)
  path.write_bytes(path.read_bytes()[:80])


@pytest.mark.parametrize('write', [_text, _truncated])
def test_an_image_that_is_none_is_named(net, tmp_path, write):
  path = tmp_path / 'x.png'
  write(path)
  with pytest.raises(ValueError, match='x.png: '):
    net.predict([path])


@pytest.mark.parametrize(
  'images, error, message',
  [
    (['/nowhere/x.png'], FileNotFoundError, 'x.png'),
    (['/dev/zero'], ValueError, 'is not a regular file'),
    ('x.png', TypeError, 'pass a list'),
    (np.zeros((8, 8, 3), np.uint8), TypeError, 'pass a list of arrays'),
    ([np.zeros((8, 8, 3))], TypeError, 'float64'),
    ([np.zeros((8, 8), np.uint8)], TypeError, r'\[8, 8\]'),
  ],
)
def test_wrong_images_are_one_clear_error(net, images, error, message):
  with pytest.raises(error, match=message):
    net.predict(images)


def test_wrong_arguments_are_one_clear_error(net, images):
  with pytest.raises(ValueError, match='conv1/linear, conv1, .*, fc7, fc8'):
    net.features(images, 'fc9')
  with pytest.raises(ValueError, match="views='ten' must be one of one, many"):
    net.predict(images, views='ten')
  with pytest.raises(ValueError, match='top=0 must be positive'):
    net.predict(images, top=0)
  with pytest.raises(ValueError, match='no images'):
    net.features([])


def test_a_file_and_the_work_directory_are_the_same_net(net, images, tmp_path):
  weights_lib.save(tmp_path / 'net.safetensors', net.weights)
  found = alexnet_jax.load(tmp_path / 'net.safetensors')
  assert found.class_names == net.class_names == tuple('0123456789')
  assert config_lib.flatten(found.config) == config_lib.flatten(net.config)
  np.testing.assert_array_equal(
    found.probabilities(images), net.probabilities(images)
  )


def test_weights_do_not_carry_the_paths_of_their_owner(net, data_dir):
  assert net.config.input.data_dir == '~/alexnet_jax_data'
  assert str(data_dir) not in str(net.config)


def test_a_path_that_is_no_net_is_one_clear_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing'):
    net_lib.load(tmp_path / 'nothing')
  (tmp_path / 'net.caffemodel').touch()
  with pytest.raises(ValueError, match='alexnet_jax.convert reads other'):
    net_lib.load(tmp_path / 'net.caffemodel')
  with pytest.raises(FileNotFoundError, match='config.json'):
    net_lib.load(tmp_path)


def test_missing_digits_are_one_line_with_the_command_that_makes_them(
  old_workdir, tmp_path
):
  message = (
    r'no prepared data set .*=digits under .*; prepare it: python -m'
    f' alexnet_jax.prepare --source=digits --name=digits --size=76'
    f' --data_dir={tmp_path}$'
  )
  with pytest.raises(FileNotFoundError, match=message):
    net_lib.load(old_workdir, checkpoint='latest', data_dir=tmp_path)
  assert [*tmp_path.iterdir()] == []


def test_a_net_of_two_devices_is_used_on_one(net):
  assert jax.device_count() > 1
  leaf = net._device_params['conv1']['kernel']
  assert len(leaf.devices()) == 1
