"""Tables of measured results, experiments/results/*.json, in experiments/README.md and README.md.

A results file is a list of rows with the keys of KEYS. `python -m experiments.tables` renders both
pages.

A row beside which a number was published is marked by rule (`mark`), and so is one of a table's
ROWS that was never measured: 'not run'.
"""

import math
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from experiments.rows import Definitions, Rows, measured, rows_of_tables
from mmlm.evaluation.metrics import METRICS
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, write_atomic, write_json

Result = dict[str, Any]  # a row of a results file
Results = list[Result]
Cells = list[str]


# The keys of a result


class Kind(NamedTuple):
  """What a value must be."""

  description: str
  test: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
  is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
  return is_numeric and math.isfinite(value)


def _is_count(value: Any) -> bool:
  return type(value) is int and value > 0


def _is_interval(value: Any) -> bool:
  return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _optional(kind: Kind) -> Kind:
  def test(value: Any) -> bool:
    return value is None or kind.test(value)

  return Kind(f'{kind.description} or null', test)


_TEXT = Kind('a text', _is_text)
_NUMBER = Kind('a number', _is_number)
_COUNT = Kind('a whole number above 0', _is_count)
_INTERVAL = Kind('[low, high]', _is_interval)

KEYS = {
  'row': _TEXT,
  'dataset': _TEXT,
  'split': _TEXT,
  'metric': _TEXT,
  'definition': _TEXT,
  'published': _optional(_NUMBER),
  'source': _optional(_TEXT),
  'ours': _NUMBER,  # mean of the runs
  'spread': _optional(_NUMBER),  # their standard deviation
  'n': _COUNT,  # runs (seeds)
  'interval': _optional(_INTERVAL),  # 95 %
  'config': _TEXT,
  'command': _TEXT,
  'commit': _TEXT,
  'hardware': _TEXT,
  'seconds': _NUMBER,
}
_IDENTITY = ('row', 'dataset', 'split', 'metric')


def check_rows(path: str | pathlib.Path, rows: Any) -> Results:
  """Returns the rows.

  Raises:
    UserError: a row is wrong; the message names the file, the row and the key.
  """
  if not isinstance(rows, list):
    raise UserError(f'{path}: expected a list of rows, found {type(rows).__name__}.')
  for number, row in enumerate(rows, 1):
    if not isinstance(row, dict):
      raise UserError(f'{path}, row {number}: expected an object with {", ".join(KEYS)}.')
    _check_row(f'{path}, row {number} ({row.get("row", "no name")})', row)
  return rows


def _check_row(where: str, row: Result) -> None:
  for key in sorted(row.keys() ^ KEYS.keys()):
    wrong = 'unknown' if key in row else 'missing'
    raise UserError(f'{where}: {wrong} key {key!r}.')
  for key, kind in KEYS.items():
    if not kind.test(row[key]):
      raise UserError(f'{where}: {key!r} must be {kind.description}, and is {row[key]!r}.')


def add_rows(path: str | pathlib.Path, rows: Iterable[Result]) -> None:
  """Adds rows to a results file; one with the same row, dataset, split and metric is replaced."""
  path = pathlib.Path(path)
  before = read_json(path) if path.exists() else []
  merged = {}
  for row in (*check_rows(path, before), *check_rows('new rows', list(rows))):
    merged[tuple(row[key] for key in _IDENTITY)] = row
  write_json(path, list(merged.values()))


# Cells


def _format(value: float, like: float | None = None) -> str:
  """Formats a measured number with decimals that fit its size, or the size of `like`."""
  size = abs(value if like is None else like)
  decimals = 3
  if size >= 1000:
    decimals = 0
  elif size >= 100:
    decimals = 1
  elif size >= 10:
    decimals = 2
  return f'{value:,.{decimals}f}'


def _duration(seconds: float) -> str:
  if seconds >= 3600:
    return f'{seconds / 3600:.1f} h'
  if seconds >= 60:
    return f'{seconds / 60:.1f} min'
  return f'{seconds:.1f} s'


def _escape(cell: Any) -> str:
  return str(cell).replace('|', '\\|').replace('\n', ' ')


def _table(header: Cells, rows: Iterable[Iterable[str]]) -> str:
  """Returns a Markdown table."""
  text = ''
  for line in (header, ['---'] * len(header), *rows):
    text += '| ' + ' | '.join(map(_escape, line)) + ' |\n'
  return text


def _ours(row: Result) -> str:
  text = _format(row['ours'])
  if row['spread'] is None:
    return text
  return f'{text} ± {_format(row["spread"], row["ours"])} (n = {row["n"]})'


def _interval(row: Result) -> str:
  bounds = row['interval'] or ()
  return ' to '.join(_format(bound, row['ours']) for bound in bounds)


def _published(row: Result) -> str:
  if row['published'] is None:
    return ''
  text = f'{row["published"]:g}'
  if row['source']:
    text += f' ({row["source"]})'
  return text


def mark(row: Result) -> str:
  """Returns how a row compares with its published number; '' without one.

  'reproduced': that lies within our 95 % interval, or is our number where there is no interval;
  else 'beaten' when ours is better and 'below' when it is worse.
  """
  published = row['published']
  if published is None:
    return ''
  low, high = row['interval'] or (row['ours'], row['ours'])
  if low <= published <= high:
    return 'reproduced'
  is_higher = row['ours'] > published
  return 'beaten' if is_higher == _higher_is_better(row['definition']) else 'below'


def _higher_is_better(definition: str) -> bool:
  """Returns the direction of a metric by its definition.

  Those of word vectors, correlations and accuracies, are not in METRICS.
  """
  for metric in METRICS.values():
    if metric.definition == definition:
      return metric.higher_is_better
  return True


# Tables


def result_table(rows: Results, not_run: Iterable[Cells] = ()) -> str:
  """Returns Markdown: published numbers beside those that were measured."""
  header = ['', 'data', 'metric', 'published', 'ours', '95 % interval', 'mark']
  lines = []
  for row in rows:
    data = f'{row["dataset"]} {row["split"]}'
    numbers = [_published(row), _ours(row), _interval(row)]
    lines.append([row['row'], data, row['metric'], *numbers, mark(row)])
  return _table(header, [*lines, *not_run])


def _not_run(table: Definitions, rows: Rows, results: Results) -> list[Cells]:
  """Returns lines of `result_table` for the rows of a table that were never measured."""
  metrics = list(table['METRICS'].values())
  with_published = [metric for metric in metrics if metric[2] is not None]
  title, _, published, source = (with_published or metrics)[0]
  data = f'{table["DATASET"]} {table.get("FOLDS") or table.get("SPLIT", "")}'.strip()
  lines = []
  for name, row in rows.items():
    if measured(row, rows, results):
      continue
    number = ''
    if published is not None and row.comparable:
      number = f'{published:g} ({source})'
    lines.append([row.label or name, data, title, number, '', '', 'not run'])
  return lines


def summary_table(rows: Results) -> str:
  """Returns Markdown: a line a system, a column a metric.

  Published systems come first, then ours with the [95 % interval].
  """
  metrics = list(dict.fromkeys(row['metric'] for row in rows))
  lines: dict[tuple[str, str], dict[str, str]] = {}

  def put(system: str, row: Result, text: str) -> None:
    data = f'{row["dataset"]} {row["split"]}'
    lines.setdefault((system, data), {})[row['metric']] = text

  for row in rows:
    if row['published'] is not None:
      put(row['source'] or 'published', row, f'{row["published"]:g}')
  for row in rows:
    text = _ours(row)
    if row['interval']:
      text += f' [{_interval(row)}]'
    put(f'ours, {row["row"]}', row, text)
  cells = []
  for (system, data), of_system in lines.items():
    cells.append([system, data, *(of_system.get(metric, '') for metric in metrics)])
  return _table(['', 'data', *metrics], cells)


def grid_table(rows: Results) -> str:
  """Returns Markdown of rows named 'system' or 'system, variant', with the first metric.

  A line for each system, a column for each variant.
  """
  cells: dict[str, dict[str, str]] = {}
  published: dict[str, str] = {}
  metric = rows[0]['metric']
  for row in rows:
    if row['metric'] != metric:
      continue
    system, _, variant = row['row'].partition(', ')
    variant = variant.removeprefix('ablation, ') or 'as it is'
    cells.setdefault(system, {})[variant] = _ours(row)
    if row['published'] is not None:
      published[variant] = f'{row["published"]:g} ({row["source"]})'
  variants: dict[str, None] = {}  # in the order of their first appearance
  for of_system in cells.values():
    variants.update(dict.fromkeys(of_system))
  systems = sorted(cells.items())
  if published:
    systems.insert(0, ('published', published))
  lines = []
  for system, of_system in systems:
    lines.append([system, *(of_system.get(variant, '') for variant in variants)])
  return _table([metric, *variants], lines)


def _origin_table(rows: Results) -> str:
  """Returns Markdown: with what each row was measured."""
  lines = {}
  for row in rows:
    line = (
      row['row'],
      f'`{row["config"]}`',
      f'`{row["command"]}`',
      row['commit'][:13],
      row['hardware'],
      _duration(row['seconds']),
    )
    lines[line] = None
  return _table(['', 'config', 'command', 'commit', 'hardware', 'time'], lines)


# Pages

_HEAD = (
  '# Measured results\n\n'
  'From `results/*.json`, by `python -m experiments.tables`. '
  'A published number is *reproduced* where it lies within our 95 % interval (over\n'
  'examples for one run, over seeds for several), '
  '*beaten* where ours is better than that, *below* where it is worse.\n'
)
_BLOCKS = {'results': summary_table, 'grid': grid_table}
_BLOCK = re.compile(r'(<!-- (results|grid):([\w.-]+) -->\n).*?(<!-- /results -->)', re.DOTALL)
_OPENING = re.compile('<!-- (?:results|grid):')
_CLOSING = '<!-- /results -->'


def results_page(results: dict[str, Results], tables: dict | None = None) -> str:
  """Returns the Markdown of experiments/README.md.

  Args:
    results: {table: rows}.
    tables: of `rows_of_tables`.
  """
  tables = tables or {}
  page = _HEAD
  for name in sorted(results.keys() | tables.keys()):
    rows = results.get(name, [])
    not_run = []
    if name in tables:
      table, rows_of_table = tables[name]
      not_run = _not_run(table, rows_of_table, rows)
    page += f'\n## {name}\n\n{result_table(rows, not_run)}'
    if rows:
      definitions = dict.fromkeys(f'- {row["metric"]}: {row["definition"]}\n' for row in rows)
      page += f'\n{"".join(definitions)}\n{_origin_table(rows)}'
    if not_run:
      page += f'\n`./launch.sh reproduce experiments/{name}.py` runs what was not run.\n'
  return page


def _fill(text: str, results: dict[str, Results], path: pathlib.Path) -> str:
  """Puts a table into each block of a page.

  A block begins with `<!-- results:NAME -->` or `<!-- grid:NAME -->` and ends with
  `<!-- /results -->`.
  """
  blocks = _BLOCK.findall(text)
  if not len(blocks) == len(_OPENING.findall(text)) == text.count(_CLOSING):
    raise UserError(f'{path}: each <!-- results:NAME --> needs its own {_CLOSING} below it.')
  for _, kind, name, _ in blocks:
    if name not in results:
      raise UserError(f'{path}: the block {kind}:{name} has no experiments/results/{name}.json.')

  def filled(match: re.Match) -> str:
    opening, kind, name, closing = match.groups()
    return f'{opening}\n{_BLOCKS[kind](results[name])}\n{closing}'

  return _BLOCK.sub(filled, text)


def write_tables(root: str | pathlib.Path) -> None:
  """Renders <root>/experiments/README.md, and the blocks of <root>/README.md."""
  root = pathlib.Path(root)
  results = {}
  for path in sorted((root / 'experiments' / 'results').glob('*.json')):
    results[path.stem] = check_rows(path, read_json(path))
  readme = root / 'README.md'
  if readme.exists():
    write_atomic(readme, _fill(readme.read_text(encoding='utf-8'), results, readme))
  write_atomic(root / 'experiments' / 'README.md', results_page(results, rows_of_tables(root)))


if __name__ == '__main__':
  try:
    write_tables(pathlib.Path(__file__).resolve().parents[1])
  except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
