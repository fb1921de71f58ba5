"""Curves as inline SVG: of training and validation, of several runs, of scores with inputs missing."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmlm.evaluation.metrics import METRICS
from mmlm.reports.pages import read_entries, read_object
from mmlm.utils.errors import UserError

POINTS = 300  # of a curve, at most
# of the plotted area, in units of the SVG
WIDTH = 266
HEIGHT = 136
COLOURS = 8

Points = list[tuple[float, float]]  # (step, value)
Styles = Mapping[str, tuple[int, bool]]  # {line: (number of its colour, whether it is dashed)}


def series(folder: pathlib.Path) -> dict[str, dict[str, Points]]:
  """Reads {metric: {line: points}} of a run; a line is 'train', 'valid' or one of several splits."""
  path = folder / 'metrics.jsonl'
  lines_of: dict[str, dict[str, Points]] = {}
  for name in ('loss', 'perplexity', *METRICS):
    lines_of[name] = {}
  entries = read_entries(path, ('step', 'kind')) if path.exists() else []
  for entry in entries:
    kind = entry['kind']
    shown = ('loss',) if kind == 'train' else lines_of
    for key, value in entry.items():
      split, _, name = key.rpartition('/')
      is_number = isinstance(value, (int, float)) and math.isfinite(value)
      if name in shown and is_number:
        lines_of[name].setdefault(split or kind, []).append((entry['step'], value))
  return {name: lines for name, lines in lines_of.items() if lines}


def _thin(points: Sequence[tuple[float, float]]) -> Points:
  """Averages groups of points, so that at most `POINTS` are left."""
  size = math.ceil(len(points) / POINTS)
  means = []
  for start in range(0, len(points), size):
    group = points[start : start + size]
    steps, values = zip(*group)
    means.append((sum(steps) / len(group), sum(values) / len(group)))
  return means


def plot(
  name: str,
  lines: Mapping[str, Points],
  styles: Styles,
  ends: tuple[float, float],
  unit: str = '',
) -> dict[str, Any]:
  """Returns the plot of a metric as the template draws it and the script redraws it.

  Args:
    ends: the first and the last step of all plots of the page.
    unit: of the steps.

  Returns:
    'lines' [(label, colour, dashed, [(x, y), ...])], the ticks 'rows' and 'columns'
    [(position, value)] in units of the SVG, and 'data', the values.
  """
  thinned = {label: _thin(sorted(points)) for label, points in lines.items()}
  values = []
  for points in thinned.values():
    values += [value for _, value in points]
  first, last = ends
  low = min(values)
  high = max(values)

  def x(step: float) -> float:
    return round((step - first) / (last - first or 1) * WIDTH, 1)

  def y(value: float) -> float:
    return round((high - value) / (high - low or 1) * HEIGHT, 1)

  drawn = []
  data = []
  for label, points in thinned.items():
    colour, dashed = styles[label]
    drawn.append((label, colour, dashed, [(x(step), y(value)) for step, value in points]))
    data.append([[round(step, 3), float(f'{value:.6g}')] for step, value in points])
  heights = dict.fromkeys((low, (low + high) / 2, high))
  return {
    'name': name,
    'unit': unit,
    'lines': drawn,
    'rows': [(y(value), float(value)) for value in heights],
    'columns': [(x(step), step) for step in dict.fromkeys(ends)],
    'data': data,
  }


def run_plots(folder: pathlib.Path) -> list[dict]:
  """Returns a plot for each metric of a run; a line has the same colour in all of them."""
  lines_of = series(folder)
  labels: dict[str, None] = {}
  for lines in lines_of.values():
    labels |= dict.fromkeys(lines)
  styles = {label: (number % COLOURS, False) for number, label in enumerate(labels)}
  return _all_plots(lines_of, styles)


def plots_of_runs(folders: Mapping[str, pathlib.Path]) -> list[dict]:
  """Returns the plots of runs {name: folder}, a colour for each run; training is dashed."""
  joined: dict[str, dict[str, Points]] = {}
  styles = {}
  for number, (name, folder) in enumerate(folders.items()):
    for metric, lines in series(folder).items():
      for line, points in lines.items():
        label = f'{name}, {line}'
        styles[label] = (number % COLOURS, line == 'train')
        joined.setdefault(metric, {})[label] = points
  return _all_plots(joined, styles)


def _all_plots(lines_of: Mapping[str, Mapping[str, Points]], styles: Styles) -> list[dict]:
  steps = []
  for lines in lines_of.values():
    for points in lines.values():
      steps += [step for step, _ in points]
  return [plot(name, lines, styles, (min(steps), max(steps))) for name, lines in lines_of.items()]


def missing_input_plots(folders: Mapping[str, pathlib.Path]) -> list[dict]:
  """Returns plots of the first metric over the share of examples that lack a modality.

  Args:
    folders: {name: run folder}.

  Raises:
    UserError: a file is not one that `ablate` writes.
  """
  curves: dict[tuple[str, str, str], dict[str, Points]] = {}
  for label, folder in folders.items():
    for path in sorted((folder / 'ablation').glob('*.json')):
      try:
        curves_of_run = _missing_input_curves(path)
      except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
          f'{path}: not a file that `ablate` writes ({type(error).__name__}: {error}).'
        ) from None
      for key, points in curves_of_run.items():
        curves.setdefault(key, {})[label] = points
  styles = {label: (number % COLOURS, False) for number, label in enumerate(folders)}
  plots = []
  for (split, modality, metric), lines in curves.items():
    title = f'{metric}, {split}: without {modality}'
    plots.append(plot(title, lines, styles, (0, 100), ' %'))
  return plots


def _missing_input_curves(path: pathlib.Path) -> dict[tuple[str, str, str], Points]:
  """Reads {(split, modality, metric): [(share in percent, score)]}."""
  curves = {}
  for modality, by_metric in read_object(path).get('missing', {}).items():
    for metric, points in list(by_metric.items())[:1]:
      curve = [(100 * point['share'], point['value']) for point in points]
      curves[path.stem, modality, metric] = curve
  return curves
