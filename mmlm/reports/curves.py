"""Curves as inline SVG: of training and validation, of several runs over one another, of scores with inputs missing."""

import math
import pathlib

from mmlm.evaluation.metrics import METRICS
from mmlm.reports.pages import read_object, read_rows
from mmlm.utils.errors import UserError

POINTS = 300  # of a curve, at most
# of the plotted area, in units of the SVG
WIDTH = 266
HEIGHT = 136
COLOURS = 8


def series(folder) -> dict:
  """{metric: {line: [(step, value), ...]}} of a run: a line is 'train', 'valid' or one of several splits."""
  path = pathlib.Path(folder) / 'metrics.jsonl'
  found = {name: {} for name in ('loss', 'perplexity', *METRICS)}
  for row in read_rows(path, ('step', 'kind')) if path.exists() else []:
    for key, value in row.items():
      split, _, name = key.rpartition('/')
      if (
        name in (('loss',) if row['kind'] == 'train' else found)
        and isinstance(value, (int, float))
        and math.isfinite(value)
      ):
        found[name].setdefault(split or row['kind'], []).append((row['step'], value))
  return {name: lines for name, lines in found.items() if lines}


def _thin(points) -> list:
  """At most POINTS points, each the mean of a stretch, so that a peak of noise does not hide the trend."""
  size = math.ceil(len(points) / POINTS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [tuple(sum(column) / len(group) for column in zip(*group)) for group in groups]


def plot(name: str, lines: dict, styles: dict, ends: tuple, unit='') -> dict:
  """A curve of one metric as the template draws it and the script redraws it.

  Args:
    lines: {label: [(step, value), ...]}.
    styles: {label: (number of its colour, whether it is dashed)}.
    ends: the first and the last step of all curves beside one another.

  Returns:
    'lines' [(label, colour, dashed, [(x, y), ...])] and the ticks 'rows' and 'columns' [(place, value)] in units of the SVG; 'data', the values.
  """
  lines = {label: _thin(sorted(points)) for label, points in lines.items()}
  values = [value for points in lines.values() for _, value in points]
  (first, last), low, high = ends, min(values), max(values)

  def x(step):
    return round((step - first) / (last - first or 1) * WIDTH, 1)

  def y(value):
    return round((high - value) / (high - low or 1) * HEIGHT, 1)

  return {
    'name': name,
    'unit': unit,
    'lines': [
      (label, *styles[label], [(x(step), y(value)) for step, value in points])
      for label, points in lines.items()
    ],
    'rows': [
      (
        y(value),
        float(value),
      )
      for value in dict.fromkeys((low, (low + high) / 2, high))
    ],
    'columns': [(x(step), step) for step in dict.fromkeys((first, last))],
    'data': [
      [[round(step, 3), float(f'{value:.6g}')] for step, value in points]
      for points in lines.values()
    ],
  }


def run_plots(folder) -> list:
  """One plot a metric, over the same steps and with the same colour for the same line."""
  found = series(folder)
  labels = list(dict.fromkeys(label for lines in found.values() for label in lines))
  return _all_plots(
    found, {label: (number % COLOURS, False) for number, label in enumerate(labels)}
  )


def plots_of_runs(folders: dict) -> list:
  """The same of several runs {name: folder} over one another: a colour a run, what is of training dashed."""
  joined = {}
  styles = {}
  for number, (name, folder) in enumerate(folders.items()):
    for metric, lines in series(folder).items():
      for line, points in lines.items():
        label = f'{name}, {line}'
        styles[label] = (number % COLOURS, line == 'train')
        joined.setdefault(metric, {})[label] = points
  return _all_plots(joined, styles)


def _all_plots(found: dict, styles: dict) -> list:
  steps = [step for lines in found.values() for points in lines.values() for step, _ in points]
  return [plot(name, lines, styles, (min(steps), max(steps))) for name, lines in found.items()]


def missing_plots(folders: dict) -> list:
  """Plots of the first metric over the share of examples that lack a modality, one a modality, of runs {name: folder}."""
  curves: dict = {}
  for label, place in folders.items():
    for path in sorted((pathlib.Path(place) / 'ablation').glob('*.json')):
      try:
        for modality, of_metric in read_object(path).get('missing', {}).items():
          for metric, points in list(of_metric.items())[:1]:
            lines = curves.setdefault((path.stem, modality, metric), {})
            lines[label] = [(100 * point['share'], point['value']) for point in points]
      except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
          f'{path}: not what `ablate` writes ({type(error).__name__}: {error}).'
        ) from None
  styles = {label: (number % COLOURS, False) for number, label in enumerate(folders)}
  return [
    plot(f'{metric}, {split}: without {modality}', lines, styles, (0, 100), ' %')
    for (split, modality, metric), lines in curves.items()
  ]
