"""Evaluation as in the paper: top-1 and top-5 error on one view or on ten.

Section 4.1: the softmax outputs of the four corner crops, the centre crop and
their reflections are averaged. Every example counts exactly once.
"""

from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from alexnet_jax import augment
from alexnet_jax import metrics
from alexnet_jax import model
from alexnet_jax import towers

NAMES = ('loss', 'top1_error', 'top5_error')


def many_view_prefix(flip: bool) -> str:
  """Prefix of the tags of the many-view evaluation: ten views, five unflipped."""
  return 'eval_ten_view' if flip else 'eval_five_view'


def tags(flip: bool) -> list[str]:
  """All tags of evaluation."""
  return [f'{p}/{n}' for p in ('eval', many_view_prefix(flip)) for n in NAMES]


def mean_log_probs(
    logits: Float[Array, 'views batch classes'],
) -> Float[Array, 'batch classes']:
  """Logarithm of the softmax outputs averaged over the views."""
  log_probs = jax.nn.log_softmax(logits)
  return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(logits.shape[0])


def make_eval_step(
    net: nn.Module, mesh: jax.sharding.Mesh | None, crop_size: int
) -> Callable[..., dict[str, Float[Array, '']]]:
  """The compiled (params, batch, mean_image, offsets) -> sums over the batch.

  `offsets` are those of `augment.view_offsets`, on the device.
  """

  def local_step(params, batch, mean_image, offsets):
    def logits(offset):
      images = augment.view_at(batch['image'], mean_image, offset, crop_size)
      return net.apply({'params': params}, images)

    log_probs = mean_log_probs(lax.map(logits, offsets))
    sums = metrics.batch_sums(log_probs, batch['label'], batch['mask'])
    return sums if mesh is None else lax.psum(sums, 'data')

  def step(params, batch, mean_image, offsets):
    specs = towers.param_specs(params, mesh), towers.batch_spec(), towers.P(), towers.P()
    return towers.shard(local_step, mesh, specs, towers.P())(
        params, batch, mean_image, offsets
    )

  return jax.jit(step, compiler_options=model.compiler_options())


def evaluate(
    eval_step: Callable,
    params: PyTree,
    batches: Iterable[PyTree],
    mean_image: Float[Array, 'size size 3'],
    offsets: Int[Array, 'views 3'],
    *,
    num_examples: int,
    prefix: str,
) -> dict[str, float]:
  """Mean loss and top-1 and top-5 error (fractions) under `prefix/...`.

  Args:
    eval_step: from `make_eval_step`.
    params: of the network.
    batches: on the device, every example once.
    mean_image: of the training set, on the device.
    offsets: views to average, on the device.
    num_examples: that the batches must hold.
    prefix: of the tags.

  Raises:
    RuntimeError: if the batches do not hold `num_examples` examples.
  """
  totals = metrics.Totals()
  pending = None
  for batch in batches:
    sums = eval_step(params, batch, mean_image, offsets)
    if pending is not None:
      totals.add(metrics.fetch(pending))
    pending = sums
  if pending is not None:
    totals.add(metrics.fetch(pending))
  if totals.count != num_examples:
    raise RuntimeError(
        f'evaluated {totals.count} examples, the split has {num_examples}'
    )
  return totals.means(prefix, NAMES)
