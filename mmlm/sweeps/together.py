"""Trains trials of one shape in one program: the train step under `vmap`.

Each trial has a run folder, as if it was trained alone.

Axes: K trials, B batch.
"""

import contextlib
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmlm import config as configs
from mmlm.experiment.claim import check_folder
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import step_options
from mmlm.sweeps.shapes import RATES, groups_of, numbers_of, with_numbers
from mmlm.sweeps.trial_runs import Member, Pruned, ShouldStop, Trial, members_of
from mmlm.training import loop
from mmlm.training.step import StepOptions, TrainState, train_step
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError

Numbers = dict[str, Any]  # {key of the config: its values, [K] or [K, T]}
Batch = dict[str, np.ndarray]


def train_together(config: ConfigDict, folders: dict[int, pathlib.Path]) -> list[Experiment]:
  """Trains a completed config once for each seed of {seed: run folder}.

  Every run has its own initial parameters, dropout and order of data, as if it was trained alone.

  Returns:
    The experiments of the runs.

  Raises:
    UserError: batches of several shapes (data.buckets), a folder that is not empty, a run that
      fails.
  """
  if len(config.data.buckets) > 1:
    raise UserError(
      f'data.buckets={config.data.buckets}: seeds that are trained together need batches of one '
      'shape, so one bucket.'
    )
  trials = []
  for seed, folder in folders.items():
    if folder.exists() and any(folder.iterdir()):
      raise UserError(f'{folder} is not empty: seeds are trained together from their start only.')
    seeded = configs.override(config, {'seed': str(seed)})
    trials.append(Trial(seeded, folder))
  train_group(trials)
  for trial in trials:
    status = run_dir.read_json(trial.folder / run_dir.STATUS)
    if status['state'] != 'done':
      raise UserError(f'{trial.folder}: {status["error"]}')
  experiments = []
  for trial in trials:
    experiments.append(Experiment.of_run(trial.folder, {}))
  return experiments


def train_trials(
  trials: list[Trial], should_stop: ShouldStop | None = None, at_once: int = 0
) -> None:
  """Trains trials of any configs, those of one shape together.

  status.json of each says how it ended: one that fails does not stop the others. What is complete
  is not trained again, and what was begun is resumed from its checkpoint.

  Args:
    should_stop: called after each validation of a trial; whether to prune it.
    at_once: how many are trained together at most; 0 = all.

  Raises:
    Interrupted: after a signal, once all states are saved.
  """
  for group in groups_of(trials, lambda trial: trial.config):
    size = at_once or len(group)
    for start in range(0, len(group), size):
      part = group[start : start + size]
      train_group(part, should_stop)


def train_group(trials: list[Trial], should_stop: ShouldStop | None = None) -> None:
  """Trains trials of one shape; see `train_trials`."""
  with contextlib.ExitStack() as locks:
    for trial in trials:
      check_folder(trial.folder)  # before a lock is left in it
      lock = run_dir.lock(trial.folder)
      locks.enter_context(contextlib.closing(lock))
    members = members_of(trials)
    if members:
      _train_members(members, should_stop)


def _train_members(members: list[Member], should_stop: ShouldStop | None) -> None:
  """Trains members until all have ended."""
  first = members[0]
  several_shapes = len(first.experiment.data.buckets) > 1
  numbers = _numbers_of_members(members)

  def options_of(numbers: Numbers, params: Any) -> StepOptions:
    return _options(first, numbers, params)

  compiled = step_of_all(options_of)
  with loop.stop_signals() as stopped:
    while members:
      current = np.ones(len(members), bool)
      if several_shapes:  # then batches agree in shape at the same step alone
        steps = np.array([member.step for member in members])
        current = steps == steps[0]
      of_stretch = list(itertools.compress(members, current))
      of_current = _select(numbers, current)
      stretch = _Stretch(of_stretch, compiled, of_current, should_stop)
      stretch.run(stopped)
      active = np.array([member.active for member in members])
      members = list(itertools.compress(members, active))
      numbers = _select(numbers, active)


def _numbers_of_members(members: list[Member]) -> Numbers:
  configs_of_trials = []
  schedules = []
  totals = []
  for member in members:
    configs_of_trials.append(member.experiment.config)
    schedules.append(member.parts.learning_rate)
    totals.append(member.total)
  return numbers_of(configs_of_trials, schedules, totals)


def _select(numbers: Numbers, mask: np.ndarray) -> Numbers:
  selected = {}
  for key, values in numbers.items():
    selected[key] = values[mask]
  return selected


def _options(member: Member, numbers: Numbers, params: Any) -> StepOptions:
  """Returns the step options of one trial with these numbers, of the shape of `member`."""
  if not numbers:
    return member.parts.options
  schedule = member.parts.learning_rate
  if RATES in numbers:
    schedule = numbers[RATES].__getitem__  # step -> learning rate
  config = with_numbers(member.experiment.config, numbers)
  return step_options(member.experiment, config, schedule, params)


class _Pending(NamedTuple):
  """A step whose metrics the device may still compute."""

  steps: int  # of this stretch
  metrics: dict[str, jax.Array]  # [K]
  examples: list[int]  # of each trial


class _Stretch:
  """Training until half of the members have ended.

  The others are then stacked anew, so that those that have ended cost no more time.
  """

  def __init__(
    self,
    members: list[Member],
    compiled: Callable,
    numbers: Numbers,
    should_stop: ShouldStop | None,
  ):
    self.members = members
    self.compiled = compiled
    self.numbers = numbers
    self.should_stop = should_stop
    self.pending: _Pending | None = None
    for member in members:
      member.keeper.progress.divide_among(len(members))

  def run(self, stopped: list) -> None:
    """Trains; `stopped` holds the signals that have arrived."""
    members = self.members
    state = stacked([member.hand_over_state() for member in members])
    steps = 0
    with contextlib.ExitStack() as stack:
      for batches in self._batches(stack):
        steps += 1
        batch = stacked(batches)
        state, metrics = self.compiled(state, batch, self.numbers)
        self._settle()
        examples = [int(batch['weight'].sum()) for batch in batches]
        self.pending = _Pending(steps, metrics, examples)
        state = self._after_step(steps, state, bool(stopped))
        if stopped:
          self._interrupt(steps, state, stopped)
        active = sum(member.active for member in members)
        if active * 2 <= len(members):
          break
    for i, member in self._active():
      member.take_state(_unstack(state, i), steps)

  def _active(self) -> Iterator[tuple[int, Member]]:
    """Yields the members that have not ended, with their places in the stack."""
    for i, member in enumerate(self.members):
      if member.active:
        yield i, member

  def _batches(self, stack: contextlib.ExitStack) -> Iterator[list[Batch]]:
    """Yields, without end, the batches of a step, one a member.

    A stream that has ended repeats its last batch; what becomes of its members is ignored.
    """
    ends: dict[tuple, int] = {}
    for member in self.members:
      key = member.stream_key
      ends[key] = max(member.total, ends.get(key, 0))
    streams = {}
    for member in self.members:
      key = member.stream_key
      if key not in streams:
        stream = stack.enter_context(member.parts.stream(member.step, ends[key]))
        streams[key] = iter(stream)
    keys = [member.stream_key for member in self.members]
    batches: dict[tuple, Any] = {}
    while True:
      for key, stream in streams.items():
        batches[key] = next(stream, batches.get(key))
      yield [batches[key] for key in keys]

  def _settle(self) -> None:
    """Waits for the metrics of the newest step, if they are not known, and notes each trial's."""
    if self.pending is None:
      return
    pending = self.pending
    self.pending = None
    metrics = jax.device_get(pending.metrics)
    for i, member in self._active():
      of_member = {name: values[i] for name, values in metrics.items()}
      step = member.step + pending.steps
      with _ending_on_error(member):
        member.keeper.note(step, of_member, pending.examples[i])

  def _after_step(self, steps: int, state: TrainState, stopped: bool) -> TrainState:
    """Logs, validates and ends the trials for which it is time.

    Returns:
      The stacked state to go on from: a new one where the averaging of a trial begins.
    """
    if stopped or any(member.keeper.due(member.step + steps) for _, member in self._active()):
      self._settle()
    for i, member in self._active():
      step = member.step + steps
      if not member.keeper.due(step):
        continue
      began = time.monotonic()
      with _ending_on_error(member):
        self._after_step_of(member, step, _unstacker(state, i))
      if member.keeper.averages:
        averaged = state.averaged.at[i].set(1)
        state = state._replace(averaged=averaged)
      seconds = time.monotonic() - began
      self._exclude_time_from_others(member, seconds)
    return state

  def _exclude_time_from_others(self, member: Member, seconds: float) -> None:
    """Keeps the validation of a member out of the speeds of the others."""
    for other in self.members:
      if other is not member:
        other.keeper.progress.exclude(seconds)

  def _after_step_of(self, member: Member, step: int, state: loop.GetState) -> None:
    keeper = member.keeper
    if keeper.after(step, state):
      member.end()
      return
    scores = keeper.values  # {} without a validation
    if scores and self.should_stop and self.should_stop(member.trial, step, scores):
      raise Pruned(f'stopped at step {step}: others are better')

  def _interrupt(self, steps: int, state: TrainState, stopped: list) -> NoReturn:
    """Saves all trials and raises Interrupted."""
    for i, member in self._active():
      step = member.step + steps
      member.keeper.save_at(step, _unstacker(state, i))
      member.end(loop.Interrupted('interrupted', stopped))
    raise loop.Interrupted(
      'Interrupted: all trials are saved. The same command resumes them.', stopped
    )


@contextlib.contextmanager
def _ending_on_error(member: Member) -> Iterator[None]:
  """Ends a member that fails or is pruned, without stopping the others."""
  try:
    yield
  except (UserError, Pruned) as error:
    member.end(error)


def step_of_all(options_of: Callable[[Numbers, Any], StepOptions]) -> Callable:
  """Returns the compiled train step of states, batches and numbers stacked along an axis [K, ...].

  Args:
    options_of: (numbers, parameters) of one trial -> its step options.
  """

  def step_of_one(state: TrainState, batch: Batch, numbers: Numbers) -> tuple:
    return train_step(state, batch, options_of(numbers, state.params))

  return jax.jit(jax.vmap(step_of_one), donate_argnums=0)


def stacked(trees: Sequence[Any]) -> Any:
  """Returns trees of one structure as one, with leaves [K, ...], on the host where they are."""

  def stack(*leaves: Any) -> Any:
    if isinstance(leaves[0], np.ndarray):
      return np.stack(leaves)
    return jnp.stack(leaves)

  return jax.tree.map(stack, *trees)


def _unstack(state: TrainState, i: int) -> TrainState:
  """Returns the state of member `i`."""

  def of_member(leaf: jax.Array) -> jax.Array:
    return leaf[i]

  return jax.tree.map(of_member, state)


def _unstacker(state: TrainState, i: int) -> loop.GetState:
  """Returns a function that gives the state of member `i`."""
  return lambda: _unstack(state, i)
