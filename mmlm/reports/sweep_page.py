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
  scores = {trial['trial']: trial['score'] for trial in trials}
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
  return {
    'name': name,
    'ticks': scale.ticks(present.values()),
    'log': log,
    'place': {trial: scale.share(value) for trial, value in present.items()},
  }


class CategoryScale(NamedTuple):
  """Places values at equal distances in their order."""

  order: list

  def share(self, value: Any) -> float:
    """Returns the share of the axis below a value."""
    return (self.order.index(value) + 0.5) / len(self.order)

  def ticks(self, values: Iterable[Any]) -> list[tuple[float, str]]:
    """Returns a tick for each value."""
    return [(self.share(value), str(value)) for value in self.order]


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
    ticked = sorted({float(value) for value in values})
    if len(ticked) > MOST_TICKS:
      ticked = [self.low, self.high]
    return [(self.share(value), f'{value:.4g}') for value in ticked]


def _is_logarithmic(numbers: list[float]) -> bool:
  """Returns whether numbers of a wide range are spread more evenly by their logarithms."""
  low = min(numbers)
  high = max(numbers)
  if low <= 0 or high / low < LEAST_RATIO:
    return False
  median = sorted(numbers)[len(numbers) // 2]

  def off_centre(scale: Callable[[float], float]) -> float:
    share = (scale(median) - scale(low)) / (scale(high) - scale(low))
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
  distance = COORDINATES_WIDTH / max(len(axes) - 1, 1)
  lines = []
  for number, trial in enumerate(best_first):
    points = []
    for i, axis in enumerate(axes):
      if trial['trial'] in axis['place']:
        y = (1 - axis['place'][trial['trial']]) * COORDINATES_HEIGHT
        points.append((round(i * distance, 1), round(y, 1)))
    rank = round(number / max(len(best_first) - 1, 1), 3)
    lines.append((trial['trial'], rank, describe(trial), points))
  return lines[::-1]


def _scatter(axis: dict, score_axis: dict, best_first: list[dict]) -> dict:
  points = []
  for trial in best_first:
    number = trial['trial']
    if number not in axis['place']:
      continue
    x = axis['place'][number] * WIDTH
    y = (1 - score_axis['place'][number]) * HEIGHT
    points.append((round(x, 1), round(y, 1), describe(trial)))
  columns = []
  for share, text in axis['ticks']:
    columns.append((round(share * WIDTH, 1), text))
  score_ticks = score_axis['ticks']
  first_and_last = score_ticks[:: max(1, len(score_ticks) - 1)]
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
  settings = [f'{key}={format_setting(value)}' for key, value in trial['settings'].items()]
  score = f'{trial["monitor"]} {trial["score"]:.4f}'
  return f'trial {trial["trial"]}: {score}, {", ".join(settings)}'


# Curves


def _history(scored: list[dict], higher: bool) -> list[dict]:
  """Returns a plot of the score of each trial, and of the best so far."""
  if not scored:
    return []
  better = max if higher else min
  points = sorted((trial['trial'], trial['score']) for trial in scored)
  best_so_far = []
  best = points[0][1]
  for trial, score in points:
    best = better(best, score)
    best_so_far.append((trial, best))
  lines = {'score': points, 'best so far': best_so_far}
  styles = {'score': (0, False), 'best so far': (1, True)}
  ends = (points[0][0], points[-1][0])
  return [plot('score by trial', lines, styles, ends)]


def _curves(folder: pathlib.Path, best_first: list[dict]) -> list[dict]:
  """Returns the plots of the first run of each of the best trials."""
  runs = {}
  for trial in best_first[:COLOURS]:
    if not trial['runs']:
      continue
    run = folder / trial['runs'][0]['run']
    if run.is_dir():
      runs[f'trial {trial["trial"]}'] = run
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
    study = optuna.load_study(study_name='sweep', storage=JournalStorage(_WholeLines(str(path))))
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < LEAST_TRIALS:
      return [], f'Importances need at least {LEAST_TRIALS} trials with a score.'
    shares = optuna.importance.get_param_importances(study)
  except (KeyError, ValueError, RuntimeError) as error:
    return [], f'Optuna cannot compute importances: {error}'
  finally:
    optuna.logging.set_verbosity(level)
  if not shares:
    return [], 'No parameter is set by all trials.'
  finite = {name: share for name, share in shares.items() if math.isfinite(share)}
  return sorted(finite.items(), key=lambda item: -item[1]), ''


class _WholeLines(JournalFileBackend):
  """A journal to read only; half a line at its end, of a writer at work or killed, is skipped."""

  def read_logs(self, log_number_from: int) -> Iterator[dict]:
    whole = pathlib.Path(self._file_path).read_bytes().split(b'\n')[:-1]
    return map(json.loads, whole[log_number_from:])
