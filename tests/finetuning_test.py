"""The fine-tuning experiment: the halves of a data set, its runs, its table.

A stand-in for training finishes a run at once; train_test.py fine-tunes.
"""

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
def halves(data_dir, tmp_path_factory):
  """The folder with the halves of the digits."""
  output = tmp_path_factory.mktemp('finetuning')
  setting = finetuning.quick()
  setting.config.input.data_dir = str(data_dir)
  finetuning.divide(setting.config, output)
  return output / 'data'


@pytest.mark.parametrize(
  ('name', 'classes', 'limit'),
  [('first', '01234', None), ('second_20', '56789', 20)],
)
def test_a_half_has_so_many_images_of_each_of_its_classes(
  halves, data_dir, name, classes, limit
):
  whole = dataset_lib.open_dataset(data_dir, 'digits')
  half = dataset_lib.open_dataset(halves, name)
  assert half.class_names == tuple(classes)
  for split, part in (('test', 'validation'), ('train', 'train')):
    expected, found = (
      [images_by_class(dataset, of, c) for c in classes]
      for dataset, of in ((whole, split), (half, part))
    )
    if part == 'train' and limit:
      assert [len(images) for images in found] == [limit] * 5
      assert all(f < e for f, e in zip(found, expected, strict=True))
    else:
      assert found == expected
  assert not (halves.parent / 'images' / name).exists()


def images_by_class(dataset, split, name):
  """The stored images of a class, as a set of bytes."""
  batches = input_pipeline.eval_batches(dataset, split, batch_size=100)
  label = dataset.class_names.index(name)
  return {
    image.tobytes()
    for batch in batches
    for image, own, real in zip(*batch_columns(batch), strict=True)
    if real and own == label
  }


def batch_columns(batch):
  return batch['image'], batch['label'], batch['mask']


def test_every_net_starts_from_the_first_half_of_its_own_seed(
  data_dir, tmp_path, monkeypatch, capsys
):
  trained, errors = {}, iter([0.5, 0.4, 0.2, 0.3, 0.1, 0.2, 0.1] * 2)

  def end(config, workdir, stop):
    config = run_lib.open_run(config).config
    workdir_lib.write_config(workdir, config)
    (workdir / 'checkpoints').mkdir()
    found = {'eval/top1_error': next(errors) + 0.02 * config.seed}
    workdir_lib.write_result(workdir, 4, 0.1, 5.0, 'abc', found)
    trained['/'.join(workdir.parts[-2:])] = config

  given = {'output': str(tmp_path), 'data_dir': str(data_dir), 'seeds': 2}
  flags = types.SimpleNamespace(quick=True, **given)
  monkeypatch.setattr(finetuning.flags, 'FLAGS', flags)
  monkeypatch.setattr(train, 'train_and_evaluate', end)
  monkeypatch.setattr(summary, 'draw', lambda output, labels: 'figure.png')
  finetuning.main()
  assert len(trained) == 14
  for name, config in trained.items():
    variant, seed = name.split('/')
    assert config.model.num_classes == 5
    start = config.train.init_from
    if variant.startswith('finetuned'):
      assert start == f'{tmp_path}/digits/runs/pretraining/{seed}'
      scratch = trained[name.replace('finetuned', 'scratch')]
      differ = dict(config.train), dict(scratch.train)
      assert differ[0] == differ[1] | {'init_from': start}
      assert config.input == scratch.input
    else:
      assert start == ''
  # The mean of two values that differ by 0.02 has a standard error of 0.01.
  assert capsys.readouterr().out.endswith(
    '| images a class | from scratch | fine-tuned |\n'
    '|---|---|---|\n'
    '| 20 | 41.0 ± 1.0 | 21.0 ± 1.0 |\n'
    '| 50 | 31.0 ± 1.0 | 11.0 ± 1.0 |\n'
    '| all | 21.0 ± 1.0 | 11.0 ± 1.0 |\n'
    'figure.png\n'
  )
