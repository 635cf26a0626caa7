"""Evaluation as in the paper: top-1 and top-5 error on one view or on ten.

Section 4.1: the softmax outputs of the four corner crops, the centre crop and
their reflections are averaged. Every example counts exactly once.
"""

from collections.abc import Callable, Iterable
import contextlib
import os
import pathlib

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import ml_collections

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import model
from alexnet_jax import run as run_lib
from alexnet_jax import towers

NAMES = ('loss', 'top1_error', 'top5_error')


def many_view_prefix(flip: bool) -> str:
  """Prefix of the tags of many views: ten, or five where nothing is flipped."""
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
    param_specs = towers.param_specs(params, mesh)
    specs = (
      param_specs,
      towers.batch_spec(),
      towers.REPLICATED,
      towers.REPLICATED,
    )
    sharded = towers.shard(local_step, mesh, specs, towers.REPLICATED)
    return sharded(params, batch, mean_image, offsets)

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
    if pending is not None:  # Of the batch before, while this one runs.
      totals.add(metrics.fetch(pending))
    pending = sums
  if pending is not None:
    totals.add(metrics.fetch(pending))
  if totals.count != num_examples:
    raise RuntimeError(
      f'evaluated {totals.count} examples, the split has {num_examples}'
    )
  return totals.means(prefix, NAMES)


def make_evaluator(run: run_lib.Run) -> Callable[..., dict[str, float]]:
  """A function (params, many) -> metrics of the run's evaluation split.

  With `many` the views are ten, or five where the config does not flip.
  """
  inputs, flip = run.config.input, run.config.augment.flip
  eval_step = make_eval_step(run.network, run.mesh, inputs.crop_size)

  def evaluator(params: PyTree, many: bool) -> dict[str, float]:
    offsets = augment.view_offsets(
      inputs.image_size, inputs.crop_size, many=many, flip=flip
    )
    batches = input_pipeline.eval_batches(
      run.dataset, inputs.eval_split, batch_size=run.config.eval.batch_size
    )
    return evaluate(
      eval_step,
      params,
      input_pipeline.prefetch_to_device(batches, run.place_batch),
      run.statistics.mean_image,
      towers.place(offsets, run.mesh),
      num_examples=run.dataset.num_examples[inputs.eval_split],
      prefix=many_view_prefix(flip) if many else 'eval',
    )

  return evaluator


def evaluate_checkpoint(
  config: ml_collections.ConfigDict, workdir: str | os.PathLike, which: str
) -> dict[str, float]:
  """Evaluates the 'best' or the 'latest' checkpoint on one and on many views.

  Prints the errors and writes them to evaluation.json in `workdir`.

  Raises:
    ValueError: if config, data set and work directory do not fit.
    FileNotFoundError: if there is no data set or no checkpoint.
  """
  folder = pathlib.Path(workdir).expanduser() / checkpoint.FOLDER
  if not folder.is_dir():
    raise FileNotFoundError(f'no {folder}; train first: --mode=train')
  run = run_lib.open_run(config, workdir, config_lib.EVALUATION_MAY_CHANGE)
  try:
    with contextlib.closing(
      checkpoint.Checkpoints(run.workdir, read_only=True)
    ) as checkpoints:
      step = checkpoints.step_of(which)
      run_lib.check_record(run, checkpoints.read_record(step))
      template = run_lib.state_template(run)
      params = checkpoints.restore(template, step).params
  except checkpoint.DamagedError as error:
    raise ValueError(
      f'the {which} checkpoint in {folder} cannot be read ({error}). If a'
      ' training is running there, try again; else try the other --checkpoint,'
      ' or --mode=train, which puts damaged ones aside'
    ) from error
  evaluator = make_evaluator(run)
  result = evaluator(params, many=False) | evaluator(params, many=True)
  inputs = config.input
  print(
    f'{which} checkpoint, step {step}: {inputs.eval_split} of {inputs.dataset}'
  )
  for tag, value in result.items():
    if tag.endswith('error'):
      print(f'{tag:26} {value:.2%}')
  files.write_json(
    run.workdir / 'evaluation.json',
    {
      'step': step,
      'checkpoint': which,
      'dataset': inputs.dataset,
      'split': inputs.eval_split,
      **result,
    },
  )
  return result
