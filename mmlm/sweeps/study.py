"""The trials of a sweep: what optuna's journal keeps of them, the runs of each, and the files of results.

runs/sweep/sweep.json      config, space, sampler, pruner, seeds: what may not change when it goes on
           journal.log     optuna's journal: every trial, from before it starts
           results.json    a row a trial, written anew when one ends
           runs/<trial>-s<seed>/   run folders, as if each was trained alone
           logs/           what their processes printed
           .lock           locked as long as the sweep lives
"""

import json
import math
import os
import pathlib
import warnings
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mmlm import config as configs
from mmlm.evaluation.metrics import higher_is_better
from mmlm.sweeps.listing import SWEEP, Look, look, number, table
from mmlm.sweeps.spaces import as_text, point_of
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences

# A sampler that goes on draws other points than before. Pruners count validations.
SAMPLERS = {
  'grid': lambda seed: optuna.samplers.RandomSampler(seed),  # all points are given
  'random': lambda seed: optuna.samplers.RandomSampler(seed),
  'tpe': lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
}
PRUNERS = {
  'none': optuna.pruners.NopPruner,
  'median': optuna.pruners.MedianPruner,
  'asha': lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
  'hyperband': lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
}


@dataclass(frozen=True)
class Plan:
  """What a sweep is. `config`: completed; `trials`: points of the space, 0 = all of the grid; `seeds` of each."""

  spec: str
  config: object
  settings: dict
  space: object
  sampler: str
  pruner: str
  trials: int
  seeds: int

  def settings_of(self, point: dict, seed: int) -> dict[str, str]:
    """--config flags of a run."""
    if self.seeds > 1:
      own = {'seed': str(self.config.seed + seed)}
    else:
      own = {}
    return self.settings | {key: as_text(value) for key, value in point.items()} | own

  def config_of(self, settings: dict):
    return configs.override(self.config, settings)

  def told(self) -> dict:
    base = configs.without_resumable(self.config.to_dict())
    own = {
      'space': repr(self.space),
      'sampler': self.sampler,
      'pruner': self.pruner,
      'seeds': self.seeds,
    }
    return json.loads(json.dumps({'spec': self.spec, **own, 'config': base}))


@dataclass(eq=False)
class Run:
  """One seed of a trial."""

  trial: 'SweptTrial'
  name: str
  folder: pathlib.Path
  settings: dict
  error: str = ''  # why it failed, where its folder does not tell
  ended: bool = False


@dataclass(eq=False)
class SweptTrial:
  """A point of the space with its runs."""

  number: int
  point: dict
  optuna: object
  runs: list[Run] = field(default_factory=list)
  reported: int = 0  # validations
  pruned: bool = False


class Sweep:
  """A sweep in its folder, which must be locked: this process alone writes its journal and results."""

  def __init__(self, folder: pathlib.Path, plan: Plan):
    self.folder = folder
    self.plan = plan
    self.monitor = plan.config.train.monitor
    if plan.sampler == 'grid':
      points = plan.space.grid()
    else:
      points = []
    self._check(points)
    self._claim()
    self.study = self._open()
    if points:
      self.wanted = min(plan.trials or len(points), len(points))
    else:
      self.wanted = plan.trials
    known = {trial.user_attrs.get('point') for trial in self._trials()}
    for i, parameters in enumerate(points[: self.wanted]):
      if i not in known:
        self.study.enqueue_trial(parameters, user_attrs={'point': i})
    self._begun = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
    self._waiting: list[Run] = []

  def _trials(self) -> list:
    return self.study.get_trials(deepcopy=False)

  # Checks

  def _check(self, points: list[dict]):
    """UserError where a point is no config, or two are the same; nothing is written yet."""
    plan = self.plan
    seen = {}
    if plan.seeds > 1 and 'seed' in plan.space.keys():  # noqa: SIM118 no dict
      raise UserError("the space names 'seed': leave it out, or leave out --seeds.")
    for i, point in enumerate([point_of(plan.space, parameters) for parameters in points]):
      told = repr(sorted(point.items()))
      if told in seen:
        raise UserError(
          f'the trials {seen[told]} and {i} of the space are the same: {point}. Take one of them out.'
        )
      seen[told] = i
    for point in plan.space.examples():
      try:
        plan.config_of(plan.settings_of(point, 0))
      except UserError as error:
        raise UserError(f'the space: {str(error).replace("--config.", "")}') from None

  def _claim(self):
    path = self.folder / SWEEP
    wanted = self.plan.told()
    if path.exists():
      stored = runs.read_json(path)
      stored['config'] = configs.without_resumable(stored['config'])
      if lines := differences(stored, wanted):
        listed = ''.join(f'\n  {line}' for line in lines)
        raise UserError(
          f'{self.folder} holds another sweep. It differs in{listed}\nGive another --workdir.'
        )
    runs.refuse_foreign(self.folder, SWEEP, 'sweep')
    runs.write_json(path, wanted)

  def _open(self):
    """The study; what a killed writer left behind is cleared: half a line, and its lock."""
    path = self.folder / 'journal.log'
    plan = self.plan
    path.touch()
    content = path.read_bytes()
    whole = content.rfind(b'\n') + 1
    if whole < len(content):
      os.truncate(path, whole)
    for lock in self.folder.glob('journal.log.lock*'):
      lock.unlink()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    try:
      storage = JournalStorage(JournalFileBackend(str(path)))
      number = sum(line.startswith(b'{') for line in content.splitlines())
      return optuna.create_study(
        storage=storage,
        sampler=SAMPLERS[plan.sampler](number),
        pruner=PRUNERS[plan.pruner](),
        study_name='sweep',
        load_if_exists=True,
        direction='maximize' if higher_is_better(self.monitor) else 'minimize',
      )
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
      raise UserError(
        f'{path} cannot be read ({error}): it was changed by hand. The runs beside it are whole.'
      ) from None

  # Trials

  def next_runs(self, count: int) -> list[Run]:
    """So many runs that are to be trained; less when there are no more; 0 asks for all."""
    found = []
    while not count or len(found) < count:
      if not self._waiting and not self._next_trial():
        break
      found += [self._waiting.pop(0)] if self._waiting else []
    return found

  def again(self, run: Run):
    """A run that did not end is to be trained further."""
    self._waiting.insert(0, run)

  def _next_trial(self) -> bool:
    """Puts the runs of one more trial among those that wait, where they are not complete. False: there is none."""
    reported = 0
    if self._begun:
      frozen = self._begun.pop(0)
      own = optuna.trial.Trial(self.study, frozen._trial_id)
      reported = len(frozen.intermediate_values)
    elif sum(trial.state != TrialState.WAITING for trial in self._trials()) < self.wanted:
      own = self.study.ask()
    else:
      return False
    trial = SweptTrial(own.number, self.plan.space.suggest(own), own, reported=reported)
    if same := self._same(trial):
      self._copy(trial, same)
      return True
    for seed in range(self.plan.seeds):
      name = f'{trial.number:04d}' + (f'-s{seed}' if self.plan.seeds > 1 else '')
      trial.runs.append(
        Run(trial, name, self.folder / 'runs' / name, self.plan.settings_of(trial.point, seed))
      )
    for run in trial.runs:
      if look(run.folder).complete:
        self.ended(run)
      else:
        self._waiting.append(run)
    return True

  def _same(self, trial: SweptTrial):
    """A trial that ended with the same point."""
    told = repr(sorted(trial.point.items()))
    trial.optuna.set_user_attr('settings', told)
    before = []
    for other in self._trials():
      if other.number != trial.number and other.user_attrs.get('settings') == told:
        before.append(other)
    return next((other for other in before if other.state == TrialState.COMPLETE), None)

  def _copy(self, trial: SweptTrial, other):
    print(f'trial {trial.number} is trial {other.number} again: its score is taken', flush=True)
    trial.optuna.set_user_attr('error', f'the same as trial {other.number}')
    self.study.tell(trial.number, other.value)
    self.write()

  def should_stop(self, run: Run) -> bool:
    """Tells the pruner of the validations that all runs of a trial have made; whether it is to be stopped."""
    trial = run.trial
    scores = [[score for _, score in look(each.folder).validations] for each in trial.runs]
    for i in range(trial.reported, min(map(len, scores))):
      value = float(np.mean([row[i] for row in scores]))
      if math.isfinite(value):
        trial.optuna.report(value, i + 1)
      trial.reported = i + 1
    trial.pruned = trial.pruned or (trial.reported > 0 and trial.optuna.should_prune())
    return trial.pruned

  def ended(self, run: Run, error: str = ''):
    """A run has ended; when all runs of its trial have, the trial has, and is written down."""
    run.ended = True
    run.error = error
    if all(each.ended for each in run.trial.runs):
      self._tell(run.trial)
      self.write()

  def _tell(self, trial: SweptTrial):
    looks = [look(run.folder) for run in trial.runs]
    errors = [
      f'{run.name}: {text}'
      for run, found in zip(
        trial.runs,
        looks,
      )
      if (text := _error(run, found))
    ]
    trial.optuna.set_user_attr('error', '; '.join(errors))
    if errors:
      self.study.tell(trial.number, state=TrialState.FAIL)
      print(f'trial {trial.number} failed: {"; ".join(errors)}', flush=True)
    elif trial.pruned or any(found.state == 'pruned' for found in looks):
      self.study.tell(trial.number, state=TrialState.PRUNED)
      print(f'trial {trial.number} was stopped: others are better', flush=True)
    else:
      value = float(np.mean([found.best for found in looks]))
      self.study.tell(trial.number, value)
      print(
        f'trial {trial.number}: {self.monitor} {value:.4f}  {_said(trial.point)}',
        flush=True,
      )

  # Results

  def rows(self) -> list[dict]:
    """What results.json holds: a row a trial that has ended or is at work, in their order."""
    rows = []
    for trial in self._trials():
      if trial.state == TrialState.WAITING or trial.number >= self.wanted:
        continue
      found = [look(path) for path in sorted((self.folder / 'runs').glob(f'{trial.number:04d}*'))]
      if trial.state.is_finished():
        point = point_of(self.plan.space, trial.params)
      else:
        point = {}
      rows.append(
        {
          'trial': trial.number,
          'state': trial.state.name.lower(),
          'settings': {key: as_text(value) for key, value in point.items()},
          'monitor': self.monitor,
          'score': trial.value,
          'error': trial.user_attrs.get('error', ''),
          'parameters': trial.params,
          'runs': [
            {
              'run': f'runs/{one.folder.name}',
              'state': one.state,
              'score': one.best,
              'step': one.step,
            }
            for one in found
          ],
        }
      )
    return rows

  def write(self):
    runs.write_json(self.folder / 'results.json', self.rows())

  def summary(self) -> str:
    """The best trials first, then those without a score."""
    sign = -1 if higher_is_better(self.monitor) else 1
    order = sorted(
      self.rows(),
      key=lambda row: (
        row['score'] is None,
        sign * (row['score'] or 0),
        row['trial'],
      ),
    )
    lines = [
      [
        str(row['trial']),
        row['state'],
        number(row['score']),
        _said(row['settings']),
        row['error'][:100],
      ]
      for row in order
    ]
    return table(['trial', 'state', self.monitor, 'settings', ''], lines)


def _error(run: Run, found: Look) -> str:
  """Why a run has no score; '' where it has one, or was stopped by the pruner."""
  if run.trial.pruned or found.state == 'pruned':
    return ''
  if found.state != 'done':
    return run.error or found.error or found.state
  if found.best is not None:
    return ''
  return f'no finite {found.monitor}'


def _said(point: dict) -> str:
  return ' '.join(f'{key}={value}' for key, value in point.items())
