"""Losses and states that are not finite: the cause is found, the run ends.

Every step's loss is fetched one step late, as part of its metrics, so the step
is known exactly. From a loss that is not finite on, the train step leaves the
state as it was (`train_step.make_train_step`): its batch is run again from
there, layer by layer. All of this costs a run nothing before it ends.
"""

from collections.abc import Iterator
import contextlib
import itertools
import logging
import math
import pathlib
import shlex

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree
import numpy as np
import optax

from alexnet_jax import checkpoint
from alexnet_jax import checkpoint_retention
from alexnet_jax import input_pipeline
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import metrics
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import records
from alexnet_jax import rising_loss
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step as train_step_lib
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import processes

log = logging.getLogger(__name__)

MAX_NAMES = 5  # Examples that the message names.
PAPER_RATE = 0.01


class NotFiniteError(FloatingPointError):
  """A value of a run is not finite.

  Attributes:
    state: a train state from which the cause can be found.
    completed: number of steps that `state` has completed.
  """

  def __init__(self, message: str, state: PyTree, completed: int):
    super().__init__(message)
    self.state, self.completed = state, completed


def check(
  value: float | Float[np.ndarray, ''],
  tag: str,
  step: int,
  state: PyTree,
  completed: int,
) -> None:
  """Raises NotFiniteError unless `value` is finite.

  Args:
    value: a loss or a norm.
    tag: what it is, for the message.
    step: number of steps after which it was found.
    state: the train state that gave it.
    completed: number of steps that this state has completed.
  """
  if not math.isfinite(value):
    raise NotFiniteError(f'{tag} is {value} at step {step}', state, completed)


@jax.jit
def norm(state: train_state.TrainState) -> Float[Array, '']:
  """The norm of the parameters and of v, on the device; see `check`."""
  return optax.tree.norm((state.params, state.opt_state))


@contextlib.contextmanager
def explained(
  run: run_lib.Run,
  checkpoints: checkpoint.Checkpoints,
  arguments: train_step_lib.StepArguments,
  rising: rising_loss.RisingLossWarning,
) -> Iterator[None]:
  """Adds the cause, and the way back, to the error of a value not finite.

  A checkpoint of the very state whose next loss is not finite is renamed: a run
  that continued from it would end in the same way.

  Args:
    run: the opened run.
    checkpoints: its checkpoints.
    arguments: the arguments of its steps.
    rising: has seen the losses of its rows.

  Raises:
    FloatingPointError: in place of NotFiniteError, with three lines.
  """
  try:
    yield
  except NotFiniteError as error:
    try:
      log.error(
        '%s: looking for the cause, which compiles the net again', error
      )
      cause, norms = _find(run, arguments, error.state, error.completed)
    except Exception as failure:  # Memory may be too short for the search.
      if not processes.is_single_process():
        raise error from failure  # The others may wait in a collective.
      problem = ' '.join(str(failure).split())
      cause, norms = f'Its cause was not found ({problem})', 'Norms: unknown'
    checkpoints.wait()
    if error.completed in checkpoints.steps():
      checkpoints.rename(error.completed, 'diverged')
    rate = run.config.optimizer.learning_rate
    way_back = _way_back(checkpoints, rising.steady_step, rate)
    lines = f'{error}. {cause}.', f'{norms}.', way_back
    raise FloatingPointError('\n'.join(lines)) from None


def _find(run, arguments, state, completed):
  """What is not finite first, and the norms of the last good step."""
  params, v = placement.fetch((state.params, state.opt_state.trace))
  # A gradient flows from the last layer to the first.
  for tree, what in ((v, 'the gradient'), (params, 'the parameters')):
    broken = [layer for layer in sorted(tree) if not _is_finite(tree[layer])]
    if broken:
      when = 'before the first step'
      if completed:
        names = _names(run, completed - 1, None)
        when = f'in step {completed}, whose loss was finite; its batch: {names}'
      return (
        f'First not finite: {what} of {broken[-1]} {when}',
        'Norms before that: unknown, they are overwritten',
      )
  norms = _norms(run, arguments, state, params, completed)
  batch = _batch(run, completed)
  statistics, key, _, color_std = arguments(completed)
  inputs = (state.params, batch, statistics, key, color_std)
  losses, flags = placement.fetch(_forward(run, completed)(*inputs))
  mask = placement.fetch(batch['mask'])
  layer = next((name for name, flag in _ordered(flags) if not flag.all()), None)
  # Losses that are finite may have a sum that is not.
  large = np.finfo(np.float32).max / len(losses)
  bad = np.flatnonzero(mask & ~(losses <= large))
  if layer is None and not len(bad):
    return f'The batch of step {completed + 1}, run again, is finite', norms
  where = f'the activations {layer}' if layer else 'the losses'
  names = _names(run, completed, bad)
  return f'First not finite: {where} in step {completed + 1}; {names}', norms


def _is_finite(layer):
  return all(np.isfinite(x).all() for x in layer.values())


def _ordered(flags):
  """By layer; the linear output precedes the activations."""
  key = lambda item: (item[0].partition('/')[0], '/' not in item[0])
  return sorted(flags.items(), key=key)


def _forward(run, completed):
  """The function that runs a batch: losses, and which activations are finite.

  The flags are an array by name, with one element per device. The draws are
  those of the step that follows `completed` steps.
  """

  def local(params, batch, statistics, key, color_std):
    captured = {}
    train_step_lib.loss_fn(
      params,
      batch,
      statistics,
      jax.random.fold_in(key, completed),
      color_std,
      net=run.network,
      mesh=run.mesh,
      random_views=run.random_views,
      capture=captured,
    )
    log_probs = jax.nn.log_softmax(captured['fc8'])
    losses = metrics.cross_entropy(log_probs, batch['label'])
    flags = {k: jnp.isfinite(x).all()[None] for k, x in captured.items()}
    return losses, flags

  def forward(params, *inputs):
    in_specs = (
      run.param_specs(params),
      mesh_lib.batch_spec(),
      *(mesh_lib.REPLICATED,) * 3,
    )
    out_specs = (mesh_lib.batch_spec(), P(('data', 'tower')))
    mapped = mesh_lib.shard_map(local, run.mesh, in_specs, out_specs)
    return mapped(params, *inputs)

  return jax.jit(forward, compiler_options=compilation.fast_compile_options())


def _norms(run, arguments, state, params, completed):
  """The norms of the last good step, `completed`."""
  found = f'norm of the parameters {_norm_of(params):.4g}'
  if not completed:
    return f'Before it, {found}'
  statistics, key, rates, color_std = arguments(completed - 1)
  frozen_layers = run.config.optimizer.frozen_layers

  @jax.jit
  def undo(state, rates):
    """The state before the last step, without v, and the update."""
    # With gradients of 0 and a momentum of 1 it gives its last update again.
    last = optimizer.paper_sgd(rates, 1.0, 0.0, frozen_layers=frozen_layers)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = last.update(zeros, state.opt_state, state.params)
    params = jax.tree.map(jnp.subtract, state.params, updates)
    step = jnp.full_like(state.step, completed - 1)
    return train_state.TrainState(step, params, zeros), updates

  before, updates = undo(state, rates)
  # An optimiser whose state is the gradient.
  gradient = optax.GradientTransformation(
    lambda params: params,
    lambda grads, v, params: (jax.tree.map(jnp.zeros_like, grads), grads),
  )
  step = train_step_lib.make_train_step(
    run.network,
    run.mesh,
    run.random_views,
    lambda rates: gradient,
    frozen_layers,
  )
  batch = _batch(run, completed - 1)
  ran, _ = step(before, batch, statistics, key, rates, color_std)
  updates, grads = placement.fetch((updates, ran.opt_state))
  return (
    f'At step {completed}, the last good one, {found}, of the gradient'
    f' {_norm_of(grads):.4g}, of the update {_norm_of(updates):.4g}'
  )


def _norm_of(tree):
  square = lambda x: np.sum(np.square(x, dtype=np.float64))
  return math.sqrt(sum(map(square, jax.tree.leaves(tree))))


def _batch(run, completed):
  """The batch of the step that follows `completed` steps, on the devices."""
  with contextlib.closing(run.train_batches(completed)) as batches:
    return next(batches)


def _names(run, completed, bad):
  """The examples of a batch by file name: `bad` ones, or all if it is None."""
  inputs = run.config.input
  stored = records.Records(run.dataset, inputs.train_split)
  rows = input_pipeline.train_indices(
    len(stored), run.config.seed, inputs.batch_size, completed
  )
  total = len(rows)
  rows = rows if bad is None else rows[bad]
  names = ', '.join(stored.name(row) for row in rows[:MAX_NAMES].tolist())
  more = f' and {len(rows) - MAX_NAMES} more' if rows[MAX_NAMES:].size else ''
  if bad is None:
    return f'{names}{more}'
  return f'examples {names}{more} ({len(rows)} of {total} in its batch)'


def _way_back(checkpoints, steady_step, rate):
  """The newest checkpoint that is steady, and the flags that start from it."""
  workdir = checkpoints.folder.parent
  paths = (pathlib.Path(f'{workdir}_{n}') for n in itertools.count(2))
  fresh = next(path for path in paths if not path.exists())
  words = 'No checkpoint has a steady loss before and after it'
  step = checkpoint_retention.newest_steady(
    checkpoints.folder, checkpoints.steps(), steady_step
  )
  # Without a good step, a tenth of an absurd rate may be absurd.
  lower = min(rate / 10, PAPER_RATE if step is None else math.inf)
  flags = [f'--workdir={fresh}', f'--config.optimizer.learning_rate={lower:g}']
  if step is not None:
    words = (
      f'Checkpoint {step} is the newest with a steady loss before and after it'
    )
    flags.append(f'--config.train.init_from={checkpoints.folder / str(step)}')
  quoted = ' '.join(map(shlex.quote, flags))
  return f'{words}; repeat the command with, added at its end, {quoted}'
