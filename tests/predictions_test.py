"""Predictions against NumPy in float64, and their files."""

import numpy as np
import pytest

from alexnet_jax import predictions

ORIGIN = {'step': '7', 'split': 'test'}


def make(seed, examples=13, classes=8):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.ones(classes), examples)
  labels = np.arange(examples, dtype=np.int32) * 5 % classes
  log_probs = np.log(probs).astype(np.float32)
  names = [f'val/é/{i}.png' for i in range(examples)]
  return predictions.Predictions(log_probs, labels, ORIGIN, names)


def expected_errors(probs, labels):
  order = np.argsort(-probs, axis=1)
  place = (order == labels[:, None]).argmax(1)
  of_label = probs[np.arange(len(labels)), labels]
  return {
    'loss': -np.log(of_label).mean(),
    'top1_error': (place > 0).mean(),
    'top5_error': (place > 4).mean(),
  }


@pytest.mark.parametrize('chunk', [4, 13, 4096])
def test_errors_count_every_example_once(monkeypatch, chunk):
  monkeypatch.setattr(predictions, 'CHUNK', chunk)
  made = make(0)
  expected = expected_errors(np.exp(made.log_probs, dtype=float), made.labels)
  assert 0 < expected['top5_error'] < expected['top1_error'] < 1
  assert made.errors() == pytest.approx(expected, rel=1e-6)  # float32 sums.


def test_an_ensemble_averages_probabilities():
  members = [make(seed) for seed in range(3)]
  mean = np.mean([np.exp(m.log_probs, dtype=float) for m in members], axis=0)
  together = predictions.ensemble(iter(members))
  # One rounding to float32 of values up to about 10.
  np.testing.assert_allclose(together.log_probs, np.log(mean), atol=1e-6)
  np.testing.assert_array_equal(together.labels, members[0].labels)


def test_an_ensemble_keeps_probabilities_too_small_for_float32():
  log_probs = np.array([[-200.0, 0.0]], np.float32)
  member = predictions.Predictions(log_probs, np.array([0]), ORIGIN)
  together = predictions.ensemble([member, member])
  np.testing.assert_allclose(together.log_probs, log_probs, rtol=1e-6)


def test_members_of_an_ensemble_must_predict_the_same_examples():
  with pytest.raises(ValueError, match='different examples'):
    predictions.ensemble([make(0), make(0, examples=12)])


def test_a_file_restores_what_was_saved(tmp_path):
  made = make(1)
  path = tmp_path / 'new/p.npz'
  made.save(path)
  found = predictions.load(path, ORIGIN)
  np.testing.assert_array_equal(found.log_probs, made.log_probs)
  np.testing.assert_array_equal(found.labels, made.labels)
  assert found.log_probs.dtype == np.float32
  assert found.names == made.names
  assert [file.name for file in path.parent.iterdir()] == ['p.npz']


def test_a_file_without_names_is_of_an_older_version_and_still_used(tmp_path):
  made = make(1)
  arrays = {f'made_from/{name}': value for name, value in ORIGIN.items()}
  np.savez(
    tmp_path / 'p.npz', log_probs=made.log_probs, labels=made.labels, **arrays
  )
  assert predictions.load(tmp_path / 'p.npz', ORIGIN).names == ()


@pytest.mark.parametrize(
  'other', [{'step': '8', 'split': 'test'}, {'step': '7'}, ORIGIN | {'n': '1'}]
)
def test_a_file_of_another_origin_is_ignored(tmp_path, other):
  make(1).save(tmp_path / 'p.npz')
  assert predictions.load(tmp_path / 'p.npz', other) is None


@pytest.mark.parametrize('length', [None, 0, 10, 200, -30])
def test_a_missing_or_damaged_file_is_ignored(tmp_path, length):
  path = tmp_path / 'p.npz'
  if length is not None:
    make(1).save(path)
    path.write_bytes(path.read_bytes()[:length])
  assert predictions.load(path, ORIGIN) is None


def test_a_damaged_index_of_the_archive_is_ignored(tmp_path):
  path = tmp_path / 'p.npz'
  make(1).save(path)
  whole = path.read_bytes()
  found = []
  for i in range(1, 60):
    content = bytearray(whole)
    content[-i] ^= 0xFF
    path.write_bytes(content)
    found.append(predictions.load(path, ORIGIN))
  assert found.count(None) > 20
