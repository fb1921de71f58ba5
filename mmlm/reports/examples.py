"""Predictions on a page: each with its grade, and its differences from the reference."""

import pathlib
import random
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from mmlm.reports.media import jpeg_uri
from mmlm.reports.pages import read_entries
from mmlm.reports.word_differences import word_differences
from mmlm.tasks.base import Task
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import PREDICTIONS

SAMPLE_SIZE = 24  # predictions whose n-best answers and attention a page shows
MOST_PREDICTIONS = 1000  # of a split in a page
MOST_CLASSES = 5  # whose probabilities a page shows


class Sample(NamedTuple):
  """A sample of graded predictions: a third each."""

  best: list[dict]
  worst: list[dict]
  random: list[dict]

  def all(self) -> list[dict]:
    """Returns all three thirds."""
    return [*self.best, *self.worst, *self.random]


def newest_predictions(folder: pathlib.Path) -> dict[str, list[dict]]:
  """Reads {file name: predictions} of the newest step of each split, and of each cascade into it.

  Shuffled inputs are left out. Predictions decoded as the config says come first, if there are any.
  """
  newest: dict[tuple[str, str], tuple] = {}
  files = (folder / 'predictions').glob('*.jsonl')
  for path in sorted(files):
    match = PREDICTIONS.fullmatch(path.stem)
    if not match:
      continue
    step = int(match['step'])
    as_configured = match['method'] is None
    candidate = ((step, as_configured), path)
    split = (match['split'], match['texts'] or '')
    newest_yet = newest.get(split, candidate)
    newest[split] = max(newest_yet, candidate)
  predictions = {}
  for split in sorted(newest):
    _, path = newest[split]
    entries = read_entries(path, ('id', 'hypothesis', 'references'))
    if entries:
      predictions[path.stem] = entries
  return predictions


def grade_predictions(predictions: list[dict], task: Task) -> list[dict]:
  """Returns predictions with `exact`, `value`, `summary`, and `grade`, of which higher is better.

  The model's own score of a prediction is only its confidence.

  Raises:
    UserError: the predictions are not those of a run of this task.
  """
  try:
    grades = task.grade(predictions)
    displayed = []
    for prediction in predictions:
      displayed.append(task.displayed(prediction))
  except (KeyError, TypeError, ValueError) as error:
    name = predictions[0]['id']
    raise UserError(
      f'predictions of {name!r} and others are not those of a run of '
      f'{type(task).__name__} ({type(error).__name__}: {error}).'
    ) from None
  sign = 1 if task.measure.higher_is_better else -1
  graded = []
  for prediction, grade in zip(displayed, grades, strict=True):
    entry = prediction | grade._asdict()
    entry['grade'] = sign * grade.value
    graded.append(entry)
  return graded


def sample(graded: list[dict], count: int) -> Sample:
  """Returns the best, the worst, and random ones of the rest; the same for the same predictions."""
  third = min(count, len(graded)) // 3

  def order(prediction: dict) -> tuple:
    return -prediction['grade'], -prediction['exact']

  best_first = sorted(graded, key=order)
  worst_first = best_first[::-1]
  end = len(best_first) - third
  middle = best_first[third:end]
  number = min(len(middle), count - 2 * third)
  rng = random.Random(0)
  return Sample(
    best=best_first[:third],
    worst=worst_first[:third],
    random=rng.sample(middle, number),
  )


def group(name: str, graded_of: Mapping[str, list[dict]], task: Task) -> dict[str, Any]:
  """Returns the predictions of a split for the script of the page.

  Args:
    graded_of: {run: graded predictions of the same examples}.
  """
  by_id = [_by_id(graded) for graded in graded_of.values()]
  common_ids = set.intersection(*map(set, by_id))
  first = next(iter(graded_of.values()))
  common = with_ids(first, common_ids)
  shown = common
  if len(common) > MOST_PREDICTIONS:
    sampled = sample(common, MOST_PREDICTIONS)
    shown = with_ids(common, _by_id(sampled.all()))
  rows = []
  for prediction in shown:
    answers = []
    for predictions in by_id:
      of_run = predictions[prediction['id']]
      answers.append(_answer(of_run, task))
    row = _example(prediction)
    row['answers'] = answers
    rows.append(row)
  return {
    'name': name,
    'total': len(common),
    'measure': task.measure.name,
    'higher_is_better': task.measure.higher_is_better,
    'rows': rows,
  }


def with_ids(predictions: list[dict], ids: Container[str]) -> list[dict]:
  """Returns the predictions whose id is among `ids`."""
  return [prediction for prediction in predictions if prediction['id'] in ids]


def _by_id(predictions: list[dict]) -> dict[str, dict]:
  return {prediction['id']: prediction for prediction in predictions}


def _example(prediction: dict) -> dict[str, Any]:
  """Returns what the page shows of the example, whatever the answers."""
  entry = {
    'id': prediction['id'],
    'references': prediction['references'],
  }
  text = prediction.get('input', {}).get('text')
  if text and text != prediction['id']:
    entry['text'] = text
  if prediction.get('speaker'):
    entry['speaker'] = prediction['speaker']
  return entry


def _answer(prediction: dict, task: Task) -> dict[str, Any]:
  entry = {
    'text': prediction['hypothesis'],
    'summary': prediction['summary'],
    'exact': bool(prediction['exact']),
    'value': round(float(prediction['value']), 4),
  }
  if task.compares_words and prediction['references']:
    entry['edits'] = word_differences(prediction)
  for key in ('transcript', 'n_best'):
    if key in prediction:
      entry[key] = prediction[key]
  if 'probabilities' in prediction:
    by_class = prediction['probabilities']
    likeliest_first = sorted(by_class, key=by_class.__getitem__, reverse=True)
    probabilities = []
    for name in likeliest_first[:MOST_CLASSES]:
      probabilities.append([name, round(by_class[name], 4)])
    entry['probabilities'] = probabilities
  return entry


def add_attention(group: dict, attention_of: Mapping[str, dict], run_number: int = 0) -> int:
  """Adds n-best answers and attention to the answers of a run.

  Args:
    attention_of: {id: what `AttentionReader` returns}.

  Returns:
    How many were left out, because their hypothesis is not that of the file.
  """
  left_out = 0
  for row in group['rows']:
    if row['id'] not in attention_of:
      continue
    entry = attention_of[row['id']]
    answer = row['answers'][run_number]
    if entry['hypothesis'] != answer['text']:
      left_out += 1
      continue
    if len(entry['n_best']) > 1:
      n_best = []
      for text, score in entry['n_best']:
        n_best.append([text, round(score, 4)])
      answer['n_best'] = n_best
    if 'attention' in entry:
      answer['attention'] = _with_encoded_picture(entry['attention'])
  return left_out


def _with_encoded_picture(attention: dict) -> dict:
  if 'image' not in attention:
    return attention
  image = attention['image']
  uri = jpeg_uri(image['picture'])
  return attention | {'image': image | {'picture': uri}}
