"""The training loop: fetches the metrics of step k while k + 1 runs, validates, saves, stops, resumes."""

import contextlib
import datetime
import json
import math
import signal
import time
from typing import NamedTuple

import jax
import numpy as np
from tensorboardX import SummaryWriter

from mmlm import runs
from mmlm.errors import UserError
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.step import StepOptions, TrainState, train_step


class Schedule(NamedTuple):
  """Steps, all of them counted from the start of the run."""

  total: int
  log_every: int
  eval_every: int
  patience: int  # validations


class Parts(NamedTuple):
  """What the loop is given: it knows no task, no data set and no model."""

  options: StepOptions
  learning_rate: object  # step -> rate
  stream: object  # (start, stop) -> context manager with an iterator over batches
  ids: object  # number of a batch -> ids of its examples
  validate: object  # params -> {name: value}
  schedule: Schedule


class Interrupted(Exception):
  """SIGINT or SIGTERM came; the state was saved."""


@contextlib.contextmanager
def _stop_signals():
  """A list that SIGINT and SIGTERM are put into, so that a step is finished and saved; a second one acts at once."""
  received = []

  def note(number, frame):
    received.append(number)
    for each in old:
      signal.signal(each, signal.SIG_DFL)

  old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield received
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


class Log:
  """metrics.jsonl and TensorBoard. On resume the lines after the restored step are cut, so that none stands twice."""

  def __init__(self, folder, step: int):
    self.path = folder / 'metrics.jsonl'
    rows = [row for row in runs.read_jsonl(self.path) if row['step'] <= step] if self.path.exists() else []
    runs.write_jsonl(self.path, rows)
    self._events = SummaryWriter(str(folder / 'tensorboard'), purge_step=step + 1)
    self.close = self._events.close

  def write(self, kind: str, step: int, values: dict):
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, 'kind': kind, **values}) + '\n')
    for name, value in values.items():
      self._events.add_scalar(f'{kind}/{name}', value, step)
    self._events.flush()  # a killed process loses no line of either


class Progress:
  """Means since the last line, examples a second, and the time left.

  `sums`: of the loss, the weight, the gradient norm and the steps since the last line; a checkpoint keeps them.
  """

  def __init__(self, start: int, total: int, sums: list | None = None):
    self.total, self.began = total, (time.monotonic(), start)
    self.warm = None  # (time, step) after compilation, for the time left
    self._reset()
    self.sums += sums or 0

  def _reset(self):
    self.sums, self.examples, self.since = np.zeros(4), 0, time.monotonic()

  def add(self, metrics: dict, examples: int):
    weight = float(metrics['weight'])
    self.sums += (weight * float(metrics['loss']), weight, float(metrics['gradient_norm']), 1)
    self.examples += examples

  def line(self, step: int) -> dict:
    now, (loss, weight, norm, steps) = time.monotonic(), self.sums
    values = {'loss': loss / max(weight, 1e-8), 'gradient_norm': norm / steps, 'seconds': now - self.since}
    values['examples_per_second'] = self.examples / values['seconds']
    since, first = self.warm or self.began
    left = datetime.timedelta(seconds=int((now - since) / max(step - first, 1) * (self.total - step)))
    self.warm = self.warm or (now, step)
    print(f'step {step:>6}/{self.total} {100 * step / self.total:3.0f} %  loss {values["loss"]:.4f}  '
          f'{values["examples_per_second"]:.0f} examples/s  left {left}', flush=True)  # fmt: skip
    self._reset()
    return values


def train(parts: Parts, parallel, state: TrainState, checkpoints: Checkpoints, folder) -> None:
  """Trains from `state`, or from the newest checkpoint that can be read, to the end of the schedule.

  Raises:
    UserError: a loss or gradient that is not finite (the ids of the batch are named), a full disk.
    Interrupted: after a signal, once the state is saved.
  """
  with contextlib.closing(checkpoints):
    state, meta = checkpoints.restore(jax.eval_shape(lambda: state)) or (state, {'best': None, 'stale': 0})
    start = int(state.step)
    if start:
      print(f'Resumed at step {start} of {parts.schedule.total}.', flush=True)
    if start >= parts.schedule.total or _out_of_patience(parts.schedule, meta):
      print('The run is complete.')
      return
    with contextlib.closing(Log(folder, start)) as log, _stop_signals() as stopped:
      try:
        _Loop(parts, parallel, checkpoints, log, meta).run(state, start, stopped)
      except RuntimeError:
        if not stopped:
          raise
        # Ctrl-C also reached a loader process that was only starting.
        raise Interrupted('Interrupted. The same command goes on from the last checkpoint.') from None


def _out_of_patience(schedule: Schedule, meta: dict) -> bool:
  return 0 < schedule.patience <= meta['stale']


class _Loop:
  def __init__(self, parts, parallel, checkpoints, log, meta):
    self.parts, self.parallel, self.checkpoints, self.log, self.meta = parts, parallel, checkpoints, log, dict(meta)
    self.waiting = None  # (step, metrics) that are still computed

  def run(self, state, start, stopped):
    schedule = self.parts.schedule
    compiled = self.parallel.step(lambda state, batch: train_step(state, batch, self.parts.options))
    state = self.parallel.replicate(state)
    self.progress = Progress(start, schedule.total, self.meta.get('since_last'))
    with self.parts.stream(start, schedule.total) as batches:
      for step, batch in enumerate(batches, start + 1):
        state, metrics = compiled(state, batch)
        self._settle()
        self.waiting = (step, metrics, int(batch['weight'].sum()))
        last = step == schedule.total
        if step % schedule.log_every == 0 or last:
          self._settle()
          rate = float(self.parts.learning_rate(step - 1))
          self.log.write('train', step, self.progress.line(step) | {'learning_rate': rate})
        if step % schedule.eval_every == 0 or last:
          self._validate(step, state)
          if _out_of_patience(schedule, self.meta):
            print(f'No better {self.checkpoints.monitor} in {schedule.patience} validations: stopped.')
            return
        if stopped:
          self._settle()
          if step not in self.checkpoints.steps():
            self._save(self.parallel.unreplicate(state), {})
          raise Interrupted(f'Interrupted: saved at step {step}. The same command goes on from there.')

  def _settle(self):
    """Waits for the metrics of the step before, and checks them."""
    if self.waiting is None:
      return
    (step, metrics, examples), self.waiting = self.waiting, None
    metrics = jax.device_get(metrics)
    if not (math.isfinite(metrics['loss']) and math.isfinite(metrics['gradient_norm'])):
      ids = self.parts.ids(step - 1)
      raise UserError(
        f'step {step}: the loss is {metrics["loss"]} and the gradient norm {metrics["gradient_norm"]}. '
        f'The last good checkpoint is kept ({(self.checkpoints.steps() or ["none yet"])[-1]}). Try a lower learning rate '
        f'or a longer warm-up, or look at the examples of this batch: {", ".join(ids)}.'
      )
    self.progress.add(metrics, examples)

  def _validate(self, step, state):
    self._settle()
    host, began = self.parallel.unreplicate(state), time.monotonic()
    values = self.parts.validate(host.ema if host.ema != () else host.params)
    print(f'step {step:>6} valid  ' + '  '.join(f'{k} {v:.4f}' for k, v in values.items()), flush=True)
    seconds = time.monotonic() - began
    self.log.write('valid', step, values | {'seconds': seconds})
    self.progress.since += seconds  # examples a second are those of training
    monitor, best = self.checkpoints.monitor, self.meta['best']
    if monitor not in values:
      raise UserError(f'train.monitor={monitor!r} is not among the validation scores {sorted(values)}.')
    better = math.isfinite(values[monitor]) and (best is None or self.checkpoints.sign * (values[monitor] - best) > 0)
    self.meta |= {'best': values[monitor], 'stale': 0} if better else {'stale': self.meta['stale'] + 1}
    self._save(host, values)

  def _save(self, state, values):
    self.checkpoints.save(state, self.meta | {'since_last': self.progress.sums.tolist()}, values)
