"""Training of AlexNet that keeps the first kernels on the way, for a sweep.

It trains as `alexnet_jax.train` does, and the steps are the same. At the steps
`kept_steps` it saves the kernels of conv1 and conv2, and a checkpoint to resume
from; the net is evaluated once, at the end, on one view.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import pathlib
import time
import zipfile

import ml_collections
import numpy as np

from alexnet_jax import checkpoint
from alexnet_jax import evaluator
from alexnet_jax import placement
from alexnet_jax import progress as progress_lib
from alexnet_jax import run as run_lib
from alexnet_jax import train as train_lib
from alexnet_jax import train_state
from alexnet_jax import train_step as train_step_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.runtime import files
from experiments import program
from experiments import run_files

FOLDER, LAYERS = 'kernels', ('conv1', 'conv2')
FIRST_STEP = 25  # The first step after 0 at which kernels are kept.


def kept_steps(total: int, every: int) -> list[int]:
  """The steps at which kernels are kept: 0, 25, 50, 100, ..., and the last.

  Multiples of `every` are among them, so that a long run loses little if it is
  killed.
  """
  doubled = (FIRST_STEP * 2**i for i in itertools.count())
  early = itertools.takewhile(lambda step: step < total, doubled)
  return sorted({0, *early, *range(every, total, every), total})


def read_kernels(
  workdir: pathlib.Path,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields (step, kernels by layer) of a run, from the first step to the last.

  Raises:
    RunFileError: if there are none, or a file of them is damaged.
  """
  paths = sorted((workdir / FOLDER).glob('*.npz'))
  if not paths:
    raise run_files.lost(workdir / FOLDER)
  for path in paths:
    try:
      with np.load(path) as arrays:
        kernels = {name: arrays[name] for name in LAYERS}
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
      raise run_files.lost(workdir / FOLDER) from error
    yield int(path.stem), kernels


def _keep(workdir, step, params):
  kernels = {name: params[name]['kernel'] for name in LAYERS}
  path = workdir / FOLDER / f'{step:08d}.npz'
  path.parent.mkdir(exist_ok=True)
  with files.replacing(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **placement.fetch(kernels))


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> None:
  """Trains to the end of the config, resuming from the newest checkpoint.

  Args:
    config: a config with the keys of configs/paper.py; its schedule must not be
      'plateau', which needs evaluations.
    workdir: folder for config.json, checkpoints/, kernels/ and, at the end,
      result.json.

  Raises:
    ValueError, FileNotFoundError, FloatingPointError: as `alexnet_jax.train`.
  """
  began, commit = time.time(), workdir_lib.current_commit()
  run = run_lib.open_run(config)
  table = train_step_lib.make_timetable(run)
  arguments = train_step_lib.StepArguments(run, table)
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdir_lib.owned_workdir(workdir, run.config))
    checkpoints = stack.enter_context(checkpoint.opened(workdir))
    state, metadata = train_state.create_or_restore(run, checkpoints)
    step, earlier = int(placement.fetch(state.step)), metadata.wall_seconds
    seconds = lambda: earlier + time.time() - began
    if step == 0:
      _keep(workdir, step, state.params)
    batches = run.train_batches(step)
    stack.callback(batches.close)
    progress = progress_lib.Progress(step, table.total_steps, began)
    stack.callback(progress.close)
    train_step = train_step_lib.compile_train_step(run, state, arguments(step))
    for end in kept_steps(
      table.total_steps, config.train.checkpoint_every_steps
    ):
      if end <= step:
        continue
      inputs = arguments.for_steps(step, end, 0, lambda: 0)
      state, row = train_lib.run_steps(
        train_step, state, batches, inputs, step, progress
      )
      step = end
      _keep(workdir, step, state.params)
      progress.report(step, table.epoch(step), row)
      metadata = dataclasses.replace(
        metadata, metrics=row, wall_seconds=seconds()
      )
      checkpoints.save(step, state, dataclasses.asdict(metadata), None)
    row = metadata.metrics | evaluator.Evaluator(run)(state.params, many=False)
  workdir_lib.write_result(
    workdir, step, table.epoch(step), seconds(), commit, row
  )


PROGRAM = dataclasses.replace(program.ALEXNET, train=train_and_evaluate)
