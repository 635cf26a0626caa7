"""Waiting for the other processes: it is said at once, and it ends."""

from collections.abc import Iterator
import contextlib
import socket
import threading

from alexnet_jax.runtime import signals

SAID_AFTER = 1.0  # seconds; processes that start together need no line.


@contextlib.contextmanager
def limited(
  address: str | None, number: int | None, index: int | None, seconds: float
) -> Iterator[None]:
  """Prints a line if this context takes long, and ends the process in the end.

  Args:
    address: 'host:port' of process 0; None if JAX detects the cluster.
    number: number of processes, likewise.
    index: index of this process, likewise.
    seconds: the time after which this process ends.
  """
  arguments = address, number, index, seconds
  timers = threading.Timer(SAID_AFTER, _say, arguments)
  timers = [timers, threading.Timer(seconds, _give_up, arguments)]
  for timer in timers:
    timer.daemon = True
    timer.start()
  try:
    yield
  finally:
    for timer in timers:
      timer.cancel()


def check_port_is_free(address: str) -> None:
  """Raises OSError if the port is in use, which may crash jaxlib."""
  port = int(address.rpartition(':')[2])
  if socket.has_dualstack_ipv6():
    server = socket.create_server(
      ('', port), family=socket.AF_INET6, dualstack_ipv6=True
    )
  else:
    server = socket.create_server(('', port))
  server.close()


def _say(address, number, index, seconds):
  if address is None:
    text = (
      'waiting for the other processes of the cluster that JAX has detected'
    )
  elif index == 0:
    text = f'process 0 waits at {address} for the other {number - 1}'
  else:
    text = f'process {index} waits for all {number} at {address}'
    text += f' ({_how_it_answers(address)})'
  signals.print_line(f'{text}, at most {seconds:g} s (--start_seconds)')


def _how_it_answers(address):
  """How the host of process 0 answers now, in words."""
  host, _, port = address.rpartition(':')
  try:
    with socket.create_connection((host.strip('[]'), int(port)), timeout=2):
      return 'process 0 is there'
  except socket.gaierror:
    return f'the name {host} is not known here'
  except ConnectionRefusedError:
    return 'it refuses: its host is there, but process 0 does not listen yet'
  except OSError:
    return 'no answer: its host or the network is down, or a firewall drops it'


def _give_up(address, number, index, seconds):
  if address:
    problem = f'not all {number} processes have connected to {address} within'
    problem += f' {seconds:g} s'
    if index:
      problem += f' ({_how_it_answers(address)})'
    way_out = (
      'start them with the same --coordinator_address and --num_processes, each'
      ' with its own --process_id, and make sure that their hosts can reach that'
      ' address'
    )
  else:
    problem = 'JAX has detected a cluster (Slurm, MPI, Kubernetes or TPU), but'
    problem += f' its processes have not connected within {seconds:g} s'
    way_out = (
      'for a single process add --num_processes=1; for several, run this command'
      ' once in each, on hosts that can reach each other'
    )
  signals.print_line(f'ValueError: {problem}; {way_out}')
  # JAX would wait longer, and then abort with a stack trace.
  signals.exit_at_once(1)
