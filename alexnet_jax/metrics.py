"""Metrics: sums on the device, means on the host, csv, TensorBoard, progress.

On the device a metric is a sum over the examples that the mask keeps, beside
their count; on the host sums are added in double precision and divided once,
so a mean is over examples, however they were batched.
"""

from collections.abc import Mapping, Sequence
import csv
import os
import pathlib
import subprocess
import time

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree
import numpy as np
import tqdm

from alexnet_jax import files

TRAIN_TAGS = (
  'train/loss',
  'train/top1_error',
  'train/learning_rate',
  'train/images_per_second',
  'train/input_wait_fraction',
)
CSV_FILE = 'metrics.csv'
RESULT_FILE = 'result.json'


def batch_sums(
  log_probs: Float[Array, 'batch classes'],
  labels: Int[Array, 'batch'],
  mask: Bool[Array, 'batch'],
) -> dict[str, Float[Array, '']]:
  """Sums over the examples of the mask: loss (nats), errors, and their count.

  An example is an error of top-k unless fewer than k classes are at least as
  likely as its label: ties count against the net, and so does NaN.
  """
  of_label = jnp.take_along_axis(log_probs, labels[:, None], axis=1)
  place = (log_probs >= of_label).sum(1)  # 1 is the best; 0 if NaN.
  error = lambda k: jnp.where(mask, (place < 1) | (place > k), False)
  return {
    'loss': jnp.where(mask, -of_label[:, 0], 0).sum(),
    'top1_error': error(1).sum(dtype=jnp.float32),
    'top5_error': error(5).sum(dtype=jnp.float32),
    'count': mask.sum(dtype=jnp.float32),
  }


def fetch(tree: PyTree) -> PyTree:
  """The one way from the device to the host; waits until it is computed.

  With many processes all must call it: each gets the whole arrays.
  """
  return jax.device_get(jax.tree.map(_whole, tree))


def _whole(x):
  if isinstance(x, jax.Array) and not (
    x.is_fully_addressable or x.is_fully_replicated
  ):
    # The guard does not know that this read is asked for.
    with jax.transfer_guard('allow'):
      return multihost_utils.process_allgather(x, tiled=True)
  return x


class Totals:
  """Sums over many batches."""

  def __init__(self):
    self.sums = {}

  def add(self, sums: Mapping[str, Float[np.ndarray, '']]) -> None:
    """Adds the sums of one batch, fetched to the host."""
    for name, value in sums.items():
      self.sums[name] = self.sums.get(name, 0.0) + float(value)

  @property
  def count(self) -> int:
    return int(self.sums.get('count', 0))

  def means(self, prefix: str, names: Sequence[str]) -> dict[str, float]:
    """Means over all examples added, under the tags `prefix/name`."""
    return {f'{prefix}/{name}': self.sums[name] / self.count for name in names}


class MetricsWriter:
  """metrics.csv and TensorBoard's event file of one work directory.

  What earlier runs wrote beyond `step` is removed first, so that a continued
  run shows every step once. Writes are in the file when a method returns.
  """

  def __init__(self, workdir: pathlib.Path, tags: Sequence[str], step: int):
    """Opens the files to continue behind `step`; 0 starts anew."""
    from alexnet_jax import events  # Slow to import; see there.

    self._events = events.EventWriter(workdir, step)
    self._columns = ('step', 'epoch', *tags)
    rows = _rewound_rows(workdir / CSV_FILE, step)
    temporary = workdir / f'{CSV_FILE}.tmp'
    self._csv_file = open(temporary, 'w', newline='')
    self._csv = csv.DictWriter(self._csv_file, self._columns)
    self._csv.writeheader()
    self._csv.writerows(rows)
    self._csv_file.flush()
    os.replace(temporary, workdir / CSV_FILE)  # The open file goes along.

  def scalars(
    self, step: int, epoch: float, values: Mapping[str, float]
  ) -> None:
    """One row of metrics.csv, one point per tag."""
    self._csv.writerow({'step': step, 'epoch': f'{epoch:.4f}', **values})
    self._csv_file.flush()
    self._events.scalars(step, values)

  def image(self, step: int, tag: str, image: np.ndarray) -> None:
    """One picture, uint8 [height, width, 3]."""
    self._events.image(step, tag, image)

  def hyperparameters(self, values: Mapping[str, object], metric: str) -> None:
    """The config by dotted key, for TensorBoard's HPARAMS tab."""
    self._events.hyperparameters(values, metric)

  def close(self) -> None:
    self._csv_file.close()
    self._events.close()


class NullWriter:
  """A `MetricsWriter` that writes nothing: of all processes but the first."""

  def scalars(
    self, step: int, epoch: float, values: Mapping[str, float]
  ) -> None:
    pass

  def image(self, step: int, tag: str, image: np.ndarray) -> None:
    pass

  def hyperparameters(self, values: Mapping[str, object], metric: str) -> None:
    pass

  def close(self) -> None:
    pass


def _rewound_rows(path: pathlib.Path, step: int) -> list[dict[str, str]]:
  """The whole rows of a csv file up to `step`."""
  if step == 0 or not path.exists():
    return []
  with open(path, newline='') as file:
    text = file.read()
  whole = text[: text.rfind('\n') + 1]  # A kill may leave half a line.
  rows = csv.DictReader(whole.splitlines())
  return [row for row in rows if int(row['step']) <= step]


class Progress:
  """A bar with rate and remaining time on a terminal, plain lines elsewhere."""

  def __init__(self, step: int, total: int, began: float, silent: bool = False):
    """Begins at `step` of `total`; `began` is the start of the command."""
    self._total, self._began, self._silent = total, began, silent
    self._first = step
    self._first_done = None
    self._bar = tqdm.tqdm(
      initial=step, total=total, unit='step', disable=silent or None
    )

  def update(self) -> None:
    """One more step is done."""
    if self._first_done is None:
      self._first_done = time.time()
      self._say(
        f'first step done {self._first_done - self._began:.1f} s after the start'
      )
    self._bar.update()

  def report(
    self, step: int, epoch: float, values: Mapping[str, float]
  ) -> None:
    """Shows the newest metrics."""
    pace = (time.time() - self._first_done) / max(step - self._first - 1, 1)
    remaining = tqdm.tqdm.format_interval(pace * (self._total - step))
    evaluated = any(tag.startswith('eval') for tag in values)
    if self._bar.disable or evaluated:
      parts = [f'step {step}/{self._total}', f'epoch {epoch:.2f}']
      parts += [f'{tag} {_shown(tag, value)}' for tag, value in values.items()]
      self._say('  '.join([*parts, f'remaining {remaining}']))
    self._bar.set_postfix_str(f'loss {values["train/loss"]:.3f}')

  def close(self) -> None:
    self._bar.close()

  def _say(self, line: str) -> None:
    if self._silent:
      return
    if self._bar.disable:
      print(line, flush=True)
    else:
      self._bar.write(line)


def _shown(tag: str, value: float) -> str:
  if tag.endswith(('error', 'fraction')):
    return f'{value:.2%}'
  return f'{value:.4g}'


def image_grid(
  images: Float[np.ndarray, 'images height width 3'], columns: int
) -> np.ndarray:
  """One uint8 picture of many images of 0..255, with white lines between."""
  count, height, width, _ = images.shape
  rows = -(-count // columns)
  grid = np.full((rows, columns, height + 1, width + 1, 3), 255, np.uint8)
  flat = grid.reshape(rows * columns, height + 1, width + 1, 3)
  flat[:count, :height, :width] = np.clip(np.round(images), 0, 255)
  picture = grid.transpose(0, 2, 1, 3, 4)
  return picture.reshape(rows * (height + 1), columns * (width + 1), 3)


def kernel_grid(
  kernels: Float[np.ndarray, 'height width 3 features'], zoom: int = 4
) -> np.ndarray:
  """conv1's kernels as in Figure 3: tower 0 above tower 1.

  Each kernel is scaled to its own range; `zoom` is the side of a weight in
  pixels.
  """
  images = kernels.transpose(3, 0, 1, 2)
  low = images.min((1, 2, 3), keepdims=True)
  high = images.max((1, 2, 3), keepdims=True)
  images = 255 * (images - low) / np.maximum(high - low, 1e-12)
  images = images.repeat(zoom, 1).repeat(zoom, 2)
  half = len(images) // 2
  columns = min(half, 16)
  upper, lower = (
    image_grid(part, columns) for part in (images[:half], images[half:])
  )
  return np.concatenate([upper, np.full_like(upper[:zoom], 255), lower])


def write_result(
  workdir: pathlib.Path,
  step: int,
  epoch: float,
  wall_seconds: float,
  commit: str,
  values: Mapping[str, float],
) -> None:
  """result.json: how far the run went, on what, and its last metrics."""
  devices = [device.device_kind for device in jax.devices()]
  files.write_json(
    workdir / RESULT_FILE,
    {
      'step': step,
      'epoch': epoch,
      'wall_seconds': round(wall_seconds, 1),
      'commit': commit,
      'devices': devices,
      **values,
    },
  )


def current_commit() -> str:
  """The commit of this code, with '+' where files differ; '' outside git."""
  command = 'git describe --always --dirty=+ --abbrev=40 --exclude=*'.split()
  try:
    found = subprocess.run(
      command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True
    )
  except OSError:
    return ''
  return found.stdout.strip()
