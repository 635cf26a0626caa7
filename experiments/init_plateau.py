r"""How often a net leaves a loss of ln(classes): initial values, and a cure.

    python -m alexnet_jax.prepare --source=folder:DIR --name=imagenette \
      --size=112
    python -m experiments.init_plateau --output=DIR [--seeds=5] [--steps=200]

The widths, layers and training of the paper (section 5: batch 128, rate 0.01,
dropout, augmentation) on ten classes of photographs, with the initial values of
configs/paper.py, configs/source.py (Deviation S4) and configs/caffe.py:

| name | weights | conv3 to conv5 | fc6, fc7 | biases that are not 0 |
|---|---|---|---|---|
| text | 0.01 | 0.01 | 0.01 | 1 |
| source | 0.01 | 0.03 | 0.01 | 1 |
| caffe | 0.01 | 0.01 | 0.005 | 0.1 |

Two more ask whether Caffe's values are to blame alone: `caffe_preset` has all of
configs/caffe.py, `caffe_warm_up` a rate that rises from 0 over the first WARM_UP
of the steps.

A net has left the plateau at the first step from which on the mean training
loss of the last WINDOW steps stays at least NEAR below ln(classes). Crops of 99
pixels (maps of 23, 11, 5 and 2) take a fifth of the time of 224; --size=256
--crop_size=224 is the full geometry, for an accelerator. A run takes about 6
CPU-minutes, 11 with Caffe's batch of 256: 170 for all.
`sweep` describes what --output contains.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
import statistics

from absl import flags
import ml_collections
from scipy import stats

from alexnet_jax import chance_loss
from alexnet_jax import config as config_lib
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import digits
from alexnet_jax import metrics
from alexnet_jax import optimizer
from alexnet_jax import workdir as workdir_lib
from configs import caffe
from configs import imagenette
from configs import paper
from configs import quickstart
from experiments import run_files
from experiments import summary
from experiments import sweep

INITS = {
  'text': {'model.conv345_init_std': 0.01},
  'source': {'model.conv345_init_std': 0.03},
  'caffe': {
    'model.conv345_init_std': 0.01,
    'model.fc67_init_std': 0.005,
    'model.init_bias': 0.1,
  },
}
# Keys of configs/caffe.py that say how long it trains, or on what.
LENGTHS = {
  *('optimizer.drop_epochs', 'train.epochs'),
  *('input.crop_size', 'input.batch_size'),
}
WARM_UP = 1 / 3  # Share of the steps.
WINDOW = 10  # steps
NEAR = chance_loss.ChanceLossWarning.NEAR  # nats
# The flags of --quick: the narrow net of the quick start on the digits.
QUICK = {'dataset': 'digits', 'size': 76, 'crop_size': 67, 'steps': 20}

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the command."""
  sweep.define_flags(seeds=5)
  flags.DEFINE_string('dataset', 'imagenette', 'Name of the prepared data set.')
  flags.DEFINE_integer('size', 112, 'Side of the stored images in pixels.')
  flags.DEFINE_integer('crop_size', 99, 'Side of the crops in pixels.')
  flags.DEFINE_integer('steps', 200, 'Steps of each run.')


def get_config(quick: bool = False) -> ml_collections.ConfigDict:
  """The config that `INITS` override; `main` sets what the flags say."""
  config = (quickstart if quick else imagenette).get_config()
  config.train.log_every_steps = 1  # The loss of every step.
  return config


def warm_up(
  schedule: optimizer.RateSchedule, epoch: float, plateau_drops: int
) -> float:
  """A schedule as of `optimizer.SCHEDULES`: the rate rises linearly at first."""
  del plateau_drops
  share = epoch / (WARM_UP * schedule.epochs)
  # A rate of 0 would freeze the parameters, and what v has of them.
  return schedule.learning_rate * min(max(share, 1e-6), 1.0)


def variants(config: ml_collections.ConfigDict) -> dict[str, dict[str, object]]:
  """The overrides of a config whose steps are set, see `set_steps`.

  'caffe_preset' also has twice the batch, twice the rate of biases, which do not
  decay, Caffe's norms and dropout, and no colour noise; crops of 227 where those
  of the paper have 224.
  """
  text = config_lib.flatten(paper.get_config())
  of_caffe = config_lib.flatten(caffe.get_config())
  differ = {k: v for k, v in of_caffe.items() if v != text[k]}
  preset = {k: v for k, v in differ.items() if k not in LENGTHS}
  inputs, train = config.input, config.train
  is_full = inputs.crop_size == text['input.crop_size']
  # Its batch is twice that of the paper, so as many steps are twice the epochs.
  lengths = {
    'input.crop_size': differ['input.crop_size']
    if is_full
    else inputs.crop_size,
    'input.batch_size': 2 * inputs.batch_size,
    'train.epochs': 2 * train.epochs,
    'train.eval_every_epochs': 2 * train.eval_every_epochs,
  }
  warmed = {'optimizer.schedule': 'warm_up', 'optimizer.drop_epochs': ()}
  return {
    **INITS,
    'caffe_preset': {**INITS['caffe'], **preset, **lengths},
    'caffe_warm_up': {**INITS['caffe'], **warmed},
  }


def set_steps(config: ml_collections.ConfigDict, steps: int) -> None:
  """Makes a run of the config take `steps` steps and evaluate after the last.

  Raises:
    FileNotFoundError: if its data set has not been prepared.
  """
  digits.prepare_if_missing(config)
  inputs = config.input
  dataset = dataset_lib.open_dataset(inputs.data_dir, inputs.dataset)
  num_examples = dataset.num_examples[inputs.train_split]
  epochs = steps * inputs.batch_size / num_examples
  config.train.epochs = config.train.eval_every_epochs = epochs


def measure(workdir: pathlib.Path) -> dict[str, float | None]:
  """The step at which a net left the plateau, and its mean last losses."""
  rows = run_files.read_table(workdir / metrics.CSV_FILE, ('train/loss',))
  losses = [float(row['train/loss']) for row in rows]
  classes = workdir_lib.read_config(workdir).model.num_classes
  return {
    'left_at': left_at(losses, classes),
    'last_loss': statistics.fmean(losses[-WINDOW:]),
  }


def left_at(losses: Sequence[float], classes: int) -> int | None:
  """The step at which a net left the plateau; None if it did not.

  Args:
    losses: training loss of every step in nats.
    classes: number of classes.
  """
  left = None
  for step in range(WINDOW, len(losses) + 1):
    mean = statistics.fmean(losses[step - WINDOW : step])
    if not mean <= math.log(classes) - NEAR:  # Also if it is NaN.
      left = None
    elif left is None:
      left = step
  return left


def table(rows: Sequence[Mapping]) -> str:
  """The rows of runs.csv as a Markdown table, as in docs/troubleshooting.md."""
  lines = [
    '| init | left the plateau | at step (median) | loss of the last ten steps |',
    '|---|---|---|---|',
  ]
  for init in dict.fromkeys(row['variant'] for row in rows):
    left = summary.values_of(rows, init, 'left_at')
    losses = summary.values_of(rows, init, 'last_loss')
    at = '-'
    if left:
      at = f'{statistics.median(left):.0f} ({min(left):.0f} to {max(left):.0f})'
    loss = f'{statistics.fmean(losses):.3f}' if losses else '-'
    lines.append(f'| {init} | {len(left)} of {len(losses)} | {at} | {loss} |')
  return '\n'.join(lines)


def count_lines(rows: Sequence[Mapping], first: str = 'text') -> list[str]:
  """Fisher's exact test (two-sided) of the counts that left, against `first`.

  A failed run, which has no last loss, is not counted.
  """
  counts = {}
  for init in dict.fromkeys(row['variant'] for row in rows):
    left = len(summary.values_of(rows, init, 'left_at'))
    total = len(summary.values_of(rows, init, 'last_loss'))
    counts[init] = left, total - left
  lines = []
  for init, own in counts.items():
    if init != first and first in counts:
      p = stats.fisher_exact([counts[first], own]).pvalue
      lines.append(
        f'{init}: {own[0]} of {sum(own)} left the plateau, {first}'
        f' {counts[first][0]} of {sum(counts[first])}: p = {p:.3f}'
      )
  return lines


def main() -> None:
  for name, value in QUICK.items() if FLAGS.quick else ():
    FLAGS.set_default(name, value)  # Does not change given flags.
  config = get_config(FLAGS.quick)
  config.input.data_dir, config.input.dataset = FLAGS.data_dir, FLAGS.dataset
  config.input.image_size, config.input.crop_size = FLAGS.size, FLAGS.crop_size
  set_steps(config, FLAGS.steps)
  optimizer.SCHEDULES['warm_up'] = warm_up  # For this command alone.
  rows = sweep.run(
    config,
    variants(config),
    FLAGS.seeds,
    FLAGS.output,
    measure,
    keep_checkpoints=False,
  )
  print(table(rows))
  for line in count_lines(rows):
    print(line)
  labels = {
    'left_at': 'left the plateau at step',
    'last_loss': f'loss of the last {WINDOW} steps (nats)',
  }
  print(summary.draw(FLAGS.output, labels))


if __name__ == '__main__':
  define_flags()
  sweep.run_command(main)
