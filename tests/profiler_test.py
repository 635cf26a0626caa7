"""Which steps of a loop are profiled."""

import contextlib

import pytest

from alexnet_jax.runtime import profiler

EVALUATED = ['evaluated', 'evaluated']


@pytest.mark.parametrize(
  ('first', 'count', 'completed', 'expected'),
  [
    (3, 2, 0, ['start', 3, 4, 'stop', *EVALUATED]),  # 4 ends a row.
    (5, 9, 0, ['start', 5, 6, *EVALUATED[1:], 'stop']),  # The loop ends first.
    # Step 2 is done when 3 is running.
    (1, 2, 0, ['start', 1, 2, 3, 'stop', *EVALUATED]),
    (3, 2, 4, []),  # A resumed run is past it.
    (0, 2, 0, []),  # Off.
  ],
)
def test_the_profile_covers_its_steps(
  tmp_path, monkeypatch, first, count, completed, expected
):
  seen, is_on, marked = [], [], []
  profile = profiler.Profile(tmp_path, first, count)
  start = lambda folder: seen.append('start') or is_on.append(folder)
  stop = lambda: seen.append('stop') or is_on.clear()

  @contextlib.contextmanager
  def mark(name, step_num):
    yield
    if is_on:  # Only a mark that ends before the profile does is in it.
      marked.append((name, step_num))

  monkeypatch.setattr(profiler.jax.profiler, 'StepTraceAnnotation', mark)
  monkeypatch.setattr(profiler.jax.profiler, 'start_trace', start)
  monkeypatch.setattr(profiler.jax.profiler, 'stop_trace', stop)
  for part in (range(completed + 1, 5), range(max(completed + 1, 5), 7)):
    for step in profile.steps(part, part.start - 1):
      if is_on:
        assert is_on == [tmp_path]
        seen.append(step)
    profile.end_row(part.stop - 1)
    seen += ['evaluated'] if seen else []
  profile.close()
  profile.close()
  assert seen == expected
  steps = [step for step in expected if isinstance(step, int)]
  assert marked == [('train', step) for step in steps if step < first + count]
