"""Metrics: sums on the device, means on the host, csv, TensorBoard.

On the device, metrics are sums over the examples that the mask selects, with
their count. On the host, the sums are added in double precision and divided
once, so means do not depend on how the examples were batched.

To add a metric, add its tag to `TRAIN_TAGS` or its name to `EVAL_METRICS`, and
compute it: as a sum in `batch_sums`, or as a value in `train.run_steps`.
"""

from collections.abc import Mapping, Sequence
import contextlib
import csv
import os
import pathlib

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from alexnet_jax import events
from alexnet_jax import metrics_file
from alexnet_jax.runtime import processes

# The tags that every row has, in the order of the columns.
TRAIN_TAGS = (
  'train/loss',
  'train/top1_error',
  'train/learning_rate',
  'train/images_per_second',
  'train/input_wait_fraction',
)
# Names of the evaluation metrics; a prefix for the views makes them tags.
EVAL_METRICS = ('loss', 'top1_error', 'top5_error')
CSV_FILE = 'metrics.csv'


def many_view_prefix(flip: bool) -> str:
  """Prefix of the tags for many views: ten, or five without reflections."""
  return 'eval_ten_view' if flip else 'eval_five_view'


def eval_tags(flip: bool) -> list[str]:
  """The tags of evaluation, in the order of the columns."""
  prefixes = ('eval', many_view_prefix(flip))
  return [f'{prefix}/{name}' for prefix in prefixes for name in EVAL_METRICS]


def event_tag(tag: str) -> str:
  """The tag in the event files.

  TensorBoard sorts groups of tags by name and opens the first two. 'eval' and
  'train' shall be these: 'eval_ten_view/loss' becomes 'views/ten_loss'.
  """
  return tag.replace('eval_', 'views/', 1).replace('_view/', '_')


def informative(
  values: Mapping[str, float], num_classes: int
) -> dict[str, float]:
  """The values by tag without top-5 errors if there are at most five classes."""
  trivial = 'top5_error' if num_classes <= 5 else None
  return {k: v for k, v in values.items() if k.partition('/')[2] != trivial}


def cross_entropy(
  log_probs: Float[Array, 'batch classes'], labels: Int[Array, 'batch']
) -> Float[Array, 'batch']:
  """Negative log-probability of each example's label, in nats."""
  return -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]


def batch_sums(
  log_probs: Float[Array, 'batch classes'],
  losses: Float[Array, 'batch'],
  mask: Bool[Array, 'batch'],
) -> dict[str, Float[Array, '']]:
  """Sums over the selected examples: loss (nats), errors, number of examples.

  An example is a top-k error unless at most k classes are at least as likely as
  its label, which is one of them. So ties count as errors, and so does NaN.

  Args:
    log_probs: log-probabilities of the classes.
    losses: `cross_entropy` of each example.
    mask: selects the examples.
  """
  # 1 if the label is the most likely class; 0 for NaN.
  rank = (log_probs >= -losses[:, None]).sum(1)
  error = lambda k: jnp.where(mask, (rank < 1) | (rank > k), False)
  return {
    'loss': jnp.where(mask, losses, 0).sum(),
    'top1_error': error(1).sum(dtype=jnp.float32),
    'top5_error': error(5).sum(dtype=jnp.float32),
    'count': mask.sum(dtype=jnp.float32),
  }


class Totals:
  """Sums over many batches.

  Attributes:
    sums: what was added, by name; JSON can hold it.
  """

  def __init__(self, sums: Mapping[str, float] | None = None):
    """Continues from `sums` of other totals."""
    self.sums = dict(sums or {})

  def add(self, sums: Mapping[str, Float[np.ndarray, '']]) -> None:
    """Adds the sums of one batch, fetched to the host.

    Raises:
      KeyError: if a sum is listed neither in `TRAIN_TAGS` nor in
        `EVAL_METRICS`.
    """
    listed = [tag.partition('/')[2] for tag in TRAIN_TAGS]
    check_tags(sums, ('count',), (*listed, *EVAL_METRICS))
    self._add({**sums, 'batches': 1})

  def add_seconds(self, seconds: float, waited: float) -> None:
    """Adds the duration of some batches, and its part waiting for them."""
    self._add({'seconds': seconds, 'waited': waited})

  def rate(self, name: str) -> float:
    """A sum divided by the seconds."""
    return self.sums[name] / self.sums['seconds'] if self.count else 0.0

  def _add(self, values):
    for name, value in values.items():
      self.sums[name] = self.sums.get(name, 0.0) + float(value)

  @property
  def batches(self) -> int:
    return int(self.sums.get('batches', 0))

  @property
  def count(self) -> int:
    return int(self.sums.get('count', 0))

  def means(self, names: Sequence[str]) -> dict[str, float]:
    """Means over all examples added, by name.

    Raises:
      KeyError: if a name has no sum.
    """
    check_tags(self.sums, names, list(self.sums))
    # All examples of a row may be masked.
    return {name: self.sums[name] / max(self.count, 1) for name in names}


def check_tags(
  values: Mapping[str, object], expected: Sequence[str], optional: Sequence[str]
) -> None:
  """Raises KeyError if tags are missing or unknown, with their names.

  Args:
    values: values by tag (or by name).
    expected: tags that they must have.
    optional: tags that they may have.
  """
  missing = [tag for tag in expected if tag not in values]
  unknown = sorted(values.keys() - {*expected, *optional})
  problems = []
  if missing:
    problems.append(
      f'{", ".join(missing)}: listed in metrics.py, but not computed'
    )
  if unknown:
    problems.append(
      f'{", ".join(unknown)}: computed, but not listed in metrics.py'
    )
  if problems:
    raise KeyError('; '.join(problems))


class MetricsWriter:
  """metrics.csv and TensorBoard's event file of one work directory.

  Only process 0 writes. Opening removes what was written after `step`, so that
  a resumed run has every step once. Methods flush what they write.

  Attributes:
    events: the event file; None in other processes.
  """

  def __init__(
    self, workdir: pathlib.Path, flip: bool, step: int, num_classes: int = 1000
  ):
    """Opens the files to continue after `step`, or new ones if it is 0.

    Args:
      workdir: folder of the files.
      flip: config.augment.flip, which determines the tags of evaluation.
      step: number of completed steps.
      num_classes: config.model.num_classes, see `informative`.
    """
    self._eval_tags, self._enabled = eval_tags(flip), processes.is_first()
    self._num_classes, self.events = num_classes, None
    if not self._enabled:
      return
    self.events = events.EventWriter(workdir, step)
    columns = ('step', 'epoch', *TRAIN_TAGS, *self._eval_tags)
    rows = metrics_file.rows_until(workdir / CSV_FILE, columns, step)
    temporary = workdir / f'{CSV_FILE}.tmp'
    temporary.unlink(missing_ok=True)  # A pipe would wait for a reader.
    self._csv_file = open(temporary, 'w', newline='')
    self._csv = csv.DictWriter(self._csv_file, columns)
    self._csv.writeheader()
    self._csv.writerows(rows)
    self._csv_file.flush()
    os.replace(temporary, workdir / CSV_FILE)  # The file stays open.

  def scalars(
    self, step: int, epoch: float, values: Mapping[str, float]
  ) -> None:
    """Writes one row of metrics.csv, and one point per tag.

    Raises:
      KeyError: if a tag of `TRAIN_TAGS` is missing, or one is unknown.
    """
    check_tags(values, TRAIN_TAGS, self._eval_tags)
    if self._enabled:
      self._csv.writerow({'step': step, 'epoch': f'{epoch:.4f}', **values})
      self._csv_file.flush()
      values = informative(values, self._num_classes)
      self.events.scalars(step, {event_tag(k): v for k, v in values.items()})

  def __enter__(self):
    return self

  def __exit__(self, error_type, *_) -> None:
    """Closes the files; the HPARAMS tab shows whether the run has succeeded.

    A run that is interrupted, as by Ctrl-C, has neither succeeded nor failed.
    """
    # On a full disk the error of the block says more than one of these files.
    hidden = [OSError] if error_type else []
    with contextlib.suppress(*hidden), contextlib.closing(self):
      if self._enabled and issubclass(error_type or Exception, Exception):
        self.events.end(succeeded=not error_type)

  def close(self) -> None:
    if self._enabled:
      self._csv_file.close()
      self.events.close()
