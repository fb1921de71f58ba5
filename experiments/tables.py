"""Tables of measured results, experiments/results/*.json, in experiments/README.md and blocks of README.md.

A results file is a list of rows with the keys of KEYS. `python -m experiments.tables` renders both pages.

A row beside which a number was published is marked by rule (`mark`), and so is one of a table's ROWS that was never measured: 'not run'.
"""

import math
import pathlib
import re
import sys

from experiments.rows import measured, rows_of_tables
from mmlm.evaluation.metrics import METRICS
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, write_atomic, write_json


def _number(v):
  return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)


_TEXT = 'a text', lambda v: isinstance(v, str) and bool(v)
_NUMBER = 'a number', _number
_COUNT = 'a whole number above 0', lambda v: type(v) is int and v > 0
_INTERVAL = (
  '[low, high]',
  lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(map(_number, v)),
)


def _optional(kind):
  return f'{kind[0]} or null', lambda v: v is None or kind[1](v)


# `n` counts runs (seeds): `ours` is their mean, `spread` their standard deviation. `interval` is at 95 %.
KEYS = {
  'row': _TEXT,
  'dataset': _TEXT,
  'split': _TEXT,
  'metric': _TEXT,
  'definition': _TEXT,
  'published': _optional(_NUMBER),
  'source': _optional(_TEXT),
  'ours': _NUMBER,
  'spread': _optional(_NUMBER),
  'n': _COUNT,
  'interval': _optional(_INTERVAL),
  'config': _TEXT,
  'command': _TEXT,
  'commit': _TEXT,
  'hardware': _TEXT,
  'seconds': _NUMBER,
}
_IDENTITY = ('row', 'dataset', 'split', 'metric')
_HEAD = """# Measured results

From `results/*.json`, by `python -m experiments.tables`. A published number is *reproduced* where it lies within our 95 % interval (over
examples for one run, over seeds for several), *beaten* where ours is better than that, *below* where it is worse.
"""
_BLOCK = re.compile(r'(<!-- (results|grid):([\w.-]+) -->\n).*?(<!-- /results -->)', re.DOTALL)


def check_rows(path, rows) -> list:
  """The rows, if they are sound; else UserError with the file, the row and the key."""
  if not isinstance(rows, list):
    raise UserError(f'{path}: expected a list of rows, found {type(rows).__name__}.')
  for index, row in enumerate(rows):
    if not isinstance(row, dict):
      raise UserError(f'{path}, row {index + 1}: expected an object with {", ".join(KEYS)}.')
    where = f'{path}, row {index + 1} ({row.get("row", "no name")})'
    for key in sorted(row.keys() ^ KEYS.keys()):
      raise UserError(f'{where}: {"unknown" if key in row else "missing"} key {key!r}.')
    for key, (kind, test) in KEYS.items():
      if not test(row[key]):
        raise UserError(f'{where}: {key!r} must be {kind}, and is {row[key]!r}.')
  return rows


def add_rows(path, rows):
  """Adds rows to a results file; one with the same row, dataset, split and metric is replaced."""
  path = pathlib.Path(path)

  def identity(row):
    return tuple(row[key] for key in _IDENTITY)

  merged = {
    identity(row): row for row in check_rows(path, read_json(path) if path.exists() else [])
  }
  merged.update({identity(row): row for row in check_rows('new rows', list(rows))})
  write_json(path, list(merged.values()))


def _format(value, like=None) -> str:
  """A measured number with decimals that fit its size, or those of `like`."""
  size = abs(value if like is None else like)
  return f'{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}'


def _duration(seconds) -> str:
  return next(
    f'{seconds / unit:.1f} {name}'
    for unit, name in ((3600, 'h'), (60, 'min'), (1, 's'))
    if seconds >= unit or unit == 1
  )


def _table(header, rows) -> str:
  def escape(cell):
    return str(cell).replace('|', '\\|').replace('\n', ' ')

  lines = [header, ['---'] * len(header), *rows]
  return ''.join('| ' + ' | '.join(map(escape, line)) + ' |\n' for line in lines)


def _ours(row) -> str:
  if row['spread'] is None:
    spread = ''
  else:
    spread = f' ± {_format(row["spread"], row["ours"])} (n = {row["n"]})'
  return _format(row['ours']) + spread


def _interval(row) -> str:
  return ' to '.join(_format(v, row['ours']) for v in row['interval'] or ())


def mark(row) -> str:
  """How a row stands to its published number; '' without one.

  'reproduced': that lies within our 95 % interval, or is our number where there is none; else 'beaten' when ours is better and 'below'
  when it is worse.
  """
  if row['published'] is None:
    return ''
  low, high = row['interval'] or (row['ours'], row['ours'])
  if low <= row['published'] <= high:
    return 'reproduced'
  if (row['ours'] > row['published']) == _higher_is_better(row['definition']):
    return 'beaten'
  return 'below'


def _higher_is_better(definition: str) -> bool:
  """Returns the direction of a metric by its definition; those of word vectors are not in METRICS."""
  for metric in METRICS.values():
    if metric.definition == definition:
      return metric.higher_is_better
  return True


def _not_run(table: dict, rows: dict, results: list) -> list:
  """Lines of `result_table` for the rows of a table that were never measured."""
  key, (title, _, published, source) = next(
    ((k, m) for k, m in table['METRICS'].items() if m[2] is not None),
    next(iter(table['METRICS'].items())),
  )

  def told(row):
    if published is not None and row.comparable:
      return f'{published:g} ({source})'
    return ''

  data = f'{table["DATASET"]} {table.get("FOLDS") or table.get("SPLIT", "")}'.strip()
  return [
    [row.label or name, data, title, told(row), '', '', 'not run']
    for name, row in rows.items()
    if not measured(row, rows, results)
  ]


def result_table(rows, not_run=()) -> str:
  """Markdown: what was published beside what was measured."""
  lines = []
  for row in rows:
    if row['published'] is None:
      published = ''
    else:
      published = f'{row["published"]:g}'
    if published and row['source']:
      source = f' ({row["source"]})'
    else:
      source = ''
    data = f'{row["dataset"]} {row["split"]}'
    lines.append(
      [row['row'], data, row['metric'], published + source, _ours(row), _interval(row), mark(row)]
    )
  return _table(
    ['', 'data', 'metric', 'published', 'ours', '95 % interval', 'mark'], [*lines, *not_run]
  )


def summary_table(rows) -> str:
  """Markdown, a line for each system: what was published first, then ours with its [95 % interval], a column a metric."""
  metrics = list(dict.fromkeys(row['metric'] for row in rows))
  lines = {}
  for row in rows:
    if row['published'] is not None:
      lines.setdefault((row['source'] or 'published', row['dataset'], row['split']), {})[
        row['metric']
      ] = f'{row["published"]:g}'
  for row in rows:
    text = _ours(row) + (f' [{_interval(row)}]' if row['interval'] else '')
    lines.setdefault(
      (f'ours, {row["row"]}', row['dataset'], row['split']),
      {},
    )[row['metric']] = text
  return _table(
    ['', 'data', *metrics],
    [
      [who, f'{data} {split}', *(line.get(m, '') for m in metrics)]
      for (who, data, split), line in lines.items()
    ],
  )


def grid_table(rows) -> str:
  """Markdown of rows named 'system' or 'system, variant': a line for each system, a column a variant, with the first metric."""
  cells = {}
  published = {}
  metric = rows[0]['metric']
  for row in rows:
    if row['metric'] == metric:
      system, _, variant = row['row'].partition(', ')
      variant = variant.removeprefix('ablation, ') or 'as it is'
      cells.setdefault(system, {})[variant] = _ours(row)
      published |= (
        {variant: f'{row["published"]:g} ({row["source"]})'} if row['published'] is not None else {}
      )
  variants = list(dict.fromkeys(variant for found in cells.values() for variant in found))
  if published:
    told = [['published', *(published.get(variant, '') for variant in variants)]]
  else:
    told = []
  return _table(
    [metric, *variants],
    told
    + [[system, *(found.get(v, '') for v in variants)] for system, found in sorted(cells.items())],
  )


_BLOCKS = {'results': summary_table, 'grid': grid_table}


def _origin_table(rows) -> str:
  lines = []
  for row in rows:
    lines.append(
      [
        row['row'],
        f'`{row["config"]}`',
        f'`{row["command"]}`',
        row['commit'][:13],
        row['hardware'],
        _duration(row['seconds']),
      ]
    )
  return _table(
    ['', 'config', 'command', 'commit', 'hardware', 'time'], dict.fromkeys(map(tuple, lines))
  )


def results_page(results: dict, tables: dict | None = None) -> str:
  """Markdown of experiments/README.md from {name: rows} and what the tables define (`rows_of_tables`)."""
  parts = [_HEAD]
  tables = tables or {}
  for name in sorted(results.keys() | tables.keys()):
    rows = results.get(name, [])
    if name in tables:
      not_run = _not_run(*tables[name], rows)
    else:
      not_run = []
    definitions = dict.fromkeys(f'- {row["metric"]}: {row["definition"]}\n' for row in rows)
    if rows:
      origin = f'\n{"".join(definitions)}\n{_origin_table(rows)}'
    else:
      origin = ''
    if not_run:
      missing = f'\n`./launch.sh reproduce experiments/{name}.py` runs what was not run.\n'
    else:
      missing = ''
    parts.append(f'\n## {name}\n\n{result_table(rows, not_run)}{origin}{missing}')
  return ''.join(parts)


def _fill(text: str, results: dict, path) -> str:
  """`text` with a table in each block from `<!-- results:NAME -->`, or grid:NAME, to `<!-- /results -->`."""
  blocks = _BLOCK.findall(text)
  if (
    not len(blocks)
    == len(re.findall('<!-- (?:results|grid):', text))
    == text.count('<!-- /results -->')
  ):
    raise UserError(f'{path}: each <!-- results:NAME --> needs its own <!-- /results --> below it.')
  for _, kind, name, _ in blocks:
    if name not in results:
      raise UserError(f'{path}: the block {kind}:{name} has no experiments/results/{name}.json.')
  return _BLOCK.sub(
    lambda match: f'{match[1]}\n{_BLOCKS[match[2]](results[match[3]])}\n{match[4]}', text
  )


def write_tables(root):
  """Renders <root>/experiments/README.md, and the blocks of <root>/README.md."""
  root = pathlib.Path(root)
  files = sorted((root / 'experiments' / 'results').glob('*.json'))
  results = {path.stem: check_rows(path, read_json(path)) for path in files}
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
