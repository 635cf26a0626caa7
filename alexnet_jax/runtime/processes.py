"""Several processes that run one program together, on one host or on many.

Every process runs the same command with the same arguments and computes on its
own devices; `jax.distributed` connects them. Only process 0 writes files;
checkpoints are the exception, which Orbax writes from all processes. With a
single process every function here returns at once.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import hashlib
import logging
import os
import sys
import threading
import traceback
import warnings

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
import numpy as np

from alexnet_jax.runtime import jax_settings
from alexnet_jax.runtime import peers as peers_lib
from alexnet_jax.runtime import signals
from alexnet_jax.runtime import waiting

log = logging.getLogger(__name__)

# Time for all processes to connect; JAX has the same default.
START_SECONDS = 300.0
# A process that is silent for this long is taken for lost, which ends the
# others.
HEARTBEAT_SECONDS = 30.0

# The others, once `initialize` has connected this process to them.
_peers: peers_lib.Peers | None = None


def available_cores() -> int:
  """Number of CPU cores that this process may use.

  On a cluster they may be fewer than the host has.
  """
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def initialize(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  start_seconds: float = START_SECONDS,
  heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> None:
  """Connects the processes of this run, before JAX is used for anything else.

  If JAX can detect the cluster (TPU pods, Slurm, GKE, Open MPI), no argument is
  needed; `num_processes` 1 runs a single process even there. A Slurm task uses
  those GPUs in CUDA_VISIBLE_DEVICES that are its own: all of them if it is the
  only task on its host. Exits if the others do not connect in time, and later
  if one of them is lost, see `peers`.

  Args:
    coordinator_address: 'host:port' of process 0, the same for all processes.
    num_processes: number of processes of the run.
    process_id: index of this process, 0 ... num_processes - 1.
    start_seconds: the time for all processes to connect.
    heartbeat_seconds: a process that is silent for so long is lost.

  Raises:
    ValueError: if the arguments are incomplete or wrong, or if the processes
      cannot connect.
  """
  if num_processes == 1 and coordinator_address is None and not process_id:
    return
  arguments = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  _check_flags(arguments)
  _check_seconds('--start_seconds', start_seconds)
  _check_seconds('--heartbeat_seconds', heartbeat_seconds)
  try:
    with waiting.limited(*arguments.values(), start_seconds):
      _connect(*arguments.values(), start_seconds, heartbeat_seconds)
  except Exception as error:  # JAX may raise anything here.
    if coordinator_address is None and 'should be defined' in str(error):
      return  # There is no cluster.
    raise _join_error(arguments, error) from error
  state = distributed.global_state
  if state.num_processes > 1:
    global _peers
    _peers = peers_lib.Peers(
      *(state.client, state.coordinator_address),
      *(state.process_id, state.num_processes, heartbeat_seconds),
    )
  jax_settings.start()
  if not is_first():
    logging.getLogger('alexnet_jax').setLevel(logging.ERROR)
  log.info(
    '%d processes with %d devices.', jax.process_count(), jax.device_count()
  )


def _join_error(arguments, error):
  address, _, index = arguments.values()
  if address is not None:
    return ValueError(
      f'process {index} cannot join the others at {address} ({error}); name a'
      ' free port of the host of process 0 in --coordinator_address'
    )
  return ValueError(
    'JAX has detected a cluster, but cannot connect to its processes'
    f' ({error}); run a single process with --num_processes=1, or give'
    f' {", ".join(arguments)}'
  )


def _connect(address, num_processes, process_id, start_seconds, heartbeat):
  # It would replace our handler of SIGTERM, see `agreement`.
  jax.config.update('jax_enable_preemption_service', False)
  if process_id == 0:
    waiting.check_port_is_free(address)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # JAX warns in every Kubernetes pod.
    jax.distributed.initialize(
      address,
      num_processes,
      process_id,
      # Otherwise Slurm's variables override the devices of the flags.
      cluster_detection_method='deactivate' if address else None,
      local_device_ids=None if address else _slurm_devices(),
      # Longer than ours, whose messages are clearer. JAX's last heartbeat may be
      # half of its time old when a process is lost.
      initialization_timeout=round(2 * start_seconds),
      heartbeat_timeout_seconds=round(2 * heartbeat) + 30,
    )


def _slurm_devices():
  """Indices of the GPUs of this Slurm task; None if JAX's choice is right.

  JAX gives GPU i to task i of a host. That is wrong if the task sees only its
  own GPUs, whose indices then start at 0, and if it is the only task there.
  """
  given = os.environ.get
  visible, tasks = given('CUDA_VISIBLE_DEVICES'), given('SLURM_NTASKS')
  if not (visible and tasks and given('SLURM_LOCALID')):
    return None
  if given('JAX_LOCAL_DEVICE_IDS') or given('OMPI_MCA_orte_hnp_uri'):
    # The user has chosen; or this is Open MPI, which JAX tries before Slurm.
    return None
  number = visible.count(',') + 1
  is_only_task = tasks == given('SLURM_STEP_NUM_NODES')
  sees_only_its_own = number == 1 or number < int(
    given('SLURM_GPUS_ON_NODE', number)
  )
  return list(range(number)) if is_only_task or sees_only_its_own else None


def _check_flags(arguments):
  missing = [flag for flag, value in arguments.items() if value is None]
  if missing and len(missing) < len(arguments):
    raise ValueError(
      f'{" and ".join(missing)} must be given as well; or none of'
      f' {", ".join(arguments)} where JAX can detect the cluster itself'
    )
  address, number, index = arguments.values()
  if missing:
    return
  host, colon, port = address.rpartition(':')
  if not (host and colon and port.isdigit()):
    raise ValueError(
      f'--coordinator_address={address} must be host:port of process 0, such as'
      ' 10.0.0.1:4321'
    )
  if number < 1:
    raise ValueError(f'--num_processes={number} must be at least 1')
  if not 0 <= index < number:
    raise ValueError(
      f'--process_id={index} must be at least 0 and below'
      f' --num_processes={number}'
    )


def _check_seconds(flag, seconds):
  if not 1 <= seconds <= 86_400:
    raise ValueError(f'{flag}={seconds:g} must be 1 to 86400')


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
  """Ends this process at once on any error, which ends the others as well.

  Otherwise it would wait for the others when it exits, while they wait for it
  in the middle of a step. If it was stopped, they have agreed to stop as well.
  """
  try:
    yield
  except BaseException as error:
    stopped = isinstance(error.__cause__, signals.Stopped)
    if stopped or _peers is None:
      raise
    if isinstance(error, SystemExit):
      show = functools.partial(print, error.code, file=sys.stderr, flush=True)
      _peers.fail(str(error.code), show, is_one_line=True)
    else:
      _peers.fail(f'{type(error).__name__}: {error}', traceback.print_exc)


def is_first() -> bool:
  """Whether this is process 0, which writes the files and logs of the run."""
  return jax.process_index() == 0


def is_single_process() -> bool:
  """Whether this is the only process of the run."""
  return jax.process_count() == 1


def barrier(name: str) -> None:
  """Returns when all processes have reached this point of the program.

  Args:
    name: the same in all processes; another name at the same time is an error.
  """
  if not is_single_process():
    multihost_utils.sync_global_devices(name)


def gather(values: np.ndarray) -> np.ndarray:
  """The values of all processes, [processes, ...]; at most 32 bits each."""
  if is_single_process():
    return values[None]
  return multihost_utils.process_allgather(values)


def any_process(value: bool) -> bool:
  """Whether `value` is true in any process; the same answer in all of them."""
  return bool(gather(np.array(value)).any())


def end_all_if(
  has_stalled: Callable[[], bool], seconds: int, what: str
) -> Callable[[], None]:
  """Ends all processes if `has_stalled()` in `seconds`; `what` says of what.

  Returns:
    A function that ends the watch before.
  """

  def end():
    if has_stalled():
      line = f'{what} for {seconds} s; {signals.resume_hint}'
      if _peers is not None:
        _peers.end_all(line, peers_lib.LOST)
      signals.print_line(line)
      signals.exit_at_once(peers_lib.LOST)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  return timer.cancel


def exchange(text: str) -> list[str]:
  """The texts of all processes; goes through no device."""
  if _peers is None:
    return [text]
  return _peers.exchange(text)


def check_same(values: Mapping[str, str]) -> None:
  """Raises ValueError in all processes if a value is not the same in all.

  Args:
    values: values by the names that the message gives them.
  """
  if is_single_process():
    return
  digests = [
    np.frombuffer(hashlib.sha256(v.encode()).digest()[:8], np.uint32)
    for v in values.values()
  ]
  all_digests = gather(np.stack(digests))
  for index, name in enumerate(values):
    digest = all_digests[:, index]
    others = np.flatnonzero((digest != digest[0]).any(-1)).tolist()
    if others:
      raise ValueError(
        f'{name} of the processes {others} differs from that of process 0; all'
        ' need the same command and the same prepared data'
      )
