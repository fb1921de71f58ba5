"""The training loop: fetches the metrics of step k while k + 1 runs, validates, saves, stops, resumes."""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mmlm.parallel import hosts
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.metric_writer import Log, Progress
from mmlm.training.step import TrainState, train_step
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch

PREEMPTED = (
  75  # exit code after SIGTERM: to be started again by the same command (EX_TEMPFAIL of sysexits.h)
)


class Schedule(NamedTuple):
  """Steps, all of them counted from the start of the run."""

  total: int
  log_every: int
  eval_every: int
  patience: int  # validations
  average_after: int = 0  # validations by which a score must be worse for averaging to begin (Merity et al. 2018, algorithm 1); 0 = never


class Parts(NamedTuple):
  """What the loop is given: it knows no task, no data set and no model."""

  options: object  # of the step: StepOptions, or others with `accumulate` and `skip`
  learning_rate: object  # step -> rate
  stream: object  # (start, stop) -> context manager with an iterator over batches
  ids: object  # number of a batch -> ids of its examples
  validate: object  # params -> {name: value}
  schedule: Schedule
  watch: Watch = Watch()  # over batches and steps
  skips: int = 3  # updates skipped in a row (StepOptions.skip) before the training stops
  step: Callable = train_step  # (state, batch, options) -> (state, metrics)


class Interrupted(Exception):
  """SIGINT or SIGTERM came; the state was saved. `code`: what the process ends with."""

  state = 'interrupted'

  def __init__(self, text: str, received: list):
    super().__init__(text)
    # none is received where jax tells several processes
    if signal.SIGINT in received[:1]:
      self.code = 130
    else:
      self.code = PREEMPTED


class Diverged(UserError):
  """A loss or a gradient is not finite."""

  state = 'diverged'


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
def stop_signals():
  """A list that SIGINT and SIGTERM are put into, so that a step is finished and saved; a second one acts at once.

  SIGTERM to one of several processes is jax's: it tells all of them at the same step (`hosts.preempted`).
  """
  received = []

  def note(number, frame):
    received.append(number)
    for each in old:
      signal.signal(each, signal.SIG_DFL)

  if jax.process_count() > 1:
    numbers = (signal.SIGINT,)
  else:
    numbers = (signal.SIGINT, signal.SIGTERM)
  old = {number: signal.signal(number, note) for number in numbers}
  try:
    yield received
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def train(parts: Parts, parallel, state: TrainState, checkpoints: Checkpoints, folder) -> None:
  """Trains from `state`, or from the newest checkpoint that can be read, to the end of the schedule.

  Raises:
    Diverged: a loss or gradient that is not finite (the ids of the batch are named) unless it may be skipped.
    UserError: a full disk.
    Interrupted: after a signal, once the state is saved.
  """
  total = parts.schedule.total
  writing = hosts.writes()
  with contextlib.closing(checkpoints):
    state, meta, start = begin(parts, state, checkpoints, parallel.abstract(state))
    if is_complete(parts.schedule, start, meta):
      print('The run is complete.')
      if writing:  # it was interrupted at its last step, or trained before there was such a file
        runs.write_status(folder, 'done', total)
      return
    if writing:
      watched = runs.watched(folder, total)
    else:
      watched = contextlib.nullcontext()
    with watched, contextlib.closing(Log(folder, start, writing)) as log, stop_signals() as stopped:
      try:
        _steps(Keeper(parts, checkpoints, log, meta, start), parallel, state, start, stopped)
      except RuntimeError:
        if not stopped:
          raise
        # Ctrl-C also reached a loader process that was only starting.
        raise Interrupted(
          'Interrupted. The same command goes on from the last checkpoint.', stopped
        ) from None


def begin(
  parts: Parts, state: TrainState, checkpoints: Checkpoints, abstract: TrainState
) -> tuple[TrainState, dict, int]:
  """`state`, or that of the newest checkpoint; what it tells of the run; and its step. `abstract`: shapes, types and places of the state."""
  state, meta = checkpoints.restore(abstract) or (state, {'best': None, 'stale': 0})
  start = int(state.step)
  if start:
    print(f'Resumed at step {start} of {parts.schedule.total}.', flush=True)
  return state, meta, start


def is_complete(schedule: Schedule, step: int, meta: dict) -> bool:
  return step >= schedule.total or 0 < schedule.patience <= meta['stale']


def _steps(keeper: 'Keeper', parallel, state, start: int, stopped: list) -> None:
  # (step, metrics that are still computed, examples, operations)
  parts = keeper.parts
  waiting = None
  compiled = parallel.step(
    lambda state, batch: parts.step(state, batch, parts.options), parts.options.accumulate
  )
  state = parallel.place(state)

  def settle():
    nonlocal waiting
    if waiting is None:
      return
    (step, metrics, examples, flops), waiting = waiting, None
    with parts.watch(
      lambda: f'step {step} is computed by the devices; one of them, or another host, may be lost'
    ):
      metrics = jax.device_get(metrics)
    keeper.note(step, metrics, examples, flops)

  with parts.stream(start, parts.schedule.total) as batches:
    for step, batch in enumerate(_watched(parts, batches, start), start + 1):
      state, metrics = compiled(state, batch)
      settle()
      if step == start + 1 and compiled.cost:
        print(f'A step takes {compiled.cost}.', flush=True)
      examples = int(batch['weight'].sum()) * parallel.part[1]  # each process has its part of them
      waiting = step, metrics, examples, compiled.cost.flops if compiled.cost else 0
      if stopped or keeper.due(step):
        settle()
      ended = keeper.after(step, lambda: parallel.unreplicate(state))  # noqa: B023 called at once
      if keeper.averages:
        state = state._replace(averaged=parallel.replicate(np.int32(1)))
      if stopped or hosts.preempted(step):
        settle()
        keeper.save_at(step, lambda: parallel.unreplicate(state))  # noqa: B023
        raise Interrupted(
          f'Interrupted: saved at step {step}. The same command goes on from there.', stopped
        )
      if ended:
        return


def _watched(parts: Parts, batches, number: int):
  """The same batches; one that does not come is named."""
  batches = iter(batches)
  end = object()

  def waits():
    return f'step {number + 1} needs its batch, with the examples {", ".join(parts.ids(number)[:5])}, ...'

  while True:
    with parts.watch(waits):
      batch = next(batches, end)
    if batch is end:
      return
    yield batch
    number += 1


class Keeper:
  """What is kept of a run while it trains: its log, its checkpoints, and whether it goes on.

  `meta` is what a checkpoint tells of it: the best score and for how many validations there was none better. `values`: the newest
  validation; `averages`: with it the mean of the parameters begins, in the state that it has saved: the one that goes on must count it too.
  States are asked for, as functions without arguments, only where they are wanted.
  """

  def __init__(
    self,
    parts: Parts,
    checkpoints: Checkpoints,
    log: Log,
    meta: dict,
    start: int,
    name: str = '',
    among: int = 1,
  ):
    self.parts = parts
    self.checkpoints = checkpoints
    self.log = log
    self.meta = dict(meta)
    self.name = name
    self.progress = Progress(start, parts.schedule.total, self.meta.get('since_last'), name, among)
    self.values = {}
    self.averages = False

  def note(self, step: int, metrics: dict, examples: int, flops: float = 0.0):
    """Checks and counts the metrics of a step, on the host."""
    if math.isfinite(metrics['loss']) and math.isfinite(metrics['gradient_norm']):
      self.progress.add(metrics, examples, flops)
      self.meta.pop('skipped_in_a_row', None)
    else:
      self._not_finite(step, metrics)

  def _not_finite(self, step: int, metrics: dict):
    """Counts an update that the step has skipped; Diverged where none may be, or after too many."""
    said = f'{self.name}step {step}: the loss is {metrics["loss"]} and the gradient norm {metrics["gradient_norm"]}'
    ids = ', '.join(self.parts.ids(step - 1))
    if self.parts.options.skip:
      self.meta['skipped'] = self.meta.get('skipped', 0) + 1
      row = self.meta['skipped_in_a_row'] = self.meta.get('skipped_in_a_row', 0) + 1
      print(
        f'WARNING: {said}. The update is skipped ({self.meta["skipped"]} so far). The examples of this batch: {ids}.',
        flush=True,
      )
      if row < self.parts.skips:
        return
      said += f', and {row} updates were skipped in a row (watch.skips_in_a_row)'
    raise Diverged(
      f'{said}. The last good checkpoint is kept ({(self.checkpoints.steps() or ["none yet"])[-1]}). Try a lower learning rate '
      f'or a longer warm-up, or look at the examples of this batch: {ids}.'
    )

  def due(self, step: int) -> bool:
    """Whether something is written after a step, for which its metrics must be known."""
    schedule = self.parts.schedule
    return step == schedule.total or not (step % schedule.log_every and step % schedule.eval_every)

  def after(self, step: int, state) -> bool:
    """Logs, validates and saves, each in its time. Whether the run ends with this step."""
    schedule = self.parts.schedule
    self.averages = False
    last = step == schedule.total
    if step % schedule.log_every == 0 or last:
      rate = float(self.parts.learning_rate(step - 1))
      if 'skipped' in self.meta:
        skipped = {'skipped': self.meta['skipped']}
      else:
        skipped = {}
      self.log.write('train', step, self.progress.line(step) | {'learning_rate': rate} | skipped)
    if step % schedule.eval_every == 0 or last:
      self._validate(step, state())
      if is_complete(schedule, 0, self.meta):
        print(
          f'{self.name}No better {self.checkpoints.monitor} in {schedule.patience} validations: stopped.'
        )
        return True
    return last

  def save_at(self, step: int, state):
    """Saves a step that is not saved yet."""
    if step not in self.checkpoints.steps():
      self._save(state(), {})

  def _validate(self, step: int, state: TrainState):
    began = time.monotonic()
    self.values = values = self.parts.validate(state.ema if state.ema != () else state.params)
    print(
      f'{self.name}step {step:>6} valid  ' + '  '.join(f'{k} {v:.4f}' for k, v in values.items()),
      flush=True,
    )
    seconds = time.monotonic() - began
    self.log.write('valid', step, values | {'seconds': seconds})
    self.progress.since += seconds  # examples a second are those of training
    monitor = self.checkpoints.monitor
    best = self.meta['best']
    if monitor not in values:
      raise UserError(
        f'train.monitor={monitor!r} is not among the validation scores {sorted(values)}.'
      )
    better = math.isfinite(values[monitor]) and (
      best is None or self.checkpoints.sign * (values[monitor] - best) > 0
    )
    self.meta |= (
      {'best': values[monitor], 'stale': 0} if better else {'stale': self.meta['stale'] + 1}
    )
    self.averages = self._averaging_begins(state, values[monitor])
    if self.averages:
      print(
        f'{self.name}step {step:>6}: from here on the mean of the parameters is evaluated.',
        flush=True,
      )
      state = state._replace(averaged=np.int32(1))
    self._save(state, values)

  def _averaging_begins(self, state: TrainState, score: float) -> bool:
    """Whether the score is worse than the best of those before the last `average_after` validations."""
    if not (window := self.parts.schedule.average_after) or state.averaged:
      return False
    before = self.meta.get('scores', [])
    sign = self.checkpoints.sign
    self.meta['scores'] = [*before, score]
    return len(before) > window and sign * score < max(sign * old for old in before[:-window])

  def _save(self, state: TrainState, values: dict):
    self.checkpoints.save(state, self.meta | {'since_last': self.progress.sums.tolist()}, values)
