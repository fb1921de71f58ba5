"""The rows of a paper's table: what is trained for each, and how it is evaluated.

A table (multi30k_de.py) may hold ROWS = {name: Row}; `./launch.sh reproduce experiments/TABLE.py`
runs what is missing. The published numbers and their sources stand in the METRICS of the table.
"""

import pathlib
import runpy
from dataclasses import dataclass, field
from typing import Any

from mmlm.utils.errors import UserError

Definitions = dict[str, Any]  # what a table's file defines, by name


@dataclass(frozen=True)
class Row:
  """One system of a table.

  `spec` may hold {k}, the number of the run (a seed, or a fold of a table with FOLDS), and {start},
  the run of that number of the row `start`.
  """

  spec: str  # a config with its :args
  label: str = ''  # in front of its rows of results; '' for a table that has one system
  overrides: dict = field(default_factory=dict)  # {key of the config: text}
  runs: int = 1  # seeds, or folds
  splits: tuple = ()  # to evaluate; () = those of the config
  greedy: bool = False  # also evaluated greedily
  ablate: bool = False
  comparable: bool = True  # the published numbers of METRICS are of such a system
  start: str = ''  # the row whose runs these start from
  against: str = ''  # the row that differences are taken from
  texts_of: str = ''  # also evaluated as a cascade: on the texts that runs of that row wrote


Rows = dict[str, Row]


def rows_of_table(path: str | pathlib.Path) -> tuple[Definitions, Rows]:
  """Returns what a table's file defines, and its rows.

  Raises:
    UserError: a row names another row that the table does not have.
  """
  table = runpy.run_path(str(path))
  rows = table.get('ROWS', {})
  for name, row in rows.items():
    for reference in (row.start, row.against, row.texts_of):
      if reference and reference not in rows:
        raise UserError(
          f'{path}: the row {name!r} names {reference!r}, which is none of {", ".join(rows)}.'
        )
  return table, rows


def rows_of_tables(root: str | pathlib.Path) -> dict[str, tuple[Definitions, Rows]]:
  """Returns {table: (what it defines, its rows)} of the tables that have any."""
  tables = {}
  for path in sorted(pathlib.Path(root, 'experiments').glob('*.py')):
    if '\nROWS = ' in path.read_text(encoding='utf-8'):
      tables[path.stem] = rows_of_table(path)
  return tables


def measured(row: Row, rows: Rows, results: list[dict]) -> int:
  """Returns how many runs the results of a row are of; 0 = it was never measured."""
  labels = sorted(
    (other.label for other in rows.values()),
    key=len,
    reverse=True,
  )
  counts = []
  for result in results:
    if _label_of(result['row'], labels) == row.label:
      counts.append(result['n'])
  return min(counts, default=0)


def _label_of(text: str, labels: list[str]) -> str | None:
  """Returns the first label that the name of a result begins with."""
  for label in labels:
    if not label or text == label or text.startswith(f'{label}, '):
      return label
  return None
