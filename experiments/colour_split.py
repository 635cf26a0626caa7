"""Whether two towers have split into grey and coloured kernels, as numbers.

Figure 3 shows that the kernels of one GPU are colour-agnostic and those of the
other colour-specific. Here each kernel has a colour index, from its weights
(`alexnet_jax.colour_index`) or from its responses, and the split of the towers
is the chance that a kernel of one has a higher index than one of the other.
"""

from collections.abc import Sequence
import dataclasses
import itertools

from jaxtyping import Float
import numpy as np
from scipy import stats

from alexnet_jax import colour_index

ORIENTATIONS, PHASES = 12, 8
# RGB vectors of unit length: the grey axis, and two that are orthogonal to it.
GREY = np.ones(3) / np.sqrt(3)
RED_GREEN = np.array([1, -1, 0]) / np.sqrt(2)
BLUE_YELLOW = np.array([-1, -1, 2]) / np.sqrt(6)
HUES = 12  # Directions in the plane of the last two.
SIGNIFICANT = 0.05
# For the verdict: a split that the pictures of Figure 3 would show, in as many
# runs as "every run" needs at least.
LARGE_AUC, FEWEST_RUNS = 0.9, 5
# Random permutations, where an exact test is not available.
_PERMUTATIONS = stats.PermutationMethod(n_resamples=9_999, rng=0)


def gratings(size: int) -> Float[np.ndarray, 'gratings size size']:
  """Sinusoidal gratings with unit energy, and one of frequency 0.

  They have `ORIENTATIONS` orientations, `PHASES` phases and frequencies of 1/2,
  1, ... cycles in `size` pixels, up to a quarter of a cycle in a pixel.
  """
  y, x = np.indices((size, size)) - (size - 1) / 2
  cycles = np.arange(0.5, size / 4 + 0.01, 0.5)
  angles = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
  phases = 2 * np.pi * np.arange(PHASES) / PHASES
  found = [np.ones((size, size))]
  for number, angle, phase in itertools.product(cycles, angles, phases):
    along = (x * np.cos(angle) + y * np.sin(angle)) / size
    found.append(np.cos(2 * np.pi * number * along + phase))
  found = np.array(found)
  return found / np.sqrt(np.square(found).sum((1, 2), keepdims=True))


def response_index(
  kernels: Float[np.ndarray, 'size size 3 features'],
) -> Float[np.ndarray, 'features']:
  """C / (C + L): L is the largest response to a grey grating, C to a coloured.

  All gratings have the same energy, those of C no luminance (equal sums of R, G
  and B at all pixels). A response is that of the linear kernel, without bias,
  where the grating fills its window. The index is 0 for a kernel that responds
  to brightness alone, 1/2 for equal responses; a kernel of zeros has 0.
  """
  angles = 2 * np.pi * np.arange(HUES)[:, None] / HUES
  hues = np.cos(angles) * RED_GREEN + np.sin(angles) * BLUE_YELLOW
  # Axes: grating, colour, kernel.
  responses = np.einsum(
    'gyx,hc,yxcn->ghn',
    gratings(kernels.shape[0]),
    np.concatenate([GREY[None], hues]),
    kernels.astype(float),
    optimize=True,
  )
  largest = np.abs(responses).max(0)  # The opposite phase is a grating, too.
  grey, coloured = largest[0], largest[1:].max(0)
  total = grey + coloured
  return coloured / np.where(total > 0, total, 1)


def weights_index(
  kernels: Float[np.ndarray, 'size size 3 features'],
) -> Float[np.ndarray, 'features']:
  """The colour index of conv1's kernels from their weights."""
  return np.asarray(colour_index.colour_index(kernels), float)


@dataclasses.dataclass(frozen=True)
class Split:
  """How well a colour index tells the kernels of two towers apart.

  Attributes:
    auc: chance that a kernel of the more coloured tower has a higher index than
      one of the other (area under the ROC curve): 1 for a complete split.
    coloured: the more coloured tower, 0 or 1.
    p: share of the ways to assign the kernels to the towers, all equally
      likely, whose `auc` is as high (a two-sided permutation test; exact unless
      kernels share an index, as dead ones do, then of 9,999 random ways).
  """

  auc: float
  coloured: int
  p: float


def split(index: Float[np.ndarray, 'features']) -> Split:
  """The split between the first and the second half of kernels.

  The test takes the kernels for exchangeable. Those of one tower are, but for
  the norm, which couples neighbours. Those of two are not if only what is
  within a tower couples them; how often p is then small is seen in towers that
  do not meet.
  """
  first, second = np.split(index, 2)
  has_ties = len(np.unique(index)) < len(index)
  method = _PERMUTATIONS if has_ties else 'exact'
  # The statistic is the number of pairs in which `second` is higher.
  found = stats.mannwhitneyu(second, first, method=method)
  auc = float(found.statistic) / (len(first) * len(second))
  return Split(max(auc, 1 - auc), int(auc >= 0.5), float(found.pvalue))


def split_step(steps: Sequence[int], splits: Sequence[Split]) -> int | None:
  """The step from which on the towers are split, to the end.

  The same tower is the more coloured one and `p` is below `SIGNIFICANT`; None
  if that is not so at the end.
  """
  found = None
  for step, one in zip(reversed(steps), reversed(splits), strict=True):
    if one.p >= SIGNIFICANT or one.coloured != splits[-1].coloured:
      break
    found = step
  return found


def combined_p(values: Sequence[float]) -> float:
  """Fisher's combination of independent p-values."""
  return float(stats.combine_pvalues(values, method='fisher').pvalue)


def verdict_of(aucs: Sequence[float], p_values: Sequence[float]) -> str:
  """The verdict on the claim that two towers split.

  Args:
    aucs: the split of each run of two towers.
    p_values: their permutation p-values.

  Returns:
    'not run yet' for fewer than `FEWEST_RUNS`; 'reproduced' if every run has p
    below `SIGNIFICANT` and an auc of at least `LARGE_AUC`; otherwise 'same
    sign, smaller' if the combined p is below `SIGNIFICANT`, and 'noise' if not.
  """
  if len(p_values) < FEWEST_RUNS:
    return 'not run yet'
  if max(p_values) < SIGNIFICANT and min(aucs) >= LARGE_AUC:
    return 'reproduced'
  is_some = combined_p(p_values) < SIGNIFICANT
  return 'same sign, smaller' if is_some else 'noise'


def every_run_verdict(p_values: Sequence[float]) -> str:
  """The verdict on the claim that two towers split in every run.

  Returns:
    'not run yet' for fewer than `FEWEST_RUNS`; 'reproduced' if every run has p
    below `SIGNIFICANT`; otherwise 'contradicted'. 64 kernels with an auc of
    `LARGE_AUC` have p below 1e-7, so chance hides no split of that size.
  """
  if len(p_values) < FEWEST_RUNS:
    return 'not run yet'
  return 'reproduced' if max(p_values) < SIGNIFICANT else 'contradicted'


def verdict_lines(
  aucs: Sequence[float], p_values: Sequence[float]
) -> tuple[str, str]:
  """Both verdicts, and in how many runs the towers split."""
  split = sum(p < SIGNIFICANT for p in p_values)
  large = sum(auc >= LARGE_AUC for auc in aucs)
  return (
    f'two towers split: {verdict_of(aucs, p_values)}; {large} of'
    f' {len(aucs)} runs have an auc of at least {LARGE_AUC}',
    f'in every run: {every_run_verdict(p_values)}; {split} of'
    f' {len(p_values)} runs have p below {SIGNIFICANT}',
  )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
  """Spearman's correlation; nan if one of them is constant."""
  return float(stats.spearmanr(a, b).statistic)


def correlation_p(a: np.ndarray, b: np.ndarray) -> float:
  """The share of random pairings with as high an absolute rank correlation."""
  ranks = stats.rankdata(a), stats.rankdata(b)
  return float(stats.pearsonr(*ranks, method=_PERMUTATIONS).pvalue)


def first_singular_vector(
  kernels: Float[np.ndarray, 'size size in_features features'], *, centred: bool
) -> Float[np.ndarray, 'in_features']:
  """The first left singular vector of the summed absolute weights.

  Row i of that matrix has the weights with which kernel i of conv1 is read by
  each kernel of conv2. All are positive, so the first vector is about how much
  each row has in total, and its sum is made positive. `centred` subtracts the
  means of rows and columns first; what is left is which kernels are read
  together, and the sign means nothing.
  """
  weights = np.abs(kernels.astype(float)).sum((0, 1))
  if centred:
    weights -= weights.mean(0, keepdims=True)
    weights -= weights.mean(1, keepdims=True)
  vector = np.linalg.svd(weights, full_matrices=False)[0][:, 0]
  return vector if centred or vector.sum() > 0 else -vector


def kept_share(
  start: Float[np.ndarray, 'size size 3 features'],
  end: Float[np.ndarray, 'size size 3 features'],
) -> Float[np.ndarray, 'features']:
  """The share of each kernel's energy that its random start explains.

  It is the squared cosine of the angle between both: 1 for a kernel that has
  only been scaled, about 1 / (number of weights) for one that has been learnt.
  """
  a, b = (k.astype(float).reshape(-1, k.shape[-1]) for k in (start, end))
  energies = np.square(a).sum(0) * np.square(b).sum(0)
  return np.square((a * b).sum(0)) / np.where(energies > 0, energies, 1)
