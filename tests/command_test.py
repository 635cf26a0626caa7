"""What commands share: compiled programs that the next command finds."""

import os
import subprocess
import sys

PROGRAM = """
import sys
import jax
from alexnet_jax import command
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
command.keep_compilations(sys.argv[1])
jax.jit(lambda x: 2 * x)(1.0)
print(seen.count('/jax/compilation_cache/cache_hits'))
"""


def hits(folder):
  """Programs that a process of its own has found compiled."""
  environment = os.environ.copy()
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, folder],
    capture_output=True,
    text=True,
    check=True,
    env=environment,
  )
  return int(done.stdout)


def test_what_one_command_compiles_the_next_one_finds(tmp_path):
  folder = tmp_path / 'not' / 'there'
  assert hits(str(folder)) == 0
  assert any(folder.iterdir())
  assert hits(str(folder)) >= 1
  assert hits('') == 0


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path):
  (tmp_path / 'file').write_text('')
  assert hits(f'{tmp_path}/file/cache') == 0
