"""The training loop: it reads the metrics of step k while k + 1 runs, validates, saves, stops."""

import contextlib
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np

from mmlm.parallel import hosts
from mmlm.parallel.strategies import Strategy
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.metric_writer import MetricWriter
from mmlm.training.progress_line import ProgressLine
from mmlm.training.step import TrainState, train_step
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch

PREEMPTED = 75  # exit code after SIGTERM: start the same command again (EX_TEMPFAIL of sysexits.h)
SIGINT_CODE = 130

GetState = Callable[[], TrainState]


class Schedule(NamedTuple):
  """When things happen; steps are counted from the start of the run."""

  total: int
  log_every: int
  eval_every: int
  patience: int  # validations
  # Averaging begins when a score is worse than the best of those more than so many validations ago
  # (Merity et al. 2018, algorithm 1); 0 = never.
  average_after: int = 0


class Parts(NamedTuple):
  """What the loop needs of a task, its data and its model."""

  options: Any  # of the step: StepOptions, or others with `accumulate` and `skip`
  learning_rate: Callable[[int], float]
  stream: Callable[[int, int], Any]  # (start, stop) -> context manager with batches
  ids: Callable[[int], list[str]]  # number of a batch -> ids of its examples
  validate: Callable[[Any], dict[str, float]]  # params -> scores
  schedule: Schedule
  watch: Watch = Watch()  # over batches and steps
  skips: int = 3  # updates skipped in a row (StepOptions.skip) before the training stops
  step: Callable = train_step  # (state, batch, options) -> (state, metrics)


class Interrupted(Exception):
  """SIGINT or SIGTERM was received; the state was saved.

  `code` is the exit code of the process.
  """

  state = 'interrupted'

  def __init__(self, text: str, received: list[int]):
    super().__init__(text)
    # `received` is empty where jax handles the signal for several processes.
    self.code = PREEMPTED
    if signal.SIGINT in received[:1]:
      self.code = SIGINT_CODE


class Diverged(UserError):
  """A loss or a gradient is not finite."""

  state = 'diverged'


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
  """SIGTERM ends the process with its exit code also before there is anything to save."""

  def leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(PREEMPTED)

  old = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, old)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """Yields a list of the SIGINT and SIGTERM received, so that a step is finished and saved.

  A second signal acts at once. SIGTERM to one of several processes is handled by jax, which tells
  all of them at the same step (`hosts.preempted`).
  """
  received = []

  def note(number: int, frame: FrameType | None) -> None:
    received.append(number)
    for each in old:
      signal.signal(each, signal.SIG_DFL)

  numbers = [signal.SIGINT]
  if jax.process_count() == 1:
    numbers.append(signal.SIGTERM)
  old = {number: signal.signal(number, note) for number in numbers}
  try:
    yield received
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def train(
  parts: Parts,
  parallel: Strategy,
  state: TrainState,
  checkpoints: Checkpoints,
  folder: pathlib.Path,
) -> None:
  """Trains from `state`, or from the newest readable checkpoint, to the end of the schedule.

  Raises:
    Diverged: a loss or gradient is not finite and may not be skipped; names the batch's examples.
    UserError: a full disk.
    Interrupted: after a signal, once the state is saved.
  """
  total = parts.schedule.total
  writing = hosts.writes()
  with contextlib.closing(checkpoints):
    state, meta, start = begin(parts, state, checkpoints, parallel.abstract(state))
    if is_complete(parts.schedule, start, meta):
      print('The run is complete.')
      if writing:  # it was interrupted at its last step, or is older than status.json
        runs.write_status(folder, 'done', total)
      return
    watched = runs.watched(folder, total) if writing else contextlib.nullcontext()
    writer = MetricWriter(folder, start, writing)
    with watched, contextlib.closing(writer), stop_signals() as stopped:
      keeper = Keeper(parts, checkpoints, writer, meta, start)
      try:
        _Steps(keeper, parallel, stopped).run(state, start)
      except RuntimeError:
        if not stopped:
          raise
        # Ctrl-C also reached a loader process that was starting.
        raise Interrupted(
          'Interrupted. The same command resumes from the last checkpoint.', stopped
        ) from None


def begin(
  parts: Parts,
  state: TrainState,
  checkpoints: Checkpoints,
  abstract: TrainState,
) -> tuple[TrainState, dict, int]:
  """Returns `state`, or that of the newest checkpoint, with its `meta` and its step.

  Args:
    abstract: shapes, types and shardings of the state.
  """
  restored = checkpoints.restore(abstract)
  state, meta = restored or (state, {'best': None, 'stale': 0})
  start = int(state.step)
  if start:
    print(f'Resumed at step {start} of {parts.schedule.total}.', flush=True)
  return state, meta, start


def is_complete(
  schedule: Schedule,
  step: int,
  meta: dict,
) -> bool:
  """Whether a run is at its last step or has no patience left."""
  return step >= schedule.total or 0 < schedule.patience <= meta['stale']


class _Pending(NamedTuple):
  """A step whose metrics are still computed."""

  step: int
  metrics: dict
  examples: int
  flops: float


class _Steps:
  """Runs steps one ahead of the metrics that are read."""

  def __init__(
    self,
    keeper: 'Keeper',
    parallel: Strategy,
    stopped: list[int],
  ):
    self.keeper = keeper
    self.parts = keeper.parts
    self.parallel = parallel
    self.stopped = stopped
    self.pending: _Pending | None = None

  def run(self, state: TrainState, start: int) -> None:
    """Trains to the end of the schedule.

    Raises:
      Interrupted: after a signal, once the state is saved.
    """
    parts = self.parts
    parallel = self.parallel

    def step_function(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
      return parts.step(state, batch, parts.options)

    compiled = parallel.step(step_function, parts.options.accumulate)
    state = parallel.place(state)
    with parts.stream(start, parts.schedule.total) as batches:
      for step, batch in enumerate(_watched(parts, batches, start), start + 1):
        state, metrics = compiled(state, batch)
        self._settle()
        flops = 0
        if compiled.cost:
          flops = compiled.cost.flops
        if step == start + 1 and compiled.cost:
          print(f'A step takes {compiled.cost}.', flush=True)
        # Each process has its part of the examples.
        examples = int(batch['weight'].sum()) * parallel.part[1]
        self.pending = _Pending(step, metrics, examples, flops)
        if self.stopped or self.keeper.due(step):
          self._settle()
        ended = self.keeper.after(step, lambda: parallel.unreplicate(state))  # noqa: B023 called at once
        if self.keeper.averages:
          state = state._replace(averaged=parallel.replicate(np.int32(1)))
        if self.stopped or hosts.preempted(step):
          self._interrupt(step, lambda: parallel.unreplicate(state))  # noqa: B023
        if ended:
          return

  def _settle(self) -> None:
    """Reads and checks the metrics of the pending step."""
    if self.pending is None:
      return
    pending = self.pending
    self.pending = None

    def waits() -> str:
      return (
        f'step {pending.step} is computed by the devices; one of them, or another host, may be lost'
      )

    with self.parts.watch(waits):
      metrics = jax.device_get(pending.metrics)
    self.keeper.note(pending.step, metrics, pending.examples, pending.flops)

  def _interrupt(self, step: int, get_state: GetState) -> None:
    self._settle()
    self.keeper.save_at(step, get_state)
    raise Interrupted(
      f'Interrupted: saved at step {step}. The same command resumes from there.', self.stopped
    )


def _watched(
  parts: Parts,
  batches: Iterable[dict],
  number: int,
) -> Iterator[dict]:
  """Yields the batches; the watch names one that is late."""
  batches = iter(batches)

  def waits() -> str:
    ids = ', '.join(parts.ids(number)[:5])
    return f'step {number + 1} needs its batch, with the examples {ids}, ...'

  while True:
    with parts.watch(waits):
      batch = next(batches, None)
    if batch is None:
      return
    yield batch
    number += 1


class Keeper:
  """Logs, validates and saves a run while it trains, and decides whether it ends.

  States are passed as functions without arguments, which are called only when they are needed.

  Args:
    meta: of the restored checkpoint: the best score, and the validations since then.
    name: prefix of printed lines.
    among: runs that train together.

  Attributes:
    values: scores of the last step, if it was validated.
    averages: the mean of the parameters begins with the last step. The saved state says so; the
      one that training continues with must, too.
  """

  def __init__(
    self,
    parts: Parts,
    checkpoints: Checkpoints,
    metric_writer: MetricWriter,
    meta: dict,
    start: int,
    name: str = '',
    among: int = 1,
  ):
    self.parts = parts
    self.checkpoints = checkpoints
    self.metric_writer = metric_writer
    self.meta = dict(meta)
    self.name = name
    sums = self.meta.get('since_last')
    self.progress = ProgressLine(start, parts.schedule.total, sums, name, among)
    self.values = {}
    self.averages = False

  def note(
    self,
    step: int,
    metrics: dict,
    examples: int,
    flops: float = 0.0,
  ) -> None:
    """Checks and counts the metrics of a step, on the host."""
    if math.isfinite(metrics['loss']) and math.isfinite(metrics['gradient_norm']):
      self.progress.add(metrics, examples, flops)
      self.meta.pop('skipped_in_a_row', None)
    else:
      self._not_finite(step, metrics)

  def _not_finite(self, step: int, metrics: dict) -> None:
    """Counts a skipped update; Diverged where none may be skipped, or after too many."""
    text = (
      f'{self.name}step {step}: the loss is {metrics["loss"]} and the gradient norm '
      f'{metrics["gradient_norm"]}'
    )
    ids = ', '.join(self.parts.ids(step - 1))
    if self.parts.options.skip:
      in_a_row = self.meta.get('skipped_in_a_row', 0) + 1
      self.meta['skipped_in_a_row'] = in_a_row
      self.meta['skipped'] = self.meta.get('skipped', 0) + 1
      print(
        f'WARNING: {text}. The update is skipped ({self.meta["skipped"]} so far). '
        f'The examples of this batch: {ids}.',
        flush=True,
      )
      if in_a_row < self.parts.skips:
        return
      text += f', and {in_a_row} updates were skipped in a row (watch.skips_in_a_row)'
    last_good = (self.checkpoints.steps() or ['none yet'])[-1]
    raise Diverged(
      f'{text}. The last good checkpoint is kept ({last_good}). Try a lower learning rate or a '
      f'longer warm-up, or look at the examples of this batch: {ids}.'
    )

  def due(self, step: int) -> bool:
    """Whether something is written after a step, for which its metrics must be known."""
    schedule = self.parts.schedule
    if step == schedule.total:
      return True
    return step % schedule.log_every == 0 or step % schedule.eval_every == 0

  def after(self, step: int, get_state: GetState) -> bool:
    """Logs, validates and saves, each when it is due. Returns whether the run ends."""
    schedule = self.parts.schedule
    self.values = {}
    self.averages = False
    last = step == schedule.total
    if step % schedule.log_every == 0 or last:
      self._log(step)
    if step % schedule.eval_every == 0 or last:
      self._validate(step, get_state())
      if is_complete(schedule, 0, self.meta):
        print(
          f'{self.name}No better {self.checkpoints.monitor} in {schedule.patience} validations: '
          'stopped.'
        )
        return True
    return last

  def save_at(self, step: int, get_state: GetState) -> None:
    """Saves a step that is not saved yet."""
    if step not in self.checkpoints.steps():
      self._save(get_state(), {})

  def _log(self, step: int) -> None:
    values = self.progress.print(step)
    values['learning_rate'] = float(self.parts.learning_rate(step - 1))
    if 'skipped' in self.meta:
      values['skipped'] = self.meta['skipped']
    self.metric_writer.write('train', step, values)

  def _validate(self, step: int, state: TrainState) -> None:
    began = time.monotonic()
    params = state.params if state.ema == () else state.ema
    self.values = self.parts.validate(params)
    scores = '  '.join(f'{name} {value:.4f}' for name, value in self.values.items())
    print(f'{self.name}step {step:>6} valid  {scores}', flush=True)
    seconds = time.monotonic() - began
    self.metric_writer.write('valid', step, self.values | {'seconds': seconds})
    self.progress.exclude(seconds)
    score = self._monitored()
    self._count_stale(score)
    self.averages = self._averaging_begins(state, score)
    if self.averages:
      print(
        f'{self.name}step {step:>6}: from here on the mean of the parameters is evaluated.',
        flush=True,
      )
      state = state._replace(averaged=np.int32(1))
    self._save(state, self.values)

  def _monitored(self) -> float:
    monitor = self.checkpoints.monitor
    if monitor not in self.values:
      raise UserError(
        f'train.monitor={monitor!r} is not among the validation scores {sorted(self.values)}.'
      )
    return self.values[monitor]

  def _count_stale(self, score: float) -> None:
    """Updates the best score, and the number of validations since then."""
    best = self.meta['best']
    sign = self.checkpoints.sign
    if math.isfinite(score) and (best is None or sign * (score - best) > 0):
      self.meta |= {'best': score, 'stale': 0}
    else:
      self.meta['stale'] += 1

  def _averaging_begins(self, state: TrainState, score: float) -> bool:
    """Whether the score is worse than the best of those before the last `average_after` ones."""
    window = self.parts.schedule.average_after
    if not window or state.averaged:
      return False
    before = self.meta.get('scores', [])
    sign = self.checkpoints.sign
    self.meta['scores'] = [*before, score]
    if len(before) <= window:
      return False
    return sign * score < max(sign * old for old in before[:-window])

  def _save(self, state: TrainState, values: dict) -> None:
    meta = self.meta | {'since_last': self.progress.sums.tolist()}
    self.checkpoints.save(state, meta, values)
