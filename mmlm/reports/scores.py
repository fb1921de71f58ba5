"""Scores of run folders: of one run by split, of several side by side."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from mmlm.evaluation.metrics.label_metrics import confusion_table
from mmlm.evaluation.metrics.speech_metrics import KINDS
from mmlm.reports.pages import read_object
from mmlm.utils.errors import UserError

KEYS = ('split', 'step', 'shuffled', 'n', 'decoding', 'scores')
# {key of a score file: (name on the page, format)}
TIMES = {
  'audio_seconds': ('sound, s', '{:,.1f}'),
  'decoding_seconds': ('decoding, s', '{:,.1f}'),
  'real_time_factor': ('real-time factor', '{:.4f}'),
}


class SplitScores(NamedTuple):
  """The scores of several runs on a split.

  Attributes:
    columns: a description of each run's scores.
    rows: [(metric, the score of each run or None)].
  """

  split: str
  columns: list[str]
  rows: list[tuple[str, list]]


def scores_of(folder: pathlib.Path) -> list[dict]:
  """Reads score files, by split and newest step first; shuffled inputs follow unchanged ones."""
  files = (folder / 'scores').glob('*.json')
  scores = [_read_score(path) for path in sorted(files)]

  def order(score: dict) -> tuple:
    newest_first = -score['step']
    method = score['decoding'].get('method', '')
    return score['split'], newest_first, method, score['shuffled']

  return sorted(scores, key=order)


def _read_score(path: pathlib.Path) -> dict:
  score = read_object(path)
  for key in KEYS:
    if key not in score:
      raise UserError(
        f'{path}: no {key!r} in it, so `evaluate` did not write it. '
        f'`./launch.sh evaluate {path.parent.parent}` writes it again.'
      )
  return score


def confusions(predictions: Mapping[str, list[dict]]) -> list[tuple]:
  """Returns [(file name, classes, [(class, counts)])] of the files that predict classes."""
  tables = []
  for name, of_file in predictions.items():
    if 'probabilities' not in of_file[0]:
      continue
    classes, counts = confusion_table(of_file)
    rows = list(zip(classes, counts.tolist()))
    tables.append((name, classes, rows))
  return tables


def scores_side_by_side(runs: Mapping[str, pathlib.Path]) -> list[SplitScores]:
  """Returns the newest scores of each split, without shuffled inputs; `runs` is {name: folder}."""
  newest: dict[str, dict[str, dict]] = {}
  for name, folder in runs.items():
    for score in scores_of(folder):
      if score['shuffled']:
        continue
      of_split = newest.setdefault(score['split'], {})
      of_split.setdefault(name, score)  # the newest comes first
  tables = []
  for split, by_run in newest.items():
    in_order = [by_run.get(name) for name in runs]
    table = _table_of_split(split, in_order)
    tables.append(table)
  return tables


def _table_of_split(split: str, scores: list[dict | None]) -> SplitScores:
  """Returns the table of the scores of each run, None for one that was not evaluated."""
  columns = []
  metrics: dict[str, None] = {}
  for score in scores:
    columns.append(_describe(score))
    if score is not None:
      metrics |= dict.fromkeys(score['scores'])
  rows = []
  for metric in metrics:
    cells = [_score_of(score, metric) for score in scores]
    rows.append((metric, cells))
  return SplitScores(split, columns, rows)


def _score_of(score: dict | None, metric: str) -> dict | None:
  if score is None:
    return None
  return score['scores'].get(metric)


def _describe(score: dict | None) -> str:
  if score is None:
    return 'not evaluated'
  return f'{score["n"]:,} examples, step {score["step"]:,}'


def speech_counts(scores: list[dict]) -> list[tuple[str, list[str]]]:
  """Returns rows of the table of scores: errors of words and characters, and times.

  Returns:
    [(name, a text for each score file, '' where it has none)], without empty rows.
  """
  texts_of: dict[str, list[str]] = {}
  for unit in ('words', 'characters'):
    texts_of[unit] = []
    for score in scores:
      text = _format_errors(score.get(unit))
      texts_of[unit].append(text)
  for key, (name, form) in TIMES.items():
    texts_of[name] = []
    for score in scores:
      text = _format_time(score.get(key), form)
      texts_of[name].append(text)
  rows = []
  for name, texts in texts_of.items():
    if any(texts):
      rows.append((name, texts))
  return rows


def _format_time(value: float | None, form: str) -> str:
  if value is None:
    return ''
  return form.format(value)


def _format_errors(counts: dict | None) -> str:
  if counts is None:
    return ''
  texts = []
  for kind in KINDS:
    texts.append(f'{counts[kind]:,} {kind}')
  return ', '.join(texts)
