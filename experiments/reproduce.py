"""Measures what a paper's table lacks: `./launch.sh reproduce experiments/TABLE.py`.

Trains and evaluates the rows that have no results yet, records them and renders the tables.
"""

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from experiments.record import ROOT, load_table, rows_of
from experiments.rows import Row, measured, rows_of_table
from experiments.tables import add_rows, check_rows, write_tables
from mmlm.experiment.prediction import file_name
from mmlm.sweeps.listing import summarize_run
from mmlm.utils import run_dir as run_folders
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

AS_CONFIGURED = ''
GREEDY = 'greedy'
CASCADE = 'text_from'
ABLATION = 'ablation'
INTERRUPTED = 130  # exit code of a command after Ctrl-C


def reproduce(
  table: str,
  rows: list[str],
  seeds: int,
  runs: str,
  data_dir: str,
  settings: dict[str, str],
  root: pathlib.Path = ROOT,
) -> None:
  """Runs the rows of a table that lack results of so many seeds.

  A row that fails does not stop the others.

  Args:
    rows: names of rows; [] = all.
    seeds: runs of each row; 0 = as many as the table says.
    runs: folder of the run folders.
    settings: further --config flags of all trainings.

  Raises:
    UserError: no such table or row; rows that could not be measured.
  """
  path = _find_table(table, root)
  name = path.stem
  defined, known = rows_of_table(path)
  if not known:
    raise UserError(f'{path} has no ROWS.')
  for row in rows:
    one_of('--rows', row, known)
  results = root / 'experiments' / 'results' / f'{name}.json'
  done = _read_results(results)
  folder = pathlib.Path(runs) / name
  paper = Paper(name, defined, known, folder, {'data.dir': data_dir} | settings, seeds)
  failed = []
  for row in rows or known:
    if measured(known[row], known, done) >= paper.count(row):
      print(f'{name}, {row}: done', flush=True)
      continue
    try:
      measured_rows = _measure(row, paper)
    except UserError as error:
      failed.append(f'{row}: {error}')
      print(f'{name}, {failed[-1]}', file=sys.stderr, flush=True)
      continue
    add_rows(results, measured_rows)
    write_tables(root)
  write_tables(root)
  if failed:
    raise UserError(f'{len(failed)} rows of {name} were not measured:\n' + '\n'.join(failed))


def _find_table(table: str, root: pathlib.Path) -> pathlib.Path:
  """Returns the file of a table, which may be named without its folder and ending."""
  in_experiments = root / 'experiments' / f'{pathlib.Path(table).stem}.py'
  for path in (pathlib.Path(table), root / table, in_experiments):
    if path.is_file():
      return path
  tables = []
  for path in sorted((root / 'experiments').glob('*.py')):
    if '\nROWS = ' in path.read_text(encoding='utf-8'):
      tables.append(path.name)
  raise UserError(f'no table {table}; there are {", ".join(tables)}.')


def _read_results(path: pathlib.Path) -> list[dict]:
  if not path.exists():
    return []
  return check_rows(path, run_folders.read_json(path))


def _measure(row: str, paper: 'Paper') -> list[dict]:
  """Returns the rows of results; a table may define how: `measure(row, paper)`."""
  measure = paper.table.get('measure')
  if measure is None:
    return paper.measure(row)
  return measure(row, paper)


class Paper:
  """The runs of a table, in a folder of its own, each in <row><number>.

  Args:
    table: what the file of the table defines.
    settings: further --config flags of all trainings.
    seeds: runs of each row; 0 = as many as the row says.
  """

  def __init__(
    self,
    name: str,
    table: dict[str, Any],
    rows: dict[str, Row],
    folder: pathlib.Path,
    settings: dict[str, str],
    seeds: int = 0,
  ):
    self.name = name
    self.table = table
    self.rows = rows
    self.folder = folder
    self.settings = settings
    self.seeds = seeds

  @property
  def has_folds(self) -> bool:
    """Whether the runs of a row are folds of the data, not seeds."""
    return 'FOLDS' in self.table

  def count(self, row: str) -> int:
    """Returns how many runs a row has; folds cannot be more or fewer than they are."""
    if self.has_folds:
      return self.rows[row].runs
    return self.seeds or self.rows[row].runs

  def folders(self, row: str) -> list[pathlib.Path]:
    """Returns the run folders of a row."""
    return [self.folder / f'{row}{k}' for k in range(self.count(row))]

  def measure(self, name: str) -> list[dict]:
    """Runs what is missing of a row and returns its rows of results."""
    row = self.rows[name]
    for needed in (row.start, row.texts_of, row.against):
      if needed:
        self._run(needed)
    self._run(name)
    against = []
    label_of_other = ''
    if row.against:
      against = self.folders(row.against)
      label_of_other = self.rows[row.against].label
    table = load_table(self.name)
    results = rows_of(table, self.folders(name), row.label, against, label_of_other)
    if not results:
      raise UserError('its runs have no score in common.')
    return results

  def _run(self, name: str) -> None:
    """Trains, evaluates and ablates the runs of a row, as far as it was not done."""
    row = self.rows[name]
    for k, folder in enumerate(self.folders(name)):
      self._train(row, folder, k)
      for flags in self._missing_evaluations(row, folder, k):
        _call('evaluate', str(folder), *flags)
      if row.ablate:
        self._ablate(row, folder)

  def _train(self, row: Row, folder: pathlib.Path, k: int) -> None:
    """Trains run `k` of a row, unless it is done."""
    run = summarize_run(folder)
    if run.state == 'running':
      raise UserError(f'{folder} is running.')
    if run.state == 'diverged':
      raise UserError(f'{folder} has diverged: {run.error}')
    if run.state == 'done':
      return
    spec = row.spec.format(k=k, start=self.folder / f'{row.start}{k}')
    settings = row.overrides | self.settings
    if not self.has_folds:
      settings = settings | {'seed': str(k)}
    flags = [f'--config.{key}={value}' for key, value in settings.items()]
    _call('train', spec, '--workdir', str(folder), *flags)

  def _ablate(self, row: Row, folder: pathlib.Path) -> None:
    splits = _splits(row, folder)
    if all(_is_scored(folder, split, ABLATION) for split in splits):
      return
    flags = []
    if row.splits:
      flags.append(f'--splits={",".join(row.splits)}')
    _call('ablate', str(folder), *flags)

  def _missing_evaluations(self, row: Row, folder: pathlib.Path, k: int) -> Iterator[list[str]]:
    """Yields the flags of every evaluation that has no scores yet."""
    splits = _splits(row, folder)
    missing = [split for split in splits if not _is_scored(folder, split, AS_CONFIGURED)]
    if missing:
      yield [f'--splits={",".join(missing)}']
    if row.greedy:
      missing = [split for split in splits if not _is_scored(folder, split, GREEDY)]
      if missing:
        yield [f'--splits={",".join(missing)}', '--greedy']
    if row.texts_of:
      recognizer = self.folder / f'{row.texts_of}{k}'
      for split in splits:
        if not _is_scored(folder, split, CASCADE):
          yield [f'--splits={split}', f'--text_from={_predictions(recognizer, split)}']


def _splits(row: Row, folder: pathlib.Path) -> list[str]:
  """Returns the splits that a row is evaluated on: its own, or those of the run's config."""
  splits = row.splits or run_folders.read_json(folder / 'config.json')['data']['splits']['test']
  if isinstance(splits, str):
    return [splits]
  return list(splits)


def _is_scored(folder: pathlib.Path, split: str, kind: str) -> bool:
  """Returns whether a run has scores of a split: AS_CONFIGURED, GREEDY, CASCADE or ABLATION."""
  if kind == ABLATION:
    return (folder / ABLATION / f'{file_name(split)}.json').exists()
  method = run_folders.read_json(folder / 'config.json')['decoding']['method']
  for path in (folder / 'scores').glob('*.json'):
    score = run_folders.read_json(path)
    is_of_split = score['split'] == split and not score['shuffled']
    if is_of_split and _is_of_kind(score, kind, method):
      return True
  return False


def _is_of_kind(score: dict, kind: str, configured_method: str) -> bool:
  method = score['decoding'].get('method')
  is_cascade = bool(score.get('text_from'))
  if kind == CASCADE:
    return is_cascade
  if kind == GREEDY:
    return method == 'greedy'
  return not is_cascade and method in (None, configured_method)


def _predictions(folder: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the newest predictions of a split that a run wrote, decoded as it is configured."""
  candidates = []
  for match, path in run_folders.predictions(folder):
    if match['split'] == file_name(split) and not match['method']:
      candidates.append((int(match['step']), path))
  if not candidates:
    raise UserError(f'{folder}: no predictions of {split}.')
  return max(candidates)[1]


def _call(*words: str) -> None:
  """Runs a command in a process of its own, so that environment.json records that command."""
  print('./launch.sh ' + ' '.join(words), flush=True)
  try:
    subprocess.run([sys.executable, '-m', 'mmlm', *words], check=True)
  except subprocess.CalledProcessError as error:
    if error.returncode == INTERRUPTED:
      raise KeyboardInterrupt from None
    raise UserError(
      f'`{words[0]}` ended with {error.returncode}; its message is printed above.'
    ) from None
