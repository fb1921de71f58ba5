"""The page of a sweep: parameters against scores, the best trials, and trials without a score."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mmlm.evaluation.metrics import higher_is_better
from mmlm.reports.curves import COLOURS, HEIGHT, WIDTH, plot, plots_of_runs
from mmlm.reports.pages import read_object, write_page
from mmlm.sweeps.listing import SWEEP
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json

BEST = 20  # trials in the table
# of the parallel coordinates, in units of the SVG
COORDINATES_WIDTH = 700
COORDINATES_HEIGHT = 220
LEAST_RATIO = 20  # of the largest value to the smallest, for a logarithmic axis
MOST_TICKS = 6  # different values that all have a tick
LEAST_TRIALS = 4  # for importances
STATES = {'complete': 'complete', 'pruned': 'pruned', 'fail': 'failed', 'running': 'running'}
KEYS = ('trial', 'state', 'settings', 'monitor', 'score', 'error', 'parameters', 'runs')


def write_sweep(folder: pathlib.Path | str, output: pathlib.Path | str = '') -> pathlib.Path:
  """Writes the page of a sweep and returns its path.

  Args:
    output: file of the page; '' for report.html in the folder of the sweep.

  Raises:
    UserError: no trial has begun, or results.json or the journal cannot be read.
  """
  folder = pathlib.Path(folder)
  trials = _read_trials(folder / 'results.json')
  scored = []
  for trial in trials:
    if trial['state'] == 'complete' and trial['score'] is not None:
      scored.append(trial)
  monitor = trials[0]['monitor']
  higher = higher_is_better(monitor)
  sign = -1 if higher else 1
  best_first = sorted(scored, key=lambda trial: (sign * trial['score'], trial['trial']))
  *parameter_axes, score_axis = axes_of(scored, monitor)
  axes = [*parameter_axes, score_axis]
  scatters = []
  for axis in parameter_axes:
    scatters.append(_scatter(axis, score_axis, best_first))
  return write_page(
    output or folder / 'report.html',
    'sweep.html.jinja',
    title=f'Sweep {folder.resolve().name}',
    about=read_object(folder / SWEEP),
    monitor=monitor,
    higher=higher,
    counts=_count_states(trials),
    best=best_first[:BEST],
    done=len(scored),
    keys=[axis['name'] for axis in parameter_axes],
    axes=axes,
    lines=_coordinate_lines(best_first, axes),
    scatters=scatters,
    importance=importance_of(folder),
    others=[trial for trial in trials if trial not in scored],
    plots=_history(scored, higher) + _curves(folder, best_first),
    width=WIDTH,
    height=HEIGHT,
    wide=COORDINATES_WIDTH,
    high=COORDINATES_HEIGHT,
    data=None,
    short=format_setting,
    states=STATES,
  )


def _read_trials(path: pathlib.Path) -> list[dict]:
  if not path.exists():
    raise UserError(
      f'{path.parent}: no trial of this sweep has ended yet (no results.json); '
      'the same `sweep` command continues it.'
    )
  trials = read_json(path)
  if not isinstance(trials, list) or not trials:
    raise UserError(f'{path}: no trial in it. The same `sweep` command writes it again.')
  for number, trial in enumerate(trials):
    for key in KEYS:
      if not isinstance(trial, dict) or key not in trial:
        raise UserError(
          f'{path}, row {number}: no {key!r} in it. The same `sweep` command writes it again.'
        )
  return trials


def _count_states(trials: list[dict]) -> list[tuple[str, int]]:
  states = [trial['state'] for trial in trials]
  counts = []
  for state, name in STATES.items():
    if state in states:
      counts.append((name, states.count(state)))
  return counts


# Axes: of each parameter, and the score last


def axes_of(trials: list[dict], monitor: str) -> list[dict]:
  """Returns an axis for each parameter, and that of the score as the last.

  Returns:
    'name'; 'ticks' [(share of the axis from below, text)]; 'log'; 'place' {trial: its share}, of
    the trials that have such a parameter.
  """
  keys: dict[str, None] = {}
  for trial in trials:
    keys |= dict.fromkeys(trial['settings'])
  axes = []
  for key in keys:
    values = {}
    for trial in trials:
      values[trial['trial']] = trial['settings'].get(key)
    axes.append(_axis(key, values))
  scores = {}
  for trial in trials:
    scores[trial['trial']] = trial['score']
  axes.append(_axis(monitor, scores, is_score=True))
  return axes


def _axis(name: str, values: Mapping[Any, Any], is_score: bool = False) -> dict:
  """Returns an axis of numbers, by size or logarithm, or of other values in their order."""
  present = {}
  for trial, value in values.items():
    if value is not None:
      present[trial] = value
  numbers = []
  for value in present.values():
    number = _number(value)
    if number is not None:
      numbers.append(number)
  log = False
  if not numbers or len(numbers) < len(present):
    scale = CategoryScale(sorted(set(present.values())))
  else:
    log = not is_score and _is_logarithmic(numbers)
    scale = NumberScale(min(numbers), max(numbers), log)
  places = {}
  for trial, value in present.items():
    places[trial] = scale.share(value)
  return {
    'name': name,
    'ticks': scale.ticks(present.values()),
    'log': log,
    'place': places,
  }


class CategoryScale(NamedTuple):
  """Places values at equal distances in their order."""

  order: list

  def share(self, value: Any) -> float:
    """Returns the share of the axis below a value."""
    return (self.order.index(value) + 0.5) / len(self.order)

  def ticks(self, values: Iterable[Any]) -> list[tuple[float, str]]:
    """Returns a tick for each value."""
    ticks = []
    for value in self.order:
      ticks.append((self.share(value), str(value)))
    return ticks


class NumberScale(NamedTuple):
  """Places numbers by their size or by its logarithm."""

  low: float
  high: float
  log: bool

  def share(self, value: Any) -> float:
    """Returns the share of the axis below a number."""
    if self.low == self.high:
      return 0.5
    scale = math.log if self.log else float
    start = scale(self.low)
    length = scale(self.high) - start
    return (scale(float(value)) - start) / length

  def ticks(self, values: Iterable[Any]) -> list[tuple[float, str]]:
    """Returns a tick for each number, or for both ends if there are many."""
    numbers = {float(value) for value in values}
    ticked = sorted(numbers)
    if len(ticked) > MOST_TICKS:
      ticked = [self.low, self.high]
    ticks = []
    for number in ticked:
      ticks.append((self.share(number), f'{number:.4g}'))
    return ticks


def _is_logarithmic(numbers: list[float]) -> bool:
  """Returns whether numbers of a wide range are spread more evenly by their logarithms."""
  low = min(numbers)
  high = max(numbers)
  if low <= 0 or high / low < LEAST_RATIO:
    return False
  middle = len(numbers) // 2
  median = sorted(numbers)[middle]

  def off_centre(scale: Callable[[float], float]) -> float:
    start = scale(low)
    length = scale(high) - start
    share = (scale(median) - start) / length
    return abs(share - 0.5)

  return off_centre(math.log) < off_centre(float)


def format_setting(value: Any) -> str:
  """Formats a setting for a table."""
  number = _number(value)
  if number is None or len(str(value)) < 8:
    return str(value)
  return f'{number:.4g}'


def _number(value: Any) -> float | None:
  try:
    number = float(value)
  except (TypeError, ValueError):
    return None
  return number if math.isfinite(number) else None


def _coordinate_lines(best_first: list[dict], axes: list[dict]) -> list[tuple]:
  """Returns the lines of parallel coordinates, the best drawn last.

  Returns:
    [(trial, rank from 0 to 1, description, points)], without the axes that a trial has not set.
  """
  last_rank = max(len(best_first) - 1, 1)
  lines = []
  for number, trial in enumerate(best_first):
    name = trial['trial']
    rank = round(number / last_rank, 3)
    description = describe(trial)
    points = _points_of_trial(name, axes)
    lines.append((name, rank, description, points))
  return lines[::-1]


def _points_of_trial(trial: Any, axes: list[dict]) -> list[tuple[float, float]]:
  """Returns the positions (x, y) of a trial on the parallel coordinates that it has set."""
  distance = COORDINATES_WIDTH / max(len(axes) - 1, 1)
  points = []
  for number, axis in enumerate(axes):
    if trial not in axis['place']:
      continue
    x = number * distance
    y = (1 - axis['place'][trial]) * COORDINATES_HEIGHT
    points.append((round(x, 1), round(y, 1)))
  return points


def _scatter(axis: dict, score_axis: dict, best_first: list[dict]) -> dict:
  points = []
  for trial in best_first:
    number = trial['trial']
    if number not in axis['place']:
      continue
    x = round(axis['place'][number] * WIDTH, 1)
    share_above = 1 - score_axis['place'][number]
    y = round(share_above * HEIGHT, 1)
    points.append((x, y, describe(trial)))
  columns = []
  for share, text in axis['ticks']:
    x = round(share * WIDTH, 1)
    columns.append((x, text))
  score_ticks = score_axis['ticks']
  distance = max(1, len(score_ticks) - 1)
  first_and_last = score_ticks[::distance]
  rows = []
  for share, text in first_and_last:
    height = round(share * HEIGHT, 1)
    rows.append((round(HEIGHT - height, 1), text))
  return {
    'name': axis['name'],
    'log': axis['log'],
    'points': points,
    'columns': columns,
    'rows': rows,
  }


def describe(trial: dict) -> str:
  """Describes a trial in a line."""
  settings = []
  for key, value in trial['settings'].items():
    settings.append(f'{key}={format_setting(value)}')
  score = f'{trial["monitor"]} {trial["score"]:.4f}'
  return f'trial {trial["trial"]}: {score}, {", ".join(settings)}'


# Curves


def _history(scored: list[dict], higher: bool) -> list[dict]:
  """Returns a plot of the score of each trial, and of the best so far."""
  if not scored:
    return []
  better = max if higher else min
  points = []
  for trial in scored:
    points.append((trial['trial'], trial['score']))
  points.sort()
  first_trial, best = points[0]
  last_trial, _ = points[-1]
  best_so_far = []
  for trial, score in points:
    best = better(best, score)
    best_so_far.append((trial, best))
  lines = {'score': points, 'best so far': best_so_far}
  styles = {'score': (0, False), 'best so far': (1, True)}
  return [plot('score by trial', lines, styles, ends=(first_trial, last_trial))]


def _curves(folder: pathlib.Path, best_first: list[dict]) -> list[dict]:
  """Returns the plots of the first run of each of the best trials."""
  runs = {}
  for trial in best_first[:COLOURS]:
    if not trial['runs']:
      continue
    first_run = trial['runs'][0]
    run_folder = folder / first_run['run']
    if run_folder.is_dir():
      name = f'trial {trial["trial"]}'
      runs[name] = run_folder
  return plots_of_runs(runs)


# Importance


def importance_of(folder: pathlib.Path) -> tuple[list[tuple[str, float]], str]:
  """Computes importances by PED-ANOVA (Watanabe et al. 2023).

  Optuna reads its own journal, of which only whole lines are used: the sweep may be running.

  Returns:
    [(parameter, share)], the most important first, and why there are none.
  """
  path = folder / 'journal.log'
  if not path.exists():
    return [], 'The journal of optuna is missing.'
  level = optuna.logging.get_verbosity()
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  try:
    storage = JournalStorage(_WholeLines(str(path)))
    study = optuna.load_study(study_name='sweep', storage=storage)
    complete = study.get_trials(
      deepcopy=False,
      states=(TrialState.COMPLETE,),
    )
    if len(complete) < LEAST_TRIALS:
      return [], f'Importances need at least {LEAST_TRIALS} trials with a score.'
    shares = optuna.importance.get_param_importances(study)
  except (KeyError, ValueError, RuntimeError) as error:
    return [], f'Optuna cannot compute importances: {error}'
  finally:
    optuna.logging.set_verbosity(level)
  if not shares:
    return [], 'No parameter is set by all trials.'
  finite = []
  for name, share in shares.items():
    if math.isfinite(share):
      finite.append((name, share))
  finite.sort(key=lambda item: -item[1])
  return finite, ''


class _WholeLines(JournalFileBackend):
  """A journal to read only; half a line at its end, of a writer at work or killed, is skipped."""

  def read_logs(self, log_number_from: int) -> Iterator[dict]:
    content = pathlib.Path(self._file_path).read_bytes()
    *whole_lines, _ = content.split(b'\n')
    return map(json.loads, whole_lines[log_number_from:])
