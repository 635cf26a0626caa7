"""The fine-tuning experiment: the halves of a data set, its runs, its table.

A stand-in for training finishes a run at once; train_test.py fine-tunes.
"""

import collections
import contextlib
import io
import types

import pytest

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import input_pipeline
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import workdir as workdir_lib
from experiments import finetuning
from experiments import summary


@pytest.fixture(scope='module')
def ended(data_dir, tmp_path_factory):
  """The quick experiment with two seeds.

  Attributes:
    folder: its work directories, and the halves of the digits.
    trained: the config of each run, by variant and seed.
    printed: its output.
  """
  output, printed = tmp_path_factory.mktemp('finetuning'), io.StringIO()
  trained, errors = {}, iter([0.5, 0.4, 0.2, 0.3, 0.1, 0.2, 0.1] * 2)

  def end(config, workdir, stop):
    config = run_lib.open_run(config).config
    workdir_lib.write_config(workdir, config)
    (workdir / 'checkpoints').mkdir()
    found = {'eval/top1_error': next(errors) + 0.02 * config.seed}
    workdir_lib.write_result(workdir, 4, 0.1, 5.0, 'abc', found)
    trained['/'.join(workdir.parts[-2:])] = config

  given = {'output': str(output), 'data_dir': str(data_dir), 'seeds': 2}
  flags = types.SimpleNamespace(quick=True, **given)
  with (
    pytest.MonkeyPatch.context() as patch,
    contextlib.redirect_stdout(printed),
  ):
    patch.setattr(finetuning.flags, 'FLAGS', flags)
    patch.setattr(train, 'train_and_evaluate', end)
    patch.setattr(summary, 'draw', lambda output, labels: 'figure.png')
    finetuning.main()
  return types.SimpleNamespace(
    folder=output / 'digits', trained=trained, printed=printed.getvalue()
  )


@pytest.mark.parametrize(
  ('name', 'classes', 'limit'),
  [('first', '01234', None), ('second_20', '56789', 20)],
)
def test_a_half_has_so_many_images_of_each_of_its_classes(
  ended, data_dir, name, classes, limit
):
  whole = dataset_lib.open_dataset(data_dir, 'digits')
  half = dataset_lib.open_dataset(ended.folder / 'data', name)
  assert half.class_names == tuple(classes)
  for split, part in (('test', 'validation'), ('train', 'train')):
    expected, found = (
      [images[c] for c in classes]
      for images in (images_by_class(whole, split), images_by_class(half, part))
    )
    if part == 'train' and limit:
      assert [len(images) for images in found] == [limit] * 5
      assert all(f < e for f, e in zip(found, expected, strict=True))
    else:
      assert found == expected
  assert not (ended.folder / 'images' / name).exists()


def images_by_class(dataset, split):
  """The stored images of each class as a set of bytes, by name."""
  found = collections.defaultdict(set)
  for batch in input_pipeline.eval_batches(dataset, split, batch_size=100):
    columns = batch['image'], batch['label'], batch['mask']
    for image, label, real in zip(*columns, strict=True):
      if real:
        found[dataset.class_names[label]].add(image.tobytes())
  return found


def test_every_net_starts_from_the_first_half_of_its_own_seed(ended):
  trained = ended.trained
  assert len(trained) == 14
  for name, config in trained.items():
    variant, seed = name.split('/')
    assert config.model.num_classes == 5
    start = config.train.init_from
    if variant.startswith('finetuned'):
      assert start == f'{ended.folder}/runs/pretraining/{seed}'
      scratch = trained[name.replace('finetuned', 'scratch')]
      differ = dict(config.train), dict(scratch.train)
      assert differ[0] == differ[1] | {'init_from': start}
      assert config.input == scratch.input
    else:
      assert start == ''


def test_the_table_has_the_mean_and_standard_error_of_the_seeds(ended):
  # The mean of two values that differ by 0.02 has a standard error of 0.01.
  assert ended.printed.endswith(
    '| images a class | from scratch | fine-tuned |\n'
    '|---|---|---|\n'
    '| 20 | 41.0 ± 1.0 | 21.0 ± 1.0 |\n'
    '| 50 | 31.0 ± 1.0 | 11.0 ± 1.0 |\n'
    '| all | 21.0 ± 1.0 | 11.0 ± 1.0 |\n'
    'figure.png\n'
  )
