"""Curves as inline SVG: of training and validation, of several runs, of missing inputs."""

import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmlm.evaluation.metrics import METRICS
from mmlm.reports.pages import read_entries, read_object
from mmlm.utils.errors import UserError

POINTS = 300  # of a curve, at most
# of the plotted area, in units of the SVG
WIDTH = 266
HEIGHT = 136
COLOURS = 8

Points = list[tuple[float, float]]  # (step, value)
Lines = dict[str, Points]  # by label
Series = dict[str, Lines]  # by metric
Styles = dict[str, tuple[int, bool]]  # {label: (number of its colour, whether it is dashed)}
Folders = Mapping[str, pathlib.Path]  # {name: run folder}


def series(folder: pathlib.Path) -> Series:
  """Reads the lines of a run: 'train', 'valid' or each of several splits of validation."""
  result: Series = {}
  for name in ('loss', 'perplexity', *METRICS):
    result[name] = {}
  path = folder / 'metrics.jsonl'
  entries = []
  if path.exists():
    entries = read_entries(path, ('step', 'kind'))
  for entry in entries:
    _add_entry(result, entry)
  return {name: lines for name, lines in result.items() if lines}


def _add_entry(result: Series, entry: dict) -> None:
  """Adds the numbers of a line of metrics.jsonl; of training only the loss is shown."""
  kind = entry['kind']
  for key, value in entry.items():
    split, _, name = key.rpartition('/')
    if name not in result:
      continue
    if kind == 'train' and name != 'loss':
      continue
    is_number = isinstance(value, (int, float))
    if not is_number or not math.isfinite(value):
      continue
    label = split or kind
    points = result[name].setdefault(label, [])
    points.append((entry['step'], value))


def _thin(points: Points) -> Points:
  """Averages groups of points, so that at most `POINTS` are left."""
  size = math.ceil(len(points) / POINTS)
  means = []
  for start in range(0, len(points), size):
    group = points[start : start + size]
    count = len(group)
    steps, values = zip(*group)
    mean_step = sum(steps) / count
    mean_value = sum(values) / count
    means.append((mean_step, mean_value))
  return means


class Scale(NamedTuple):
  """Maps steps and values to units of the SVG."""

  first: float
  last: float
  low: float
  high: float

  def x(self, step: float) -> float:
    """Returns the horizontal position of a step."""
    length = self.last - self.first or 1
    return round((step - self.first) / length * WIDTH, 1)

  def y(self, value: float) -> float:
    """Returns the vertical position of a value."""
    length = self.high - self.low or 1
    return round((self.high - value) / length * HEIGHT, 1)


def plot(
  name: str,
  lines: Lines,
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
  thinned = {}
  values = []
  for label, points in lines.items():
    thinned[label] = _thin(sorted(points))
    for _, value in thinned[label]:
      values.append(value)
  low = min(values)
  high = max(values)
  scale = Scale(*ends, low, high)
  drawn = []
  data = []
  for label, points in thinned.items():
    colour, dashed = styles[label]
    positions = []
    rounded = []
    for step, value in points:
      positions.append((scale.x(step), scale.y(value)))
      rounded.append([round(step, 3), float(f'{value:.6g}')])
    drawn.append((label, colour, dashed, positions))
    data.append(rounded)
  middle = (low + high) / 2
  rows = []
  for value in dict.fromkeys((low, middle, high)):
    y = scale.y(value)
    rows.append((y, float(value)))
  columns = []
  for step in dict.fromkeys(ends):
    x = scale.x(step)
    columns.append((x, step))
  return {
    'name': name,
    'unit': unit,
    'lines': drawn,
    'rows': rows,
    'columns': columns,
    'data': data,
  }


def run_plots(folder: pathlib.Path) -> list[dict]:
  """Returns a plot for each metric of a run; a line has the same colour in all of them."""
  lines_of = series(folder)
  labels: dict[str, None] = {}
  for lines in lines_of.values():
    labels |= dict.fromkeys(lines)
  return _all_plots(lines_of, _solid_styles(labels))


def _solid_styles(labels: Iterable[str]) -> Styles:
  """Returns a colour for each label."""
  styles = {}
  for number, label in enumerate(labels):
    styles[label] = (number % COLOURS, False)
  return styles


def plots_of_runs(folders: Folders) -> list[dict]:
  """Returns the plots of several runs, a colour for each run; training is dashed."""
  joined: Series = {}
  styles = {}
  for number, (name, folder) in enumerate(folders.items()):
    colour = number % COLOURS
    for metric, lines in series(folder).items():
      all_lines = joined.setdefault(metric, {})
      for line, points in lines.items():
        label = f'{name}, {line}'
        styles[label] = (colour, line == 'train')
        all_lines[label] = points
  return _all_plots(joined, styles)


def _all_plots(lines_of: Series, styles: Styles) -> list[dict]:
  steps = []
  for lines in lines_of.values():
    for points in lines.values():
      for step, _ in points:
        steps.append(step)
  plots = []
  for name, lines in lines_of.items():
    ends = (min(steps), max(steps))
    plots.append(plot(name, lines, styles, ends))
  return plots


def missing_input_plots(folders: Folders) -> list[dict]:
  """Returns plots of the first metric over the share of examples that lack a modality.

  Raises:
    UserError: a file is not one that `ablate` writes.
  """
  curves: Series = {}
  for label, folder in folders.items():
    for path in sorted((folder / 'ablation').glob('*.json')):
      try:
        curves_of_run = _missing_input_curves(path)
      except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
          f'{path}: not a file that `ablate` writes ({type(error).__name__}: {error}).'
        ) from None
      for title, points in curves_of_run.items():
        curves.setdefault(title, {})[label] = points
  styles = _solid_styles(folders)
  plots = []
  for title, lines in curves.items():
    plots.append(plot(title, lines, styles, (0, 100), ' %'))
  return plots


def _missing_input_curves(path: pathlib.Path) -> Lines:
  """Reads {title of a plot: [(share in percent, score)]}."""
  curves = {}
  for modality, by_metric in read_object(path).get('missing', {}).items():
    first_metric = list(by_metric.items())[:1]
    for metric, measured in first_metric:
      points = []
      for point in measured:
        percent = 100 * point['share']
        points.append((percent, point['value']))
      title = f'{metric}, {path.stem}: without {modality}'
      curves[title] = points
  return curves
