"""The errors of nets and of their ensemble, printed and written."""

from collections.abc import Mapping, Sequence
import pathlib

from alexnet_jax import metrics
from alexnet_jax import trained_net
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files

COLUMNS = {'top1_error': 'Top-1', 'top5_error': 'Top-5'}
VIEW_NAMES = {
  'eval': 'one view',
  'eval_five_view': 'five views',
  'eval_ten_view': 'ten views',
  'eval_many_view': 'five or ten views',
}


def show(
  nets: Sequence[trained_net.TrainedNet],
  table: Mapping[str, Mapping[str, float]],
  result: Mapping[str, float],
) -> None:
  """Prints the errors in the layout of Table 2.

  Args:
    nets: the nets, all for the same split.
    table: errors of each net by tag, by the path of the net.
    result: errors of their ensemble, or of the single net, by tag.
  """
  split = nets[0].config.input.eval_split
  for net in nets:
    if net.workdir:
      print(f'{net.which} checkpoint, step {net.step}: {net.path}')
    else:
      print(f'weights file: {net.path}')
  rows = {f'1 CNN   {workdir}': errors for workdir, errors in table.items()}
  if len(nets) > 1:
    rows[f'{len(nets)} CNNs'] = result
  columns = {}
  for tag in metrics.informative(result, nets[0].config.model.num_classes):
    prefix, _, name = tag.partition('/')
    if name in COLUMNS:
      columns[tag] = f'{COLUMNS[name]} ({split}, {VIEW_NAMES[prefix]})'
  width = max(map(len, ('Model', *rows)))
  print('  '.join(['Model'.ljust(width), *columns.values()]))
  for row, errors in rows.items():
    cells = [f'{errors[t]:.2%}'.rjust(len(c)) for t, c in columns.items()]
    print('  '.join([row.ljust(width), *cells]))


def write(
  folder: pathlib.Path,
  nets: Sequence[trained_net.TrainedNet],
  table: Mapping[str, Mapping[str, float]],
  result: Mapping[str, float],
) -> None:
  """Writes evaluation.json into a folder; other arguments as for `show`."""
  folder.mkdir(parents=True, exist_ok=True)
  inputs = nets[0].config.input
  evaluation = {'dataset': inputs.dataset, 'split': inputs.eval_split, **result}
  for net in nets:
    if net.workdir:  # The same for all.
      evaluation['checkpoint'] = net.which
  members = [
    {'workdir': path, 'step': net.step}
    if net.workdir
    else {'weights': str(net.path)}
    for net, path in zip(nets, table, strict=True)
  ]
  if len(nets) > 1:
    errors = zip(members, table.values(), strict=True)
    evaluation['members'] = [member | values for member, values in errors]
  else:
    evaluation |= {k: v for k, v in members[0].items() if k != 'workdir'}
  files.write_json(folder / workdir_lib.EVALUATION_FILE, evaluation)
