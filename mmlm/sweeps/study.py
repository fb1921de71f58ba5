"""The trials of a sweep: optuna's journal of them, the runs of each, and the file of results.

runs/sweep/sweep.json      config, space, sampler, pruner, seeds: what must stay when it is resumed
           journal.log     optuna's journal: every trial, from before it starts
           results.json    an entry for each trial, written anew when one ends
           runs/<trial>-s<seed>/   run folders, as if each was trained alone
           logs/           what their processes printed
           .lock           locked as long as the process of the sweep lives
"""

import json
import math
import os
import pathlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import optuna
from ml_collections import ConfigDict
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.pruners import SuccessiveHalvingPruner as HalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mmlm import config as configs
from mmlm.evaluation.metrics import higher_is_better
from mmlm.sweeps.listing import SWEEP, RunSummary, format_score, format_table, summarize_run
from mmlm.sweeps.spaces import Parameters, Point, Space, as_text, point_of
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences

# Samplers by name, from a seed that differs each time a sweep is resumed.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
  'grid': RandomSampler,  # never asked: all points are enqueued
  'random': RandomSampler,
  'tpe': lambda seed: TPESampler(seed=seed, constant_liar=True),
}
# Pruners by name; their resource is the number of validations.
PRUNERS: dict[str, Callable[[], BasePruner]] = {
  'none': NopPruner,
  'median': MedianPruner,
  'asha': lambda: HalvingPruner(min_resource=1, reduction_factor=3),
  'hyperband': lambda: HyperbandPruner(min_resource=1, reduction_factor=3),
}
JOURNAL = 'journal.log'
Settings = dict[str, str]  # {key of the config: text}, the --config flags


@dataclass(frozen=True)
class Plan:
  """What a sweep is made of.

  Attributes:
    spec: the config file with its argument.
    config: completed, with `settings`, the --config flags of the sweep.
    trials: points of the space; 0 = the whole grid.
    seeds: runs of each trial.
  """

  spec: str
  config: ConfigDict
  settings: Settings
  space: Space
  sampler: str
  pruner: str
  trials: int
  seeds: int

  def settings_of(self, point: Point, seed: int) -> Settings:
    """Returns the --config flags of a run."""
    settings = dict(self.settings)
    for key, value in point.items():
      settings[key] = as_text(value)
    if self.seeds > 1:
      settings['seed'] = str(self.config.seed + seed)
    return settings

  def config_of(self, settings: Settings) -> ConfigDict:
    return configs.override(self.config, settings)

  def identity(self) -> dict:
    """Returns what must stay when the sweep is resumed, as JSON has it."""
    identity = {
      'spec': self.spec,
      'space': repr(self.space),
      'sampler': self.sampler,
      'pruner': self.pruner,
      'seeds': self.seeds,
      'config': configs.without_resumable(self.config.to_dict()),
    }
    return json.loads(json.dumps(identity))


@dataclass(eq=False)
class Run:
  """One seed of a trial."""

  trial: 'SweptTrial'
  name: str
  folder: pathlib.Path
  settings: Settings
  error: str = ''  # why it failed, where its folder does not say
  ended: bool = False


@dataclass(eq=False)
class SweptTrial:
  """A point of the space with its runs."""

  number: int
  point: Point
  optuna: optuna.trial.Trial
  runs: list[Run] = field(default_factory=list)
  reported: int = 0  # validations that the pruner knows
  pruned: bool = False


class Sweep:
  """A sweep in its folder, which must be locked: only this process writes its journal and results.

  Raises:
    UserError: a point of the space is not a valid config, or two are the same; the folder holds
      another sweep, or something that is no sweep.
  """

  def __init__(self, folder: pathlib.Path, plan: Plan):
    self.folder = folder
    self.plan = plan
    self.monitor: str = plan.config.train.monitor
    grid: list[Parameters] = []
    if plan.sampler == 'grid':
      grid = plan.space.grid()
    check_space(plan, grid)
    _claim_folder(folder, plan)
    self.study = open_study(folder / JOURNAL, plan)
    self.trial_count = plan.trials
    if grid:
      self.trial_count = min(plan.trials or len(grid), len(grid))
    self._enqueue(grid[: self.trial_count])
    self._unfinished = self._trials(TrialState.RUNNING)  # of an earlier process
    self._waiting: list[Run] = []

  def _enqueue(self, grid: list[Parameters]) -> None:
    """Adds the points of the grid that the journal does not have."""
    known = {trial.user_attrs.get('point') for trial in self._trials()}
    for i, parameters in enumerate(grid):
      if i not in known:
        self.study.enqueue_trial(parameters, user_attrs={'point': i})

  def _trials(self, *states: TrialState) -> list[FrozenTrial]:
    """Returns the trials of the journal, those in some states or all."""
    return self.study.get_trials(deepcopy=False, states=states or None)

  # Trials

  def next_runs(self, count: int) -> list[Run]:
    """Returns up to `count` runs that are to be trained; 0 = all."""
    runs: list[Run] = []
    while not count or len(runs) < count:
      if self._waiting:
        runs.append(self._waiting.pop(0))
      elif not self._begin_trial():
        break
    return runs

  def again(self, run: Run) -> None:
    """Puts a run that is not complete in front of those that wait."""
    self._waiting.insert(0, run)

  def _begin_trial(self) -> bool:
    """Queues the runs of one more trial that are not complete; False: no trial remains."""
    trial = self._ask_for_trial()
    if trial is None:
      return False
    if same := self._find_same(trial):
      self._copy_score(trial, same)
      return True
    for seed in range(self.plan.seeds):
      trial.runs.append(self._run_of(trial, seed))
    for run in trial.runs:
      if summarize_run(run.folder).complete:
        self.ended(run)
      else:
        self._waiting.append(run)
    return True

  def _run_of(self, trial: SweptTrial, seed: int) -> Run:
    name = f'{trial.number:04d}'
    if self.plan.seeds > 1:
      name = f'{name}-s{seed}'
    folder = self.folder / 'runs' / name
    settings = self.plan.settings_of(trial.point, seed)
    return Run(trial, name, folder, settings)

  def _ask_for_trial(self) -> SweptTrial | None:
    """Returns a trial that an earlier process began, or a new one; None: all have begun."""
    if self._unfinished:
      frozen = self._unfinished.pop(0)
      trial = optuna.trial.Trial(self.study, frozen._trial_id)
      reported = len(frozen.intermediate_values)
    else:
      waiting = self._trials(TrialState.WAITING)
      begun = len(self._trials()) - len(waiting)
      if begun >= self.trial_count:
        return None
      trial = self.study.ask()
      reported = 0
    point = self.plan.space.suggest(trial)
    return SweptTrial(trial.number, point, trial, reported=reported)

  def _find_same(self, trial: SweptTrial) -> FrozenTrial | None:
    """Returns a trial with the same point that has a score."""
    settings = repr(sorted(trial.point.items()))
    trial.optuna.set_user_attr('settings', settings)
    for other in self._trials(TrialState.COMPLETE):
      if other.user_attrs.get('settings') == settings:
        return other
    return None

  def _copy_score(self, trial: SweptTrial, other: FrozenTrial) -> None:
    print(f'trial {trial.number} repeats trial {other.number}: its score is copied', flush=True)
    trial.optuna.set_user_attr('error', f'the same as trial {other.number}')
    self.study.tell(trial.number, other.value)
    self.write()

  def should_stop(self, run: Run) -> bool:
    """Reports the validations that all runs of a trial have made; returns whether to prune it."""
    trial = run.trial
    validations = []
    for each in trial.runs:
      validations.append(summarize_run(each.folder).validations)
    for of_runs in list(zip(*validations))[trial.reported :]:
      scores = [score for _, score in of_runs]
      mean = float(np.mean(scores))
      trial.reported += 1
      if math.isfinite(mean):
        trial.optuna.report(mean, trial.reported)
    if trial.reported > 0 and trial.optuna.should_prune():
      trial.pruned = True
    return trial.pruned

  def ended(self, run: Run, error: str = '') -> None:
    """Notes that a run has ended; the last one of a trial completes it and the results."""
    run.ended = True
    run.error = error
    if all(each.ended for each in run.trial.runs):
      self._complete_trial(run.trial)
      self.write()

  def _complete_trial(self, trial: SweptTrial) -> None:
    """Writes the score of a trial, or why it has none, into the journal."""
    errors = []
    scores = []
    pruned = trial.pruned
    for run in trial.runs:
      summary = summarize_run(run.folder)
      scores.append(summary.best)
      pruned |= summary.state == 'pruned'
      if error := error_of(run, summary):
        errors.append(f'{run.name}: {error}')
    message = '; '.join(errors)
    trial.optuna.set_user_attr('error', message)
    if message:
      self.study.tell(trial.number, state=TrialState.FAIL)
      print(f'trial {trial.number} failed: {message}', flush=True)
    elif pruned:
      self.study.tell(trial.number, state=TrialState.PRUNED)
      print(f'trial {trial.number} was pruned: others are better', flush=True)
    else:
      score = float(np.mean(scores))
      self.study.tell(trial.number, score)
      result = f'{self.monitor} {score:.4f}'
      point = _describe(trial.point)
      print(f'trial {trial.number}: {result}  {point}', flush=True)

  # Results

  def results(self) -> list[dict]:
    """Returns what results.json holds: the trials that have begun, in their order."""
    results = []
    for trial in self._trials():
      if trial.state != TrialState.WAITING and trial.number < self.trial_count:
        results.append(self._result_of(trial))
    return results

  def _result_of(self, trial: FrozenTrial) -> dict:
    runs = []
    folders = (self.folder / 'runs').glob(f'{trial.number:04d}*')
    for folder in sorted(folders):
      run = summarize_run(folder)
      result = {
        'run': f'runs/{folder.name}',
        'state': run.state,
        'score': run.best,
        'step': run.step,
      }
      runs.append(result)
    settings = {}
    if trial.state.is_finished():
      for key, value in point_of(self.plan.space, trial.params).items():
        settings[key] = as_text(value)
    return {
      'trial': trial.number,
      'state': trial.state.name.lower(),
      'settings': settings,
      'monitor': self.monitor,
      'score': trial.value,
      'error': trial.user_attrs.get('error', ''),
      'parameters': trial.params,
      'runs': runs,
    }

  def write(self) -> None:
    """Writes results.json."""
    run_dir.write_json(self.folder / 'results.json', self.results())

  def summary(self) -> str:
    """Returns a table of the trials, the best first, those without a score last."""
    sign = -1 if higher_is_better(self.monitor) else 1

    def rank(result: dict) -> tuple:
      score = result['score']
      return score is None, sign * (score or 0), result['trial']

    lines = []
    for result in sorted(self.results(), key=rank):
      line = [
        str(result['trial']),
        result['state'],
        format_score(result['score']),
        _describe(result['settings']),
        result['error'][:100],
      ]
      lines.append(line)
    return format_table(['trial', 'state', self.monitor, 'settings', ''], lines)


def check_space(plan: Plan, grid: list[Parameters]) -> None:
  """Raises UserError where a point is not a valid config, or two points of a grid are the same."""
  if plan.seeds > 1 and 'seed' in plan.space.keys():  # noqa: SIM118 not a dict
    raise UserError("the space names 'seed': leave it out, or leave out --seeds.")
  numbers: dict[str, int] = {}
  for i, parameters in enumerate(grid):
    point = point_of(plan.space, parameters)
    first = numbers.setdefault(repr(sorted(point.items())), i)
    if first != i:
      raise UserError(
        f'the trials {first} and {i} of the space are the same: {point}. Take one of them out.'
      )
  for point in plan.space.examples():
    try:
      plan.config_of(plan.settings_of(point, 0))
    except UserError as error:
      raise UserError(f'the space: {str(error).replace("--config.", "")}') from None


def _claim_folder(folder: pathlib.Path, plan: Plan) -> None:
  """Writes sweep.json, or checks that the sweep in the folder is this one."""
  path = folder / SWEEP
  identity = plan.identity()
  if path.exists():
    stored = run_dir.read_json(path)
    stored['config'] = configs.without_resumable(stored['config'])
    if lines := differences(stored, identity):
      listed = ''.join(f'\n  {line}' for line in lines)
      raise UserError(
        f'{folder} holds another sweep. It differs in{listed}\nGive another --workdir.'
      )
  run_dir.refuse_foreign(folder, SWEEP, 'sweep')
  run_dir.write_json(path, identity)


def open_study(path: pathlib.Path, plan: Plan) -> optuna.Study:
  """Returns the study of a journal, which a killed process may have left damaged and locked."""
  path.touch()
  content = path.read_bytes()
  complete_lines = content.rfind(b'\n') + 1
  if complete_lines < len(content):
    os.truncate(path, complete_lines)
  for lock in path.parent.glob(f'{path.name}.lock*'):
    lock.unlink()
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
  direction = 'minimize'
  if higher_is_better(plan.config.train.monitor):
    direction = 'maximize'
  entries = sum(line.startswith(b'{') for line in content.splitlines())
  try:
    return optuna.create_study(
      storage=JournalStorage(JournalFileBackend(str(path))),
      sampler=SAMPLERS[plan.sampler](entries),
      pruner=PRUNERS[plan.pruner](),
      study_name='sweep',
      load_if_exists=True,
      direction=direction,
    )
  except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
    raise UserError(
      f'{path} cannot be read ({error}): it was changed by hand. The run folders are intact.'
    ) from None


def error_of(run: Run, summary: RunSummary) -> str:
  """Returns why a run has no score; '' if it has one or was pruned."""
  if run.trial.pruned or summary.state == 'pruned':
    return ''
  if summary.state != 'done':
    return run.error or summary.error or summary.state
  if summary.best is None:
    return f'no finite {summary.monitor}'
  return ''


def _describe(settings: dict) -> str:
  words = [f'{key}={value}' for key, value in settings.items()]
  return ' '.join(words)
