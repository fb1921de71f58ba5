"""A trial of a vectorised sweep: its run folder, and what it consists of while it is trained."""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mmlm import config as configs
from mmlm.experiment.claim import claim
from mmlm.experiment.environment import environment
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import training_parts
from mmlm.training import loop
from mmlm.training.step import TrainState
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError


class Trial(NamedTuple):
  """A run to be trained."""

  config: ConfigDict  # completed
  folder: pathlib.Path


Scores = dict[str, float]  # of a validation
# (trial, step, scores) -> whether to prune the trial
ShouldStop = Callable[[Trial, int, Scores], bool]


class Pruned(Exception):
  """A trial was stopped because others are better."""

  state = 'pruned'


@dataclass
class Member:
  """A trial while it is trained among others.

  Attributes:
    state: its training state, but None while it is part of a stack of states.
    step: steps done when `state` was last its own.
  """

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
  def stream_key(self) -> tuple[int, int]:
    """Members with the same key read the same batches."""
    return self.experiment.config.seed, self.step

  def hand_over_state(self) -> TrainState:
    """Returns the state and forgets it, so that no second copy of it stays in memory."""
    state = self.state
    assert state is not None
    self.state = None
    return state

  def take_state(self, state: TrainState, steps: int) -> None:
    """Takes the state back after `steps` more steps."""
    self.state = state
    self.step = self.step + steps

  def end(self, error: Exception | None = None) -> None:
    """Closes the files of the run and writes how it ended; without an error it is done."""
    self.active = False
    self.state = None
    state = 'done'
    if error:
      state = getattr(error, 'state', 'failed')
    try:
      self.keeper.checkpoints.close()
    except UserError as disk_is_full:
      state = 'failed'
      error = error or disk_is_full
    self.keeper.metric_writer.close()
    run_dir.write_status(self.trial.folder, state, self.total, str(error or ''))
    _announce(f'{self.keeper.name}{state}', error)


def members_of(trials: list[Trial]) -> list[Member]:
  """Returns the trials that are not complete, ready to be trained; they share data and model.

  A trial that cannot be prepared gets the status 'failed'.
  """
  trials = list(map(_on_one_device, trials))
  _claim_folders(trials)
  members: list[Member] = []
  first: Experiment | None = None
  validate: Callable | None = None
  for trial in trials:
    if _is_done(trial.folder):
      continue
    try:
      if first is None:
        experiment = first = Experiment(trial.config, trial.folder, share_data=True)
      else:
        experiment = Experiment(trial.config, trial.folder, like=first)
      member = _member_of(trial, experiment, validate, len(trials))
    except UserError as error:
      state = getattr(error, 'state', 'failed')
      run_dir.write_status(trial.folder, state, 0, str(error))
      _announce(f'{trial.folder.name}: failed', error)
      continue
    if member is not None:
      validate = member.parts.validate
      members.append(member)
  return members


def _on_one_device(trial: Trial) -> Trial:
  return trial._replace(config=configs.override(trial.config, {'parallel.strategy': 'jit'}))


def _claim_folders(trials: list[Trial]) -> None:
  machine = environment()
  for trial in trials:
    claim(trial.folder, trial.config)
    run_dir.write_json(trial.folder / 'environment.json', machine)


def _is_done(folder: pathlib.Path) -> bool:
  path = folder / run_dir.STATUS
  return path.exists() and run_dir.read_json(path)['state'] == 'done'


def _member_of(
  trial: Trial, experiment: Experiment, validate: Callable | None, among: int
) -> Member | None:
  """Returns a trial at its start or its newest checkpoint; None if it is complete.

  Args:
    validate: the validation of another member, which serves this one too.
    among: how many trials share a step, for its progress.
  """
  (split,) = experiment.data.splits('train')
  parts, state = training_parts(experiment, split, validate)
  checkpoints = experiment.checkpoints(writing=True)
  abstract = jax.eval_shape(lambda: state)
  state, meta, start = loop.begin(parts, state, checkpoints, abstract)
  if loop.is_complete(parts.schedule, start, meta):
    run_dir.write_status(trial.folder, 'done', parts.schedule.total)
    checkpoints.close()
    return None
  run_dir.write_status(trial.folder, 'running', parts.schedule.total)
  metric_writer = loop.MetricWriter(trial.folder, start)
  prefix = f'{trial.folder.name}: '
  keeper = loop.Keeper(parts, checkpoints, metric_writer, meta, start, prefix, among)
  return Member(trial, experiment, parts, state, keeper, start)


def _announce(text: str, error: Any) -> None:
  if error:
    text = f'{text}: {error}'
  print(text, flush=True)
