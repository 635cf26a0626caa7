r"""Evaluates trained nets, and their ensemble, as in Table 2 of the paper.

    python -m alexnet_jax.evaluate --workdirs=A,B,C

`python -m alexnet_jax.main --mode=evaluate --workdir=A` does the same for one
net, with one view and with many, and can use several processes.
"""

from collections.abc import Iterator, Sequence
import os

from absl import flags
import ml_collections

from alexnet_jax import digits
from alexnet_jax import metrics
from alexnet_jax import predictions as predictions_lib
from alexnet_jax import trained_net
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import command
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import files
from alexnet_jax.runtime import processes

# By value of --views: whether each evaluation averages many views.
VIEWS = {'one': (False,), 'many': (True,), 'both': (False, True)}
COLUMNS = {'top1_error': 'Top-1', 'top5_error': 'Top-5'}
VIEW_NAMES = {
  'eval': 'one view',
  'eval_five_view': 'five views',
  'eval_ten_view': 'ten views',
  'eval_many_view': 'five or ten views',
}


def evaluate(
  workdirs: Sequence[str | os.PathLike],
  which: str = 'best',
  views: str = 'both',
  *,
  config: ml_collections.ConfigDict | None = None,
  split: str | None = None,
  data_dir: str | None = None,
  output: str | os.PathLike | None = None,
) -> dict[str, float]:
  """Evaluates trained nets and their ensemble; prints and writes the errors.

  Args:
    workdirs: work directories of the training runs.
    which: checkpoint of each net, 'best' or 'latest'.
    views: views to average, a key of `VIEWS`: the centre, many (ten, or five if
      the config does not flip), or both in turn.
    config: config of a single net; None for the recorded ones.
    split: name of the split; None for config.input.eval_split of each net.
    data_dir: folder of data sets; None for config.input.data_dir of each net.
    output: folder for evaluation.json and the predictions. None for the first
      work directory; predictions are then saved in that of each net.

  Returns:
    Loss (nats), top-1 and top-5 error (fractions) of the net or the ensemble,
    by tag.

  Raises:
    ValueError: if the nets have different data sets or splits, or `output`
      cannot be written.
    FileNotFoundError: if a work directory, checkpoint or data set is missing.
  """
  nets = _open_nets(workdirs, which, config, split, data_dir)
  folder = _output_folder(nets, output)
  table = {str(workdir): {} for workdir in workdirs}
  result = {}
  for many in VIEWS[views]:
    prefix = _prefix(nets) if many else 'eval'
    members = _member_predictions(nets, many, output and folder)
    together = predictions_lib.ensemble(
      _with_errors(members, prefix, table.values())
    )
    result |= _tagged(prefix, together.errors())
  if processes.is_first():
    _print_table(nets, table, result)
    _write(folder, nets, table, result)
  return result


def _prefix(nets):
  """Prefix of the tags for many views; their number may differ between nets."""
  found = {metrics.many_view_prefix(n.config.augment.flip) for n in nets}
  return found.pop() if len(found) == 1 else 'eval_many_view'


def _output_folder(nets, output):
  """The folder of evaluation.json; checks that it can be written."""
  if output is None:
    folder = nets[0].workdir
    checked = {f'--output={n.workdir} (the default)': n.workdir for n in nets}
  else:
    if not os.fspath(output):
      raise ValueError('--output= is empty; name a folder')
    folder = files.expand_home(output).absolute()
    checked = {f'--output={output}': folder}
  if processes.is_first():
    for flag, path in checked.items():
      workdir_lib.check_writable(path, flag)
  return folder


def _open_nets(
  workdirs, which, config, split, data_dir
) -> list[trained_net.TrainedNet]:
  paths = {files.expand_home(w).resolve() for w in workdirs if w}
  if not paths or len(paths) < len(workdirs):
    raise ValueError(
      f'--workdirs={",".join(map(str, workdirs))} must name one or more'
      ' different folders'
    )
  nets = []
  for workdir in workdirs:
    path = trained_net.check_trained_workdir(workdir)
    net_config = trained_net.read_config(path, config, split, data_dir)
    digits.prepare_if_missing(net_config)
    nets.append(trained_net.open_net(path, which, config=net_config))
  first = nets[0]
  for net in nets[1:]:
    if _examples(net) != _examples(first):
      raise ValueError(
        f'--workdirs: {net.workdir} is evaluated on'
        f' {net.config.input.dataset} ({net.config.input.eval_split}),'
        f' {first.workdir} on {first.config.input.dataset}'
        f' ({first.config.input.eval_split}); the members of an ensemble need'
        ' the same prepared data set and the same --split'
      )
  return nets


def _examples(net):
  """Identifies the examples that a net is evaluated on."""
  return net.run.dataset.fingerprint, net.config.input.eval_split


def _member_predictions(nets, many, folder) -> Iterator:
  for net in nets:
    yield net.predict_split(many, folder and folder / predictions_lib.FOLDER)
    if len(nets) > 1:
      net.release()  # The parameters of all nets may not fit in memory.


def _with_errors(members, prefix, rows):
  """Yields the predictions after adding their errors to the table's rows."""
  for member, row in zip(members, rows, strict=True):
    row |= _tagged(prefix, member.errors())
    yield member


def _tagged(prefix, errors):
  return {f'{prefix}/{name}': value for name, value in errors.items()}


def _print_table(nets, table, result):
  """Prints the errors in the layout of Table 2."""
  split = nets[0].config.input.eval_split
  for net in nets:
    print(f'{net.which} checkpoint, step {net.step}: {net.workdir}')
  rows = {f'1 CNN   {workdir}': errors for workdir, errors in table.items()}
  if len(nets) > 1:
    rows[f'{len(nets)} CNNs'] = result
  columns = {}
  for tag in result:
    prefix, _, name = tag.partition('/')
    if name in COLUMNS:
      columns[tag] = f'{COLUMNS[name]} ({split}, {VIEW_NAMES[prefix]})'
  width = max(map(len, ('Model', *rows)))
  print('  '.join(['Model'.ljust(width), *columns.values()]))
  for row, errors in rows.items():
    cells = [f'{errors[t]:.2%}'.rjust(len(c)) for t, c in columns.items()]
    print('  '.join([row.ljust(width), *cells]))


def _write(folder, nets, table, result):
  folder.mkdir(parents=True, exist_ok=True)
  inputs = nets[0].config.input
  evaluation = {
    'step': nets[0].step,
    'checkpoint': nets[0].which,
    'dataset': inputs.dataset,
    'split': inputs.eval_split,
    **result,
  }
  if len(nets) > 1:
    del evaluation['step']
    evaluation['members'] = [
      {'workdir': workdir, 'step': net.step, **errors}
      for net, (workdir, errors) in zip(nets, table.items(), strict=True)
    ]
  files.write_json(folder / workdir_lib.EVALUATION_FILE, evaluation)


def define_evaluation_flags(views: str) -> list[flags.FlagHolder]:
  """Defines the flags of evaluation, for this command and for main.py.

  Args:
    views: default of --views.
  """
  return [
    flags.DEFINE_enum(
      'checkpoint', 'best', ['best', 'latest'], 'Checkpoint to evaluate.'
    ),
    flags.DEFINE_enum(
      'views',
      views,
      list(VIEWS),
      'Views to average: the centre, many (ten as in Table 2; five if the'
      ' config does not flip), or both in turn.',
    ),
    flags.DEFINE_string(
      'split', None, 'Split to evaluate, instead of the one in the config.'
    ),
    flags.DEFINE_string(
      'data_dir', None, 'Folder of data sets, instead of the one in the config.'
    ),
    flags.DEFINE_string(
      'output',
      None,
      'Folder for evaluation.json and the predictions; the (first) work'
      ' directory by default.',
    ),
  ]


def evaluate_with_flags(
  workdirs: Sequence[str],
  evaluation_flags: Sequence[flags.FlagHolder],
  config: ml_collections.ConfigDict | None = None,
) -> None:
  """Runs `evaluate` with the flags of `define_evaluation_flags`."""
  values = {flag.name: flag.value for flag in evaluation_flags}
  which = values.pop('checkpoint')
  evaluate(workdirs, which, config=config, **values)


def main(_) -> None:
  with command.one_line_errors('finished predictions are kept'):
    compilation.enable_compilation_cache(CACHE_DIR.value)
    evaluate_with_flags(WORKDIRS.value, EVALUATION)


if __name__ == '__main__':
  WORKDIRS = flags.DEFINE_list(
    'workdirs',
    None,
    'Work directories of trained nets, separated by commas.',
    required=True,
  )
  CACHE_DIR = flags.DEFINE_string(
    'compilation_cache_dir', *compilation.CACHE_DIR
  )
  EVALUATION = define_evaluation_flags(views='many')
  command.run(main, 'folders are separated by commas')
