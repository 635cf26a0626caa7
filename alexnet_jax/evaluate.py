r"""Evaluation as in the paper: top-1 and top-5 error on one view or on ten.

Section 4.1: the softmax outputs of the four corner crops, the centre crop and
their reflections are averaged. Every example counts exactly once.

As a command, the errors of one or more trained nets and of their ensemble, in
the layout of Table 2:

    python -m alexnet_jax.evaluate --workdirs=A,B,C
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import sys

from absl import app
from absl import flags
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import ml_collections
import numpy as np

from alexnet_jax import augment
from alexnet_jax import checkpoint
from alexnet_jax import command
from alexnet_jax import compilation
from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax import input_pipeline
from alexnet_jax import metrics
from alexnet_jax import predictions as predictions_lib
from alexnet_jax import processes
from alexnet_jax import run as run_lib
from alexnet_jax import towers

log = logging.getLogger(__name__)

NAMES = predictions_lib.NAMES


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
  net: nn.Module,
  mesh: jax.sharding.Mesh | None,
  crop_size: int,
  central_mean: bool = False,
) -> Callable[..., tuple[dict[str, Array], Float[Array, 'batch classes']]]:
  """The compiled (params, batch, mean_image, offsets) -> (sums, log_probs).

  `offsets` are those of `augment.view_offsets`, on the device; the sums are
  over the batch, the logarithms of the mean softmax outputs by example.
  """

  def local_step(params, batch, mean_image, offsets):
    def logits(offset):
      images = augment.view_at(
        batch['image'], mean_image, offset, crop_size, central_mean
      )
      return net.apply({'params': params}, images)

    log_probs = mean_log_probs(lax.map(logits, offsets))
    sums = metrics.batch_sums(log_probs, batch['label'], batch['mask'])
    return sums if mesh is None else lax.psum(sums, 'data'), log_probs

  def step(params, batch, mean_image, offsets):
    specs = (
      towers.param_specs(params, mesh, net.data_split),
      towers.batch_spec(),
      towers.REPLICATED,
      towers.REPLICATED,
    )
    out_specs = (towers.REPLICATED, towers.batch_spec())
    sharded = towers.shard(local_step, mesh, specs, out_specs)
    return sharded(params, batch, mean_image, offsets)

  return jax.jit(step, compiler_options=compilation.network_options())


def evaluate(
  eval_step: Callable,
  params: PyTree,
  batches: Iterable[PyTree],
  mean_image: Float[Array, 'size size 3'],
  offsets: Int[Array, 'views 3'],
  *,
  num_examples: int,
  prefix: str,
  rows: list | None = None,
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
    rows: gets a pair for every batch, the logarithms of its examples' softmax
      outputs [examples, classes] and their labels.

  Raises:
    RuntimeError: if the batches do not hold `num_examples` examples.
  """
  totals = metrics.Totals()
  pending = None

  def finish(batch, sums, log_probs):
    totals.add(metrics.fetch(sums))
    if rows is not None:
      wanted = (log_probs, batch['label'], batch['mask'])
      log_probs, labels, mask = metrics.fetch(wanted)
      rows.append((log_probs[mask], labels[mask]))

  # As in training, any transfer that is not asked for is an error.
  with jax.transfer_guard('disallow'):
    for batch in batches:
      outputs = eval_step(params, batch, mean_image, offsets)
      if pending is not None:  # Of the batch before, while this one runs.
        finish(*pending)
      pending = (batch, *outputs)
    if pending is not None:
      finish(*pending)
  if totals.count != num_examples:
    raise RuntimeError(
      f'evaluated {totals.count} examples, the split has {num_examples}'
    )
  return totals.means(prefix, NAMES)


def make_evaluator(run: run_lib.Run) -> Callable[..., dict[str, float]]:
  """A function (params, many, rows) -> metrics of the run's evaluation split.

  With `many` the views are ten, or five where the config does not flip. `rows`
  is the argument of `evaluate`.
  """
  inputs, flip = run.config.input, run.config.augment.flip
  eval_step = make_eval_step(
    run.network, run.mesh, inputs.crop_size, run.config.augment.central_mean
  )

  def evaluator(
    params: PyTree, many: bool, rows: list | None = None
  ) -> dict[str, float]:
    offsets = augment.view_offsets(
      inputs.image_size, inputs.crop_size, many=many, flip=flip
    )
    batch_size = run.config.eval.batch_size
    batches = input_pipeline.eval_batches(
      run.dataset,
      inputs.eval_split,
      batch_size=batch_size,
      rows=run.local_rows(batch_size),
    )
    return evaluate(
      eval_step,
      params,
      input_pipeline.prefetch_to_device(batches, run.place_batch),
      run.statistics.mean_image,
      towers.place(offsets, run.mesh),
      num_examples=run.dataset.num_examples[inputs.eval_split],
      prefix=many_view_prefix(flip) if many else 'eval',
      rows=rows,
    )

  return evaluator


class TrainedNet:
  """A checkpoint of a work directory, opened to predict with it."""

  def __init__(self, run: run_lib.Run, which: str):
    """Finds the 'best' or the 'latest' checkpoint of the run; restores nothing.

    Raises:
      ValueError: if it cannot be read, or does not belong to the run's config
        and data set.
      FileNotFoundError: if there is none.
    """
    self.run, self.which = run, which
    with self._checkpoints() as checkpoints:
      self.step = checkpoints.step_of(which)
      processes.check_same({f'the {which} checkpoint': str(self.step)})
      record = checkpoints.read_record(self.step)
      run_lib.check_record(run, record)
    # Its metrics and times are of this one training.
    content = json.dumps(record, sort_keys=True).encode()
    self._training = hashlib.sha256(content).hexdigest()
    self._evaluator = make_evaluator(run)
    self._params = None

  @contextlib.contextmanager
  def _checkpoints(self) -> Iterator[checkpoint.Checkpoints]:
    try:
      with contextlib.closing(
        checkpoint.Checkpoints(self.run.workdir, read_only=True)
      ) as checkpoints:
        yield checkpoints
    except checkpoint.DamagedError as error:
      raise ValueError(
        f'the {self.which} checkpoint in {self.run.workdir / checkpoint.FOLDER}'
        f' cannot be read ({error}). If a training is running there, try again;'
        ' else try the other --checkpoint, or --mode=train, which puts damaged'
        ' ones aside'
      ) from error

  def predict(self, many: bool) -> predictions_lib.Predictions:
    """Predictions for the evaluation split, from the work directory if there.

    Args:
      many: average ten views (five where the config does not flip), not one.
    """
    run, flip = self.run, self.run.config.augment.flip
    split = run.config.input.eval_split
    views = ('ten' if flip else 'five') if many else 'one'
    made_from = {
      'training': self._training,
      'step': str(self.step),
      'split': split,
      'views': views,
    }
    folder = run.workdir / predictions_lib.FOLDER
    path = folder / f'{split}.{views}_view.npz'
    # Many processes compute together, or not at all.
    found = None
    if processes.is_alone():
      found = predictions_lib.load(path, made_from)
    if found is not None:
      log.info('Predictions of step %d are in %s.', self.step, path)
      return found
    if self._params is None:
      with self._checkpoints() as checkpoints:
        template = run_lib.state_template(run)
        self._params = checkpoints.restore(template, self.step).params
    rows = []
    self._evaluator(self._params, many, rows)
    log_probs, labels = map(np.concatenate, zip(*rows, strict=True))
    made = predictions_lib.Predictions(log_probs, labels, made_from)
    if processes.is_first():
      made.save(path)
    return made


def open_net(
  config: ml_collections.ConfigDict, workdir: str | os.PathLike, which: str
) -> TrainedNet:
  """The 'best' or the 'latest' checkpoint of a work directory.

  Raises:
    ValueError: if config, data set and work directory do not fit.
    FileNotFoundError: if there is no data set or no checkpoint.
  """
  folder = pathlib.Path(workdir).expanduser() / checkpoint.FOLDER
  if not folder.is_dir():
    raise FileNotFoundError(f'no {folder}; train first: --mode=train')
  run = run_lib.open_run(config, workdir, config_lib.EVALUATION_MAY_CHANGE)
  return TrainedNet(run, which)


def evaluate_checkpoint(
  config: ml_collections.ConfigDict, workdir: str | os.PathLike, which: str
) -> dict[str, float]:
  """Evaluates the 'best' or the 'latest' checkpoint on one and on many views.

  Prints the errors and writes them to evaluation.json in `workdir`, and the
  predictions to its folder predictions/.

  Raises:
    ValueError: if config, data set and work directory do not fit.
    FileNotFoundError: if there is no data set or no checkpoint.
  """
  trained = open_net(config, workdir, which)
  result = {}
  for prefix, many in (
    ('eval', False),
    (many_view_prefix(config.augment.flip), True),
  ):
    errors = trained.predict(many).errors()
    result |= {f'{prefix}/{name}': value for name, value in errors.items()}
  if not processes.is_first():
    return result
  inputs = config.input
  print(
    f'{which} checkpoint, step {trained.step}: {inputs.eval_split} of'
    f' {inputs.dataset}'
  )
  for tag, value in result.items():
    if tag.endswith('error'):
      print(f'{tag:26} {value:.2%}')
  files.write_json(
    trained.run.workdir / 'evaluation.json',
    {
      'step': trained.step,
      'checkpoint': which,
      'dataset': inputs.dataset,
      'split': inputs.eval_split,
      **result,
    },
  )
  return result


def evaluate_ensemble(
  workdirs: Sequence[str],
  which: str,
  many: bool,
  split: str | None = None,
  data_dir: str | None = None,
) -> dict[str, dict[str, float]]:
  """Evaluates trained nets and their ensemble, and prints Table 2.

  Args:
    workdirs: where the nets were trained, each with its own config.
    which: 'best' or 'latest' checkpoint of each.
    many: average ten views, as Table 2 does (five where a config does not
      flip), not one.
    split: to evaluate; None for config.input.eval_split of each.
    data_dir: of the data set; None for config.input.data_dir of each.

  Returns:
    Loss, top-1 and top-5 error (fractions) by row of the table.

  Raises:
    ValueError: if the nets are not of one data set and split.
    FileNotFoundError: if a work directory, checkpoint or data set is missing.
  """
  nets = _open_nets(workdirs, which, split, data_dir)
  number, split = len(nets), nets[0].run.config.input.eval_split
  table = {}

  def members():
    for workdir in workdirs:
      made = nets.pop(0).predict(many)  # The net's parameters go with it.
      table[f'1 CNN   {workdir}'] = made.errors()
      yield made

  together = predictions_lib.ensemble(members())
  if number > 1:
    table[f'{number} CNNs'] = together.errors()
  print_table(table, split)
  return table


def _open_nets(workdirs, which, split, data_dir):
  paths = {pathlib.Path(w).expanduser().resolve() for w in workdirs if w}
  if not paths or len(paths) < len(workdirs):
    raise ValueError(
      f'--workdirs={",".join(workdirs)} must name one or more different folders'
    )
  nets = []
  for workdir in workdirs:
    config = config_lib.read_config(workdir)
    with config.unlocked():
      config.input.eval_split = split or config.input.eval_split
      config.input.data_dir = data_dir or config.input.data_dir
    nets.append(open_net(config, workdir, which))
  first = nets[0].run
  for net in nets[1:]:
    here = (net.run.dataset.fingerprint, net.run.config.input.eval_split)
    if here != (first.dataset.fingerprint, first.config.input.eval_split):
      raise ValueError(
        f'--workdirs: {net.run.workdir} was trained on'
        f' {net.run.config.input.dataset} ({here[1]}), {first.workdir} on'
        f' {first.config.input.dataset} ({first.config.input.eval_split}); an'
        ' ensemble needs one prepared data set, and --split'
      )
  return nets


def print_table(table: dict[str, dict[str, float]], split: str) -> None:
  """Prints errors in the layout of Table 2.

  Args:
    table: errors (fractions) by row.
    split: that they are of.
  """
  width = max(map(len, ('Model', *table)))
  columns = [f'Top-1 ({split})', f'Top-5 ({split})']
  print('  '.join(['Model'.ljust(width), *columns]))
  for row, errors in table.items():
    cells = [
      f'{errors[name]:.1%}'.rjust(len(column))
      for name, column in zip(NAMES[1:], columns, strict=True)
    ]
    print('  '.join([row.ljust(width), *cells]))


FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the command; main.py imports this module without them."""
  flags.DEFINE_list(
    'workdirs', None, 'Folders of trainings, with commas.', required=True
  )
  flags.DEFINE_enum(
    'checkpoint', 'best', ['best', 'latest'], 'Which to evaluate.'
  )
  flags.DEFINE_enum(
    'views', 'many', ['one', 'many'], 'The centre, or ten as in Table 2.'
  )
  flags.DEFINE_string('split', None, 'Instead of the one in each config.')
  flags.DEFINE_string('data_dir', None, 'Instead of the one in each config.')
  flags.DEFINE_string('compilation_cache_dir', *compilation.CACHE_DIR)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    sys.exit(f'{argv[1]} is not a flag; folders are separated by commas')
  with command.one_line_errors('finished predictions are kept'):
    compilation.keep(FLAGS.compilation_cache_dir)
    evaluate_ensemble(
      FLAGS.workdirs,
      FLAGS.checkpoint,
      FLAGS.views == 'many',
      FLAGS.split,
      FLAGS.data_dir,
    )


if __name__ == '__main__':
  define_flags()
  app.run(main)
