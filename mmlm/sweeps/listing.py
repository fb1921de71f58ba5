"""What run folders tell of their runs, and the table of them."""

import json
import math
import pathlib
import time
from typing import NamedTuple

from mmlm.evaluation.metrics import higher_is_better
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

FILES = (
  'config.json',
  'metrics.jsonl',
  'checkpoints',
  runs.STATUS,
  runs.LOCK,
)  # a folder with one of them is a run's
SWEEP = 'sweep.json'


class Look(NamedTuple):
  """What a run folder tells, whatever state it is in."""

  folder: pathlib.Path
  # running: a process works in it; done, diverged, failed, pruned, interrupted (all is saved): how it ended; dead: it ended without a word;
  # unknown: trained before status.json was written; half written: a file is missing or damaged, which `error` tells
  state: str
  step: int = 0
  total: int = 0  # steps; 0 = not known
  monitor: str = ''
  best: float | None = None  # of the monitored validation score
  validations: tuple = ()  # (step, score) of each
  error: str = ''
  changed: float = 0.0  # seconds since 1970

  @property
  def complete(self) -> bool:
    return self.state in ('done', 'diverged', 'failed', 'pruned')


def look(folder) -> Look:
  """Reads a run folder; it never fails on one."""
  folder = pathlib.Path(folder)
  try:
    changed = max(
      path.stat().st_mtime for name in ('', *FILES[:4]) if (path := folder / name).exists()
    )
  except (OSError, ValueError):
    return Look(folder, 'half written', error='the folder cannot be read')
  locked = runs.is_locked(folder)
  try:
    found = _read(folder, locked)._replace(changed=changed)
  except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    if isinstance(error, UserError):
      told = str(error).replace(f'{folder}/', '')
    else:
      told = f'{type(error).__name__}: {error}'
    found = Look(folder, 'half written', error=told, changed=changed)
  if locked:
    return found._replace(state='running')
  return found


def _read(folder: pathlib.Path, locked: bool) -> Look:
  if not (folder / 'config.json').is_file():
    return Look(folder, 'half written', error='no config.json')
  monitor = runs.read_json(folder / 'config.json')['train']['monitor']
  log = folder / 'metrics.jsonl'
  rows = _rows(log) if log.exists() else []
  scores = tuple(
    (row['step'], row[monitor]) for row in rows if row.get('kind') == 'valid' and monitor in row
  )
  finite = [score for _, score in scores if math.isfinite(score)]
  best = (max if higher_is_better(monitor) else min)(finite, default=None)
  if (folder / runs.STATUS).exists():
    status = runs.read_json(folder / runs.STATUS)
  else:
    status = None
  if status is not None:
    if status['state'] == 'running':
      state = 'dead'
    else:
      state = status['state']
  elif rows or (folder / 'checkpoints').exists():
    if (folder / 'scores').exists():
      state = 'done'
    else:
      state = 'unknown'
  else:
    state = 'dead'  # before its first step
  step = max((row['step'] for row in rows), default=0)
  status = status or {}
  return Look(
    folder, state, step, status.get('total', 0), monitor, best, scores, status.get('error', '')
  )


def _rows(path: pathlib.Path) -> list[dict]:
  try:
    return runs.read_jsonl(path)
  except json.JSONDecodeError as error:
    raise UserError(f'metrics.jsonl: a line is not JSON ({error.msg})') from None


def find_runs(folder) -> list[pathlib.Path]:
  """Run folders in a folder and below, not inside of each other."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    return []
  children = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
  if not (folder / SWEEP).exists() and any((folder / name).exists() for name in FILES):
    return [folder]
  return [found for child in children for found in find_runs(child)]


def age_of(seconds: float) -> str:
  """5 s, 12 min, 3 h, 2 d."""
  unit, name = next(
    (unit, name)
    for unit, name in ((86400, 'd'), (3600, 'h'), (60, 'min'), (1, 's'))
    if seconds >= unit or unit == 1
  )
  return f'{max(0, int(seconds / unit))} {name}'


def table(header: list[str], rows: list[list[str]]) -> str:
  """Columns of texts, aligned."""
  widths = [max(map(len, column)) for column in zip(header, *rows)]
  return '\n'.join(
    '  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths)).rstrip()
    for row in (header, *rows)
  )


def number(value: float | None) -> str:
  return '' if value is None else f'{value:.4f}'


def runs_table(folder, now: float) -> str:
  """A line for each run below a folder."""
  lines = []
  for found in map(look, find_runs(folder)):
    if found.total:
      steps = f'{found.step}/{found.total}'
    else:
      steps = str(found.step or '')
    if found.best is not None:
      best = f'{number(found.best)} {found.monitor}'
    else:
      best = ''
    told = (found.error.splitlines() or [''])[0]
    lines.append(
      [str(found.folder), found.state, steps, best, age_of(now - found.changed), told[:80]]
    )
  return table(['run', 'state', 'step', 'best', 'age', ''], lines)


def list_runs(folder: str) -> None:
  """Prints the table of the runs below a folder."""
  if not pathlib.Path(folder).is_dir():
    raise UserError(f'{folder}: no such folder.')
  if not find_runs(folder):
    raise UserError(f'{folder}: no run in it.')
  print(runs_table(folder, time.time()))
