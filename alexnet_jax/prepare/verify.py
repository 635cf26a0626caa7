"""Compares the files of a prepared data set with the digests of preparation."""

import os
import time

from alexnet_jax import dataset as dataset_lib
from alexnet_jax.runtime import digests


def verify(name: str, data_dir: str | os.PathLike) -> list[str]:
  """Reads a prepared data set; prints what was read and what is wrong.

  Args:
    name: name of the data set.
    data_dir: folder of the prepared data sets.

  Returns:
    One line for each file that is damaged, missing or extra.

  Raises:
    FileNotFoundError: if there is no such data set.
    ValueError: if it has no digests, or these are damaged.
  """
  folder = dataset_lib.dataset_path(data_dir, name, '--data_dir')
  if not folder.is_dir():
    raise FileNotFoundError(
      f'no prepared data set --name={name} under --data_dir={data_dir}'
    )
  recorded = digests.read(folder)
  if recorded is None:
    raise ValueError(
      f'{folder} has no {digests.FILE} to compare with: an earlier version'
      ' prepared it. It can be used as before; to have digests, prepare it again'
      ' under another --name'
    )
  began = time.time()
  problems = digests.problems(folder, recorded)
  extra = digests.extra_files(folder, recorded)
  problems += [f'{file} is extra' for file in extra]
  num_bytes = sum(entry['bytes'] for entry in recorded.values())
  for line in problems:
    print(f'{folder}: {line}')
  print(
    f'{folder}: {len(recorded)} files, {num_bytes / 1e6:,.1f} MB, read in'
    f' {time.time() - began:.1f} s;'
    f' {len(problems) or "no"} problem{"s" * (len(problems) != 1)}'
  )
  return problems
