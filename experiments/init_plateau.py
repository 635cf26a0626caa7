r"""How often a net leaves the loss of ln(classes), by its initial weights.

    python -m alexnet_jax.prepare --source=folder:DIR --name=imagenette --size=112
    python -m experiments.init_plateau --output=FILE.csv

The paper's widths, layers and training (section 5: batch 128, rate 0.01,
dropout, augmentation) on ten classes of photographs, with three sets of initial
values, which are those of configs/paper.py, configs/source.py (Deviation S4)
and configs/caffe.py:

| name | weights | conv3 to conv5 | fc6, fc7 | biases that are not 0 |
|---|---|---|---|---|
| text | 0.01 | 0.01 | 0.01 | 1 |
| source | 0.01 | 0.03 | 0.01 | 1 |
| caffe | 0.01 | 0.01 | 0.005 | 0.1 |

A net has left the plateau at the first step from which, to the end, the mean
training loss of the last WINDOW steps lies at least NEAR below ln(classes). Crops of 99 pixels (maps of 23, 11, 5 and 2) take a fifth of the time
of 224; on an accelerator --size=256 --crop_size=224 is the full geometry.
Training is alexnet_jax's own step and pipeline. A finished run is a row of
FILE.csv and is not run again.
"""

import collections
import contextlib
import csv
import math
import pathlib
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import input_pipeline
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax import train_state
from alexnet_jax import workdir as workdir_lib
from configs import imagenette

INITS = {
  'text': {},
  'source': {'conv345_init_std': 0.03},
  'caffe': {'fc67_init_std': 0.005, 'init_bias': 0.1},
}
WINDOW = 10  # steps
NEAR = train.ChanceLossWarning.NEAR  # nats
# What a run is, and what came of it.
RUN = ('init', 'seed', 'steps', 'dataset', 'size', 'crop_size')
COLUMNS = (*RUN, 'left_at', 'last_loss', 'seconds', 'commit')

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_string(
    'output', None, 'csv file, made or added to.', required=True
  )
  flags.DEFINE_string('dataset', 'imagenette', 'Name of the prepared data set.')
  flags.DEFINE_string(
    'data_dir', dataset_lib.DATA_DIR, 'Folder of the prepared data sets.'
  )
  flags.DEFINE_integer('size', 112, 'Side of the stored images in pixels.')
  flags.DEFINE_integer('crop_size', 99, 'Side of the crops in pixels.')
  flags.DEFINE_integer('steps', 150, 'Steps of each run.')
  flags.DEFINE_integer('seeds', 5, 'Seeds 0, 1, ... of each init.')


def get_config(init: str, seed: int):
  """The config of one run."""
  config = imagenette.get_config().unlock()
  config.model.conv345_init_std = 0.01
  config.model.update(INITS[init])
  config.seed = seed
  config.input.dataset, config.input.data_dir = FLAGS.dataset, FLAGS.data_dir
  config.input.image_size, config.input.crop_size = FLAGS.size, FLAGS.crop_size
  return config.lock()


def losses(config, steps: int):
  """Yields the training loss of every step."""
  with tempfile.TemporaryDirectory() as unused:
    run = run_lib.open_run(config, unused)
  step = train.train_step_of(run)
  schedule = train.rate_schedule(config.optimizer)
  key = mesh_lib.place(jax.random.key(config.seed), run.mesh)
  arguments = train.step_arguments(run, schedule, key, epoch=0.0)
  state = train_state.create_train_state(run)
  batches = input_pipeline.prefetch_to_device(
    train.host_batches(run, 0), run.place_batch
  )
  with contextlib.closing(batches):
    for _ in range(steps):
      state, sums = step(state, next(batches), *arguments)
      sums = mesh_lib.fetch(sums)
      yield float(sums['loss'] / sums['count'])


def run_one(init: str, seed: int) -> dict[str, object]:
  """Trains one net; its row of the csv file."""
  began = time.time()
  config = get_config(init, seed)
  plateau = math.log(config.model.num_classes)
  recent, left_at, mean = collections.deque(maxlen=WINDOW), None, math.inf
  for number, loss in enumerate(losses(config, FLAGS.steps), start=1):
    recent.append(loss)
    mean = sum(recent) / len(recent)
    if len(recent) < WINDOW or not mean <= plateau - NEAR:  # Or NaN.
      left_at = None
    elif left_at is None:
      left_at = number
  return {
    'init': init,
    'seed': seed,
    'steps': FLAGS.steps,
    'dataset': FLAGS.dataset,
    'size': FLAGS.size,
    'crop_size': FLAGS.crop_size,
    'left_at': '' if left_at is None else left_at,
    'last_loss': f'{mean:.3f}',
    'seconds': f'{time.time() - began:.0f}',
    'commit': workdir_lib.current_commit(),
  }


def main(_) -> None:
  path = pathlib.Path(FLAGS.output)
  rows = []
  if path.exists():
    with open(path, newline='') as file:
      reader = csv.DictReader(file)
      rows = list(reader)
    if tuple(reader.fieldnames or COLUMNS) != COLUMNS:
      sys.exit(f'--output={path} has other columns; name a new file')
  setting = (FLAGS.steps, FLAGS.dataset, FLAGS.size, FLAGS.crop_size)
  here = tuple(map(str, setting))
  run_of = lambda row: tuple(row[name] for name in RUN)
  done = {run_of(row) for row in rows}
  for seed in range(FLAGS.seeds):
    for init in INITS:
      if (init, str(seed), *here) in done:
        continue
      row = run_one(init, seed)
      rows.append({name: str(value) for name, value in row.items()})
      print(row, flush=True)
      with open(path, 'a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
          writer.writeheader()
        writer.writerow(row)
  print('| init | left the plateau | at step (median of those) | last loss |')
  print('|---|---|---|---|')
  for init in INITS:
    kept = [
      row for row in rows if row['init'] == init and run_of(row)[2:] == here
    ]
    left = [int(row['left_at']) for row in kept if row['left_at']]
    median = f'{np.median(left):.0f}' if left else '-'
    loss = np.mean([float(row['last_loss']) for row in kept])
    print(f'| {init} | {len(left)} of {len(kept)} | {median} | {loss:.3f} |')


if __name__ == '__main__':
  define_flags()
  app.run(main)
