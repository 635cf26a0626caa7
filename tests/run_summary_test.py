"""What a finished run prints."""

import json

import pytest

from alexnet_jax import run_summary

CONFIG = {
  'seed': 0,
  'input.dataset': 'digits',
  'model.num_classes': 10,
  'train.epochs': 1.0,
}
RESULT = {
  'step': 1404,
  'epoch': 3.0,
  'wall_seconds': 75.4,
  'train/loss': 0.5,
  'eval/loss': 0.25,
  'eval/top1_error': 0.125,
  'eval/top5_error': 0.03125,
  'eval_ten_view/loss': 0.25,
  'eval_ten_view/top1_error': 0.0625,
  'eval_ten_view/top5_error': 0.0,
}


@pytest.mark.parametrize('classes', [10, 5])
def test_the_summary_has_errors_time_files_and_commands(tmp_path, classes):
  folder = tmp_path / 'a run'
  folder.mkdir()
  config = json.dumps(CONFIG | {'model.num_classes': classes})
  (folder / 'config.json').write_text(config)
  (folder / 'result.json').write_text(json.dumps(RESULT))
  found = run_summary.lines(folder)
  assert '1,404 steps (3.0 epochs) in 01:15' in found[0]
  five = ('  top-5 3.12%', '  top-5 0.00%') if classes > 5 else ('', '')
  assert found[1] == f'  one view   loss 0.25  top-1 12.50%{five[0]}'
  assert found[2] == f'  ten views  loss 0.25  top-1 6.25%{five[1]}'
  assert all('train/' not in line for line in found)
  commands = [line for line in found if 'logdir=' in line or 'python' in line]
  assert len(commands) == 3
  assert all(f"'{folder}'" in line for line in commands)  # Quoted.


@pytest.mark.parametrize(
  'content',
  [
    *('', '[]', '{"step": 3', '3', '{"step": 3, "epoch": 1.0}'),
    json.dumps(RESULT | {'wall_seconds': '75.4'}),
    json.dumps(RESULT | {'eval/loss': None}),
    json.dumps(RESULT | {'eval/loss': 10**400}),
    json.dumps(RESULT | {'epoch': 10**400}),
    json.dumps(RESULT | {'step': float('nan')}),
    json.dumps(RESULT | {'wall_seconds': float('inf')}),
  ],
)
def test_a_damaged_result_is_named_with_the_way_out(tmp_path, content):
  file = tmp_path / 'result.json'
  file.write_text(content)
  words = f'^{file} is damaged .*; remove it and repeat the command$'
  with pytest.raises(ValueError, match=words):
    run_summary.lines(tmp_path)
