"""Evaluation of a fake net with known logits, against NumPy in float64."""

import logging
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment
from alexnet_jax import evaluator
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import metrics
from alexnet_jax import placement
from alexnet_jax.runtime import command

CLASSES = 7
IMAGE, CROP = 4, 2


class Lookup(nn.Module):
  """Looks logits up in a table, by the red value of a view's first pixel."""

  layers_sharded_over_data = ()

  @nn.compact
  def __call__(self, images):
    table = self.param('table', nn.initializers.zeros, (256, CLASSES))
    return table[images[:, 0, 0, 0].astype(jnp.int32)]


@pytest.fixture
def table():
  return np.random.default_rng(0).normal(size=(256, CLASSES)).astype('float32')


def softmax(logits):
  exp = np.exp(np.asarray(logits, np.float64))
  return exp / exp.sum(-1, keepdims=True)


def expected_metrics(probs, labels, prefix):
  """Loss, top-1 and top-5 error, by sorting (there are no ties)."""
  order = np.argsort(-probs, axis=1)
  hit = order == labels[:, None]
  of_label = probs[np.arange(len(labels)), labels]
  return {
    f'{prefix}/loss': -np.log(of_label).mean(),
    f'{prefix}/top1_error': 1 - hit[:, :1].any(1).mean(),
    f'{prefix}/top5_error': 1 - hit[:, :5].any(1).mean(),
  }


def padded_batches(images, labels, size):
  """Batches of `size`; the padding has a valid label."""
  for start in range(0, len(labels), size):
    part = slice(start, start + size)
    missing = size - len(labels[part])
    yield {
      'image': np.pad(images[part], [(0, missing), (0, 0), (0, 0), (0, 0)]),
      'label': np.pad(labels[part], (0, missing), constant_values=3),
      'mask': np.arange(size) < size - missing,
    }


def run(
  table,
  images,
  labels,
  *,
  many,
  flip=True,
  mesh=None,
  num_examples=None,
  predictions=None,
  max_missing=0,
):
  put = lambda batch: placement.place(batch, mesh, mesh_lib.batch_spec())
  offsets = augment.view_offsets(IMAGE, CROP, many=many, flip=flip)
  return evaluator.evaluate(
    evaluator.make_eval_step(Lookup(), mesh, CROP),
    placement.place({'table': table}, mesh),
    map(put, padded_batches(images, labels, 8)),
    placement.place(np.zeros((IMAGE, IMAGE, 3), np.float32), mesh),
    placement.place(offsets, mesh),
    num_examples=len(labels) if num_examples is None else num_examples,
    prefix='p',
    predictions=predictions,
    max_missing=max_missing,
  )


def plain_images(values):
  """Images of one value each: every view of image i reads values[i]."""
  ones = np.ones((1, IMAGE, IMAGE, 3), np.uint8)
  return ones * np.asarray(values, np.uint8)[:, None, None, None]


def pixel_images(number):
  """Images whose 16 pixels all differ, and differ between images."""
  pixels = np.arange(number * IMAGE**2, dtype=np.uint8)
  pixels = pixels.reshape(number, IMAGE, IMAGE, 1)
  return np.repeat(pixels, 3, axis=-1)


@pytest.mark.parametrize('devices', [1, 4])
def test_metrics_are_exact_and_count_every_example_once(table, devices):
  # 21 examples in batches of 8: the last batch is padded, and of 4 devices one
  # gets only padding.
  mesh = mesh_lib.create_mesh('data', 'auto', jax.devices()[:devices])
  labels = np.random.default_rng(1).integers(0, CLASSES, 21).astype(np.int32)
  values = np.arange(21) + 50
  found = run(table, plain_images(values), labels, many=False, mesh=mesh)
  expected = expected_metrics(softmax(table[values]), labels, 'p')
  assert 0 < expected['p/top5_error'] < expected['p/top1_error'] < 1
  assert found.keys() == expected.keys()
  # Logarithms are rounded to float32; the errors are exact counts.
  assert found['p/loss'] == pytest.approx(expected['p/loss'], rel=1e-6)
  for name in ('p/top1_error', 'p/top5_error'):
    assert found[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize('devices', [1, 4])
def test_predictions_are_the_log_softmax_of_every_example_in_order(
  table, devices
):
  mesh = mesh_lib.create_mesh('data', 'auto', jax.devices()[:devices])
  labels = np.random.default_rng(1).integers(0, CLASSES, 21).astype(np.int32)
  values, rows = np.arange(21) + 50, []
  run(
    table, plain_images(values), labels, many=False, mesh=mesh, predictions=rows
  )
  log_probs, found_labels = map(np.concatenate, zip(*rows, strict=True))
  np.testing.assert_array_equal(found_labels, labels)
  # A few float32 roundings of values up to about 5.
  np.testing.assert_allclose(
    log_probs, np.log(softmax(table[values])), atol=5e-6
  )


# The first pixel of each view: four corners and the centre, then reflected.
PLAIN_PIXELS = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
REFLECTED_PIXELS = [(0, 1), (0, 3), (2, 1), (2, 3), (1, 2)]


@pytest.mark.parametrize(
  ('many', 'flip', 'pixels'),
  [
    (False, True, [(1, 1)]),
    (True, False, PLAIN_PIXELS),
    (True, True, PLAIN_PIXELS + REFLECTED_PIXELS),
  ],
  ids=['one', 'five', 'ten'],
)
def test_the_probabilities_of_all_views_are_averaged(
  table, many, flip, pixels, caplog
):
  caplog.set_level(logging.INFO, 'alexnet_jax')
  images = pixel_images(11)
  labels = np.random.default_rng(2).integers(0, CLASSES, 11).astype(np.int32)
  found = run(table, images, labels, many=many, flip=flip)
  # Said while it is compiled: once, though there are two batches.
  views = f' for {len(pixels)} views' if many else ''
  assert caplog.messages == [f'Compiling the evaluation step{views}.']
  views = [softmax(table[images[:, y, x, 0]]) for y, x in pixels]
  expected = expected_metrics(np.mean(views, axis=0), labels, 'p')
  assert found == pytest.approx(expected, rel=1e-6)  # float32 exp and log.


@pytest.mark.parametrize(
  ('central', 'offset', 'value'),
  [(False, 0, 30 - 13), (False, 1, 30), (True, 0, 30 - 7), (True, 1, 30 - 7)],
)
def test_the_mean_image_is_subtracted_before_the_net_sees_a_view(
  table, central, offset, value
):
  mean = np.zeros((IMAGE, IMAGE, 3), np.float32)
  mean[0, 0] = 13  # The first pixel of the upper left view.
  mean[1, 1] = 7  # The first pixel of the central view.
  sums, _ = evaluator.make_eval_step(Lookup(), None, CROP, central)(
    {'table': table},
    {
      'image': plain_images([30]),
      'label': np.array([2]),
      'mask': np.array([True]),
    },
    mean,
    np.array([(0, 2 * offset, 0)], np.int32),
  )
  expected = -np.log(softmax(table[value])[2])
  assert float(sums['loss']) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('num_examples', [20, 22, 0])
def test_a_wrong_number_of_examples_is_an_error(table, num_examples):
  labels = np.zeros(21, np.int32)
  images = plain_images(np.arange(21))
  with pytest.raises(RuntimeError, match=f'21 examples.* has {num_examples}'):
    run(table, images, labels, many=False, num_examples=num_examples)


def test_a_masked_example_is_left_out_and_counted(table, monkeypatch, caplog):
  labels = np.arange(21, dtype=np.int32) % CLASSES
  images = plain_images(np.arange(21))
  expected = run(table, images[1:], labels[1:], many=False)
  padded = padded_batches

  def masked(*args):
    for i, batch in enumerate(padded(*args)):
      batch['mask'][0] &= i > 0
      yield batch

  monkeypatch.setitem(globals(), 'padded_batches', masked)
  with pytest.raises(RuntimeError, match='evaluated 20'):
    run(table, images, labels, many=False)
  found = run(table, images, labels, many=False, max_missing=1)
  assert found == pytest.approx(expected, rel=1e-6)
  assert ['1 of 21 examples are left out' in m for m in caplog.messages] == [1]


def test_an_implicit_transfer_is_an_error(table):
  with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-'):
    evaluator.evaluate(
      evaluator.make_eval_step(Lookup(), None, CROP),
      placement.place({'table': table}, None),
      padded_batches(plain_images([1]), np.zeros(1, np.int32), 8),
      jax.device_put(np.zeros((IMAGE, IMAGE, 3), np.float32)),
      jax.device_put(augment.view_offsets(IMAGE, CROP, many=False, flip=True)),
      num_examples=1,
      prefix='p',
    )


def test_no_batches_is_an_error_not_a_division_by_zero(table):
  none = np.zeros((0, IMAGE, IMAGE, 3), np.uint8)
  with pytest.raises(RuntimeError, match='evaluated 0 examples'):
    run(table, none, np.zeros(0, np.int32), many=False, num_examples=5)


def test_mean_log_probs_equals_numpy_in_double_precision():
  logits = np.random.default_rng(3).normal(0, 5, (10, 6, 9)).astype(np.float32)
  expected = np.log(softmax(logits).mean(0))
  found = evaluator.mean_log_probs(jnp.asarray(logits))
  # A few float32 roundings of values up to about 20.
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_mean_log_probs_stays_finite_where_float32_softmax_is_zero():
  logits = jnp.array([[[0.0, 200.0]], [[0.0, 200.0]]])
  found = evaluator.mean_log_probs(logits)
  np.testing.assert_allclose(found, [[-200.0, 0.0]])


def test_probabilities_are_averaged_not_logits():
  # Two views slightly prefer class 0 and one strongly prefers class 1, so the
  # mean logits choose class 1, the mean probabilities (0.59 to 0.41) class 0.
  logits = jnp.array([[[2.0, 0.0]], [[2.0, 0.0]], [[0.0, 10.0]]])
  assert logits.mean(0).argmax() == 1
  assert evaluator.mean_log_probs(logits).argmax() == 0


@pytest.mark.parametrize(
  ('flip', 'prefix'), [(True, 'eval_ten_view'), (False, 'eval_five_view')]
)
def test_tags_name_the_number_of_views(flip, prefix):
  assert metrics.eval_tags(flip) == [
    'eval/loss',
    'eval/top1_error',
    'eval/top5_error',
    f'{prefix}/loss',
    f'{prefix}/top1_error',
    f'{prefix}/top5_error',
  ]


def test_a_wrong_number_of_examples_ends_a_command_with_one_line(table):
  with pytest.raises(SystemExit) as ended, command.one_line_errors('again'):
    images, labels = plain_images([1]), np.zeros(1, np.int32)
    run(table, images, labels, many=False, num_examples=2)
  assert ended.value.code.startswith('RuntimeError: evaluated 1 examples, but')


def test_each_process_may_leave_out_as_many_records(monkeypatch):
  inputs = types.SimpleNamespace(
    image_size=IMAGE, crop_size=CROP, max_bad_records=3, eval_split='test'
  )
  made = types.SimpleNamespace(
    _run=types.SimpleNamespace(
      config=types.SimpleNamespace(
        augment=types.SimpleNamespace(flip=True), input=inputs
      ),
      eval_batches=lambda: [],
      statistics=types.SimpleNamespace(mean_image=np.zeros((1, 1, 3))),
      mesh=None,
      dataset=types.SimpleNamespace(num_examples={'test': 21}),
    ),
    _stop=lambda: 0,
    _eval_step=None,
  )
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  given = {}
  monkeypatch.setattr(
    evaluator, 'evaluate', lambda *_, **k: given.update(k) or {}
  )
  evaluator.Evaluator.__call__(made, {}, many=False)
  assert (given['num_examples'], given['max_missing']) == (21, 12)
