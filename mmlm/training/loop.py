"""The training loop: fetches the metrics of step k while k + 1 runs, validates, saves, stops, resumes."""

import contextlib
import math
import signal
import time
from typing import NamedTuple

import jax

from mmlm.errors import UserError
from mmlm.parallel import hosts
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.log import Log, Progress
from mmlm.training.step import StepOptions, TrainState, train_step
from mmlm.watch import Watch

PREEMPTED = 75  # exit code after SIGTERM: to be started again by the same command (EX_TEMPFAIL of sysexits.h)


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
  watch: Watch = Watch()  # over batches and steps
  skips: int = 3  # updates skipped in a row (StepOptions.skip) before the training stops


class Interrupted(Exception):
  """SIGINT or SIGTERM came; the state was saved. `code`: what the process ends with."""

  def __init__(self, text: str, received: list):
    super().__init__(text)
    self.code = 130 if signal.SIGINT in received[:1] else PREEMPTED  # none is received where jax tells several processes


@contextlib.contextmanager
def preemptible():
  """SIGTERM ends the process with its own code also where there is nothing to save yet."""

  def leave(number, frame):
    raise SystemExit(PREEMPTED)

  old = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, old)


@contextlib.contextmanager
def _stop_signals():
  """A list that SIGINT and SIGTERM are put into, so that a step is finished and saved; a second one acts at once.

  SIGTERM to one of several processes is jax's: it tells all of them at the same step (`hosts.preempted`).
  """
  received = []

  def note(number, frame):
    received.append(number)
    for each in old:
      signal.signal(each, signal.SIG_DFL)

  numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
  old = {number: signal.signal(number, note) for number in numbers}
  try:
    yield received
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def train(parts: Parts, parallel, state: TrainState, checkpoints: Checkpoints, folder) -> None:
  """Trains from `state`, or from the newest checkpoint that can be read, to the end of the schedule.

  Raises:
    UserError: a loss or gradient that is not finite (the ids of the batch are named) unless it may be skipped, a full disk.
    Interrupted: after a signal, once the state is saved.
  """
  with contextlib.closing(checkpoints):
    state, meta = checkpoints.restore(parallel.abstract(state)) or (state, {'best': None, 'stale': 0})
    start = int(state.step)
    if start:
      print(f'Resumed at step {start} of {parts.schedule.total}.', flush=True)
    if start >= parts.schedule.total or _out_of_patience(parts.schedule, meta):
      print('The run is complete.')
      return
    with contextlib.closing(Log(folder, start, hosts.writes())) as log, _stop_signals() as stopped:
      try:
        _Loop(parts, parallel, checkpoints, log, meta).run(state, start, stopped)
      except RuntimeError:
        if not stopped:
          raise
        # Ctrl-C also reached a loader process that was only starting.
        raise Interrupted('Interrupted. The same command goes on from the last checkpoint.', stopped) from None


def _out_of_patience(schedule: Schedule, meta: dict) -> bool:
  return 0 < schedule.patience <= meta['stale']


class _Loop:
  def __init__(self, parts, parallel, checkpoints, log, meta):
    self.parts, self.parallel, self.checkpoints, self.log, self.meta = parts, parallel, checkpoints, log, dict(meta)
    self.waiting = None  # (step, metrics) that are still computed

  def run(self, state, start, stopped):
    schedule = self.parts.schedule
    options = self.parts.options
    compiled = self.parallel.step(lambda state, batch: train_step(state, batch, options), options.accumulate)
    state = self.parallel.place(state)
    self.progress = Progress(start, schedule.total, self.meta.get('since_last'))
    with self.parts.stream(start, schedule.total) as batches:
      for step, batch in enumerate(self._watched(batches, start), start + 1):
        state, metrics = compiled(state, batch)
        self._settle()
        if step == start + 1 and compiled.cost:
          print(f'A step takes {compiled.cost}.', flush=True)
        flops = compiled.cost.flops if compiled.cost else 0
        self.waiting = (step, metrics, len(self.parts.ids(step - 1)), flops)
        last = step == schedule.total
        if step % schedule.log_every == 0 or last:
          self._settle()
          rate = float(self.parts.learning_rate(step - 1))
          skipped = {'skipped': self.meta['skipped']} if 'skipped' in self.meta else {}
          self.log.write('train', step, self.progress.line(step) | {'learning_rate': rate} | skipped)
        if step % schedule.eval_every == 0 or last:
          self._validate(step, state)
          if _out_of_patience(schedule, self.meta):
            print(f'No better {self.checkpoints.monitor} in {schedule.patience} validations: stopped.')
            return
        if stopped or hosts.preempted(step):
          self._settle()
          if step not in self.checkpoints.steps():
            self._save(self.parallel.unreplicate(state), {})
          raise Interrupted(f'Interrupted: saved at step {step}. The same command goes on from there.', stopped)

  def _watched(self, batches, number):
    """The same batches; one that does not come is named."""
    batches, end = iter(batches), object()
    waits = lambda: f'step {number + 1} needs its batch, with the examples {", ".join(self.parts.ids(number)[:5])}, ...'
    while True:
      with self.parts.watch(waits):
        batch = next(batches, end)
      if batch is end:
        return
      yield batch
      number += 1

  def _settle(self):
    """Waits for the metrics of the step before, and checks them."""
    if self.waiting is None:
      return
    (step, metrics, examples, flops), self.waiting = self.waiting, None
    with self.parts.watch(lambda: f'step {step} is computed by the devices; one of them, or another host, may be lost'):
      metrics = jax.device_get(metrics)
    if math.isfinite(metrics['loss']) and math.isfinite(metrics['gradient_norm']):
      self.progress.add(metrics, examples, flops)
      self.meta.pop('skipped_in_a_row', None)
    else:
      self._not_finite(step, metrics)

  def _not_finite(self, step, metrics):
    """Counts an update that the step has skipped; UserError where none may be, or after too many."""
    said = f'step {step}: the loss is {metrics["loss"]} and the gradient norm {metrics["gradient_norm"]}'
    ids, options = ', '.join(self.parts.ids(step - 1)), self.parts.options
    if options.skip:
      self.meta['skipped'] = self.meta.get('skipped', 0) + 1
      row = self.meta['skipped_in_a_row'] = self.meta.get('skipped_in_a_row', 0) + 1
      print(f'WARNING: {said}. The update is skipped ({self.meta["skipped"]} so far). The examples of this batch: {ids}.', flush=True)
      if row < self.parts.skips:
        return
      said += f', and {row} updates were skipped in a row (watch.skips_in_a_row)'
    raise UserError(
      f'{said}. The last good checkpoint is kept ({(self.checkpoints.steps() or ["none yet"])[-1]}). Try a lower learning rate '
      f'or a longer warm-up, or look at the examples of this batch: {ids}.'
    )

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
