"""What a process says of a host that it waits for; real ones: processes_test."""

import socket

import pytest

from alexnet_jax.runtime import waiting


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost'])
def test_there_is_told_from_refused(host):
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'{host}:{server.getsockname()[1]}'
    assert waiting._how_it_answers(address) == 'process 0 is there'
  assert waiting._how_it_answers(address).startswith('it refuses')


@pytest.mark.parametrize(
  ('error', 'words'),
  [
    (TimeoutError(), 'no answer'),
    (OSError(113, 'No route to host'), 'no answer'),
    (socket.gaierror(-2, 'x'), 'the name a.b is not known here'),
  ],
)
def test_unanswered_is_told_from_unknown(monkeypatch, error, words):
  def fail(*_, **__):
    raise error

  monkeypatch.setattr(socket, 'create_connection', fail)
  assert waiting._how_it_answers('a.b:1').startswith(words)
