"""Every layout and mesh against a single device, on virtual CPU devices.

What needs eight devices runs in processes that execute this file.
"""

import functools
import os
import pathlib
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from alexnet_jax import augment
from alexnet_jax import diagnostics
from alexnet_jax import evaluator
from alexnet_jax import mesh as mesh_lib
from alexnet_jax import model
from alexnet_jax import observation
from alexnet_jax import optimizer
from alexnet_jax import placement
from alexnet_jax import run as run_lib
from alexnet_jax import towers
from alexnet_jax import train_state
from alexnet_jax import train_step as train_step_lib

# (layout, devices that share a network, number of devices). Meshes of the
# layouts 'towers' and 'data' are named by their sizes, data x tower.
MESHES = {
  'single': ('towers', 'auto', 1),
  '1x2': ('towers', 'auto', 2),
  '2x2': ('towers', '2', 4),
  '4x2': ('towers', 'auto', 8),
  '2x1': ('data', 'auto', 2),
  '8x1': ('data', 'auto', 8),
  'trick 2': ('one_weird_trick', 'auto', 2),
  'trick 4': ('one_weird_trick', 'auto', 4),
  'trick 8': ('one_weird_trick', 'auto', 8),
}
# The meshes that train. Those left out are the same programs on another number
# of devices; on 2x2 exchanged axes would not be seen.
TRAINING = ('1x2', '4x2', '8x1', 'trick 4', 'trick 8')
BFLOAT16 = ('single', '4x2', 'trick 4')
RUNS = [(m, 'float32') for m in ('single', *TRAINING)]
RUNS += [(m, 'bfloat16') for m in BFLOAT16]
# Twelve classes can be divided over 2 and 4 devices, but not over 8.
BATCH, IMAGE, CROP, CLASSES = 8, 35, 31, 12
STEPS = 20
# Other networks, each with several switches at once: a sixth layer that reads
# both towers and whose outputs are dropped, towers that never meet, layers left
# out. Their ten classes can be divided over 2 devices, but not over 4.
OTHER_NETS = {
  'conv6': {
    'conv_features': (4, 8, 0, 0, 8, 4),
    'lrn_before_activation': ('conv1',),
    'within_map_norm_layers': ('conv2',),
    'inverted_dropout': True,
    'dropout_inputs': ('fc6', 'fc7'),
  },
  'no links': {'tower_links': False, 'conv_features': (4, 8, 0, 0, 8)},
  'no fc6': {'fc_features': (0, 16), 'conv_features': (8, 0, 0, 0, 0, 4)},
  'no fc7': {
    'fc_features': (16, 0),
    'conv_features': (8, 0, 0, 0, 0),
    'dropout_inputs': ('fc6', 'fc7'),
  },
  'fc8 alone': {'fc_features': (0, 0), 'conv_features': (8, 0, 0, 0, 0)},
}
# Halves the time of compiling; as an option and as a flag.
CHEAP = {'xla_backend_optimization_level': 0}
CHEAP_FLAG = '--xla_backend_optimization_level=0'
meshes = pytest.mark.parametrize('mesh', TRAINING)


def create_mesh(name):
  layout, per_net, number = MESHES[name]
  return mesh_lib.create_mesh(layout, per_net, jax.devices()[:number])


def create_net(mesh_name='single', **changes):
  """A net whose maps have 15, 7, 3 and 1 pixels.

  It has no conv4, which is computed as conv5 is: every layer is compiled often.
  """
  settings = {
    'num_classes': CLASSES,
    'conv_features': (4, 8, 8, 0, 12),
    'fc_features': (16, 16),
    'conv1_kernel': 3,
    'conv1_stride': 2,
  }
  sharing = mesh_lib.model_parallel_sizes(
    MESHES[mesh_name][0], create_mesh(mesh_name)
  )
  return model.AlexNet(**settings | sharing | changes)


def make_optimizer(rates, frozen_layers=()):
  return optimizer.paper_sgd(rates, 0.9, 0.0005, frozen_layers=frozen_layers)


def state_shapes(**changes):
  """The train state as shapes."""
  create = functools.partial(
    train_state.initial_state, create_net(**changes), make_optimizer, CROP
  )
  return jax.eval_shape(create, jax.random.key(0))


def initial_state(**changes):
  """A state whose gradients have one size in all layers; v is zero."""
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
  """Random images of four classes; the mask leaves out the last two."""
  images = np.random.default_rng(1).integers(
    0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8
  )
  label = np.arange(BATCH, dtype=np.int32) % 4
  return {'image': images, 'label': label, 'mask': np.arange(BATCH) < 6}


def rates(kernels, biases):
  value = lambda key: biases if key.endswith('bias') else kernels
  return {key: np.float32(value(key)) for key in optimizer.RATE_KEYS}


def prepare(mesh_name, dtype, frozen_layers=()):
  """The train step of a mesh, its state and its other arguments."""
  mesh = create_mesh(mesh_name)
  net = create_net(mesh_name, dtype=dtype)
  state = initial_state()
  # fc8 makes logits of size 1 from activations of size 30: the loss starts near
  # ln(classes), and falls at a rate at which training is stable. A difference
  # of 1e-4 in all weights becomes 1.5e-4 in these steps (at ten times the rate
  # it becomes 1), so rounding errors do not grow.
  state.params['fc8']['kernel'] /= 30
  specs = mesh_lib.param_specs(state, mesh, net.layers_sharded_over_data)
  rng = np.random.default_rng(2)
  statistics = run_lib.Statistics(
    mean_image=rng.uniform(100, 150, (IMAGE, IMAGE, 3)).astype(np.float32),
    directions=rng.normal(scale=50, size=(3, 3)).astype(np.float32),
  )
  rest = (statistics, jax.random.key(0), rates(1e-3, 1e-2), np.float32(0.1))
  random_views = functools.partial(
    augment.random_views, crop_size=CROP, flip=True
  )
  train_step = train_step_lib.make_train_step(
    net,
    mesh,
    random_views,
    functools.partial(make_optimizer, frozen_layers=frozen_layers),
    frozen_layers,
  )
  batch = placement.place_batch(host_batch(), mesh)
  args = (batch, *placement.place(rest, mesh))
  return train_step, placement.place(state, mesh, specs), args


def compute(mesh_name, dtype):
  """What training and evaluation compute on a mesh, on the host.

  Keys: 'sums' of each of the steps and 'params' after them, 'gradients' of one
  more, and 'hlo' of the compiled step; in float32 also 'evaluation' sums and
  'log_probs' of those parameters over ten views, what was 'observed' meanwhile,
  and the statistics of the 'weights'.
  """
  mesh = create_mesh(mesh_name)
  train_step, state, args = prepare(mesh_name, dtype)
  # Compiled ahead of time to get the text of the program.
  compiled = train_step.lower(state, *args).compile()
  all_sums = []
  for _ in range(STEPS):
    state, sums = compiled(state, *args)
    all_sums.append(jax.device_get(sums))
  last = jax.device_get(state)
  result = {'sums': all_sums, 'params': last.params, 'hlo': compiled.as_text()}
  batch, statistics, key, _, color_std = args
  if dtype == 'float32':
    offsets = augment.view_offsets(IMAGE, CROP, many=True, flip=True)
    offsets = placement.place(offsets, mesh)
    net = create_net(mesh_name)
    observe = diagnostics.Activations(net)
    eval_step = evaluator.make_eval_step(net, mesh, CROP, observe=observe)
    *found, observed = eval_step(
      state.params, batch, statistics.mean_image, offsets
    )
    result['evaluation'], result['log_probs'] = jax.device_get(found)
    result['observed'] = observation.Observation(CLASSES)
    label, mask = (host_batch()[name] for name in ('label', 'mask'))
    result['observed'](result['log_probs'], label, mask, observed)
    result['weights'] = diagnostics.Weights(2)(
      compiled, state, batch, args[1:], mesh
    )
  # After one step from v = 0, v = -rate * (gradient + decay * weight).
  state = state.replace(
    opt_state=jax.tree.map(lambda v: 0 * v, state.opt_state)
  )
  fast = placement.place(rates(0.01, 0.01), mesh)
  state, _ = compiled(state, batch, statistics, key, fast, color_std)
  result['gradients'] = jax.tree.map(
    lambda v, w: -v / 0.01 - 0.0005 * w,
    velocity(jax.device_get(state)),
    last.params,
  )
  return result


def compute_part(path, part):
  results = {run: compute(*run) for run in RUNS[int(part) :: 2]}
  pathlib.Path(path).write_bytes(pickle.dumps(results))


@pytest.fixture(scope='module', autouse=True)
def processes(tmp_path_factory):
  """Two processes that compute `RUNS` on eight devices in the background."""
  folder = tmp_path_factory.mktemp('towers')
  environment = {
    # The last value counts.
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {CHEAP_FLAG}'
    ' --xla_force_host_platform_device_count=8',
    'JAX_NUMPY_RANK_PROMOTION': 'raise',
    'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),
  }
  started = {
    folder / part: subprocess.Popen(
      [sys.executable, __file__, folder / part, part],
      env=os.environ | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for part in '01'
  }
  yield started
  for process in started.values():
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope='module')
def computed(processes):
  """A function from mesh and dtype to the result of `compute`."""
  results = {}
  for path, process in processes.items():
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    results |= pickle.loads(path.read_bytes())
  return lambda mesh, dtype='float32': results[mesh, dtype]


@functools.cache
def other_net_computed(name, mesh_name):
  """Loss, logits and gradients of a training step of one of `OTHER_NETS`."""
  changes, mesh = OTHER_NETS[name] | {'num_classes': 10}, create_mesh(mesh_name)
  net = create_net(mesh_name, **changes)
  params = initial_state(**changes).params
  rng = np.random.default_rng(1)
  images = rng.normal(scale=60, size=(BATCH, CROP, CROP, 3)).astype(np.float32)
  labels = rng.integers(0, 10, BATCH)

  def local_loss(params, images, labels):
    indices = mesh_lib.global_batch_indices(labels.size, mesh)
    rngs = {'dropout': jax.random.key(0)}
    logits = net.apply(
      {'params': params}, images, train=True, batch_indices=indices, rngs=rngs
    )
    chosen = jax.nn.log_softmax(logits)[jnp.arange(labels.size), labels]
    loss = -chosen.sum() / BATCH
    return loss if mesh is None else jax.lax.psum(loss, 'data'), logits

  specs = mesh_lib.param_specs(params, mesh, net.layers_sharded_over_data)
  batch = mesh_lib.batch_spec()
  loss = mesh_lib.shard_map(
    local_loss, mesh, (specs, batch, batch), (mesh_lib.REPLICATED, batch)
  )
  return jax.device_get(
    jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=CHEAP)(
      placement.place(params, mesh, specs),
      *placement.place((images, labels), mesh, batch),
    )
  )


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])  # On blocks on a GPU.
@pytest.mark.parametrize('groups', [1, 2])
def test_grouped_convolution_matches_torch(monkeypatch, groups, backend):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  torch = pytest.importorskip(
    'torch', reason='PyTorch is the oracle: pip install torch'
  )
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 7, 7, 6))
  kernel = rng.normal(size=(3, 3, 6 // groups, 4))
  out = towers.grouped_conv(
    jnp.float32(x), jnp.float32(kernel), 2, ((1, 2), (0, 1)), groups
  )
  padded = torch.nn.functional.pad(
    torch.tensor(x).permute(0, 3, 1, 2), (0, 1, 1, 2)
  )
  expected = torch.nn.functional.conv2d(
    padded, torch.tensor(kernel).permute(3, 2, 0, 1), stride=2, groups=groups
  ).permute(0, 2, 3, 1)
  # Sums of up to 54 products of size 1 in float32.
  np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_add_bias_and_its_gradients_equal_numpy(monkeypatch, backend):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  rng = np.random.default_rng(0)
  g = rng.normal(loc=0.1, size=(4, 9, 7, 5)).astype(np.float32)
  x, bias = jnp.zeros(g.shape), jnp.arange(5.0)
  out, pullback = jax.vjp(towers.add_bias, x, bias)
  x_gradient, bias_gradient = pullback(jnp.asarray(g))
  np.testing.assert_array_equal(out[2, 3, 4], bias)
  np.testing.assert_array_equal(x_gradient, g)
  # Sums of 252 float32 of size 1.
  np.testing.assert_allclose(
    bias_gradient, g.astype(np.float64).sum((0, 1, 2)), atol=1e-4
  )
  assert ('dot_general' in str(jax.make_jaxpr(pullback)(g))) == (
    backend == 'cpu'
  )
  _, pullback = jax.vjp(towers.add_bias, x.astype(jnp.bfloat16), bias)
  halves = jnp.asarray(g, jnp.bfloat16)
  bias_gradient = pullback(halves)[1]
  assert bias_gradient.dtype == jnp.float32
  np.testing.assert_allclose(
    bias_gradient, np.float64(halves).sum((0, 1, 2)), atol=1e-4
  )


# These tests come before those that wait for the background processes. On 2x2
# both the batch and the towers are split; the default net covers each alone.
@pytest.mark.parametrize(
  ('name', 'mesh'),
  [
    ('conv6', '2x2'),
    ('no links', '2x2'),
    ('no fc6', 'trick 4'),
    ('no fc7', 'trick 2'),
    ('fc8 alone', 'trick 2'),
    ('fc8 alone', 'trick 4'),
  ],
)
def test_other_networks_do_not_depend_on_the_mesh(name, mesh):
  (loss, logits), gradients = other_net_computed(name, mesh)
  (expected, all_logits), expected_gradients = other_net_computed(
    name, 'single'
  )
  assert loss == pytest.approx(expected, rel=1e-5)  # As in `check_sums`.
  check_trees(
    {'logits': logits, **gradients},
    {'logits': all_logits, **expected_gradients},
  )


@functools.cache
def predicted(mesh_name):
  """Log-probabilities and all activations of two views, on the devices."""
  changes = {'conv_features': (4, 0, 8, 0, 8)}
  mesh, net = create_mesh(mesh_name), create_net(mesh_name, **changes)
  params = initial_state(**changes).params
  specs = mesh_lib.param_specs(params, mesh, net.layers_sharded_over_data)
  layers = [
    name
    for layer in ('conv1', 'conv3', 'conv5', 'fc6', 'fc7')
    for name in (layer, f'{layer}/linear')
  ]
  step = evaluator.make_predict_step(
    net, mesh, CROP, layers=(*layers, 'conv2', 'fc8')
  )
  mean = np.full((IMAGE, IMAGE, 3), 120, np.float32)
  offsets = np.array([[0, 0, 0], [4, 2, 1]], np.int32)
  args = (
    placement.place(params, mesh, specs),
    placement.place_batch(host_batch(), mesh)['image'],
    *placement.place((mean, offsets), mesh),
  )
  return step.lower(*args).compile(CHEAP)(*args)


@pytest.mark.parametrize('mesh', ['2x2', '2x1', 'trick 4'])
def test_activations_do_not_depend_on_the_mesh(mesh):
  log_probs, activations = predicted(mesh)
  expected_log_probs, expected = jax.device_get(predicted('single'))
  assert activations.keys() == expected.keys()
  # The sharding of maps, hidden units and logits; the first axis is the views.
  maps, units, logits = {
    '2x2': (
      P(None, 'data', None, None, 'tower'),
      P(None, 'data', 'tower'),
      P(None, 'data'),
    ),
    '2x1': (P(None, 'data'),) * 3,
    'trick 4': (P(None, 'data'), P(None, None, 'data'), P(None, 'data')),
  }[mesh]
  for name, value in activations.items():
    spec = maps if name.startswith('conv') else units
    spec = logits if name == 'fc8' else spec
    placed = NamedSharding(create_mesh(mesh), spec)
    assert value.sharding.is_equivalent_to(placed, value.ndim), name
    assert value.shape == expected[name].shape
    assert value.shape[:2] == (2, BATCH)  # Views, examples.
  check_trees(jax.device_get(activations), expected)
  np.testing.assert_allclose(
    jax.device_get(log_probs), expected_log_probs, rtol=0, atol=1e-4
  )


def losses(result):
  return np.array([s['loss'] / s['count'] for s in result['sums']])


def relative_errors(tree, expected):
  return jax.tree.map(
    lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y), tree, expected
  )


def check_trees(tree, expected):
  # Sums of float32 in another order, relative to the norm of each leaf. A leaf
  # of zeros fails.
  errors = relative_errors(tree, expected)
  assert all(e < 1e-5 for e in jax.tree.leaves(errors)), errors


def check_sums(sums, expected):
  # The loss is a sum of float32 in another order; the others are counts.
  exact = {'top1_error', 'top5_error', 'count'}
  assert sums.keys() == exact | {'loss'}
  assert sums['loss'] == pytest.approx(expected['loss'], rel=1e-5)
  assert {k: sums[k] for k in exact} == {k: expected[k] for k in exact}


# Comparing steps means little for a layer that does not learn.
def test_the_compared_steps_change_every_layer(computed):
  result = computed('single')
  loss = losses(result)
  assert len(loss) == STEPS
  assert loss[:5].mean() > loss[-5:].mean() + 0.2
  before = initial_state().params
  before['fc8']['kernel'] /= 30
  moved = relative_errors(before, result['params'])
  # 100 times the tolerance.
  assert all(m > 1e-3 for m in jax.tree.leaves(moved)), moved


@meshes
def test_train_sums_do_not_depend_on_the_mesh(computed, mesh):
  sums, expected = computed(mesh)['sums'], computed('single')['sums']
  assert len(sums) == STEPS
  for step_sums, expected_step_sums in zip(sums, expected, strict=True):
    check_sums(step_sums, expected_step_sums)


@meshes
def test_evaluation_does_not_depend_on_the_mesh(computed, mesh):
  result, expected = computed(mesh), computed('single')
  check_sums(result['evaluation'], expected['evaluation'])
  # In the order of the examples; logits have size 1 in float32.
  np.testing.assert_allclose(
    result['log_probs'], expected['log_probs'], rtol=0, atol=1e-5
  )


@meshes
def test_diagnostics_do_not_depend_on_the_mesh(computed, mesh):
  result, expected = computed(mesh), computed('single')
  found, shares = result['observed'], expected['observed'].dead_shares()
  assert found.dead_shares() == shares
  assert any(0 < share < 1 for share in shares.values()), shares
  np.testing.assert_array_equal(found.confusion, expected['observed'].confusion)
  assert found.examples == expected['observed'].examples
  check_trees(found.features, expected['observed'].features)
  assert result['weights'].keys() == expected['weights'].keys()
  check_trees(result['weights'], expected['weights'])


@meshes
@pytest.mark.parametrize('what', ['gradients', 'params'])
def test_update_does_not_depend_on_the_mesh(computed, mesh, what):
  check_trees(computed(mesh)[what], computed('single')[what])


@functools.cache
def one_step(mesh, frozen):
  """The parameters before and after one training step."""
  step, state, args = prepare(mesh, 'float32', frozen)
  before = jax.device_get(state.params)
  compiled = step.lower(state, *args).compile(compiler_options=CHEAP)
  state, _ = compiled(state, *args)
  return before, jax.device_get(state.params)


def products(mesh, frozen):
  """The number of convolutions and matrix products of a training step."""
  step, state, args = prepare(mesh, 'float32', frozen)
  return len(
    re.findall(
      r'stablehlo\.(?:convolution|dot_general)\b',
      step.lower(state, *args).as_text(),
    )
  )


@pytest.mark.parametrize('mesh', ['single', '1x2', 'trick 4'])
def test_frozen_layers_do_not_change_and_take_no_gradient(mesh):
  frozen = ('conv1', 'conv2', 'conv3')
  # At least a kernel's gradient for each, and two gradients of inputs.
  assert products(mesh, frozen) <= products(mesh, ()) - 5
  before, after = one_step(mesh, frozen)
  _, expected = one_step('single', ())
  for layer, found in after.items():
    if layer in frozen:
      jax.tree.map(np.testing.assert_array_equal, found, before[layer])
    else:
      check_trees(found, expected[layer])


bfloat16_meshes = pytest.mark.parametrize('mesh', BFLOAT16)


@bfloat16_meshes
def test_bfloat16_training_has_nearly_the_losses_of_float32(computed, mesh):
  loss = losses(computed(mesh, 'bfloat16'))
  # bfloat16 rounds each activation by up to 0.2%, in eight layers.
  np.testing.assert_allclose(loss, losses(computed('single')), rtol=0.02)
  assert (loss != losses(computed('single'))).all()  # bfloat16 was used.


@bfloat16_meshes
def test_params_in_bfloat16_do_not_depend_on_the_mesh(computed, mesh):
  result, expected = computed(mesh, 'bfloat16'), computed('single', 'bfloat16')
  errors = relative_errors(result['params'], expected['params'])
  # The tolerance of the loss.
  assert all(e < 0.02 for e in jax.tree.leaves(errors)), errors


# Looks at the traced program, since XLA on CPU communicates only in float32.
@pytest.mark.parametrize(
  ('mesh', 'conv1', 'gathers'),
  [('2x2', '3,3,3,2', 4), ('trick 4', '3,3,3,4', 3)],
)
def test_with_bfloat16_activations_are_sent_in_it_and_gradients_in_float32(
  mesh, conv1, gathers
):
  train_step, state, args = prepare(mesh, 'bfloat16')
  program = str(train_step.trace(state, *args).jaxpr)
  of_kind = lambda kind: re.findall(
    rf':(\w+)\[([\d,]*)\].* = {kind}\[', program
  )
  assert [dtype for dtype, _ in of_kind('all_gather')] == ['bf16'] * gathers
  sums = of_kind(r'psum\w*')
  assert ('f32', conv1) in sums
  assert {dtype for dtype, _ in sums} == {'f32'}


# With the examples per device.
@pytest.mark.parametrize(('mesh', 'examples'), [('1x2', 8), ('4x2', 2)])
def test_no_whole_kernel_is_communicated(computed, mesh, examples):
  results = re.findall(
    r'= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)'
    r'(?:-start)?\(',
    computed(mesh)['hlo'],
  )
  shapes = set(re.findall(r'\w\[([\d,]+)\]', ' '.join(results)))
  assert f'{examples},{CLASSES}' in shapes  # The logits: the pattern works.
  kernels = [
    x.shape for x in jax.tree.leaves(state_shapes().params) if x.ndim > 1
  ]
  assert not shapes & {','.join(map(str, shape)) for shape in kernels}


if __name__ == '__main__':
  compute_part(*sys.argv[1:])
