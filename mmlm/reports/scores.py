"""Scores of run folders: of one run by split, of several side by side."""

import pathlib

from mmlm.evaluation.metrics.label_metrics import confusion_table
from mmlm.reports.pages import read_object
from mmlm.utils.errors import UserError

KEYS = ('split', 'step', 'shuffled', 'n', 'decoding', 'scores')


def scores_of(folder) -> list:
  """Score files by split, newest step first; shuffled pictures stand right of the same with its own."""
  scores = [_score(path) for path in sorted((pathlib.Path(folder) / 'scores').glob('*.json'))]
  return sorted(
    scores,
    key=lambda s: (
      s['split'],
      -s['step'],
      s['decoding'].get('method', ''),
      s['shuffled'],
    ),
  )


def _score(path) -> dict:
  found = read_object(path)
  if missing := [key for key in KEYS if key not in found]:
    raise UserError(
      f'{path}: no {missing[0]!r} in it, not what `evaluate` writes. `./launch.sh evaluate {path.parent.parent}` writes it again.'
    )
  return found


def confusions(files: dict) -> list:
  """[(file name, classes, [(class, counts)])] of predicted classes; `files`: {name: rows}."""
  tables = []
  for name, rows in files.items():
    if 'probabilities' in rows[0]:
      tables.append((name, *confusion_table(rows)))
  return [(name, classes, list(zip(classes, table.tolist()))) for name, classes, table in tables]


def side_by_side(runs: dict) -> list:
  """[(split, [(metric, [a score of each run or None])])]: the newest score of a split, nothing shuffled; `runs`: {name: folder}."""
  newest = {}
  for name, folder in runs.items():
    for score in [s for s in scores_of(folder) if not s['shuffled']]:  # the newest comes first
      newest.setdefault(score['split'], {})[name] = score
  tables = []
  for split, found in newest.items():
    metrics = dict.fromkeys(metric for score in found.values() for metric in score['scores'])
    rows = []
    for metric in metrics:
      rows.append(
        (metric, [found[name]['scores'].get(metric) if name in found else None for name in runs])
      )
    tables.append((split, [_about(found.get(name)) for name in runs], rows))
  return tables


def _about(score: dict | None) -> str:
  if score:
    return f'{score["n"]:,} examples, step {score["step"]:,}'
  return 'not evaluated'
