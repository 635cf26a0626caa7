"""Settings of JAX that a user has made for all programs.

That a whole training is the same with all of them, set as variables, is in
train_test.py.
"""

import jax
import pytest

from alexnet_jax.runtime import jax_settings

OTHERS = {
  'jax_default_prng_impl': 'rbg',
  'jax_random_seed_offset': 7,
  'jax_threefry_partitionable': False,
  'jax_enable_x64': True,
  'jax_disable_most_optimizations': True,
  'jax_error_checking_behavior_nan': 'raise',
  'jax_error_checking_behavior_divide': 'raise',
  'jax_error_checking_behavior_oob': 'raise',
  'eager_constant_folding': True,
  'jax_disable_jit': True,
  'jax_no_tracing': True,
  'jax_no_execution': True,
  'jax_transfer_guard': 'disallow',
  'jax_transfer_guard_host_to_device': 'disallow',
  'jax_transfer_guard_device_to_device': 'disallow',
  'jax_transfer_guard_device_to_host': 'disallow_explicit',
}


def test_every_pinned_setting_is_tried():
  assert OTHERS.keys() == jax_settings.PINNED.keys()


@pytest.mark.parametrize('name', OTHERS)
def test_another_value_is_set_back_and_named_once(name, caplog):
  jax_settings.pin()
  caplog.clear()
  assert jax.config.values[name] in (jax_settings.PINNED[name], None)
  try:
    jax.config.update(name, OTHERS[name])
    jax_settings.pin()
    assert jax.config.values[name] == jax_settings.PINNED[name]
    (record,) = caplog.records
    change = f'{name}={OTHERS[name]} to {jax_settings.PINNED[name]}'
    assert change in record.getMessage()
    jax_settings.pin()
    assert len(caplog.records) == 1
  finally:
    jax.config.update(name, jax_settings.PINNED[name])


def test_what_a_context_manager_sets_is_refused():
  with jax.enable_x64(True), pytest.raises(ValueError) as error:
    jax_settings.pin()
  assert str(error.value) == (
    'jax_enable_x64=True is set by a context manager; leave it, or set False'
  )


def test_a_setting_that_this_jax_does_not_have_is_left_out(monkeypatch, caplog):
  monkeypatch.setattr(jax_settings, 'PINNED', {'jax_no_such_setting': 1})
  jax_settings.pin()
  assert caplog.records == []


@pytest.mark.parametrize(
  ('platforms', 'error', 'message'),
  [
    (
      'cuda',
      AssertionError(),
      'jax_platforms=cuda (there is none); correct or',
    ),
    (
      'tpu',
      RuntimeError('no\n  tpu'),
      'jax_platforms=tpu (no tpu); correct or',
    ),
    (
      None,
      RuntimeError('no cpu'),
      'any device (no cpu); correct or unset the variables below',
    ),
  ],
)
def test_a_device_that_is_not_there_is_named_with_the_variables(
  monkeypatch, platforms, error, message
):
  def devices():
    raise error

  before = jax.config.jax_platforms
  monkeypatch.setattr(jax, 'devices', devices)
  monkeypatch.setenv('JAX_PLATFORMS', str(platforms))
  try:
    jax.config.update('jax_platforms', platforms)
    with pytest.raises(ValueError) as raised:
      jax_settings.start()
  finally:
    jax.config.update('jax_platforms', before)
  first, second = str(raised.value).splitlines()
  assert first.startswith(f'JAX cannot use {message}')
  assert 'JAX_PLATFORMS' in second and 'XLA_FLAGS' in second


@pytest.mark.parametrize(
  ('flags', 'reason'),
  [
    ('--xla_no_such_flag=1', 'Unknown flag in XLA_FLAGS: --xla_no_such_flag=1'),
    (
      '--xla_force_host_platform_device_count=two',
      "Couldn't interpret value two",
    ),
    ('no_such_file', 'Could not open file "no_such_file"'),
  ],
)
def test_flags_that_would_abort_the_process_are_one_line(
  monkeypatch, flags, reason
):
  monkeypatch.setenv('XLA_FLAGS', flags)
  with pytest.raises(ValueError) as error:
    jax_settings.start()
  message = str(error.value)
  assert message.startswith(f'XLA refuses XLA_FLAGS={flags} ({reason}')
  assert message.endswith('; correct or unset it') and '\n' not in message


@pytest.mark.parametrize('flags', ['', '--xla_gpu_autotune_level=3'])
def test_flags_that_xla_knows_are_accepted(monkeypatch, flags):
  monkeypatch.setenv('XLA_FLAGS', flags)
  jax_settings.start()
