"""Words of WordNet ids: those of ILSVRC, and names that its lists have twice."""

from alexnet_jax import words
from alexnet_jax.prepare import imagenet


def test_the_words_of_ilsvrc_are_in_the_order_of_its_labels():
  found = words.read(None)
  assert tuple(found) == imagenet.class_names()
  # https://pytorch.org/vision: labels 0, 2 and 999.
  shown = [found[name] for name in ('n01440764', 'n01484850', 'n15075141')]
  assert [text.split(', ')[0] for text in shown] == [
    'tench',
    'great white shark',
    'toilet tissue',
  ]


def test_a_name_that_ilsvrc_has_twice_is_told_apart():
  names = [text.split(', ')[0] for text in words.ilsvrc().values()]
  names[639] = 'maillot'  # As in published lists; WordNet has 'tank suit' too.
  found = words.distinct(names)
  assert len({*found}) == 1000
  assert {i: found[i] for i in range(1000) if found[i] != names[i]} == {
    134: 'crane (n02012849)',
    517: 'crane (n03126707)',
    638: 'maillot (n03710637)',
    639: 'maillot (n03710721)',
  }


def test_other_names_stay_as_they_are():
  names = [text.split(', ')[0] for text in words.ilsvrc().values()]
  names[0] = names[1] = 'crane'  # Neither is one.
  assert words.distinct(names)[:2] == ('crane', 'crane')
  assert words.distinct(['crane', 'crane']) == ('crane', 'crane')
