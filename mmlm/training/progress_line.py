"""The line that a training run prints: mean loss, speed, time left."""

import datetime
import math
import time

import jax
import numpy as np

from mmlm.parallel import peak_flops


class ProgressLine:
  """Sums metrics between lines.

  Args:
    start: steps done before.
    sums: of the loss, the weight, the gradient norm and the steps since the last line, which a
      checkpoint stores.
    prefix: of each line.
    among: runs that train together, among which the time is divided.
  """

  def __init__(
    self,
    start: int,
    total: int,
    sums: list | None = None,
    prefix: str = '',
    among: int = 1,
  ):
    self.total = total
    self.prefix = prefix
    self._among = among
    self._began = (time.monotonic(), start)
    self._compiled = None  # (time, step) after compilation, for the time left
    self._reset()
    if sums:
      self.sums += sums

  def _reset(self) -> None:
    self.sums = np.zeros(4)
    self._examples = 0
    self._flops = 0.0
    self._since = time.monotonic()

  def add(
    self,
    metrics: dict,
    examples: int,
    flops: float,
  ) -> None:
    """Adds the metrics of a step."""
    weight = float(metrics['weight'])
    self.sums += (weight * float(metrics['loss']), weight, float(metrics['gradient_norm']), 1)
    self._examples += examples
    self._flops += flops

  def divide_among(self, runs: int) -> None:
    """Divides the time from now on among so many runs that train together."""
    self._among = runs

  def exclude(self, seconds: float) -> None:
    """Leaves out time that is not training from the speed."""
    self._since += seconds

  def print(self, step: int) -> dict[str, float]:
    """Prints the line of a step and begins the next one; returns its values."""
    now = time.monotonic()
    values = self._values(now)
    loss = values.get('loss', math.nan)
    speed = values['examples_per_second']
    print(
      f'{self.prefix}step {step:>6}/{self.total} {100 * step / self.total:3.0f} %  '
      f'loss {loss:.4f}  {speed:.0f} examples/s  left {self._time_left(now, step)}',
      flush=True,
    )
    if self._compiled is None:
      self._compiled = (now, step)
    self._reset()
    return values

  def _values(self, now: float) -> dict[str, float]:
    loss, weight, norm, steps = self.sums.tolist()
    values = {}
    if steps:  # 0 if all updates were skipped
      values = {'loss': loss / max(weight, 1e-8), 'gradient_norm': norm / steps}
    seconds = (now - self._since) / self._among
    values['seconds'] = seconds
    values['examples_per_second'] = self._examples / seconds
    peak = peak_flops()
    if peak and self._flops:
      values['mfu'] = self._flops / (seconds * peak * jax.device_count())
    return values

  def _time_left(self, now: float, step: int) -> datetime.timedelta:
    since, first = self._compiled or self._began
    seconds_per_step = (now - since) / max(step - first, 1)
    return datetime.timedelta(seconds=int(seconds_per_step * (self.total - step)))
