"""The train step on made-up images, for any network, mesh and size."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step
from alexnet_jax.runtime import compilation
from configs import paper

RATE, MOMENTUM, WEIGHT_DECAY, COLOR_STD = 0.01, 0.9, 5e-4, 0.1
# A net for --quick, and the sides of its images and crops.
NARROW = {'conv_features': (8, 16, 16, 16, 16), 'fc_features': (32, 32)}
SMALL = 76, 67
SEEDS = 'seeds: weights and images 0, draws of the step 1'

make_optimizer = functools.partial(
  optimizer.paper_sgd, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
)


def network(layout: str, mesh, **changes: object) -> model.AlexNet:
  """The paper's net on a mesh, with other values for some of its settings."""
  sizes = mesh_lib.model_parallel_sizes(layout, mesh)
  return model.AlexNet(**dict(paper.get_config().model) | changes, **sizes)


def random_views(crop_size: int) -> Callable:
  """The paper's augmentation, as `train_step.make_train_step` takes it."""
  return functools.partial(augment.random_views, crop_size=crop_size, flip=True)


def make_train_step(net: model.AlexNet, mesh, crop_size: int) -> Callable:
  """The train step with the paper's augmentation and optimiser."""
  views = random_views(crop_size)
  return train_step.make_train_step(net, mesh, views, make_optimizer)


def loss(net: model.AlexNet, crop_size: int) -> Callable:
  """The loss of the train step on one device, as `train_step.loss_fn`."""
  views = random_views(crop_size)
  return functools.partial(
    train_step.loss_fn, net=net, mesh=None, random_views=views
  )


def create_state(net: model.AlexNet, crop_size: int, key: jax.Array):
  """The train state before the first step, on a single device."""
  net = net.clone(tower_devices=1, fc_devices=1)
  return train_state.initial_state(net, make_optimizer, crop_size, key)


def create_batch(batch: int, size: int, classes: int) -> dict[str, np.ndarray]:
  """Random images and labels."""
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
    'label': rng.integers(0, classes, batch, np.int32),
    'mask': np.ones(batch, bool),
  }


def create_arguments(images: jax.Array) -> tuple:
  """(statistics, key, rates, color_std), the other arguments of the step."""
  return (
    run_lib.Statistics(jnp.mean(images, 0, jnp.float32), jnp.eye(3)),
    jax.random.key(1),
    dict.fromkeys(optimizer.RATE_KEYS, jnp.float32(RATE)),
    jnp.float32(COLOR_STD),
  )


def compile_step(
  net: model.AlexNet, mesh, *, batch_size, image_size=256, crop_size=224
) -> jax.stages.Compiled:
  """The train step, compiled from shapes: nothing is computed."""
  create = functools.partial(create_state, net, crop_size)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(create, key)
  batch = placement.batch_template(batch_size, image_size, mesh)
  arguments = jax.eval_shape(create_arguments, batch['image'])
  specs = mesh_lib.param_specs(state, mesh, net.layers_sharded_over_data)
  replicated = jax.tree.map(lambda _: mesh_lib.REPLICATED, arguments)

  def placed(tree, specs):
    shardings = mesh_lib.shardings(mesh, specs)
    return jax.tree.map(lambda x, s: x.update(sharding=s), tree, shardings)

  inputs = placed(state, specs), batch, *placed(arguments, replicated)
  return make_train_step(net, mesh, crop_size).lower(*inputs).compile()


class TrainStep:
  """A train step with its state and a batch of random images."""

  def __init__(
    self, net, mesh, batch, image_size=256, crop_size=224, make=make_train_step
  ):
    self._step, self._sums = make(net, mesh, crop_size), []
    create = functools.partial(create_state, net, crop_size)
    options = compilation.fast_compile_options()
    state = jax.jit(create, compiler_options=options)(jax.random.key(0))
    specs = mesh_lib.param_specs(state, mesh, net.layers_sharded_over_data)
    self._state = placement.place(state, mesh, specs)
    images = create_batch(batch, image_size, net.num_classes)
    self._arguments = placement.place(create_arguments(images['image']), mesh)
    local = placement.local_batch_indices(batch, mesh)
    images = {name: x[local] for name, x in images.items()}
    self._batch = placement.place_batch(images, mesh)

  def compile(self) -> str:
    """Compiles the step before the first is taken; the text of the program."""
    lowered = self._step.lower(self._state, self._batch, *self._arguments)
    self._step = lowered.compile()
    return self._step.as_text()

  def __call__(self, steps: int = 1) -> None:
    """Takes steps, and waits until the last state is there."""
    for _ in range(steps):
      self._state, sums = self._step(self._state, self._batch, *self._arguments)
      self._sums.append(sums)
    jax.block_until_ready(self._state)

  @property
  def losses(self) -> list[float]:
    """The mean loss of every step so far."""
    return [float(sums['loss'] / sums['count']) for sums in self._sums]


def create_step(batch: int, dtype: str, narrow: bool = False) -> TrainStep:
  """The train step of the paper's net on one device, or of `NARROW` for it."""
  widths, sizes = (NARROW, SMALL) if narrow else ({}, ())
  net = network('towers', None, dtype=dtype, **widths)
  return TrainStep(net, None, batch, *sizes)
