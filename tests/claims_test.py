"""The claims that need no training: each against a count by hand or the paper.

Small nets show that a claim can fail. What other tests hold is not repeated:
`claims.CLAIMS` names them.
"""

import csv
import pathlib

import jax
import numpy as np
import pytest

from alexnet_jax import model
from configs import cifar10
from configs import paper
from experiments import claims

ROOT = pathlib.Path(__file__).parents[1]
RECORD = ROOT / 'experiments' / 'results' / 'claims' / 'claims.csv'
NARROW = {
  'num_classes': 10,
  'conv_features': (4, 4, 4, 4, 4),
  'fc_features': (8, 8),
}
# Worked by hand. Figure 2 has these counts, but for 253,440 in conv1.
NEURONS = {
  'conv1': 55 * 55 * 96,
  'conv2': 186_624,
  'conv3': 64_896,
  'conv4': 64_896,
  'conv5': 43_264,
  'fc6': 4096,
  'fc7': 4096,
  'fc8': 1000,
}


def record():
  with open(RECORD, newline='') as file:
    return list(csv.DictReader(file))


def config(size=67, **changes):
  """The config of a narrow net on crops of `size` pixels."""
  found = paper.get_config()
  found.model.update(NARROW | changes)
  found.input.crop_size, found.input.image_size = size, size + 9
  return found


def test_the_record_has_every_claim_as_the_command_writes_it():
  found = record()
  cells = {row['claim']: row['computed'] for row in found}
  assert claims.rows(cells) == found


# The paper's counts, or counts by hand; none is taken from the package.
@pytest.mark.parametrize(
  ('claim', 'expected'),
  {
    'parameters': '60,965,224',
    'layers': '5 convolutional, 3 fully connected',
    'neurons': f'{sum(NEURONS.values()):,}',
    'conv1_neurons': '290,400',
    'towers': 'conv3, fc6, fc7, fc8',
    # Half of what conv3 and fc6 to fc8 read, both ways, and half of the logits.
    'traffic': 'conv3, fc6, fc7, fc8, logits;'
    f' {4 * (13 * 13 * 256 + 9216 + 4096 + 4096 + 500):,} bytes received by each'
    ' device for an image, 31.3 MB in a step of 128',
    'one_gpu_parameters': '59,798,312',
    'pooling_windows': 'side 3, stride 2; maps of 55, 27, 13, 6 pixels',
    'pooling_sizes': 'side 2, stride 2; maps of 55, 27, 13, 6 pixels',
    'softmax': '1,000 probabilities, sum 1.000000',
    'views': f'{33 * 33 * 2:,}',
    'multiply_adds': '724,406,816',
    # 108 million images in 518,400 and in 432,000 seconds; 4.1356 GFLOP each.
    'days': '208 to 250 images/s, 0.86 to 1.03 TFLOP/s',
  }.items(),
)
def test_the_record_has_the_count_by_hand(claim, expected):
  assert {row['claim']: row['computed'] for row in record()}[claim] == expected


@pytest.mark.slow  # It compiles the full net for two devices.
def test_the_command_computes_the_record():
  assert claims.rows(claims.computed()) == record()


def test_the_tests_that_claims_name_exist():
  names = {name for row in record() for name in row['tests'].split(', ')}
  missing = [n for n in names if not (ROOT / 'tests' / f'{n}.py').exists()]
  assert missing == []


def test_layers_are_counted_by_their_kernels():
  assert claims.num_layers(paper.get_config()) == (5, 3)
  fewer = config(conv_features=(4, 4, 0, 4, 4), fc_features=(8, 0))
  assert claims.num_layers(fewer) == (4, 2)


def test_neurons_of_a_layer_are_counted_before_it_is_pooled():
  assert claims.neurons(paper.get_config()) == NEURONS
  # Maps of 28, 13 and 6 pixels.
  assert claims.neurons(cifar10.get_config()) == {
    'conv1': 28 * 28 * 32,
    'conv2': 13 * 13 * 96,
    'conv3': 6 * 6 * 128,
    'conv4': 6 * 6 * 128,
    'conv5': 6 * 6 * 96,
    'fc6': 512,
    'fc7': 512,
    'fc8': 10,
  }


def test_a_norm_over_the_boundary_makes_conv2_read_both_towers():
  narrow = config(
    conv_features=(8,) * 5, init_std=0.1, lrn_alpha=0.1, lrn_across_towers=True
  )
  params = claims.initial_params(narrow)
  found = claims.layers_that_read_both_towers(narrow, params)
  assert found == ['conv2', 'conv3', 'fc6', 'fc7', 'fc8']


def test_the_layers_are_not_read_from_the_table_of_the_model(monkeypatch):
  narrow = config(conv_features=(8,) * 5, init_std=0.1)
  table = [n for n in model.READ_BOTH_TOWERS if n != 'conv3']
  monkeypatch.setattr(model, 'READ_BOTH_TOWERS', table)
  params = claims.initial_params(narrow)
  found = claims.layers_that_read_both_towers(narrow, params)
  assert found == ['fc6', 'fc7', 'fc8']


@pytest.mark.parametrize(('size', 'expected'), [(3, (3, 2)), (2, (2, 2))])
def test_a_pooling_window_is_found_from_what_it_reads(size, expected):
  assert claims.pooling_window(size) == expected


def test_probabilities_are_those_of_all_classes():
  narrow = config(num_classes=7)
  params = jax.tree.map(np.asarray, claims.initial_params(narrow))
  params['fc8']['bias'] = np.log(np.arange(1, 8, dtype=np.float32))
  params['fc8']['kernel'] = 0 * params['fc8']['kernel']
  found = claims.class_probabilities(narrow, params)
  np.testing.assert_allclose(found, np.arange(1, 8) / 28, rtol=1e-6)


def test_views_are_counted():
  assert claims.num_views(12, 8) == 5 * 5 * 2


def test_the_rate_of_a_training_of_five_days():
  # 90 x 1.2 million images in 432,000 s.
  assert claims.training_rates((5,)) == [250]


def test_the_table_is_written_and_read_back(tmp_path):
  found = claims.rows({row['claim']: '1,234 units' for row in record()})
  path = claims.write(str(tmp_path / 'new'), found)
  with open(path, newline='') as file:
    assert list(csv.DictReader(file)) == found
