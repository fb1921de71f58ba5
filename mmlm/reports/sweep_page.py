"""The page of a sweep: every parameter against the score, the best trials and their curves, and what failed or was stopped."""

import json
import math
import pathlib

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
WIDE = 700
HIGH = 220
LOG = 20  # the largest value over the smallest from which an axis may be logarithmic
STATES = {'complete': 'complete', 'pruned': 'pruned', 'fail': 'failed', 'running': 'running'}
KEYS = ('trial', 'state', 'settings', 'monitor', 'score', 'error', 'parameters', 'runs')


def write_sweep(folder, output='') -> pathlib.Path:
  """Writes `output`, or report.html in the folder of a sweep, and returns its path.

  Raises:
    UserError: no trial has begun, or results.json or the journal cannot be read.
  """
  folder = pathlib.Path(folder)
  about = read_object(folder / SWEEP)
  rows = _rows(folder / 'results.json')
  done = [row for row in rows if row['state'] == 'complete' and row['score'] is not None]
  monitor = rows[0]['monitor']
  higher = higher_is_better(monitor)
  best = sorted(
    done,
    key=lambda row: ((-1 if higher else 1) * row['score'], row['trial']),
  )
  axes = axes_of(done, monitor)
  return write_page(
    output or folder / 'report.html',
    'sweep.html.jinja',
    title=f'Sweep {folder.resolve().name}',
    about=about,
    monitor=monitor,
    higher=higher,
    counts=_counts(rows),
    best=best[:BEST],
    done=len(done),
    keys=[axis['name'] for axis in axes[:-1]],
    axes=axes,
    lines=_lines(best, axes),
    scatters=[_scatter(axis, axes[-1], best) for axis in axes[:-1]],
    importance=importance_of(folder),
    others=[row for row in rows if row not in done],
    plots=_history(done, higher) + _curves(folder, best),
    width=WIDTH,
    height=HEIGHT,
    wide=WIDE,
    high=HIGH,
    data=None,
    short=short,
    states=STATES,
  )


def _rows(path) -> list[dict]:
  if not path.exists():
    raise UserError(
      f'{path.parent}: no trial of this sweep has ended yet (no results.json); the same `sweep` command goes on with it.'
    )
  rows = read_json(path)
  if not isinstance(rows, list) or not rows:
    raise UserError(f'{path}: no trial in it. The same `sweep` command writes it anew.')
  for number, row in enumerate(rows):
    if missing := [key for key in KEYS if not isinstance(row, dict) or key not in row]:
      raise UserError(
        f'{path}, row {number}: no {missing[0]!r} in it. The same `sweep` command writes it anew.'
      )
  return rows


def _counts(rows: list) -> list:
  states = [row['state'] for row in rows]
  return [(name, states.count(state)) for state, name in STATES.items() if state in states]


# Axes: of each parameter, and the score last


def axes_of(rows: list, monitor: str) -> list[dict]:
  """{'name', 'ticks' [(share of the axis from below, text)], 'log', 'place': a trial -> that share, or None where it has no such parameter}."""
  keys = dict.fromkeys(key for row in rows for key in row['settings'])
  columns = {key: [row['settings'].get(key) for row in rows] for key in keys}
  axes = []
  for key, values in columns.items():
    axes.append(_axis(key, {row['trial']: value for row, value in zip(rows, values)}))
  return [*axes, _axis(monitor, {row['trial']: row['score'] for row in rows}, score=True)]


def _axis(name: str, values: dict, score=False) -> dict:
  """Numbers by their size, or by its logarithm; other values side by side in order."""
  given = [value for value in values.values() if value is not None]
  numbers = [_number(value) for value in given]
  if not given or None in numbers:
    order = sorted(set(given))

    def share(value):
      return (order.index(value) + 0.5) / len(order)

    ticks = [(share(value), str(value)) for value in order]
    log = False
  else:
    low = min(numbers)
    high = max(numbers)
    log = not score and low > 0 and high / low >= LOG and _is_logarithmic(numbers)
    scale = math.log if log else float

    def share(value):
      if low == high:
        return 0.5
      return (scale(_number(value)) - scale(low)) / (scale(high) - scale(low))

    if len(set(numbers)) <= 6:
      shown = sorted(set(numbers))
    else:
      shown = [low, high]
    ticks = [(share(value), f'{value:.4g}') for value in shown]
  return {
    'name': name,
    'ticks': ticks,
    'log': log,
    'place': {trial: share(value) for trial, value in values.items() if value is not None},
  }


def _is_logarithmic(numbers: list) -> bool:
  """Whether the middle one of positive numbers is nearer to the middle of their logarithms than to that of their range."""
  low = min(numbers)
  middle = sorted(numbers)[len(numbers) // 2]
  high = max(numbers)

  def off(scale):
    return abs((scale(middle) - scale(low)) / (scale(high) - scale(low)) - 0.5)

  return off(math.log) < off(float)


def short(value) -> str:
  """A setting in a table."""
  found = _number(value)
  if found is None or len(str(value)) < 8:
    return str(value)
  return f'{found:.4g}'


def _number(value) -> float | None:
  try:
    found = float(value)
  except (TypeError, ValueError):
    return None
  return found if math.isfinite(found) else None


def _lines(best: list, axes: list) -> list:
  """Lines of parallel coordinates, the best drawn last: (trial, rank from 0 to 1, what it is, points); what is not set is left out."""

  def at(number):
    return round(number / max(len(axes) - 1, 1) * WIDE, 1)

  lines = []
  for rank, row in reversed([*enumerate(best)]):
    points = []
    for i, axis in enumerate(axes):
      if row['trial'] in axis['place']:
        points.append(
          (
            at(i),
            round((1 - axis['place'][row['trial']]) * HIGH, 1),
          )
        )
    lines.append(
      (
        row['trial'],
        round(rank / max(len(best) - 1, 1), 3),
        told(row),
        points,
      )
    )
  return lines


def _scatter(axis: dict, score: dict, best: list) -> dict:
  rows = [row for row in best if row['trial'] in axis['place']]

  def place(row):
    return (
      round(axis['place'][row['trial']] * WIDTH, 1),
      round((1 - score['place'][row['trial']]) * HEIGHT, 1),
    )

  def ticks(axis, size):
    return [(round(share * size, 1), text) for share, text in axis['ticks']]

  return {
    'name': axis['name'],
    'log': axis['log'],
    'points': [(*place(row), told(row)) for row in rows],
    'columns': ticks(axis, WIDTH),
    'rows': [
      (round(HEIGHT - place, 1), text)
      for place, text in ticks(score, HEIGHT)[:: max(1, len(score['ticks']) - 1)]
    ],
  }


def told(row: dict) -> str:
  """A trial in a line."""
  settings = ', '.join(f'{key}={short(value)}' for key, value in row['settings'].items())
  return f'trial {row["trial"]}: {row["monitor"]} {row["score"]:.4f}, {settings}'


# Curves


def _history(done: list, higher: bool) -> list:
  """The score of each trial, and the best so far."""
  if not done:
    return []
  points = sorted((row['trial'], row['score']) for row in done)
  best = []
  for trial, _ in points:
    best.append(
      (trial, (max if higher else min)(score for other, score in points if other <= trial))
    )
  styles = {'score': (0, False), 'best so far': (1, True)}
  return [
    plot(
      'score by trial',
      {'score': points, 'best so far': best},
      styles,
      (points[0][0], points[-1][0]),
    )
  ]


def _curves(folder, best: list) -> list:
  """The first run of each of the best trials over one another."""
  runs = {}
  for row in best[:COLOURS]:
    if row['runs']:
      runs[f'trial {row["trial"]}'] = folder / row['runs'][0]['run']
  return plots_of_runs({name: run for name, run in runs.items() if run.is_dir()})


# Importance


def importance_of(folder) -> tuple[list, str]:
  """[(parameter, share)] by PED-ANOVA (Watanabe et al. 2023), the most important first, and why there is none.

  Optuna reads its own journal, of which only whole lines are taken: a sweep may be at work on it.
  """
  path = pathlib.Path(folder) / 'journal.log'
  if not path.exists():
    return [], 'The journal of optuna is not there.'
  level = optuna.logging.get_verbosity()
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  try:
    study = optuna.load_study(study_name='sweep', storage=JournalStorage(_Whole(str(path))))
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < 4:
      return [], 'It needs at least four trials with a score.'
    found = optuna.importance.get_param_importances(study)
  except (KeyError, ValueError, RuntimeError) as error:
    return [], f'Optuna cannot tell it: {error}'
  finally:
    optuna.logging.set_verbosity(level)
  found = sorted(found.items(), key=lambda item: -item[1])
  return [
    (name, value) for name, value in found if math.isfinite(value)
  ], '' if found else 'No parameter is set by all trials.'


class _Whole(JournalFileBackend):
  """A journal to be read alone; half a line at its end, of a writer that is at work or was killed, is not read."""

  def read_logs(self, log_number_from: int):
    whole = pathlib.Path(self._file_path).read_bytes().split(b'\n')[:-1]
    return map(json.loads, whole[log_number_from:])
