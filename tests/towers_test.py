"""Every mesh against a single device, with four virtual CPU devices."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from alexnet_jax import augment
from alexnet_jax import evaluate
from alexnet_jax import model
from alexnet_jax import optimizer
from alexnet_jax import run as run_lib
from alexnet_jax import towers
from alexnet_jax import train

# Layout and number of devices; the meshes are (data, tower).
MESHES = {
  'single': ('towers', 1),
  '2x1': ('data', 2),
  '1x2': ('towers', 2),
  '2x2': ('towers', 4),
}
BATCH, IMAGE, CROP, CLASSES = 12, 35, 31, 10
# The other nets whose towers matter, each with several switches at once: a
# sixth layer that reads both towers, and towers that never meet. On one device
# conv4 of the first and every layer of the second are split by hand.
RELATIVES = {
  'conv6': {
    'conv_features': (4, 8, 8, 8, 8, 4),
    'lrn_before_activation': ('conv1',),
    'within_map_norm_layers': ('conv2',),
    'inverted_dropout': True,
  },
  'no links': {'tower_links': False, 'conv_features': (4, 8, 0, 8, 8)},
}
# Compiles in half the time.
CHEAP = {'xla_backend_optimization_level': 0}
RATES = dict.fromkeys(optimizer.RATE_KEYS, np.float32(0.01))
meshes = pytest.mark.parametrize('mesh', ['2x1', '1x2', '2x2'])


def create_mesh(name):
  layout, num_devices = MESHES[name]
  return towers.create_mesh(layout, 'auto', jax.devices()[:num_devices])


def create_net(mesh, **changes):
  """Maps of 15, 7, 3 and 1 pixels."""
  settings = {
    'num_classes': CLASSES,
    'conv_features': (4, 8, 8, 8, 8),
    'fc_features': (16, 16),
    'conv1_kernel': 3,
    'conv1_stride': 2,
    'tower_devices': towers.tower_devices(mesh),
  }
  return model.AlexNet(**settings | changes)


def state_shapes(**changes):
  """The train state as shapes."""

  def create():
    images = jnp.zeros((1, CROP, CROP, 3))
    net = create_net(None, **changes)
    params = net.init(jax.random.key(0), images)['params']
    opt_state = optimizer.paper_sgd({}, 0.0, 0.0).init(params)
    return run_lib.TrainState(jnp.zeros((), jnp.int32), params, opt_state)

  return jax.eval_shape(create)


def initial_state(**changes):
  """A state whose gradients are of one size through the net; v is zero."""
  rng = np.random.default_rng(0)
  shapes = state_shapes(**changes)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  draw = lambda x: rng.normal(
    scale=np.sqrt(2 / np.prod(x.shape[:-1])) if x.ndim > 1 else 0.3,
    size=x.shape,
  ).astype(np.float32)
  return zeros.replace(params=jax.tree.map(draw, shapes.params))


def velocity(state):
  v = state.opt_state.trace
  return v


def host_batch():
  """Random images; the mask leaves out more examples of the second half."""
  rng = np.random.default_rng(1)
  return {
    'image': rng.integers(0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8),
    'label': rng.integers(0, CLASSES, BATCH, np.int32),
    'mask': np.arange(BATCH) < BATCH - 3,
  }


@functools.cache
def computed(mesh_name):
  """What three train steps and an evaluation compute on a mesh, on the host.

  Keys: 'sums' of each train step, 'gradients' of the first, 'params' and
  'velocity' after the third, 'evaluation' sums and 'log_probs' of the initial
  parameters over ten views, and 'hlo' of the compiled train step.
  """
  mesh = create_mesh(mesh_name)
  net = create_net(mesh)
  state = initial_state()
  specs = towers.param_specs(state, mesh)
  device_state = towers.place(state, mesh, specs)
  batch = towers.place(host_batch(), mesh, towers.batch_spec())
  rng = np.random.default_rng(2)
  statistics = towers.place(
    run_lib.Statistics(
      mean_image=rng.uniform(0, 255, (IMAGE, IMAGE, 3)).astype(np.float32),
      directions=rng.normal(scale=50, size=(3, 3)).astype(np.float32),
    ),
    mesh,
  )
  offsets = augment.view_offsets(IMAGE, CROP, many=True, flip=True)
  evaluation, log_probs = evaluate.make_eval_step(net, mesh, CROP)(
    device_state.params,
    batch,
    statistics.mean_image,
    towers.place(offsets, mesh),
  )
  evaluation, log_probs = jax.device_get((evaluation, log_probs))
  train_step = train.make_train_step(
    net, mesh, crop_size=CROP, flip=True, momentum=0.9, weight_decay=0.0005
  )
  key = jax.random.key(0)
  on_mesh = towers.place((key, RATES, np.float32(0.1)), mesh)
  fixed = (batch, statistics, *on_mesh)
  # Compiled ahead of time, for its text.
  compiled = train_step.lower(device_state, *fixed).compile()
  all_sums = []
  for _ in range(3):
    device_state, sums = compiled(device_state, *fixed)
    all_sums.append(jax.device_get(sums))
    if len(all_sums) == 1:
      first = jax.device_get(device_state)
  # After one step from zero, v = -rate * (gradient + decay * weight).
  gradients = jax.tree.map(
    lambda v, w: -v / 0.01 - 0.0005 * w, velocity(first), state.params
  )
  last = jax.device_get(device_state)
  return {
    'sums': all_sums,
    'gradients': gradients,
    'velocity': velocity(last),
    'params': last.params,
    'evaluation': evaluation,
    'log_probs': log_probs,
    'hlo': compiled.as_text(),
  }


def relative_computed(name, mesh_name):
  """Loss, logits and gradients of a step of training of a relative."""
  changes, mesh = RELATIVES[name], create_mesh(mesh_name)
  net, params = create_net(mesh, **changes), initial_state(**changes).params
  rng = np.random.default_rng(1)
  images = rng.normal(scale=60, size=(BATCH, CROP, CROP, 3)).astype(np.float32)
  labels = rng.integers(0, CLASSES, BATCH)

  def local_loss(params, images, labels):
    rows = towers.global_rows(labels.size, mesh)
    rngs = {'dropout': jax.random.key(0)}
    logits = net.apply(
      {'params': params}, images, train=True, rows=rows, rngs=rngs
    )
    chosen = jax.nn.log_softmax(logits)[jnp.arange(labels.size), labels]
    loss = -chosen.sum() / BATCH
    return loss if mesh is None else jax.lax.psum(loss, 'data'), logits

  specs = towers.param_specs(params, mesh)
  rows = towers.batch_spec()
  loss = towers.shard(
    local_loss, mesh, (specs, rows, rows), (towers.REPLICATED, rows)
  )
  return jax.device_get(
    jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=CHEAP)(
      towers.place(params, mesh, specs),
      *towers.place((images, labels), mesh, rows),
    )
  )


@pytest.mark.parametrize(
  ('layout', 'devices_per_net', 'num_devices', 'shape'),
  [
    ('towers', 'auto', 1, (1, 1)),
    ('towers', 'auto', 2, (1, 2)),
    ('towers', 'auto', 3, (3, 1)),
    ('towers', 'auto', 4, (2, 2)),
    ('towers', 'auto', 8, (4, 2)),
    ('towers', '1', 1, (1, 1)),
    ('towers', '1', 4, (4, 1)),
    ('towers', 1, 3, (3, 1)),
    ('towers', '2', 2, (1, 2)),
    ('towers', 2, 6, (3, 2)),
    ('data', 'auto', 1, (1, 1)),
    ('data', 'auto', 4, (4, 1)),
    ('data', '2', 3, (3, 1)),  # Ignored.
  ],
)
def test_mesh_shape(layout, devices_per_net, num_devices, shape):
  assert towers.mesh_shape(layout, devices_per_net, num_devices) == shape


@pytest.mark.parametrize('layout', ['towers', 'data'])
@pytest.mark.parametrize('devices_per_net', ['auto', '1', 1])
@pytest.mark.parametrize('num_devices', [1, 3, 4])
def test_one_tower_stays_on_one_device(layout, devices_per_net, num_devices):
  shape = towers.mesh_shape(layout, devices_per_net, num_devices, 1)
  assert shape == (num_devices, 1)


@pytest.mark.parametrize('devices_per_net', ['2', 2])
def test_one_tower_cannot_spread_over_two_devices(devices_per_net):
  message = (
    'config.mesh.towers=2 needs a network of two towers, but'
    " config.model.num_towers=1; use config.mesh.towers=1 or 'auto'"
  )
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    towers.mesh_shape('towers', devices_per_net, 4, 1)


def test_mesh_of_one_tower_has_every_device_for_data():
  mesh = towers.create_mesh('towers', 'auto', jax.devices()[:4], 1)
  assert mesh.shape == {'data': 4, 'tower': 1}


@pytest.mark.parametrize(
  ('devices_per_net', 'num_devices'), [('2', 1), ('2', 3), (2, 5)]
)
def test_two_towers_need_an_even_number_of_devices(
  devices_per_net, num_devices
):
  message = (
    'config.mesh.towers=2 needs an even number of devices, here are '
    f"{num_devices}; use config.mesh.towers=1 or 'auto'"
  )
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    towers.mesh_shape('towers', devices_per_net, num_devices)


@pytest.mark.parametrize('layout', ['towers', 'data'])
def test_one_device_has_no_mesh(layout):
  assert towers.create_mesh(layout, 'auto', jax.devices()[:1]) is None


def test_mesh_holds_every_device_once():
  mesh = create_mesh('2x2')
  assert mesh.shape == {'data': 2, 'tower': 2}
  assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()[:4]}


@pytest.mark.parametrize('mesh', ['1x2', '2x2'])
def test_every_leaf_is_split_on_its_last_axis(mesh):
  state = state_shapes()
  specs = towers.param_specs(state, create_mesh(mesh))
  layer = lambda conv: {
    'kernel': P(None, None, None, 'tower') if conv else P(None, 'tower'),
    'bias': P('tower'),
  }
  params = {f'conv{i}': layer(True) for i in range(1, 6)}
  params |= {f'fc{i}': layer(False) for i in range(6, 9)}
  assert specs.step == P()
  assert specs.params == params
  assert velocity(specs) == params


@pytest.mark.parametrize('mesh', ['single', '2x1'])
def test_no_leaf_is_split_where_a_device_holds_both_towers(mesh):
  specs = towers.param_specs(state_shapes(), create_mesh(mesh))
  leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
  assert len(leaves) == 33  # 8 kernels, 8 biases, v of each, and the step.
  assert set(leaves) == {P()}


def test_each_device_holds_its_tower_and_its_rows():
  mesh = create_mesh('2x2')
  kernel, rows = np.arange(6.0).reshape(1, 6), np.arange(4)
  tree = {'kernel': kernel}
  placed = towers.place(tree, mesh, towers.param_specs(tree, mesh))['kernel']
  placed_rows = towers.place(rows, mesh, towers.batch_spec())
  on = lambda array: {
    s.device: s.data.tolist() for s in array.addressable_shards
  }
  for data, tower in np.ndindex(2, 2):
    device = mesh.devices[data, tower]
    assert on(placed)[device] == kernel[:, 3 * tower : 3 * tower + 3].tolist()
    assert on(placed_rows)[device] == rows[2 * data : 2 * data + 2].tolist()


def check_sums(sums, expected):
  # The loss is a sum of float32 in another order; the others are counts.
  exact = {'top1_error', 'top5_error', 'count'}
  assert sums.keys() == exact | {'loss'}
  assert sums['loss'] == pytest.approx(expected['loss'], rel=1e-5)
  assert {k: sums[k] for k in exact} == {k: expected[k] for k in exact}


@meshes
@pytest.mark.parametrize('step', [0, 1, 2])
def test_train_sums_do_not_depend_on_the_mesh(mesh, step):
  check_sums(computed(mesh)['sums'][step], computed('single')['sums'][step])


@meshes
def test_evaluation_does_not_depend_on_the_mesh(mesh):
  check_sums(computed(mesh)['evaluation'], computed('single')['evaluation'])
  # Of every example, in its row; logits of size 100 in float32.
  np.testing.assert_allclose(
    computed(mesh)['log_probs'],
    computed('single')['log_probs'],
    rtol=1e-4,
    atol=1e-4,
  )


@meshes
@pytest.mark.parametrize('what', ['gradients', 'velocity', 'params'])
def test_update_does_not_depend_on_the_mesh(mesh, what):
  check_trees(computed(mesh)[what], computed('single')[what])


def check_trees(tree, expected):
  # Sums of float32 in another order, relative to the norm of each leaf; a leaf
  # of zeros would show nothing.
  errors = jax.tree.map(
    lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y), tree, expected
  )
  assert all(e < 1e-5 for e in jax.tree.leaves(errors)), errors


# 2x2 splits both rows and towers; each on its own, the default net shows.
@pytest.mark.parametrize('name', RELATIVES)
def test_relatives_do_not_depend_on_the_mesh(name):
  (loss, logits), gradients = relative_computed(name, '2x2')
  (expected, all_logits), expected_gradients = relative_computed(name, 'single')
  assert loss == pytest.approx(expected, rel=1e-5)  # As in `check_sums`.
  check_trees(
    {'logits': logits, **gradients},
    {'logits': all_logits, **expected_gradients},
  )


@pytest.mark.parametrize('mesh', ['1x2', '2x2'])
def test_no_kernel_is_communicated_whole(mesh):
  results = re.findall(
    r'= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)'
    r'(?:-start)?\(',
    computed(mesh)['hlo'],
  )
  shapes = set(re.findall(r'\w\[([\d,]+)\]', ' '.join(results)))
  rows = BATCH // create_mesh(mesh).shape['data']
  assert f'{rows},{CLASSES}' in shapes  # The logits are, so the pattern works.
  kernels = [
    x.shape for x in jax.tree.leaves(state_shapes().params) if x.ndim > 1
  ]
  assert not shapes & {','.join(map(str, shape)) for shape in kernels}
