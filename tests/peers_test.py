"""How an error in a thread, or a stall, ends all; real ones: processes_test."""

import concurrent.futures
import errno
import json
import queue
import sys
import threading
import time
import types

import orbax.checkpoint as ocp
import pytest

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_handlers
from alexnet_jax.runtime import digests
from alexnet_jax.runtime import peers
from alexnet_jax.runtime import processes


class Client:
  """A coordination service that holds what process 1 of 2 has told."""

  def __init__(self):
    self.notes = {}

  def key_value_set(self, key, value, allow_overwrite=False):
    self.notes[key] = value

  def key_value_dir_get(self, folder):
    return [*self.notes.items()]


@pytest.fixture
def ended(monkeypatch):
  """Exit codes with which this process would have ended; its threads go on."""
  codes = queue.Queue()
  monkeypatch.setattr(peers.signals, 'exit_at_once', codes.put)
  return codes


@pytest.fixture
def watched(monkeypatch, ended):
  """Process 0 of 2, which beats each 0.1 s."""
  client = Client()
  monkeypatch.setattr(peers, '_set_handler', lambda *_: None)
  monkeypatch.setattr(peers.atexit, 'register', lambda _: None)
  watched = peers.Peers(client, '127.0.0.1:1', 0, 2, 1.0)
  monkeypatch.setattr(processes, '_peers', watched)
  monkeypatch.setattr(processes, 'is_single_process', lambda: False)
  yield client, watched
  watched._has_left.set()


def test_a_process_that_never_beats_is_lost(watched, ended, capfd):
  client, _ = watched
  assert ended.get(timeout=20) == peers.LOST == 75
  first = capfd.readouterr().err.splitlines()[0]
  assert first.startswith('process 1 of 2 is lost: not heard of for 1 s')
  told = json.loads(client.notes['alexnet_jax/processes/end/0'])
  assert told == {'code': peers.LOST, 'line': first}


def test_a_process_that_has_left_is_not_missed(watched, ended):
  client, watching = watched
  left = json.dumps({'code': 0, 'line': ''})
  client.key_value_set('alexnet_jax/processes/end/1', left)
  time.sleep(2)  # Twice the time after which a silent process is lost.
  assert ended.empty()
  watching.leave()
  assert ended.empty()


def test_a_process_leaves_although_it_could_not_tell_at_once(watched):
  client, watching = watched
  left, tell, fails = {'code': 0, 'line': ''}, client.key_value_set, [True] * 3
  tell('alexnet_jax/processes/end/1', json.dumps(left))

  def refuse(key, *args, **kwargs):
    if key.endswith('end/0') and fails:
      fails.pop()
      raise RuntimeError('UNAVAILABLE')
    tell(key, *args, **kwargs)

  client.key_value_set = refuse
  leaving = threading.Thread(target=watching.leave, daemon=True)
  leaving.start()
  leaving.join(5)
  assert not leaving.is_alive()


def test_the_error_of_another_process_is_shown_with_its_code(
  watched, ended, capfd
):
  client, _ = watched
  end = json.dumps({'code': 3, 'line': 'process 1 of 2: no'})
  client.key_value_set('alexnet_jax/processes/end/1', end)
  assert ended.get(timeout=20) == 3
  assert capfd.readouterr().err.splitlines()[0] == 'process 1 of 2: no'


@pytest.mark.parametrize(
  ('line', 'code'),
  [
    (
      'ValueError: UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error'
      ' [127.0.0.1]:62187: Connection reset by peer',
      peers.LOST,
    ),
    ('ValueError: --coordinator_address=gloo has no socket', 1),
  ],
)
def test_an_error_of_one_line_may_be_that_of_a_lost_process(
  watched, ended, line, code
):
  def work():
    with processes.abort_all_on_error():
      sys.exit(line)

  threading.Thread(target=work, daemon=True).start()
  assert ended.get(timeout=20) == code


def full_disk(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def wait_for_part(folder):
  part = concurrent.futures.Future()
  part.set_exception(OSError(errno.ENOSPC, 'No space left on device'))
  checkpoint_handlers._Part(part, folder).result()


def finalize(folder, item):
  registry = checkpoint_handlers.handlers(folder)
  save = ocp.args.StandardSave if item == 'state' else ocp.args.JsonSave
  registry.get(item, save).finalize(folder)


def write_digests(folder):
  (folder / f'8{ocp.utils.TMP_DIR_SUFFIX}').mkdir()
  checkpoint.Checkpoints._write_digests(types.SimpleNamespace(folder=folder))


SAVES = {
  'part': wait_for_part,
  'state': lambda folder: finalize(folder, 'state'),
  'record': lambda folder: finalize(folder, 'record'),
  'metrics': lambda folder: finalize(folder, 'metrics'),
  'digests': write_digests,
}


@pytest.fixture(params=SAVES)
def save(request, monkeypatch):
  """Function of a folder: a save there that fails in the background."""
  for handler in (ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler):
    monkeypatch.setattr(handler, 'finalize', full_disk)
  monkeypatch.setattr(digests, 'write', full_disk)
  return SAVES[request.param]


def test_an_error_in_a_save_ends_all(watched, ended, save, tmp_path, capfd):
  client, _ = watched
  (tmp_path / '4').mkdir()
  save(tmp_path)
  assert ended.get(timeout=20) == 1
  problem = f'disk full at {tmp_path}; checkpoint 4 is whole'
  assert capfd.readouterr().err.splitlines()[:2] == [
    f'a checkpoint cannot be saved: {problem}',
    'process 0 of 2 ends with the error above, and so do the others',
  ]
  told = json.loads(client.notes['alexnet_jax/processes/end/0'])['line']
  assert told.endswith(f'an error: a checkpoint cannot be saved: {problem}')


def test_a_single_process_raises_the_error_of_a_save(save, tmp_path):
  with pytest.raises(OSError, match='disk full at .*; no checkpoint yet'):
    save(tmp_path)


def test_what_stalls_ends_the_process_and_what_has_ended_does_not(ended, capfd):
  processes.end_all_if(lambda: False, 0, 'saving 1 has stalled')
  processes.end_all_if(lambda: True, 60, 'saving 2 has stalled')()
  processes.end_all_if(lambda: True, 0, 'saving 3 has stalled')
  assert ended.get(timeout=20) == peers.LOST
  assert ended.empty()
  assert capfd.readouterr().err.startswith('saving 3 has stalled for 0 s; ')
