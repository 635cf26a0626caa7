"""Errors of a config as one line, and what libraries log; see main_test.py."""

import logging

from absl import logging as absl_logging
import pytest

from alexnet_jax.runtime import command


@pytest.mark.parametrize(
  'argv, where',
  [
    (['main', '--config=a.py', '--mode=train'], ' in --config=a.py'),
    (['main', '--config', 'a.py', '--mode=train'], ' in a.py'),
    (['main', '--mode=train'], ''),
    (['main', '--config'], ''),
  ],
)
def test_a_config_error_is_one_line_that_names_the_file(argv, where):
  with pytest.raises(SystemExit) as ended:
    with command.one_line_config_errors(argv):
      raise ValueError(KeyError('no "x"\n  here'))
  expected = f'wrong config key or value{where}: no "x" here'
  assert str(ended.value) == expected


def test_without_an_error_nothing_is_printed_or_raised():
  with command.one_line_config_errors(['main']):
    pass


def test_libraries_log_only_errors_but_jax_also_warnings():
  names = ('alexnet_jax.run', 'jax._src.xla_bridge', 'orbax')
  loggers = [logging.getLogger(name) for name in (*names, 'absl')]
  levels = [logging.getLogger(n).level for n in ('alexnet_jax', 'jax', None)]
  verbosity = absl_logging.get_verbosity()
  try:
    logging.getLogger().setLevel(logging.ERROR)  # As absl.app.run sets it.
    with command.one_line_errors('again'):
      found = [logger.getEffectiveLevel() for logger in loggers]
  finally:
    absl_logging.set_verbosity(verbosity)
    for name, level in zip(('alexnet_jax', 'jax', None), levels, strict=True):
      logging.getLogger(name).setLevel(level)
  error = logging.ERROR
  assert found == [logging.INFO, logging.WARNING, error, error]
