"""The rows of a paper's table: what is trained for each, how it is evaluated, and which of them have been measured.

A table (multi30k_de.py) may hold ROWS = {name: Row}; `./launch.sh reproduce experiments/TABLE.py` runs what is missing. The published
numbers and their sources stand in the METRICS of the table.
"""

import pathlib
import runpy
from dataclasses import dataclass, field

from mmlm.utils.errors import UserError


@dataclass(frozen=True)
class Row:
  """One system of a table.

  `spec` may hold {k}, the number of the run (a seed, or a fold of a table with FOLDS), and {start}, the run of that number of the row
  `start`.
  """

  spec: str  # a config with its :args
  label: str = ''  # stands in front of its rows of results; '' for a table that has one system
  overrides: dict = field(default_factory=dict)  # {key of the config: text}
  runs: int = 1  # seeds, or folds
  splits: tuple = ()  # to evaluate; () = those of the config
  greedy: bool = False  # is also evaluated greedily
  ablate: bool = False
  comparable: bool = True  # the published numbers of METRICS are of such a system
  start: str = ''  # the row whose runs these start from
  against: str = ''  # the row that differences are taken from
  texts_of: str = (
    ''  # is also evaluated with what the runs of that row wrote, in place of the texts (a cascade)
  )


def rows_of_table(path) -> tuple[dict, dict[str, Row]]:
  """What a table's file defines, and its rows."""
  path = pathlib.Path(path)
  table = runpy.run_path(str(path))
  rows = table.get('ROWS', {})
  for name, row in rows.items():
    if bad := [
      other for other in (row.start, row.against, row.texts_of) if other and other not in rows
    ]:
      raise UserError(
        f'{path}: the row {name!r} names {bad[0]!r}, which is none of {", ".join(rows)}.'
      )
  return table, rows


def rows_of_tables(root) -> dict[str, tuple[dict, dict[str, Row]]]:
  """{table: (what it defines, its rows)} of the tables that have any."""
  files = sorted(pathlib.Path(root, 'experiments').glob('*.py'))
  result = {}
  for path in files:
    if '\nROWS = ' in path.read_text(encoding='utf-8'):
      result[path.stem] = rows_of_table(path)
  return result


def measured(row: Row, rows: dict[str, Row], results: list[dict]) -> int:
  """How many runs the results of a row are of; 0 = it was never measured."""
  labels = sorted((other.label for other in rows.values()), key=len, reverse=True)

  def belongs(text, label):
    return not label or text == label or text.startswith(f'{label}, ')

  def label_of(text):
    return next((label for label in labels if belongs(text, label)), None)

  return min((found['n'] for found in results if label_of(found['row']) == row.label), default=0)
