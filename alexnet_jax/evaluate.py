r"""Evaluates trained nets, and their ensemble, as in Table 2 of the paper.

    python -m alexnet_jax.evaluate --workdirs=A,B,C
    python -m alexnet_jax.evaluate --weights=FILE.safetensors --dataset=NAME

`python -m alexnet_jax.main --mode=evaluate --workdir=A` does the same for one
net, with one view and with many, and can use several processes.
"""

from collections.abc import Iterator, Sequence
import os

from alexnet_jax.runtime import command

if __name__ == '__main__':
  command.import_jax()

from absl import flags
import ml_collections

from alexnet_jax import digits
from alexnet_jax import error_table
from alexnet_jax import file_net
from alexnet_jax import metrics
from alexnet_jax import predictions as predictions_lib
from alexnet_jax import shipped_nets
from alexnet_jax import trained_net
from alexnet_jax import weights as weights_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import compilation
from alexnet_jax.runtime import files
from alexnet_jax.runtime import jax_settings
from alexnet_jax.runtime import processes

# By value of --views: whether each evaluation averages many views.
VIEWS = {'one': (False,), 'many': (True,), 'both': (False, True)}


def evaluate(
  workdirs: Sequence[str | os.PathLike],
  which: str = 'best',
  views: str = 'both',
  *,
  config: ml_collections.ConfigDict | None = None,
  split: str | None = None,
  data_dir: str | None = None,
  dataset: str | None = None,
  output: str | os.PathLike | None = None,
) -> dict[str, float]:
  """Evaluates trained nets and their ensemble; prints and writes the errors.

  Args:
    workdirs: work directories of training runs, or .safetensors files of nets.
    which: checkpoint of a work directory, 'best' or 'latest'.
    views: views to average, a key of `VIEWS`: the centre, many (ten, or five if
      the config does not flip), or both in turn.
    config: config of a single work directory; None for the recorded ones.
    split: name of the split; None for config.input.eval_split of each net.
    data_dir: folder of data sets; None for config.input.data_dir of each net.
    dataset: name of the data set of files; None for config.input.dataset.
    output: folder for evaluation.json and the predictions. None for the first
      work directory; predictions are then saved in that of each net, and those
      of files are not.

  Returns:
    Loss (nats), top-1 and top-5 error (fractions) of the net or the ensemble,
    by tag.

  Raises:
    ValueError: if the nets have different data sets or splits, a file does not
      fit its data set, or `output` cannot be written.
    FileNotFoundError: if a work directory, file, checkpoint or data set is
      missing.
  """
  files.check_not_url(output or '', '--output')
  nets = _open_nets(workdirs, which, config, split, data_dir, dataset)
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
    error_table.show(nets, table, result)
    if folder:
      error_table.write(folder, nets, table, result)
  return result


def _prefix(nets):
  """Prefix of the tags for many views; their number may differ between nets."""
  found = {metrics.many_view_prefix(n.config.augment.flip) for n in nets}
  return found.pop() if len(found) == 1 else 'eval_many_view'


def _output_folder(nets, output):
  """The folder of evaluation.json, or None; checks that it can be written."""
  if output is None:
    folders = [net.workdir for net in nets if net.workdir]
    folder = folders[0] if folders else None
    checked = {f'--output={path} (the default)': path for path in folders}
  else:
    if not os.fspath(output):
      raise ValueError('--output= is empty; name a folder')
    folder = files.local_path(output, '--output')
    checked = {f'--output={output}': folder}
  if processes.is_first():
    for flag, path in checked.items():
      workdir_lib.check_writable(path, flag)
  return folder


def _open_nets(
  workdirs, which, config, split, data_dir, dataset
) -> list[trained_net.TrainedNet]:
  found = [shipped_nets.find(w) for w in workdirs if w]
  named = [files.local_path(w, '--workdir') for w in found]
  paths = {path.resolve() for path in named}
  if not paths or len(paths) < len(workdirs):
    raise ValueError(
      'name one or more different work directories (--workdirs) or .safetensors'
      f' files (--weights), not {",".join(map(str, workdirs)) or "none"}'
    )
  missing = [path for path in named if not path.exists()]
  more = shipped_nets.nor_a_net(missing[0]) if missing else ''
  if missing and len(named) > 1:
    raise FileNotFoundError(
      f'--workdirs or --weights: there is no {missing[0]}{more}; a name with a'
      ' comma needs double quotes: \'"A,B",C\''
    )
  if more:
    raise FileNotFoundError(
      f'there is no work directory or file {missing[0]}{more}'
    )
  nets = [
    _open_file(path, config, split, data_dir, dataset)
    if path.is_file() or path.suffix == weights_lib.SUFFIX
    else _open_workdir(path, which, config, split, data_dir, dataset)
    for path in named
  ]
  first = nets[0]
  for net in nets[1:]:
    if _examples(net) != _examples(first):
      raise ValueError(
        f'{net.path} is evaluated on'
        f' {net.config.input.dataset} ({net.config.input.eval_split}),'
        f' {first.path} on {first.config.input.dataset}'
        f' ({first.config.input.eval_split}); the members of an ensemble need'
        ' the same prepared data set and the same --split'
      )
    net.run.caches.update(first.run.caches)
  return nets


def _open_workdir(workdir, which, config, split, data_dir, dataset):
  path = trained_net.check_trained_workdir(workdir)
  if dataset:
    raise ValueError(
      f'--dataset={dataset} is for --weights, but {path} is a work directory; for'
      ' another data set than its own, write a file: python -m'
      f' alexnet_jax.convert --input={path} --output=FILE.safetensors'
    )
  config = trained_net.read_config(path, config, split, data_dir)
  digits.prepare_if_missing(config)
  return trained_net.open_net(path, which, config=config)


def _open_file(path, config, split, data_dir, dataset):
  if config is not None:
    raise ValueError(f'--config: {path} has its own config; leave --config out')
  weights = weights_lib.load(path)
  config = file_net.config_for(
    weights, dataset=dataset, split=split, data_dir=data_dir
  )
  digits.prepare_if_missing(config)
  return file_net.open_net(path, weights, config)


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


def define_evaluation_flags(views: str) -> list[flags.FlagHolder]:
  """Defines the flags of evaluation, for this command and for main.py.

  Args:
    views: default of --views.
  """
  return [
    flags.DEFINE_list(
      'weights',
      [],
      'FILE.safetensors in place of a work directory, or cifar10, the net of the'
      ' package; or several.',
    ),
    flags.DEFINE_string(
      'dataset',
      None,
      'Data set for --weights, instead of the one in its config.',
    ),
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
      ' directory by default, and none with --weights alone.',
    ),
  ]


def evaluate_with_flags(
  workdirs: Sequence[str],
  evaluation_flags: Sequence[flags.FlagHolder],
  config: ml_collections.ConfigDict | None = None,
) -> None:
  """Runs `evaluate` with the flags of `define_evaluation_flags`."""
  values = {flag.name: flag.value for flag in evaluation_flags}
  nets = [*workdirs, *values.pop('weights')]
  evaluate(nets, values.pop('checkpoint'), config=config, **values)


def main(_) -> None:
  with command.one_line_errors('finished predictions are kept'):
    compilation.enable_compilation_cache(CACHE_DIR.value)
    jax_settings.start()
    evaluate_with_flags(WORKDIRS.value, EVALUATION)


if __name__ == '__main__':
  WORKDIRS = flags.DEFINE_list(
    'workdirs', [], 'Work directories of trained nets, separated by commas.'
  )
  CACHE_DIR = flags.DEFINE_string(
    'compilation_cache_dir', *compilation.CACHE_DIR
  )
  EVALUATION = define_evaluation_flags(views='many')
  command.run(main, 'folders are separated by commas')
