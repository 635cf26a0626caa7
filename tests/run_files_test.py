"""Files of a run that are missing, damaged or cut off."""

import numpy as np
import pytest

from experiments import conv1_training
from experiments import run_files
from experiments import summary


@pytest.mark.parametrize(
  'content', [None, b'', b'{"loss": 1', b'[]', b'{"error": 1}', b'\xff\xfe']
)
def test_a_json_file_without_its_keys_is_lost(tmp_path, content):
  file = tmp_path / 'result.json'
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(run_files.RunFileError) as error:
    run_files.read(file, ('loss',))
  assert str(error.value) == (
    f'{file} is missing or damaged; remove {tmp_path}, and the command that'
    ' made it trains anew'
  )


def test_a_json_file_is_read(tmp_path):
  (tmp_path / 'result.json').write_text('{"loss": 1, "error": 2}')
  found = run_files.read(tmp_path / 'result.json', ('loss',))
  assert found == {'loss': 1, 'error': 2}


def test_of_a_row_the_file_alone_is_removed(tmp_path):
  with pytest.raises(run_files.RunFileError, match=r'remove .*/row.json, and'):
    summary.read_row(tmp_path / 'row.json')


@pytest.mark.parametrize(
  'content',
  [None, b'', b'step,loss\n', b'step\n1\n', b'step,loss\n1,2\n2', b'\xff\xfe'],
)
def test_a_table_without_its_columns_is_lost(tmp_path, content):
  file = tmp_path / 'metrics.csv'
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(run_files.RunFileError, match='is missing or damaged'):
    run_files.read_table(file, ('loss',))


def test_a_table_is_read(tmp_path):
  file = tmp_path / 'metrics.csv'
  file.write_text('step,loss,error\n1,2,\n')
  found = run_files.read_table(file, ('loss', 'error'))
  assert found == [{'step': '1', 'loss': '2', 'error': ''}]


def test_a_damaged_table_of_runs_may_be_removed(tmp_path):
  summary.write(tmp_path, [])
  assert summary.read_runs(tmp_path) == []
  (tmp_path / summary.RUNS_FILE).write_text('variant,seed\nbase')
  with pytest.raises(run_files.RunFileError, match='runs.csv .*; remove it,'):
    summary.read_runs(tmp_path)


@pytest.mark.parametrize('content', [None, b'', b'PK', b'other'])
def test_lost_kernels_are_named(tmp_path, content):
  folder = tmp_path / conv1_training.FOLDER
  folder.mkdir()
  if content is not None:
    (folder / '00000025.npz').write_bytes(content)
  with pytest.raises(run_files.RunFileError) as error:
    list(conv1_training.read_kernels(tmp_path))
  assert str(error.value).startswith(f'{folder} is missing or damaged; remove')
  assert f'remove {tmp_path},' in str(error.value)


def test_kernels_without_a_layer_are_lost(tmp_path):
  folder = tmp_path / conv1_training.FOLDER
  folder.mkdir()
  np.savez(folder / '00000025.npz', conv1=np.zeros(3))
  with pytest.raises(run_files.RunFileError):
    list(conv1_training.read_kernels(tmp_path))
