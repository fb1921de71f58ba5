"""Summaries of run folders in any state, and the table of them that `runs` prints."""

import json
import math
import pathlib
import time
from typing import NamedTuple

from mmlm.evaluation.metrics import higher_is_better
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError

WRITTEN_BY_TRAINING = ('config.json', 'metrics.jsonl', 'checkpoints', run_dir.STATUS)
MARKERS = (*WRITTEN_BY_TRAINING, run_dir.LOCK)  # a folder with one of them is a run folder
SWEEP = 'sweep.json'
COMPLETE = ('done', 'diverged', 'failed', 'pruned')
UNITS_OF_AGE = ((86400, 'd'), (3600, 'h'), (60, 'min'))  # seconds


class RunSummary(NamedTuple):
  """What the files of a run folder say of the run.

  States: `running`, a process works in it; `done`, `diverged`, `failed`, `pruned` and `interrupted`
  (all is saved) are how it ended; `dead`, it ended without a status; `unknown`, it was trained
  before status.json was written; `half written`, a file is missing or damaged (see `error`).
  """

  folder: pathlib.Path
  state: str
  step: int = 0
  total: int = 0  # steps; 0 = not known
  monitor: str = ''
  best: float | None = None  # of the monitored validation score
  validations: tuple[tuple[int, float], ...] = ()  # (step, score) of each
  error: str = ''
  changed: float = 0.0  # seconds since 1970

  @property
  def complete(self) -> bool:
    return self.state in COMPLETE


def summarize_run(folder: str | pathlib.Path) -> RunSummary:
  """Returns the summary of a run folder; damaged folders have one too."""
  folder = pathlib.Path(folder)
  try:
    changed = _last_change(folder)
  except (OSError, ValueError):
    return RunSummary(folder, 'half written', error='the folder cannot be read')
  locked = run_dir.is_locked(folder)
  try:
    summary = _summarize(folder)
  except UserError as error:
    message = str(error).replace(f'{folder}/', '')
    summary = RunSummary(folder, 'half written', error=message)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    message = f'{type(error).__name__}: {error}'
    summary = RunSummary(folder, 'half written', error=message)
  if locked:
    summary = summary._replace(state='running')
  return summary._replace(changed=changed)


def _last_change(folder: pathlib.Path) -> float:
  times = []
  for name in ('', *WRITTEN_BY_TRAINING):
    path = folder / name
    if path.exists():
      times.append(path.stat().st_mtime)
  return max(times)


def _summarize(folder: pathlib.Path) -> RunSummary:
  if not (folder / 'config.json').is_file():
    return RunSummary(folder, 'half written', error='no config.json')
  monitor = run_dir.read_json(folder / 'config.json')['train']['monitor']
  log = _read_log(folder / 'metrics.jsonl')
  step = 0
  scores = []
  validations = []
  for line in log:
    step = max(step, line['step'])
    if line.get('kind') == 'valid' and monitor in line:
      score = line[monitor]
      validations.append((line['step'], score))
      if math.isfinite(score):
        scores.append(score)
  status = {}
  if (folder / run_dir.STATUS).exists():
    status = run_dir.read_json(folder / run_dir.STATUS)
  return RunSummary(
    folder,
    state=_state(folder, status, bool(log)),
    step=step,
    total=status.get('total', 0),
    monitor=monitor,
    best=_best(scores, monitor),
    validations=tuple(validations),
    error=status.get('error', ''),
  )


def _read_log(path: pathlib.Path) -> list[dict]:
  if not path.exists():
    return []
  try:
    return run_dir.read_jsonl(path)
  except json.JSONDecodeError as error:
    raise UserError(f'metrics.jsonl: a line is not JSON ({error.msg})') from None


def _best(scores: list[float], monitor: str) -> float | None:
  if higher_is_better(monitor):
    return max(scores, default=None)
  return min(scores, default=None)


def _state(folder: pathlib.Path, status: dict, has_log: bool) -> str:
  """Returns the state of a run that no process works in."""
  if status:
    return 'dead' if status['state'] == 'running' else status['state']
  if not has_log and not (folder / 'checkpoints').exists():
    return 'dead'  # before its first step
  if (folder / 'scores').exists():
    return 'done'
  return 'unknown'


def find_runs(folder: str | pathlib.Path) -> list[pathlib.Path]:
  """Returns the run folders in a folder and below it, but none inside another run."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    return []
  if not (folder / SWEEP).exists():
    for name in MARKERS:
      if (folder / name).exists():
        return [folder]
  runs = []
  for child in sorted(folder.iterdir()):
    if not child.is_symlink():
      runs += find_runs(child)
  return runs


def format_age(seconds: float) -> str:
  """Returns an age such as '5 s', '12 min', '3 h' or '2 d'."""
  for length, unit in UNITS_OF_AGE:
    if seconds >= length:
      return f'{int(seconds / length)} {unit}'
  return f'{max(0, int(seconds))} s'


def format_table(header: list[str], lines: list[list[str]]) -> str:
  """Returns lines of cells as text with aligned columns."""
  widths = []
  for column in zip(header, *lines):
    widths.append(max(map(len, column)))
  texts = []
  for line in (header, *lines):
    padded = map(str.ljust, line, widths)
    texts.append('  '.join(padded).rstrip())
  return '\n'.join(texts)


def format_score(value: float | None) -> str:
  """Returns a score with four digits; '' for None."""
  return '' if value is None else f'{value:.4f}'


def runs_table(folder: str | pathlib.Path, now: float) -> str:
  """Returns a table with a line for each run below a folder; `now` in seconds since 1970."""
  lines = []
  for run in map(summarize_run, find_runs(folder)):
    steps = str(run.step or '')
    if run.total:
      steps = f'{run.step}/{run.total}'
    best = ''
    if run.best is not None:
      best = f'{format_score(run.best)} {run.monitor}'
    error, _, _ = run.error.partition('\n')
    age = format_age(now - run.changed)
    line = [str(run.folder), run.state, steps, best, age, error[:80]]
    lines.append(line)
  return format_table(['run', 'state', 'step', 'best', 'age', ''], lines)


def list_runs(folder: str) -> None:
  """Prints the table of the runs below a folder.

  Raises:
    UserError: there is no such folder, or no run in it.
  """
  if not pathlib.Path(folder).is_dir():
    raise UserError(f'{folder}: no such folder.')
  if not find_runs(folder):
    raise UserError(f'{folder}: no run in it.')
  print(runs_table(folder, time.time()))
