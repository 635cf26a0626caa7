"""What a run shows of its progress: a bar, or lines where there is no terminal."""

from collections.abc import Mapping
import logging
import time

import tqdm

from alexnet_jax import metrics
from alexnet_jax.runtime import processes

# What the terminal calls them.
LABELS = {
  'loss': 'loss',
  'top1_error': 'top-1',
  'top5_error': 'top-5',
  'learning_rate': 'rate',
  'images_per_second': 'images/s',
  'input_wait_fraction': 'waited',
}


class Progress:
  """A progress bar on a terminal, plain lines elsewhere."""

  def __init__(
    self, step: int, total: int, began: float, num_classes: int = 1000
  ):
    """Starts at `step` of `total`; the command started at time `began`."""
    self._num_classes = num_classes
    self._total, self._began = total, began
    self._enabled = processes.is_first()
    self._start = step
    self._first_done = None  # Time of the first finished step.
    self._bar = tqdm.tqdm(
      initial=step,
      total=total,
      unit='step',
      # None disables the bar unless the output is a terminal.
      disable=None if self._enabled else True,
    )
    self._handlers = [*logging.getLogger().handlers]
    for handler in self._handlers:
      handler.addFilter(self._clear)

  def update(self) -> None:
    """Counts one more finished step."""
    if self._first_done is None:
      self._first_done = time.time()
      self._print(
        f'first step done {self._first_done - self._began:.1f} s after the'
        ' start'
      )
    self._bar.update()

  def report(
    self, step: int, epoch: float, values: Mapping[str, float]
  ) -> None:
    """Shows the newest metrics."""
    values = metrics.informative(values, self._num_classes)
    # No step was left if a run continues with an evaluation.
    pace = (time.time() - (self._first_done or self._began)) / max(
      step - self._start - 1, 1
    )
    remaining = tqdm.tqdm.format_interval(pace * (self._total - step))
    evaluated = any(tag.startswith('eval') for tag in values)
    if self._bar.disable or evaluated:
      parts = [f'step {step}/{self._total}', f'epoch {epoch:.2f}']
      by_prefix = {}
      for tag, value in values.items():
        prefix, _, name = tag.partition('/')
        text = f'{LABELS[name]} {shown(name, value)}'
        by_prefix.setdefault(prefix, []).append(text)
      parts += [*by_prefix.pop('train', []), f'left {remaining}']
      self._print('  '.join(parts))
      for prefix, texts in by_prefix.items():
        self._print('  '.join([f'  {prefix}', *texts]))
    self._bar.set_postfix_str(f'loss {values["train/loss"]:.3f}')

  def close(self) -> None:
    self._bar.close()
    for handler in self._handlers:
      handler.removeFilter(self._clear)

  def _clear(self, record: logging.LogRecord) -> bool:
    """A logged line takes the place of the bar; the next step draws it again."""
    del record
    self._bar.clear()
    return True

  def _print(self, line: str) -> None:
    if not self._enabled:
      return
    if self._bar.disable:
      print(line, flush=True)
    else:
      self._bar.write(line)


def shown(name: str, value: float) -> str:
  """A value as the terminal shows it; `name` is one of `LABELS`."""
  if name.endswith(('error', 'fraction')):
    return f'{value:.2%}'
  return f'{value:.4g}'
