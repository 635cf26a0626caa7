"""Measures of a search by features, and what chance gives."""

from jaxtyping import Int
import numpy as np

from alexnet_jax import feature_file
from alexnet_jax import nearest

RANKED = 64  # Queries for which the whole index is sorted at once.


def mean_average_precision(
  index: feature_file.FeatureFile, queries: feature_file.FeatureFile
) -> float:
  """The mean of the average precisions of the queries, 0 to 1.

  The average precision of a query is the mean, over the images of its class, of
  the share of its class among the images that are at least as near. Queries
  whose class the index does not have are left out.
  """
  # Numbers, which take less memory than names.
  _, labels = np.unique(
    index.about['classes'] + queries.about['classes'], return_inverse=True
  )
  index_classes, classes = np.split(labels, [len(index.rows)])
  places = np.arange(1, len(index_classes) + 1)
  found = []
  for start in range(0, len(classes), RANKED):
    part = slice(start, start + RANKED)
    order = np.argsort(_keys(index.rows, queries.rows[part]), axis=1)
    same = index_classes[order] == classes[part, None]
    share = np.cumsum(same, axis=1) / places
    found += [s[k].mean() for s, k in zip(share, same, strict=True) if k.any()]
  return float(np.mean(found))


def _keys(rows, queries):
  """For each query and row a number that orders as their distance does."""
  queries = queries.astype(np.float32)
  block = max(1, nearest.BLOCK_VALUES // rows.shape[1])
  keys = []
  for start in range(0, len(rows), block):
    part = rows[start : start + block].astype(np.float32)
    # |q - r|^2 less |q|^2, which is the same for all rows.
    keys.append(np.sum(part**2, axis=1) - 2 * queries @ part.T)
  return np.concatenate(keys, axis=1)


def median_place(
  index: feature_file.FeatureFile,
  queries: feature_file.FeatureFile,
  neighbours: Int[np.ndarray, 'queries top'],
) -> float:
  """Where neighbours that another search found stand in the order of this one.

  Args:
    index: features of the images, by which they are ordered.
    queries: features of the queries.
    neighbours: for each query the indices of some images.

  Returns:
    The share of the other images that are nearer to the query than a
    neighbour, median of all: 0 for the nearest, 1/2 for random images.
  """
  found = []
  for start in range(0, len(neighbours), RANKED):
    part = slice(start, start + RANKED)
    keys = _keys(index.rows, queries.rows[part])
    own = np.take_along_axis(keys, neighbours[part], axis=1)
    for row, values in zip(np.sort(keys, axis=1), own, strict=True):
      found += [*np.searchsorted(row, values)]
  return float(np.median(found)) / (len(index.rows) - 1)


def chance(
  index: feature_file.FeatureFile, queries: feature_file.FeatureFile
) -> tuple[float, float, int]:
  """What a random order of the index gives, on average.

  Returns:
    The precision at any number of neighbours, the mean average precision, both
    0 to 1, and the number of queries whose class the index has.
  """
  number = len(index.about['classes'])
  names, counts = np.unique(index.about['classes'], return_counts=True)
  own = dict(zip(names, counts, strict=True))
  count = np.array([own[c] for c in queries.about['classes'] if c in own])
  # An image of the class at place k has (count - 1) others spread over the
  # number - 1 other places, k - 1 of which are before it.
  first = np.mean(1 / np.arange(1, number + 1))
  average = first + (1 - first) * (count - 1) / (number - 1)
  return float(np.mean(count / number)), float(np.mean(average)), len(count)
