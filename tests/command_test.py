"""What the commands share: lines for wrong configs (see main_test for more)."""

import pytest

from alexnet_jax import command


@pytest.mark.parametrize(
  'argv, where',
  [
    (['main', '--config=a.py', '--mode=train'], ' in --config=a.py'),
    (['main', '--config', 'a.py', '--mode=train'], ' in a.py'),
    (['main', '--mode=train'], ''),
    (['main', '--config'], ''),
  ],
)
def test_the_line_names_the_file_that_was_given(argv, where):
  with pytest.raises(SystemExit) as ended:
    with command.one_line_config_errors(argv):
      raise ValueError(KeyError('no "x"\n  here'))
  expected = f'wrong config key or value{where}: no "x" here'
  assert str(ended.value) == expected


def test_without_an_error_it_does_nothing():
  with command.one_line_config_errors(['main']):
    pass
