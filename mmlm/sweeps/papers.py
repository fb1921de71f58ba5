"""`./launch.sh reproduce experiments/TABLE.py`: trains and evaluates what a paper's table lacks, records it, renders the tables."""

import pathlib
import subprocess
import sys

from experiments.record import ROOT, load_table, rows_of
from experiments.rows import Row, measured, rows_of_table
from experiments.tables import add_rows, check_rows, write_tables
from mmlm.experiment.prediction import file_name
from mmlm.sweeps.listing import look
from mmlm.utils import run_dir as run_folders
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


def reproduce(
  table: str, rows: list, seeds: int, runs: str, data_dir: str, settings: dict, root=ROOT
) -> None:
  """Runs the rows of a table that were not measured with so many seeds; a row that fails leaves the others alone."""
  path = pathlib.Path(table)
  name = path.stem
  path = next(
    (place for place in (path, root / path) if place.is_file()), root / 'experiments' / f'{name}.py'
  )
  if not path.is_file():
    tables = sorted(
      place.name
      for place in (root / 'experiments').glob('*.py')
      if '\nROWS = ' in place.read_text(encoding='utf-8')
    )
    raise UserError(f'no table {table}; there are {", ".join(tables)}.')
  defined, known = rows_of_table(path)
  if not known:
    raise UserError(f'{path} has no ROWS.')
  for row in rows:
    one_of('--rows', row, known)
  results = root / 'experiments' / 'results' / f'{name}.json'
  if results.exists():
    done = check_rows(results, run_folders.read_json(results))
  else:
    done = []
  paper = Paper(
    name, defined, known, pathlib.Path(runs) / name, {'data.dir': data_dir} | settings, seeds
  )
  failed = []
  for row in rows or known:
    if measured(known[row], known, done) >= paper.count(row):
      print(f'{name}, {row}: done', flush=True)
      continue
    try:
      if 'measure' in defined:
        found = defined['measure'](row, paper)
      else:
        found = paper.measure(row)
    except UserError as error:
      failed.append(f'{row}: {error}')
      print(f'{name}, {failed[-1]}', file=sys.stderr, flush=True)
      continue
    add_rows(results, found)
    write_tables(root)
  write_tables(root)
  if failed:
    raise UserError(f'{len(failed)} rows of {name} were not measured:\n' + '\n'.join(failed))


class Paper:
  """The runs of a table, in a folder of its own: <row><number> each.

  `seeds`: of each row, 0 = as many as it says; `settings`: further flags of its training.
  """

  def __init__(
    self,
    name: str,
    table: dict,
    rows: dict[str, Row],
    folder: pathlib.Path,
    settings: dict,
    seeds: int = 0,
  ):
    self.name = name
    self.table = table
    self.rows = rows
    self.folder = folder
    self.settings = settings
    self.seeds = seeds

  def count(self, row: str) -> int:
    """How many runs a row has; folds are as many as there are."""
    if 'FOLDS' in self.table:
      return self.rows[row].runs
    return self.seeds or self.rows[row].runs

  def folders(self, row: str) -> list[pathlib.Path]:
    return [self.folder / f'{row}{k}' for k in range(self.count(row))]

  def measure(self, name: str) -> list[dict]:
    """Rows of results, after what is missing was run."""
    row = self.rows[name]
    for other in filter(None, (row.start, row.texts_of, row.against)):
      self._run(other)
    self._run(name)
    if row.against:
      against = self.folders(row.against)
    else:
      against = []
    if row.against:
      other = self.rows[row.against].label
    else:
      other = ''
    found = rows_of(load_table(self.name), self.folders(name), row.label, against, other)
    if not found:
      raise UserError('its runs have no score in common.')
    return found

  def _run(self, name: str):
    """Trains, evaluates and ablates, as far as it was not done."""
    row = self.rows[name]
    for k, folder in enumerate(self.folders(name)):
      spec = row.spec.format(k=k, start=self.folder / f'{row.start}{k}')
      if 'FOLDS' in self.table:
        seed = {}
      else:
        seed = {'seed': str(k)}
      found = look(folder)
      if found.state in ('running', 'diverged'):
        raise UserError(
          f'{folder} is running.'
          if found.state == 'running'
          else f'{folder} has diverged: {found.error}'
        )
      if found.state != 'done':
        flags = []
        for key, value in (row.overrides | self.settings | seed).items():
          flags.append(f'--config.{key}={value}')
        _call('train', spec, '--workdir', str(folder), *flags)
      for flags in self._evaluations(row, folder, k):
        _call('evaluate', str(folder), *flags)
      if row.ablate and not all(
        self._is_scored(folder, split, 'ablation') for split in self._splits(row, folder)
      ):
        _call(
          'ablate',
          str(folder),
          *([f'--splits={",".join(row.splits)}'] if row.splits else []),
        )

  def _splits(self, row: Row, folder: pathlib.Path) -> list[str]:
    splits = row.splits or run_folders.read_json(folder / 'config.json')['data']['splits']['test']
    if isinstance(splits, str):
      return [splits]
    return list(splits)

  def _is_scored(self, folder: pathlib.Path, split: str, kind: str) -> bool:
    """Whether there is a file of scores; `kind`: '' as configured, 'greedy', 'text_from' or 'ablation'."""
    if kind == 'ablation':
      return (folder / 'ablation' / f'{file_name(split)}.json').exists()
    found = [run_folders.read_json(path) for path in (folder / 'scores').glob('*.json')]
    method = run_folders.read_json(folder / 'config.json')['decoding']['method']
    of_kind = {
      '': lambda score: (
        not score.get('text_from') and score['decoding'].get('method', method) == method
      ),
      'greedy': lambda score: score['decoding'].get('method') == 'greedy',
      'text_from': lambda score: bool(score.get('text_from')),
    }[kind]
    return any(
      score['split'] == split and not score['shuffled'] and of_kind(score) for score in found
    )

  def _evaluations(self, row: Row, folder: pathlib.Path, k: int):
    """The flags of every evaluation that is missing."""
    kinds = ['', *(['greedy'] if row.greedy else []), *(['text_from'] if row.texts_of else [])]
    for kind in kinds:
      missing = [
        split for split in self._splits(row, folder) if not self._is_scored(folder, split, kind)
      ]
      if kind == 'text_from':
        for split in missing:
          yield [
            f'--splits={split}',
            f'--text_from={_predictions(self.folder / f"{row.texts_of}{k}", split)}',
          ]
      elif missing:
        yield [f'--splits={",".join(missing)}', *(['--greedy'] if kind else [])]


def _predictions(folder: pathlib.Path, split: str) -> pathlib.Path:
  """What a run wrote for a split, as it is configured."""
  named = run_folders.predictions(folder)
  found = []
  for match, path in named:
    if match['split'] == file_name(split) and not match['method']:
      found.append((int(match['step']), path))
  if not found:
    raise UserError(f'{folder}: no predictions of {split}.')
  return max(found)[1]


def _call(*words: str):
  """A command of ours in a process of its own, which is what environment.json then tells."""
  print('./launch.sh ' + ' '.join(words), flush=True)
  try:
    subprocess.run([sys.executable, '-m', 'mmlm', *words], check=True)
  except subprocess.CalledProcessError as error:
    if error.returncode == 130:
      raise KeyboardInterrupt from None
    raise UserError(
      f'`{words[0]}` ended with {error.returncode}; what it said stands above.'
    ) from None
