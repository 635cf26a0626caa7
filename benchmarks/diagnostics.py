r"""What TensorBoard's diagnostics cost a run (docs/tensorboard.md).

    python -m benchmarks.diagnostics [--config=FILE] [--config.KEY=VALUE ...]
        [--rounds=N] [--quick] [--check] [--output=FILE]

In turn: some train steps; an evaluation without diagnostics; one with them; and
what is written after it. The cost is what the last two take beyond the second,
divided by the time from one evaluation of the run to the next. The seconds that
the first round takes longer, for compiling, are printed and not part of it.
`--check` fails above 1%.
"""

import contextlib
import pathlib
import statistics
import sys
import tempfile
import time

from alexnet_jax.runtime import huge_pages

if __name__ == '__main__':  # As main.py.
  huge_pages.reexec_with_huge_pages()

from ml_collections import config_flags

from alexnet_jax import dashboard
from alexnet_jax import digits
from alexnet_jax import evaluator
from alexnet_jax import metrics
from alexnet_jax import run as run_lib
from alexnet_jax import train_state
from alexnet_jax import train_step
from alexnet_jax.runtime import command
from alexnet_jax.runtime import config_file
from benchmarks import harness

BAR, STEPS = 0.01, 10  # The bar of the cost; the steps of a round.
STEP, PLAIN, OBSERVED, WRITE = 'step', 'evaluation', 'with diagnostics', 'write'
FLAGS = harness.FLAGS


def measure_run(run: run_lib.Run, rounds: int) -> list[dict[str, float]]:
  """Seconds of each kind by round; the first one compiles."""
  table, found = train_step.make_timetable(run), []
  arguments = train_step.StepArguments(run, table)(0)
  state = train_state.create_train_state(run)
  step = train_step.compile_train_step(run, state, arguments)
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    writer = stack.enter_context(metrics.MetricsWriter(folder, True, 0))
    board = dashboard.Dashboard(run, table, writer)
    plain = evaluator.Evaluator(run)
    observed = evaluator.Evaluator(run, observe=board.observe)
    batches = stack.enter_context(contextlib.closing(run.train_batches(0)))
    for number in range(rounds + 1):
      times = [time.perf_counter()]
      lap = lambda times=times: times.append(time.perf_counter())
      for _ in range(STEPS):
        state, sums = step(state, next(batches), *arguments)
      sums['loss'].block_until_ready()
      lap()
      order = (False, True) if number % 2 else (True, False)
      for diagnoses in order:
        if diagnoses:
          observer = board.observer(table.total_steps)
          observed(state.params, many=False, observer=observer)
        else:
          plain(state.params, many=False)
        lap()
      board.write(number, state, step, arguments, {})
      lap()
      taken = [b - a for a, b in zip(times, times[1:], strict=False)]
      kinds = [OBSERVED if diagnoses else PLAIN for diagnoses in order]
      row = dict(zip((STEP, *kinds, WRITE), taken, strict=True))
      found.append(row | {STEP: row[STEP] / STEPS})
  return found


def measure() -> harness.Outcome:
  with config_file.one_line_errors(sys.argv):
    config = FLAGS.config
  with command.one_line_errors('nothing is kept'):
    digits.prepare_if_missing(config)
    run = run_lib.open_run(config)
    if not config.train.diagnostics_every_evals:
      raise ValueError(
        'config.train.diagnostics_every_evals=0 measures nothing'
      )
    first, *rounds = measure_run(run, 2 if FLAGS.quick else FLAGS.rounds)
  table = train_step.make_timetable(run)
  between = config.train.eval_every_epochs * table.num_examples
  steps = min(table.total_steps, between / table.batch_size)
  steps *= config.train.diagnostics_every_evals
  evaluations = config.train.diagnostics_every_evals
  costs = [
    (row[OBSERVED] - row[PLAIN] + row[WRITE])
    / (steps * row[STEP] + evaluations * row[PLAIN])
    for row in rounds
  ]
  middle = {
    name: statistics.median(row[name] for row in rounds) for name in first
  }
  compiling = first[WRITE] - middle[WRITE]
  harness.print_figures({'median seconds': middle, 'compiling': compiling})
  cost = statistics.median(costs)
  verdict = f'cost of the diagnostics {cost:.3%} of a run, bar {BAR:.0%}'
  figures = {'rounds': rounds, 'compiling': compiling, 'cost': cost}
  return harness.Outcome(figures, verdict, cost <= BAR)


if __name__ == '__main__':
  with config_file.one_line_errors(sys.argv):  # It reads the default.
    config_flags.DEFINE_config_file(
      'config', 'configs/quickstart.py', 'See configs/.', lock_config=True
    )
  harness.run(
    measure, quick='Two rounds.', check=f'Fail above {BAR:.0%}.', rounds=7
  )
