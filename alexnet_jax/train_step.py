"""The train step (loss, gradient, update) and its arguments."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
import ml_collections
import numpy as np
import optax

from alexnet_jax import mesh as mesh_lib
from alexnet_jax import metrics
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import run as run_lib
from alexnet_jax import timetable
from alexnet_jax import train_state
from alexnet_jax.runtime import compilation

# Random streams of a step. On every mesh, draws depend only on (seed, step,
# stream, index in the global batch).
AUGMENT, DROPOUT = 0, 1


def loss_fn(
  params: PyTree,
  batch: PyTree,
  statistics: run_lib.Statistics,
  key: Key[Array, ''],
  color_std: Float[Array, ''],
  *,
  net: nn.Module,
  mesh: jax.sharding.Mesh | None,
  random_views: Callable,
  capture: dict[str, Array] | None = None,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Mean cross-entropy of the global batch (nats), and `metrics.batch_sums`.

  Call it inside `mesh.shard_map`; `batch` is this device's part, `capture` is
  for the net. The other arguments are those of `make_train_step` and of the
  step that it returns.
  """
  indices = mesh_lib.global_batch_indices(batch['label'].size, mesh)
  images = random_views(
    jax.random.fold_in(key, AUGMENT),
    batch['image'],
    indices,
    statistics.mean_image,
    statistics.directions,
    color_std,
  )
  logits = net.apply(
    {'params': params},
    images,
    train=True,
    batch_indices=indices,
    rngs={'dropout': jax.random.fold_in(key, DROPOUT)},
    capture=capture,
  )
  log_probs = jax.nn.log_softmax(logits)
  losses = metrics.cross_entropy(log_probs, batch['label'])
  sums = metrics.batch_sums(log_probs, losses, batch['mask'])
  sums = sums if mesh is None else lax.psum(sums, 'data')
  # A batch may have no example: see config.input.max_bad_records.
  return sums['loss'] / jnp.maximum(sums['count'], 1), sums


def make_train_step(
  net: nn.Module,
  mesh: jax.sharding.Mesh | None,
  random_views: Callable,
  make_optimizer: Callable,
  frozen_layers: Sequence[str] = (),
) -> Callable[..., tuple[train_state.TrainState, dict[str, Array]]]:
  """The jitted train step.

  It maps (state, batch, statistics, key, rates, color_std), all on the devices,
  to the next state and the sums of `metrics.batch_sums`. The state is donated.
  If the loss is not finite, `step` becomes -1, and neither this nor a later
  step changes the rest of the state: `divergence.py` looks for the cause there.

  Args:
    net: network with the interface of `model.AlexNet`.
    mesh: mesh over which batch and parameters are sharded; None for one device.
    random_views: `augment.random_views` with its settings.
    make_optimizer: function that makes the optimiser from the learning rates.
    frozen_layers: layers whose gradients are not computed, but 0.
  """
  local_loss = functools.partial(
    loss_fn, net=net, mesh=mesh, random_views=random_views
  )

  def train_step(state, batch, statistics, key, rates, color_std):
    replicated = mesh_lib.REPLICATED
    param_specs = mesh_lib.param_specs(
      state.params, mesh, net.layers_sharded_over_data
    )
    in_specs = (param_specs, mesh_lib.batch_spec(), *(replicated,) * 3)
    loss = mesh_lib.shard_map(
      local_loss, mesh, in_specs, (replicated, replicated)
    )
    step_key = jax.random.fold_in(key, state.step)
    frozen = {name: state.params[name] for name in frozen_layers}
    grads, sums = jax.grad(lambda p, *x: loss(p | frozen, *x), has_aux=True)(
      state.params, batch, statistics, step_key, color_std
    )
    is_good = jnp.isfinite(sums['loss']) & (state.step >= 0)
    rates = jax.tree.map(lambda rate: jnp.where(is_good, rate, 0), rates)
    tx = make_optimizer(rates)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = jnp.where(is_good, state.step + 1, -1)
    return train_state.TrainState(step, params, opt_state), sums

  options = compilation.network_options()
  return jax.jit(train_step, donate_argnums=0, compiler_options=options)


def compile_train_step(
  run: run_lib.Run, state: train_state.TrainState, arguments: tuple
) -> Callable:
  """Compiles the train step of a run ahead of time.

  No row of metrics then includes the compilation time, and other shapes or
  shardings raise instead of recompiling.

  Args:
    run: the opened run.
    state: its train state, on the devices.
    arguments: the other arguments of a step, from `StepArguments`.
  """
  train_step = make_train_step(
    run.network,
    run.mesh,
    run.random_views,
    run.make_optimizer,
    run.config.optimizer.frozen_layers,
  )
  inputs = run.config.input
  batch = placement.batch_template(
    inputs.batch_size, inputs.image_size, run.mesh
  )
  return train_step.lower(state, batch, *arguments).compile()


class StepArguments:
  """The train step's arguments other than state and batch, on the devices."""

  def __init__(self, run: run_lib.Run, table: timetable.Timetable):
    self._run, self._table = run, table
    self._schedule = rate_schedule(run.config)
    self._key = placement.place(jax.random.key(run.config.seed), run.mesh)
    self._values, self._placed = None, None

  def __call__(self, step: int, plateau_drops: int = 0) -> tuple:
    """(statistics, key, rates, color_std) of the step after `step` steps.

    Args:
      step: number of completed steps.
      plateau_drops: number of drops of the schedule 'plateau' so far.
    """
    epoch = self._table.epoch(step)
    rates = self._schedule.rates(epoch, plateau_drops)
    values = (rates, self._color_std(epoch))
    if values != self._values:
      scalars = jax.tree.map(np.float32, values)
      self._placed = placement.place(scalars, self._run.mesh)
      self._values = values
    return (self._run.statistics, self._key, *self._placed)

  def rate(self, step: int, plateau_drops: int) -> float:
    """Learning rate of the weights of the step after `step` steps."""
    epoch = self._table.epoch(step)
    return self._schedule.rates(epoch, plateau_drops)['kernel']

  def for_steps(
    self, step: int, end: int, plateau_drops: int, stop: Callable[[], int]
  ) -> Iterator[tuple]:
    """Yields the arguments of steps `step` + 1 to `end`, until `stop()`."""
    for completed in range(step, end):
      if stop():
        return
      yield self(completed, plateau_drops)

  def _color_std(self, epoch):
    augmentation = self._run.config.augment
    ended = 0 < augmentation.color_end_epoch <= epoch
    return 0.0 if ended else augmentation.color_std


def rate_schedule(config: ml_collections.ConfigDict) -> optimizer.RateSchedule:
  """The learning rates of config.optimizer over the run."""
  names = {field.name for field in dataclasses.fields(optimizer.RateSchedule)}
  settings = {key: config.optimizer[key] for key in names - {'epochs'}}
  return optimizer.RateSchedule(epochs=config.train.epochs, **settings)


def make_timetable(run: run_lib.Run) -> timetable.Timetable:
  """The timetable of a run's config and data set."""
  config = run.config
  change_epochs = (
    *rate_schedule(config).change_epochs,
    config.augment.color_end_epoch,  # 0 (never) precedes all steps: no change.
  )
  return timetable.Timetable(
    num_examples=run.dataset.num_examples[config.input.train_split],
    batch_size=config.input.batch_size,
    epochs=config.train.epochs,
    log_every_steps=config.train.log_every_steps,
    eval_every_epochs=config.train.eval_every_epochs,
    checkpoint_every_steps=config.train.checkpoint_every_steps,
    change_epochs=change_epochs,
  )
