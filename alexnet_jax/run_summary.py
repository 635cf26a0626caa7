"""What the training command prints at its end."""

import os
import pathlib
import shlex

from tqdm import tqdm

from alexnet_jax import metrics
from alexnet_jax import progress
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files

LARGEST = 2**53  # Below it, a float holds every whole number.


def lines(workdir: str | os.PathLike) -> list[str]:
  """The errors, the time, where the files are, and what to do next.

  Args:
    workdir: work directory of a finished run, as the user has given it.
  """
  result = read_result(workdir)
  num_classes = workdir_lib.read_config(workdir).model.num_classes
  seconds = tqdm.format_interval(result['wall_seconds'])
  found = [
    f'Trained for {result["step"]:,} steps ({result["epoch"]:.1f} epochs) in'
    f' {seconds}; errors on the evaluation split:'
  ]
  shown = metrics.informative(
    {tag: value for tag, value in result.items() if '/' in tag}, num_classes
  )
  prefixes = dict.fromkeys(tag.partition('/')[0] for tag in shown)
  for prefix in prefixes:
    if prefix.startswith('eval'):
      view = prefix.removeprefix('eval_').replace('_view', ' views')
      view = 'one view' if prefix == 'eval' else view
      values = [
        f'{progress.LABELS[name]} {progress.shown(name, shown[f"{prefix}/{name}"])}'
        for name in metrics.EVAL_METRICS
        if f'{prefix}/{name}' in shown
      ]
      found.append(f'  {view:10} {"  ".join(values)}')
  path = shlex.quote(os.fspath(workdir))
  return [
    *found,
    f'Files: {workdir}: result.json, metrics.csv, checkpoints/',
    f'Watch:    tensorboard --logdir={path}',
    f'Predict:  python -m alexnet_jax.predict --workdir={path} IMAGE ...',
    f'Mistakes: python -m alexnet_jax.predict --workdir={path}'
    ' --show_errors=errors.png',
  ]


def read_result(workdir: str | os.PathLike) -> dict[str, object]:
  """The content of result.json; raises ValueError if it is damaged."""
  file = pathlib.Path(workdir) / workdir_lib.RESULT_FILE
  try:
    result = files.read_object(file)
    tags = [key for key in result if '/' in key]
    for key in ('step', 'epoch', 'wall_seconds', *tags):
      value = result.get(key)
      is_number = isinstance(value, int | float) and abs(value) <= LARGEST
      # A loss may be anything that a float can be.
      if not (is_number or (key in tags and isinstance(value, float))):
        raise ValueError(f'{key} is missing, or no number of a usual size')
  except ValueError as error:
    words = f'{file} is damaged ({error}); remove it and repeat the command'
    raise ValueError(words) from error
  return result
