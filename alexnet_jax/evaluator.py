"""Evaluation of a network: a label-free step, and the errors on a split.

Section 4.1: the softmax outputs of the four corner crops, the centre crop and
their reflections are averaged. Every example counts exactly once.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import logging

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from alexnet_jax import augment
from alexnet_jax import diagnostics
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import metrics
from alexnet_jax import placement
from alexnet_jax import run as run_lib
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import signals

log = logging.getLogger(__name__)


def mean_log_probs(
  logits: Float[Array, 'views batch classes'],
) -> Float[Array, 'batch classes']:
  """Logarithm of the softmax outputs averaged over the views."""
  log_probs = jax.nn.log_softmax(logits)
  return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(logits.shape[0])


def predict(
  net: nn.Module,
  params: PyTree,
  images: Array,
  mean_image: Float[Array, 'size size 3'],
  offsets: Int[Array, 'views 3'],
  *,
  crop_size: int,
  central_mean: bool = False,
  channel_stds: Sequence[float] = (),
  layers: Sequence[str] = (),
  observe: Callable[[dict[str, Array]], PyTree] | None = None,
) -> tuple[Float[Array, 'batch classes'], PyTree]:
  """Log-probabilities and named activations for this device's images.

  Call it inside `mesh.shard_map`.

  Args:
    net: network with the interface of `model.AlexNet`.
    params: parameters of the network.
    images: stored images, uint8 [batch, size, size, 3].
    mean_image: mean of the training set, 0..255.
    offsets: views to average, from `augment.view_offsets`.
    crop_size: side of the crops in pixels.
    central_mean, channel_stds: see `augment.random_views`.
    layers: names of the activations to return, see `model.AlexNet.__call__`.
    observe: function of all activations, whose arrays are returned instead.

  Returns:
    The logarithms of the softmax outputs averaged over the views, and the
    activations [views, batch, ...] by name, or what `observe` returns, stacked.

  Raises:
    KeyError: if the network has no such activation.
  """

  def view(offset):
    crops = augment.view_at(
      images, mean_image, offset, crop_size, central_mean, channel_stds
    )
    if not layers and observe is None:
      return net.apply({'params': params}, crops), {}
    captured = {}
    logits = net.apply({'params': params}, crops, capture=captured)
    if observe is not None:
      return logits, observe(captured)
    return logits, {name: captured[name] for name in layers}

  logits, activations = lax.map(view, offsets)
  return mean_log_probs(logits), activations


def make_predict_step(
  net: nn.Module,
  mesh: jax.sharding.Mesh | None,
  crop_size: int,
  central_mean: bool = False,
  layers: Sequence[str] = (),
  channel_stds: Sequence[float] = (),
) -> Callable[..., tuple[Float[Array, 'batch classes'], dict[str, Array]]]:
  """The jitted `predict`: (params, images, mean_image, offsets) -> outputs.

  It needs no labels. The arguments are those of `predict`.
  """

  def local_step(params, images, mean_image, offsets):
    return predict(
      net,
      params,
      images,
      mean_image,
      offsets,
      crop_size=crop_size,
      central_mean=central_mean,
      channel_stds=channel_stds,
      layers=layers,
    )

  activation_specs = {
    name: P(None, *net.activation_spec(name)) for name in layers
  }
  out_specs = (mesh_lib.batch_spec(), activation_specs)
  return _jit_step(local_step, net, mesh, out_specs)


def make_eval_step(
  net: nn.Module,
  mesh: jax.sharding.Mesh | None,
  crop_size: int,
  central_mean: bool = False,
  channel_stds: Sequence[float] = (),
  observe: diagnostics.Activations | None = None,
) -> Callable[..., tuple]:
  """The jitted step (params, batch, mean_image, offsets) -> (sums, log_probs).

  The sums are those of `metrics.batch_sums` over the global batch, the
  log-probabilities those of `predict`. With `observe` its arrays follow.
  """

  def local_step(params, batch, mean_image, offsets):
    views = f' for {len(offsets)} views' if len(offsets) > 1 else ''
    log.info('Compiling the evaluation step%s.', views)  # It is being traced.
    log_probs, observed = predict(
      *(net, params, batch['image'], mean_image, offsets),
      crop_size=crop_size,
      central_mean=central_mean,
      channel_stds=channel_stds,
      observe=observe and functools.partial(observe, mask=batch['mask']),
    )
    losses = metrics.cross_entropy(log_probs, batch['label'])
    sums = metrics.batch_sums(log_probs, losses, batch['mask'])
    sums = sums if mesh is None else lax.psum(sums, 'data')
    return (sums, log_probs, observed) if observe else (sums, log_probs)

  out_specs = (mesh_lib.REPLICATED, mesh_lib.batch_spec())
  if observe:
    out_specs += (observe.specs,)
  return _jit_step(local_step, net, mesh, out_specs)


def _jit_step(local_step, net, mesh, out_specs):
  """A step of (params, batch, mean_image, offsets), mapped and jitted."""

  def step(params, batch, mean_image, offsets):
    in_specs = (
      mesh_lib.param_specs(params, mesh, net.layers_sharded_over_data),
      mesh_lib.batch_spec(),
      mesh_lib.REPLICATED,
      mesh_lib.REPLICATED,
    )
    sharded = mesh_lib.shard_map(local_step, mesh, in_specs, out_specs)
    return sharded(params, batch, mean_image, offsets)

  return jax.jit(step, compiler_options=compilation.inference_options())


def evaluate(
  eval_step: Callable,
  params: PyTree,
  batches: Iterable[PyTree],
  mean_image: Float[Array, 'size size 3'],
  offsets: Int[Array, 'views 3'],
  *,
  num_examples: int,
  prefix: str,
  predictions: list | None = None,
  observer: Callable | None = None,
  max_missing: int = 0,
) -> dict[str, float]:
  """Mean loss (nats), top-1 and top-5 error (fractions), by tag.

  Args:
    eval_step: step from `make_eval_step`.
    params: parameters of the network, on the devices.
    batches: batches on the devices, with every example once.
    mean_image: mean of the training set, on the devices.
    offsets: views to average, on the devices.
    num_examples: number of examples that the batches must hold.
    prefix: prefix of the tags.
    predictions: list to which the log-probabilities [examples, classes] and
      labels of every batch are appended as a pair.
    observer: called with (log_probs, labels, mask) of every batch, and what
      `observe` has returned for it, which stays on the devices.
    max_missing: number of examples that may be masked; a line counts them.

  Raises:
    RuntimeError: if the batches do not hold `num_examples` examples.
  """
  totals, pending = metrics.Totals(), None

  def finish(batch, sums, log_probs, observed=None):
    totals.add(placement.fetch(sums))
    if predictions is None and observer is None:
      return
    fetched = placement.fetch((log_probs, batch['label'], batch['mask']))
    if predictions is not None:
      predictions.append(tuple(x[fetched[2]] for x in fetched[:2]))
    if observer is not None:
      observer(*fetched, observed)

  with jax.transfer_guard('disallow'):  # Implicit transfers raise.
    for batch in batches:
      outputs = eval_step(params, batch, mean_image, offsets)
      if pending is not None:  # Fetched while the next batch runs.
        finish(*pending)
      pending = (batch, *outputs)
    if pending is not None:
      finish(*pending)
  _check_count(totals.count, num_examples, max_missing, prefix)
  means = totals.means(metrics.EVAL_METRICS)
  return {f'{prefix}/{name}': value for name, value in means.items()}


def _check_count(count, num_examples, max_missing, prefix):
  missing = num_examples - count
  if not 0 <= missing <= max_missing or not count:
    raise RuntimeError(
      f'evaluated {count} examples, but the split has {num_examples};'
      ' prepare the data set again'
    )
  if missing:
    text = '%s: %d of %d examples are left out, whose records cannot be used'
    log.warning(text, prefix, missing, num_examples)


class Evaluator:
  """Evaluates parameters on the evaluation split of a run."""

  def __init__(
    self,
    run: run_lib.Run,
    stop: Callable[[], int] = lambda: 0,
    observe: diagnostics.Activations | None = None,
  ):
    """Evaluates until `stop` returns another number than 0."""
    self._run, self._stop = run, stop
    self._eval_step = make_eval_step(
      run.network,
      run.mesh,
      run.config.input.crop_size,
      run.config.augment.central_mean,
      run.config.input.channel_stds,
      observe,
    )

  def __call__(
    self,
    params: PyTree,
    *,
    many: bool,
    predictions: list | None = None,
    observer: Callable | None = None,
  ) -> dict[str, float]:
    """The metrics of `evaluate`, with one view or with many.

    Args:
      params: parameters of the network, on the devices.
      many: whether to average ten views (five if the config does not flip), not
        one.
      predictions, observer: see `evaluate`.

    Raises:
      signals.Stopped: if `stop` ended the evaluation.
    """
    run, flip = self._run, self._run.config.augment.flip
    inputs = run.config.input
    offsets = augment.view_offsets(
      inputs.image_size, inputs.crop_size, many=many, flip=flip
    )
    return evaluate(
      self._eval_step,
      params,
      signals.until(self._stop, run.eval_batches()),
      run.statistics.mean_image,
      placement.place(offsets, run.mesh),
      num_examples=run.dataset.num_examples[inputs.eval_split],
      prefix=metrics.many_view_prefix(flip) if many else 'eval',
      predictions=predictions,
      observer=observer,
      # Each process counts the records that it reads.
      max_missing=inputs.max_bad_records * jax.process_count(),
    )
