"""Trials of one shape trained as one program: the train step under `vmap`, one run folder a trial, as if trained one by one.

Axes: K trials, B batch.
"""

import contextlib
import itertools
import pathlib
import time
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmlm import config as configs
from mmlm.experiment.claim import check_folder, claim
from mmlm.experiment.environment import environment
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import step_options, training_parts
from mmlm.sweeps.shapes import RATES, groups_of, numbers_of, with_numbers
from mmlm.training import loop
from mmlm.training.step import TrainState, train_step
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError


class Trial(NamedTuple):
  config: object  # completed
  folder: pathlib.Path


class Pruned(Exception):
  """A trial was stopped because others are better."""

  state = 'pruned'


@dataclass
class _Member:
  """A trial while it trains. `state`: its own, between stretches of training; `step`: steps done then."""

  trial: Trial
  experiment: Experiment
  parts: loop.Parts
  state: TrainState | None
  keeper: loop.Keeper
  step: int
  active: bool = True

  @property
  def total(self) -> int:
    return self.parts.schedule.total

  @property
  def stream_key(self) -> tuple:
    """Members of one key read the same batches."""
    return self.experiment.config.seed, self.step

  def end(self, error: Exception | None = None):
    """Closes the files of the run and tells how it ended; None: it is done."""
    self.active = False
    self.state = None
    if error:
      state = getattr(error, 'state', 'failed')
    else:
      state = 'done'
    try:
      self.keeper.checkpoints.close()
    except UserError as full:  # what the disk had no room for
      state = 'failed'
      error = error or full
    self.keeper.log.close()
    runs.write_status(self.trial.folder, state, self.total, str(error or ''))
    print(f'{self.keeper.name}{state}' + (f': {error}' if error else ''), flush=True)


def train_together(config, folders: dict[int, pathlib.Path]) -> list[Experiment]:
  """Trains a completed config once for each seed of {seed: run folder}; returns their experiments.

  Every run has its own initial parameters, dropout and order of data, as if it was trained alone.

  Raises:
    UserError: batches of different shapes (give the config one bucket), a folder that is not empty, a run that fails.
  """
  if len(config.data.buckets) > 1:
    raise UserError(
      f'data.buckets={config.data.buckets}: seeds that are trained together need batches of one shape, so one bucket.'
    )
  for folder in folders.values():
    if folder.exists() and any(folder.iterdir()):
      raise UserError(f'{folder} is not empty: seeds are trained together from their start only.')
  trials = [
    Trial(configs.override(config, {'seed': str(seed)}), pathlib.Path(folder))
    for seed, folder in folders.items()
  ]
  train_group(trials)
  for trial in trials:
    status = runs.read_json(trial.folder / runs.STATUS)
    if status['state'] != 'done':
      raise UserError(f'{trial.folder}: {status["error"]}')
  return [Experiment.of_run(trial.folder, {}) for trial in trials]


def train_trials(trials: list[Trial], watch=None, at_once: int = 0) -> None:
  """Trains trials of any configs, those of one shape together, `at_once` of them at most (0 = all).

  status.json of each tells how it ended: one that fails leaves the others alone. What is complete is left as it is, and what was
  begun goes on from its checkpoint.

  Args:
    watch: (trial, step, scores) -> whether to stop it, asked after each of its validations.

  Raises:
    Interrupted: after a signal, once all states are saved.
  """
  for group in groups_of(trials, lambda trial: trial.config):
    size = at_once or len(group)
    for start in range(0, len(group), size):
      train_group(group[start : start + size], watch)


def train_group(trials: list[Trial], watch=None) -> None:
  """The same for trials of one shape."""
  with contextlib.ExitStack() as stack:
    for trial in trials:
      check_folder(trial.folder)  # before a lock is left in it
      stack.enter_context(contextlib.closing(runs.lock(trial.folder)))
    members = _members(trials)
    if not members:
      return
    first = members[0]
    numbers = numbers_of(
      [m.experiment.config for m in members],
      [m.parts.learning_rate for m in members],
      [m.total for m in members],
    )
    compiled = step_of_all(lambda numbers, params: _options(first, numbers, params))
    with loop.stop_signals() as stopped:
      while members:
        # Where batches have several shapes, those that stand at one step are trained first.
        several = len(first.experiment.buckets) > 1
        now = [m for m in members if not several or m.step == members[0].step]
        chosen = np.array([m in now for m in members])
        _Stretch(now, compiled, {key: value[chosen] for key, value in numbers.items()}, watch).run(
          stopped
        )
        kept = np.array([m.active for m in members])
        members = [m for m in members if m.active]
        numbers = {key: value[kept] for key, value in numbers.items()}


def _members(trials: list[Trial]) -> list[_Member]:
  """The trials that can be trained and are not complete, ready to start."""
  members = []
  first = None
  validate = None
  about = environment()
  trials = [
    trial._replace(config=configs.override(trial.config, {'parallel.strategy': 'jit'}))
    for trial in trials
  ]
  for trial in trials:
    claim(trial.folder, trial.config)
    runs.write_json(trial.folder / 'environment.json', about)
  for trial in trials:
    if _is_done(trial.folder):
      continue
    try:
      if first:
        experiment = first.beside(trial.config, trial.folder)
      else:
        experiment = Experiment(trial.config, trial.folder)
      first = first or experiment
      member = _member(trial, experiment, validate, len(trials))
    except UserError as error:
      runs.write_status(trial.folder, getattr(error, 'state', 'failed'), 0, str(error))
      print(f'{trial.folder.name}: failed: {error}', flush=True)
      continue
    if member:
      validate = member.parts.validate
      members.append(member)
  return members


def _is_done(folder: pathlib.Path) -> bool:
  return (folder / runs.STATUS).exists() and runs.read_json(folder / runs.STATUS)['state'] == 'done'


def _member(trial: Trial, experiment: Experiment, validate, among: int) -> _Member | None:
  """None: the run is complete."""
  (split,) = experiment.splits('train')
  parts, state = training_parts(experiment, split, validate)
  checkpoints = experiment.checkpoints(writing=True)
  state, meta, start = loop.begin(parts, state, checkpoints, jax.eval_shape(lambda: state))
  complete = loop.is_complete(parts.schedule, start, meta)
  runs.write_status(trial.folder, 'done' if complete else 'running', parts.schedule.total)
  if complete:
    checkpoints.close()
    return None
  keeper = loop.Keeper(
    parts, checkpoints, loop.Log(trial.folder, start), meta, start, f'{trial.folder.name}: ', among
  )
  return _Member(trial, experiment, parts, state, keeper, start)


def _options(member: _Member, numbers: dict, params):
  """Those of a trial with `numbers` and `params`, of the shape of `member`."""
  if not numbers:
    return member.parts.options
  if RATES in numbers:

    def rate(step):
      return numbers[RATES][step]
  else:
    rate = member.parts.learning_rate
  return step_options(
    member.experiment, with_numbers(member.experiment.config, numbers), rate, params
  )


class _Stretch:
  """Training until half of the members have ended: then those that go on are stacked anew, so that the others cost no more."""

  def __init__(self, members: list[_Member], compiled, numbers: dict, watch):
    self.members = members
    self.compiled = compiled
    self.numbers = numbers
    self.watch = watch
    self.waiting = None  # (how many steps of this stretch, metrics that are still computed, examples of each trial)
    for member in members:
      member.keeper.progress.among = len(members)

  def run(self, stopped: list) -> None:
    members = self.members
    state = stacked([member.state for member in members])
    keys = [member.stream_key for member in members]
    for member in members:
      member.state = None  # lives in the stack
    ends = {}
    for key in keys:
      ends[key] = max(member.total for member in members if member.stream_key == key)
    with contextlib.ExitStack() as stack:
      first = {member.stream_key: member for member in members}
      streams = {}
      for key, end in ends.items():
        streams[key] = iter(stack.enter_context(first[key].parts.stream(key[1], end)))
      batches = {}
      for done in itertools.count(1):
        # One that has ended sees its last batch again: what becomes of it is not looked at.
        batches = {key: next(stream, batches.get(key)) for key, stream in streams.items()}
        state, metrics = self.compiled(state, stacked([batches[key] for key in keys]), self.numbers)
        self._settle()
        self.waiting = done, metrics, [int(batches[key]['weight'].sum()) for key in keys]
        state = self._after(done, state, bool(stopped))
        if stopped:
          self._interrupt(done, state, stopped)
        if sum(member.active for member in members) * 2 <= len(members):
          break
      for i, member in enumerate(members):
        if member.active:
          member.state = _own(state, i)
          member.step = member.step + done

  def _settle(self):
    """Waits for the metrics of the newest step whose are not known, and gives each trial its own."""
    if self.waiting is None:
      return
    (done, metrics, examples), self.waiting = self.waiting, None
    metrics = jax.device_get(metrics)
    for i, member in enumerate(self.members):
      if member.active:
        own = {name: value[i] for name, value in metrics.items()}
        self._guarded(
          member,
          lambda member=member, own=own, i=i: member.keeper.note(
            member.step + done, own, examples[i]
          ),
        )

  def _after(self, done: int, state, stopped: bool):
    """What is due after a step: lines, validations, ends. The stack to go on from: another only where a trial's averaging begins."""
    if stopped or any(
      member.active and member.keeper.due(member.step + done) for member in self.members
    ):
      self._settle()
    for i, member in enumerate(self.members):
      step = member.step + done
      began = time.monotonic()
      if not member.active or not member.keeper.due(step):
        continue
      self._guarded(
        member,
        lambda member=member, i=i: self._one_after(member, step, lambda: _own(state, i)),  # noqa: B023
      )
      if member.keeper.averages:
        state = state._replace(averaged=state.averaged.at[i].set(1))
      for other in self.members:
        if other is not member:
          other.keeper.progress.since += time.monotonic() - began  # the time of training alone
    return state

  def _one_after(self, member: _Member, step: int, state):
    keeper = member.keeper
    keeper.values = {}
    if keeper.after(step, state):
      member.end()
    elif keeper.values and self.watch and self.watch(member.trial, step, keeper.values):
      raise Pruned(f'stopped at step {step}: others are better')

  def _guarded(self, member: _Member, do):
    """One trial that fails leaves the others alone."""
    try:
      do()
    except (UserError, Pruned) as error:
      member.end(error)

  def _interrupt(self, done: int, state, stopped: list):
    for i, member in enumerate(self.members):
      if member.active:
        member.keeper.save_at(member.step + done, lambda i=i: _own(state, i))
        member.end(loop.Interrupted('interrupted', stopped))
    raise loop.Interrupted(
      'Interrupted: all trials are saved. The same command goes on from there.', stopped
    )


def _own(state: TrainState, i: int) -> TrainState:
  return jax.tree.map(lambda leaf: leaf[i], state)


def step_of_all(options_of):
  """The train step of states, batches and numbers that are stacked along a first axis [K, ...]; `options_of` the numbers and parameters of one trial."""
  return jax.jit(
    jax.vmap(
      lambda state, batch, numbers: train_step(state, batch, options_of(numbers, state.params))
    ),
    donate_argnums=0,
  )


def stacked(trees):
  """Trees of one structure -> one with leaves [K, ...]."""
  return jax.tree.map(
    lambda *leaves: np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves),
    *trees,
  )
