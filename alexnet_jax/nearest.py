"""Nearest neighbours among the rows of a feature file, by exact search."""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped
import numpy as np

from alexnet_jax import feature_file

BLOCK_VALUES = 2**24  # Of the index on the device at once: 64 MiB.
QUERIES = 256  # That are compared with a block at once.
# So many more are found than asked for, and their distances computed again.
SPARE = 8


def search(
  rows: Shaped[np.ndarray, 'images features'],
  queries: Float[np.ndarray, 'queries features'],
  top: int,
) -> tuple[Float[np.ndarray, 'queries top'], Int[np.ndarray, 'queries top']]:
  """The nearest rows of each query: exact search on the device.

  Rows whose distances differ by less than float32's rounding may change places
  with rows that are not found.

  Args:
    rows: features of the images, which may be memory-mapped; read once for
      every `QUERIES` queries, in blocks.
    queries: features to look for, in the same dtype or a finer one. They are
      rounded to the dtype of the rows, so that an image is at no distance from
      itself.
    top: number of neighbours; all rows if there are fewer.

  Returns:
    The Euclidean distances, float64, ascending, and the indices of the rows.
  """
  queries = queries.astype(rows.dtype).astype(np.float32)
  top = min(top, len(rows))
  parts = [
    _search(rows, queries[start : start + QUERIES], top)
    for start in range(0, len(queries), QUERIES)
  ]
  distances, indices = zip(*parts, strict=True)
  return np.concatenate(distances), np.concatenate(indices)


def _search(rows, queries, top):
  number = min(top + SPARE, len(rows))
  block = max(1, BLOCK_VALUES // rows.shape[1])
  keys = np.zeros((len(queries), 0), np.float32)
  indices = np.zeros((len(queries), 0), np.int64)
  for start in range(0, len(rows), block):
    part = rows[start : start + block]
    found = _nearest(queries, part, number=min(number, len(part)))
    part_keys, part_indices = jax.device_get(found)
    keys = np.concatenate([keys, part_keys], axis=1)
    indices = np.concatenate([indices, part_indices + start], axis=1)
    order = np.argsort(keys, axis=1, kind='stable')[:, :number]
    keys, indices = (
      np.take_along_axis(x, order, axis=1) for x in (keys, indices)
    )
  # The keys lose digits where rows are near each other, but far from zero.
  distances = np.stack(
    [
      np.linalg.norm(rows[i].astype(np.float64) - query, axis=1)
      for i, query in zip(indices, queries, strict=True)
    ]
  )
  order = np.lexsort((indices, distances), axis=1)[:, :top]
  return tuple(
    np.take_along_axis(x, order, axis=1) for x in (distances, indices)
  )


@functools.partial(jax.jit, static_argnames='number')
def _nearest(
  queries: Float[Array, 'queries features'],
  rows: Shaped[Array, 'rows features'],
  number: int,
) -> tuple[Array, Array]:
  """Keys and indices of the nearest rows; the key orders as the distance does."""
  rows = rows.astype(jnp.float32)
  # Half the time of queries @ rows.T for one query on a CPU.
  products = jnp.matmul(rows, queries.T, precision=lax.Precision.HIGHEST)
  # |q - r|^2 less |q|^2, which is the same for all rows.
  keys = jnp.sum(rows**2, axis=1)[:, None] - 2 * products
  nearest, indices = lax.top_k(-keys.T, number)
  return -nearest, indices


def precision(
  index: feature_file.FeatureFile,
  top: int,
  queries: Float[np.ndarray, 'queries features'] | None = None,
  classes: list[str] | None = None,
) -> tuple[float, int]:
  """The mean share of the `top` nearest images that have the query's class.

  Args:
    index: the images among which to search.
    top: number of neighbours.
    queries: features of the queries. None for the index itself: every image
      asks for others than itself.
    classes: class of each query; a query is left out if its class is '' or the
      index has no image of it.

  Returns:
    The share, and the number of queries.

  Raises:
    ValueError: if no query has a class of the index.
  """
  itself = queries is None
  if itself:
    queries, classes = index.rows, index.about['classes']
  known = known_queries(index, classes)
  shares = []
  for start in range(0, len(known), QUERIES):
    part = known[start : start + QUERIES]
    _, found = search(index.rows, queries[part], top + itself)
    if itself:
      found = _without(found, part)
    own = [classes[i] for i in part]
    shares.append(class_shares(index, found, own))
  return float(np.concatenate(shares).mean()), len(known)


def known_queries(
  index: feature_file.FeatureFile, classes: Sequence[str]
) -> Int[np.ndarray, 'known']:
  """The indices of the queries of which the index has the class, which is not ''.

  Raises:
    ValueError: if there is none.
  """
  names = {*index.about['classes']} - {''}
  known = np.flatnonzero([name in names for name in classes])
  if not len(known):
    raise ValueError(
      '--precision: no query has a class of the index; put the images into'
      ' folders that have the names of its classes'
    )
  return known


def class_shares(
  index: feature_file.FeatureFile,
  found: Int[np.ndarray, 'queries top'],
  classes: Sequence[str],
) -> Float[np.ndarray, 'queries']:
  """For each query the share of its neighbours that have its class.

  Args:
    index: the images among which was searched.
    found: indices of the neighbours, as of `search`.
    classes: class of each query.
  """
  names = np.array(index.about['classes'])[found]
  return (names == np.array(classes)[:, None]).mean(1)


def _without(found, rows):
  """The neighbours without the query itself, or without the farthest one."""
  # Equal images may stand before it.
  keep = found != rows[:, None]
  keep[keep.all(1), -1] = False
  return found[keep].reshape(len(found), -1)
