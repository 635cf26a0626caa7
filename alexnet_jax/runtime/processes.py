"""Many processes that run one program, on one host or several.

Every process runs the same commands on the same arguments; each computes on its
own devices, and `jax.distributed` lets them meet. Only the first one writes
files, but for the checkpoints, which Orbax writes from all. One process alone
needs nothing of this, and every function here then returns at once.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import logging
import os
import socket
import sys
import threading
import traceback
import warnings

import jax
from jax.experimental import multihost_utils
import numpy as np

log = logging.getLogger(__name__)

START_SECONDS = 300  # For all processes to come together; as JAX's own.
# A process that gave no sign of life for so long has died, and ends the others.
HEARTBEAT_SECONDS = 30

_joined = False  # By this process, in `initialize`.


def available_cores() -> int:
  """That this process may use: on a cluster perhaps not all of its host."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def initialize(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
) -> None:
  """Joins the processes of this run, before JAX is used for anything else.

  Where JAX knows the cluster (TPU pods, Slurm, GKE, Open MPI) no argument is
  needed; `num_processes` 1 keeps this process alone even there. Under Slurm a
  task takes the GPUs in CUDA_VISIBLE_DEVICES that are its own: all where it is
  alone on its host. Ends the process where the others do not come within
  `START_SECONDS`.

  Args:
    coordinator_address: 'host:port' of process 0, the same for all.
    num_processes: of the run.
    process_id: of this one, 0 ... num_processes - 1.

  Raises:
    ValueError: if the arguments are incomplete or wrong.
  """
  if num_processes == 1 and coordinator_address is None and not process_id:
    return
  given = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  _check_flags(given)
  where = coordinator_address or 'the coordinator that JAX has found'
  timer = threading.Timer(START_SECONDS, _give_up, (where, num_processes))
  timer.daemon = True
  timer.start()
  # It would catch SIGTERM, and do nothing.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    if process_id == 0:
      _check_free(coordinator_address)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # In any pod of Kubernetes.
      jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        # Else Slurm's variables would choose the devices in spite of the flags.
        cluster_detection_method='deactivate' if coordinator_address else None,
        local_device_ids=None if coordinator_address else _slurm_devices(),
        # After the timer, whose error is clearer.
        initialization_timeout=2 * START_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      )
  except Exception as error:
    if coordinator_address is not None:
      raise ValueError(
        f'process {process_id} cannot join the others at {coordinator_address}'
        f' ({error}); name a free port of the host of process 0 in'
        ' --coordinator_address'
      ) from error
    if 'should be defined' in str(error):
      return  # No cluster.
    raise ValueError(
      'JAX takes this for a part of a cluster, but cannot join its processes'
      f' ({error}); run alone with --num_processes=1, or give'
      f' {", ".join(given)}'
    ) from error
  finally:
    timer.cancel()
  global _joined
  _joined = True
  if not is_first():
    logging.getLogger('alexnet_jax').setLevel(logging.ERROR)
  log.info(
    '%d processes with %d devices.', jax.process_count(), jax.device_count()
  )


def _slurm_devices():
  """Numbers of the GPUs of this task of Slurm; None where JAX's are right.

  JAX gives task i of a host the GPU i: wrong where the task sees only GPUs of its
  own, the first of which is then number 0, and where it is alone.
  """
  given = os.environ.get
  visible, tasks = given('CUDA_VISIBLE_DEVICES'), given('SLURM_NTASKS')
  if not (visible and tasks and given('SLURM_LOCALID')):
    return None
  if given('JAX_LOCAL_DEVICE_IDS') or given('OMPI_MCA_orte_hnp_uri'):
    return None  # A user's choice; Open MPI, which JAX looks for before Slurm.
  number = visible.count(',') + 1
  alone = tasks == given('SLURM_STEP_NUM_NODES')
  own = number == 1 or number < int(given('SLURM_GPUS_ON_NODE', number))
  return list(range(number)) if alone or own else None


def _check_flags(given):
  missing = [flag for flag, value in given.items() if value is None]
  if missing and len(missing) < len(given):
    raise ValueError(
      f'{" and ".join(missing)} must be given as well; or none of'
      f' {", ".join(given)} where JAX can find the cluster by itself'
    )
  address, number, index = given.values()
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


def _check_free(address):
  """Raises OSError if the port is in use: jaxlib may crash of it."""
  port = int(address.rpartition(':')[2])
  if socket.has_dualstack_ipv6():
    server = socket.create_server(
      ('', port), family=socket.AF_INET6, dualstack_ipv6=True
    )
  else:
    server = socket.create_server(('', port))
  server.close()


def _give_up(where, num_processes):
  count = num_processes or 'all'
  print(
    f'ValueError: {count} processes have not come together at {where} within'
    f' {START_SECONDS} s; start them with the same --coordinator_address and'
    ' --num_processes and each with its own --process_id, and see that their'
    ' hosts reach that address',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)  # JAX would wait on, and then abort with a stack trace.


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
  """Ends this process at once on any error, and thereby the others.

  Otherwise it would wait for the others at its exit, while they wait for it in
  the middle of a step.
  """
  try:
    yield
  except BaseException as error:
    if not _joined or is_single_process():
      raise
    if not isinstance(error, SystemExit):
      traceback.print_exc()
    elif error.code:
      print(error.code, file=sys.stderr)
    print(
      f'process {jax.process_index()} of {jax.process_count()} ends with the'
      ' error above. If it speaks of a connection, another process has died:'
      ' see its log. The same commands continue at the last checkpoint',
      file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def is_first() -> bool:
  """Whether this process writes the files and logs of the run."""
  return jax.process_index() == 0


def is_single_process() -> bool:
  """Whether this is the only process of the run."""
  return jax.process_count() == 1


def barrier(name: str) -> None:
  """Returns when all processes have come to this place of the program."""
  if not is_single_process():
    multihost_utils.sync_global_devices(name)


def any_process(value: bool) -> bool:
  """Whether `value` is true in any process; all get the same answer."""
  if is_single_process():
    return value
  return bool(multihost_utils.process_allgather(np.array(value)).any())


def check_same(values: Mapping[str, str]) -> None:
  """Raises ValueError, in all processes, if they differ in a value.

  Args:
    values: by the name that the user knows them by.
  """
  if is_single_process():
    return
  digests = [
    np.frombuffer(hashlib.sha256(v.encode()).digest()[:8], np.uint32)
    for v in values.values()
  ]
  everyone = multihost_utils.process_allgather(np.stack(digests))
  for index, name in enumerate(values):
    of_all = everyone[:, index]
    others = np.flatnonzero((of_all != of_all[0]).any(-1)).tolist()
    if others:
      raise ValueError(
        f'{name} of the processes {others} is not that of process 0; all need the'
        ' same command, and the same prepared data'
      )
