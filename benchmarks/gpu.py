r"""Everything that a rented GPU can tell, in one command of minutes.

    python -m benchmarks.gpu --output=DIR [--budget_s=420] [--only=PARTS]
        [--data_dir=DIR] [--archive=FILE.tar.gz] [--quick]

| part | what it measures |
|---|---|
| machine | what the GPU reaches: products and copies (`benchmarks.machine`) |
| numerics | every part against the CPU's numbers (`benchmarks.numerics`) |
| train_step_DTYPE | training against torch.compile, channels last (float32: TF32) |
| batches | the train step alone at other batch sizes |
| switches_DTYPE | other ways of computing the same |
| profile | the slowest operations of a traced step (`benchmarks.operations`) |
| inference | latency and rate against torch.compile |
| input_pipeline | the host half on all cores, on photographs |
| end_to_end_CACHE | a real run against its halves, on photographs |
| cifar10, fast, source, paper | trainings to the end of a stated schedule, seed 0 |
| cifar10_seed1, ... | the same with other seeds |

Every part is a process with a time limit, which ends with it; its output and figures
are in DIR/PART.txt and DIR/PART.json, on the disk before the next part begins, and a
work directory in DIR/PART. A part that fails, has no time or no data is named and
passed over. The limits add up to 44 minutes, most of it for compiling programs the
first time: 420 s are enough for the first parts only. --only names others, in any
order; calls with one DIR share compiled programs. --quick tries all parts on any
machine, with narrow nets and figures that mean nothing.

Exit code 0 if the first two parts succeeded (of those asked for), otherwise 1, and 3
without a GPU, when nothing runs.
"""

from collections.abc import Sequence
from concurrent import futures
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time

from absl import flags

from alexnet_jax import checkpoint
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import predictions
from alexnet_jax.runtime import command
from alexnet_jax.runtime import files
from benchmarks import gpu_parts

NO_GPU = 3  # Exit code.
NECESSARY = 'machine', 'numerics'
FLAGS = flags.FLAGS


def part_command(name: str, folder: pathlib.Path) -> list[str]:
  """The command of a part."""
  part = gpu_parts.PARTS[name]
  words = shlex.split(part.words) + part.quick.split() * FLAGS.quick
  if part.trains:
    words.append(f'--workdir={folder / name}')
  else:
    words.append(f'--output={folder / name}.json')
  if part.dataset:
    key = 'config.input.data_dir' if '--config' in part.words else 'data_dir'
    words.append(f'--{key}={FLAGS.data_dir}')
  return [sys.executable, '-m', *words]


def run_part(words: Sequence[str], file: pathlib.Path, limit: float) -> str:
  """Runs a command with its output in a file; '' or what went wrong."""
  with open(file, 'w') as output:
    process = subprocess.Popen(
      words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
      code = process.wait(timeout=limit)
      problem = f'exit code {code}' if code else ''
    except subprocess.TimeoutExpired:
      problem = f'ended after {limit:.0f} s'
    finally:  # With the processes that it started.
      try:
        os.killpg(process.pid, signal.SIGKILL)
      except ProcessLookupError:
        pass
      process.wait()
  return problem


def reason_to_skip(name: str, seconds_left: float) -> str:
  """Why a part cannot run; '' if it can."""
  part = gpu_parts.PARTS[name]
  if round(seconds_left) < min(part.seconds, 30):
    return f'skipped: {seconds_left:.0f} s are left of --budget_s'
  path = dataset_lib.dataset_path(FLAGS.data_dir, part.dataset)
  if part.dataset and not (path / dataset_lib.STATISTICS_FILE).exists():
    return f'skipped: no prepared data set {part.dataset} in {FLAGS.data_dir}'
  return ''


def backend() -> str:
  """JAX's default backend; asked in a process that then lets go of the GPU."""
  code = 'import jax; print(jax.default_backend())'
  words = [sys.executable, '-c', code]
  return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def pack(folder: pathlib.Path, archive: pathlib.Path) -> None:
  """Writes an archive of a folder, without checkpoints and predictions."""
  left_out = checkpoint.FOLDER, predictions.FOLDER, 'xla'
  temporary = archive.with_name(f'{archive.name}.tmp')
  with tarfile.open(temporary, 'w:gz') as tar:
    tar.add(
      folder,
      folder.name,
      filter=lambda m: None if pathlib.Path(m.name).name in left_out else m,
    )
  os.replace(temporary, archive)


def measure(folder: pathlib.Path, names: Sequence[str]) -> dict[str, dict]:
  """Runs the parts in order; what became of each, also in summary.json."""
  # Compiled programs and autotuned kernels are shared by the parts.
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'xla'))
  found, end, lock = {}, time.monotonic() + FLAGS.budget_s, threading.Lock()

  def run(name):
    began = time.monotonic()
    problem = reason_to_skip(name, end - began)
    if not problem:
      limit = min(gpu_parts.PARTS[name].seconds, end - began)
      print(f'{name} ...', flush=True)
      words = part_command(name, folder)
      problem = run_part(words, folder / f'{name}.txt', limit)
    seconds = time.monotonic() - began
    with lock:
      found[name] = {'seconds': round(seconds, 1), 'problem': problem}
      print(f'{name}: {problem or "ok"}, {seconds:.0f} s', flush=True)
      files.write_json(folder / 'summary.json', found)
      if FLAGS.archive:
        pack(folder, files.local_path(FLAGS.archive, '--archive'))
      os.sync()  # The machine may go at any time.

  if FLAGS.quick:  # Nothing is timed: two at once.
    with futures.ThreadPoolExecutor(2) as pool:
      list(pool.map(run, names))
  else:
    for name in names:
      run(name)
  return found


def main(_) -> None:
  if unknown := [name for name in FLAGS.only if name not in gpu_parts.PARTS]:
    sys.exit(f'--only={unknown[0]} is none of {", ".join(gpu_parts.PARTS)}')
  if not FLAGS.quick and (found := backend()) != 'gpu':
    problem = f'JAX sees no GPU (its backend is {found or "missing"})'
    print(f'{problem}; --quick tries all without one', file=sys.stderr)
    sys.exit(NO_GPU)
  # In small, another seed is the same part.
  names = FLAGS.only or [
    n for n in gpu_parts.PARTS if not (FLAGS.quick and 'seed' in n)
  ]
  least = sum(
    min(gpu_parts.PARTS[n].seconds, 30) for n in NECESSARY if n in names
  )
  if FLAGS.budget_s < least:
    sys.exit(
      f'--budget_s={FLAGS.budget_s} is less than the {least} s of'
      f' {" and ".join(NECESSARY)}'
    )
  folder = files.local_path(FLAGS.output, '--output')
  archive = files.local_path(FLAGS.archive or '.', '--archive')
  try:
    for path in folder, archive.parent:
      path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    sys.exit(f'--output or --archive is in no folder: {error}')
  found = measure(folder, names)
  problems = {name: one['problem'] for name, one in found.items()}
  print(json.dumps({n: p for n, p in problems.items() if p}, indent=1))
  sys.exit(any(problems.get(name) for name in NECESSARY))


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_string('output', None, 'Folder for the figures.', required=True)
  flags.DEFINE_integer('budget_s', 420, 'Seconds for all parts together.', 1)
  flags.DEFINE_list('only', [], 'Parts to run, in their order; default all.')
  flags.DEFINE_string(
    'data_dir', dataset_lib.DATA_DIR, 'Folder of the prepared data sets.'
  )
  flags.DEFINE_string(
    'archive', '', 'Archive of all results, written anew after each part.'
  )
  flags.DEFINE_bool('quick', False, 'Try every part, on any machine.')


if __name__ == '__main__':
  define_flags()
  command.run(main)
