"""Predictions of a net for every example of a split, and their file.

An ensemble averages the predictions of several nets (section 6). Nets whose
predictions are on disk need no second pass over the data.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib

import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from alexnet_jax import metrics
from alexnet_jax import placement
from alexnet_jax.runtime import files

FOLDER = 'predictions'
# Number of examples whose errors are counted at once.
CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Class probabilities for every example of a split, by a net or an ensemble.

  Attributes:
    log_probs: logarithms of the softmax outputs, averaged over the views and
      over the nets; examples in stored order.
    labels: labels of the examples.
    made_from: what the predictions depend on, by name: training, step, split,
      views.
    names: file names of the examples; empty for an ensemble, and for a file that
      was written before files had them.
  """

  log_probs: Float[np.ndarray, 'examples classes']
  labels: Int[np.ndarray, 'examples']
  made_from: Mapping[str, str]
  names: Sequence[str] = ()

  def errors(self) -> dict[str, float]:
    """Mean loss (nats), top-1 and top-5 error (fractions), by name.

    The names are `metrics.EVAL_METRICS`.
    """
    totals = metrics.Totals()
    for start in range(0, len(self.labels), CHUNK):
      part = slice(start, start + CHUNK)
      log_probs = jnp.asarray(self.log_probs[part])
      labels = jnp.asarray(self.labels[part])
      every = jnp.ones(labels.shape, bool)
      losses = metrics.cross_entropy(log_probs, labels)
      totals.add(placement.fetch(metrics.batch_sums(log_probs, losses, every)))
    return totals.means(metrics.EVAL_METRICS)

  def save(self, path: pathlib.Path) -> None:
    """Writes the file, whole or not at all."""
    with files.replacing(path) as temporary, open(temporary, 'wb') as file:
      np.savez(
        file,
        log_probs=self.log_probs,
        labels=self.labels,
        names=np.array(self.names, str),
        **{
          f'made_from/{name}': value for name, value in self.made_from.items()
        },
      )


def load(
  path: pathlib.Path, made_from: Mapping[str, str]
) -> Predictions | None:
  """The predictions in a file, if they can be used.

  Args:
    path: written by `Predictions.save`.
    made_from: what the predictions must have been made from.

  Returns:
    The predictions; None if the file is missing or damaged, or was made from
    something else.
  """
  try:
    with files.open_regular(path) as file, np.load(file) as arrays:
      found = {
        name.removeprefix('made_from/'): str(arrays[name])
        for name in arrays.files
        if name.startswith('made_from/')
      }
      if found != dict(made_from):
        return None
      names = arrays['names'].tolist() if 'names' in arrays else ()
      return Predictions(
        arrays['log_probs'], arrays['labels'], made_from, names
      )
  except PermissionError:
    raise
  except Exception:  # A damaged archive may raise anything.
    return None  # Missing or damaged: the caller computes them again.


def ensemble(members: Iterable[Predictions]) -> Predictions:
  """The mean of the softmax outputs of several nets for the same examples.

  Raises:
    ValueError: if the examples are not the same.
  """
  total, labels, count = None, None, 0
  for member in members:
    log_probs = member.log_probs.astype(np.float64)
    if total is None:
      total, labels = log_probs, member.labels
    elif not np.array_equal(labels, member.labels):
      raise ValueError('the members of an ensemble predict different examples')
    else:
      np.logaddexp(total, log_probs, out=total)
    count += 1
  mean = (total - np.log(count)).astype(np.float32)
  return Predictions(mean, labels, {'nets': str(count)})
