"""What processes compare when they start; two real ones: processes_test."""

import pathlib

import jax
import pytest

from alexnet_jax.runtime import installation

SAME = {'the version of jax': '0.1', 'the file train.py': 'SHA-256 ab'}


def test_the_facts_have_versions_and_every_file_of_the_package():
  facts = installation.facts()
  assert facts['the version of jax'] == jax.__version__
  assert {'the version of Python', 'the version of numpy'} <= facts.keys()
  package = pathlib.Path(installation.__file__).parents[1]
  names = {
    f'the file {p.relative_to(package.parent)}' for p in package.rglob('*.py')
  }
  assert 'the file alexnet_jax/train.py' in names <= facts.keys()


@pytest.mark.parametrize(
  ('third', 'message'),
  [
    (
      {'the version of jax': '0.2'},
      'the version of jax is 0.2 in process 2, but 0.1 in process 0; run the same',
    ),
    (
      {'the file train.py': 'SHA-256 cd', 'the file new.py': 'SHA-256 ef'},
      'the file train.py is SHA-256 cd in process 2, but SHA-256 ab in process 0'
      r' \(and 1 more differ\); run the same',
    ),
    (
      {'the file new.py': 'SHA-256 ef'},
      'the file new.py is SHA-256 ef in process 2, but missing in process 0;',
    ),
  ],
)
def test_the_first_fact_that_differs_is_named(third, message):
  installation.compare([SAME] * 3)
  with pytest.raises(ValueError, match=f'^{message}'):
    installation.compare([SAME, SAME, SAME | third])


def test_a_single_process_compares_nothing(monkeypatch):
  monkeypatch.setattr(installation, 'facts', None)
  installation.check({})
