r"""Fine-tuning against training from scratch, at equal epochs, on few images.

    python -m alexnet_jax.prepare --source=folder:DIR --name=imagenette
    python -m alexnet_jax.prepare --source=folder:DIR --name=cifar10 --size=32
    python -m experiments.finetuning --output=DIR [--seeds=3]

For each data set, a net is trained on the first half of the classes in the
order of their labels. Another is trained on 20, 50 and all training images of
each class of the second half, once from new weights and once from those of the
first net with the same seed (`train.init_from`), with a new fc8. The error is
that on all test images of the second half after the last epoch.

| variant | training images | weights |
|---|---|---|
| pretraining | all of the first half | new |
| scratch_N | N of each class of the second half | new |
| finetuned_N | the same | of pretraining; fc8 is new |

--output has two sweeps, `photographs` and `cifar10`, as `sweep` describes them,
and the halves of the data sets, in data/.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

from absl import flags
import ml_collections

from alexnet_jax import dataset as dataset_lib
from alexnet_jax import digits
from alexnet_jax.runtime import files
from configs import cifar10
from configs import folder
from configs import quickstart
from experiments import subset
from experiments import summary
from experiments import sweep

FEW = (20, 50)  # Images of each class; then all.


@dataclasses.dataclass(frozen=True)
class Setting:
  """A data set with its net and the lengths of the runs.

  Attributes:
    config: its config; config.input names the data set to divide.
    epochs: epochs of the pretraining, with 20, 50 and all images a class.
  """

  config: ml_collections.ConfigDict
  epochs: tuple[float, float, float, float]


def photographs() -> Setting:
  """Imagenette with configs/folder.py, narrower and on smaller crops."""
  config = folder.get_config()
  config.input.dataset = 'imagenette'
  config.model.conv_features = (24, 64, 96, 96, 64)
  config.model.fc_features = (256, 256)
  # Maps of 15, 7, 3 and 1 pixels: a fifth of the time of folder.py.
  config.input.image_size, config.input.crop_size = 76, 67
  return Setting(config, (20.0, 120.0, 60.0, 15.0))


def small_images() -> Setting:
  """CIFAR-10 with configs/cifar10.py, narrower and on smaller maps."""
  config = cifar10.get_config()
  config.model.num_classes, config.mesh.layout = 0, 'data'
  config.model.conv_features = (16, 48, 64, 64, 48)
  config.model.fc_features = (256, 256)
  # Maps of 14, 7, 3 and 1 pixels.
  config.model.conv1_stride = config.model.pool_size = 2
  config.input.batch_size = 32  # Few images: many steps.
  config.optimizer.schedule, config.optimizer.drop_epochs = 'cosine', ()
  return Setting(config, (4.0, 120.0, 60.0, 3.0))


def quick() -> Setting:
  """The digits 0 to 4, and 5 to 9, for a moment each."""
  config = quickstart.get_config()
  config.model.num_classes, config.mesh.layout = 0, 'data'
  config.optimizer.schedule, config.optimizer.drop_epochs = 'cosine', ()
  return Setting(config, (0.2, 0.4, 0.4, 0.2))


def divide(config: ml_collections.ConfigDict, output: pathlib.Path) -> None:
  """Prepares the halves of the config's data set in `output`/data.

  They are called 'first', 'second_20', 'second_50' and 'second_all'. The images
  of a class are the first ones of the data set, whose order is random.

  Raises:
    FileNotFoundError: if the data set has not been prepared.
  """
  digits.prepare_if_missing(config)
  inputs = config.input
  dataset = dataset_lib.open_dataset(inputs.data_dir, inputs.dataset)
  names = dataset.class_names
  half = len(names) // 2
  halves = {'first': (names[:half], None)}
  for few in (*FEW, None):
    halves[f'second_{few or "all"}'] = (names[half:], few)
  for name, (classes, few) in halves.items():
    limits = {inputs.train_split: few, inputs.eval_split: None}
    subset.prepare(dataset, limits, classes, name, output)


def variants(
  epochs: Sequence[float], output: pathlib.Path
) -> dict[str, dict[str, object]]:
  """The overrides of each variant; for `epochs` see `Setting`."""
  changes = lambda name, epochs: {
    'input.dataset': name,
    'train.epochs': epochs,
    'train.eval_every_epochs': epochs,
  }
  result = {'pretraining': changes('first', epochs[0])}
  pretrained = f'{output}/runs/pretraining/seed{{seed}}'
  for few, length in zip((*FEW, 'all'), epochs[1:], strict=True):
    scratch = changes(f'second_{few}', length)
    result[f'scratch_{few}'] = scratch
    result[f'finetuned_{few}'] = {**scratch, 'train.init_from': pretrained}
  return result


def measure(workdir: pathlib.Path) -> dict[str, float]:
  """The errors of a finished run, fractions."""
  tags = ('eval/top1_error', 'eval_ten_view/top1_error')
  found = sweep.last_metrics(workdir)
  return {tag: found[tag] for tag in tags if tag in found}


def table(rows: Sequence[Mapping]) -> str:
  """The rows of runs.csv as a Markdown table, as in docs/finetuning.md."""
  lines = ['| images a class | from scratch | fine-tuned |', '|---|---|---|']
  for few in (*FEW, 'all'):
    shown = []
    for variant in (f'scratch_{few}', f'finetuned_{few}'):
      errors = summary.values_of(rows, variant, 'eval/top1_error')
      mean, error = summary.mean_and_standard_error(errors)
      spread = f' ± {100 * error:.1f}' if error is not None else ''
      shown.append('-' if mean is None else f'{100 * mean:.1f}{spread}')
    lines.append(f'| {few} | {" | ".join(shown)} |')
  return '\n'.join(lines)


def run(name: str, setting: Setting, seeds: int, path: pathlib.Path) -> None:
  """Runs the sweep of one data set, and prints its table."""
  output, config = path / name, setting.config
  divide(config, output)
  config.input.data_dir = str(output / 'data')
  config.input.train_split, config.input.eval_split = 'train', 'validation'
  rows = sweep.run(
    config, variants(setting.epochs, output), seeds, output, measure
  )
  print(f'{name}: top-1 error in %\n{table(rows)}')
  label = {'eval/top1_error': f'{name}: top-1 error, one view'}
  print(summary.draw(output, label))


def main() -> None:
  flag = flags.FLAGS
  settings = {'photographs': photographs(), 'cifar10': small_images()}
  if flag.quick:
    settings = {'digits': quick()}
  path = files.local_path(flag.output, '--output')
  for name, setting in settings.items():
    setting.config.input.data_dir = flag.data_dir
    run(name, setting, flag.seeds, path)


if __name__ == '__main__':
  sweep.define_flags(seeds=3)
  sweep.run_command(main)
