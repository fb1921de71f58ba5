"""Predictions as a page shows them: each with its score and what differs from the reference, a sample of many, and the pictures and sounds."""

import base64
import io
import pathlib
import random

import numpy as np
from PIL import Image

from mmlm.data.transforms.image import decode_picture
from mmlm.reports import speech_view as speech
from mmlm.reports.pages import read_rows
from mmlm.tasks.base import Task
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import PREDICTIONS

SAMPLE = 24  # predictions that the model is asked about again
MOST = 1000  # predictions of a split in a page
# pixels: of a picture in the page at most; of one that is not blurred when it is enlarged
SIDE = 256
SMALL = 64
KEPT = 20 << 10  # bytes of a picture that goes into the page as it is
MEDIA = 17 << 20  # bytes of the pictures and sounds in a page, as text
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF')  # that browsers show


def newest_predictions(folder) -> dict:
  """{file name: rows} of each split's newest step, pictures not shuffled, decoded as configured if it was; and so of each cascade into it."""
  newest = {}
  for path in sorted((pathlib.Path(folder) / 'predictions').glob('*.jsonl')):
    if match := PREDICTIONS.fullmatch(path.stem):
      order = int(match['step']), match['method'] is None
      read = match['split'], match['texts'] or ''
      newest[read] = max(newest.get(read, (order, path)), (order, path))
  return {
    path.stem: rows
    for _, (_, path) in sorted(newest.items())
    if (rows := read_rows(path, ('id', 'hypothesis', 'references')))
  }


# Scores of single examples


def graded(predictions: list[dict], task: Task) -> list[dict]:
  """Returns predictions with `exact`, `value`, `grade` (higher is better) and `summary` of their grades.

  The model's own score of a prediction is only its confidence.

  Raises:
    UserError: the predictions are not those of a run of this task.
  """
  try:
    grades = task.grade(predictions)
    displayed = [task.displayed(prediction) for prediction in predictions]
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'predictions of {predictions[0]["id"]!r} and others are not those of a run of '
      f'{type(task).__name__} ({type(error).__name__}: {error}).'
    ) from None
  sign = 1 if task.measure.higher_is_better else -1
  result = []
  for prediction, grade in zip(displayed, grades, strict=True):
    result.append(prediction | grade._asdict() | {'grade': sign * grade.value})
  return result


def sample(rows, count: int) -> dict:
  """A third each: best, worst, and at random of the rest; always the same for the same graded rows."""
  third = min(count, len(rows)) // 3
  rows = sorted(rows, key=lambda row: (-row['grade'], -row['exact']))
  middle = rows[third : len(rows) - third]
  chance = random.Random(0).sample(middle, min(len(middle), count - 2 * third))
  return {'best': rows[:third], 'worst': rows[::-1][:third], 'chance': chance}


# What a page holds


def group(name: str, answers: dict, task: Task) -> dict:
  """Predictions of a split by one or several runs, {run: graded rows of the same examples}, as JSON for the page."""
  first = next(iter(answers.values()))
  by_id = [{row['id']: row for row in rows} for rows in answers.values()]
  common = [row for row in first if all(row['id'] in rows for rows in by_id)]
  kept = common
  if len(common) > MOST:
    chosen = {row['id'] for part in sample(common, MOST).values() for row in part}
    kept = [row for row in common if row['id'] in chosen]
  better = 'more' if task.measure.higher_is_better else 'less'
  rows = [
    _row(row)
    | {
      'said': [
        _answer(
          rows[row['id']],
          task,
        )
        for rows in by_id
      ]
    }
    for row in kept
  ]
  return {
    'name': name,
    'of': len(common),
    'measure': task.measure.name,
    'better': better,
    'rows': rows,
  }


def _row(row: dict) -> dict:
  text = row.get('input', {}).get('text')
  told = {'id': row['id'], 'references': row['references']}
  return (
    told
    | ({'text': text} if text and text != row['id'] else {})
    | ({'speaker': row['speaker']} if row.get('speaker') else {})
  )


def _answer(row: dict, task: Task) -> dict:
  told = {
    'text': row['hypothesis'],
    'told': row['summary'],
    'exact': bool(row['exact']),
    'value': round(float(row['value']), 4),
  }
  if task.compares_words and row['references']:
    told['parts'] = speech.difference(row)
  told |= {key: row[key] for key in ('transcript', 'n_best') if key in row}
  if 'probabilities' in row:
    likely = sorted(row['probabilities'].items(), key=lambda item: -item[1])[:5]
    told['chances'] = [[name, round(chance, 4)] for name, chance in likely]
  return told


def media_of(rows: list[dict], examples, pictures: bool, sounds: bool) -> dict:
  """{id: {'picture', 'small', 'sound', 'note'}} of what is there; those of the first rows, when the page would grow too large."""
  found = {}
  size = 0
  if pictures or sounds:
    firsts = {row['id']: row for row in reversed(rows)}
  else:
    firsts = {}
  for identity in dict.fromkeys(row['id'] for row in rows if firsts):
    row = firsts[identity]
    example = examples(identity)
    if example is None:
      continue
    told = (thumbnail(example.get('image')) if pictures else {}) | (
      {'sound': _sound(example, row)} if sounds else {}
    )
    own = sum(
      len(part)
      for part in (
        told.get('picture', ''),
        *(told.get('sound', {}).get(key, '') for key in ('picture', 'source')),
      )
    )
    full = size + own > MEDIA
    size += 0 if full else own
    found[identity] = {'note': 'left out: the page would grow too large'} if full else told
    if full and size > 0.98 * MEDIA:
      break
  return found


def thumbnail(data) -> dict:
  """{'picture': a data URI} of encoded bytes, no larger than a page can hold a thousand times; {} where there is none to show."""
  if not isinstance(data, bytes) or not data:
    return {}
  try:
    with Image.open(io.BytesIO(data)) as image:
      form = image.format
      size = image.size
      if (
        form in FORMATS
        and max(size) <= SIDE
        and len(data) <= KEPT
        and image.getexif().get(0x0112, 1) == 1
      ):
        return {'picture': _uri(image.get_format_mimetype(), data), 'small': max(size) < SMALL}
    return {'picture': picture_of(decode_picture(data)), 'small': max(size) < SMALL}
  except (UserError, OSError, Image.DecompressionBombError):
    return {}


def picture_of(pixels: np.ndarray) -> str:
  """uint8 [H, W, C] -> a JPEG of at most SIDE pixels as a data URI."""
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  image.thumbnail((SIDE, SIDE))
  with io.BytesIO() as file:
    image.save(file, 'JPEG', quality=72, optimize=True)
    return _uri('image/jpeg', file.getvalue())


def _uri(kind: str, data: bytes) -> str:
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def _sound(example: dict, row: dict) -> dict:
  shown = speech.sound_of(example, row)
  return shown._asdict() | {
    'lanes': shown.lanes,
    'words': [w._asdict() for w in shown.words],
    'times': [t._asdict() for t in shown.times],
  }


def add_looks(groups: list, looks: dict, run: int = 0) -> int:
  """Puts what `attention.CloserLook` found into the answers of a run; -> how many had other words than the file and were left out."""
  others = 0
  for row in (row for each in groups for row in each['rows'] if row['id'] in looks):
    look = looks[row['id']]
    answer = row['said'][run]
    if look['hypothesis'] != answer['text']:
      others += 1
      continue
    if len(look['n_best']) > 1:
      answer['n_best'] = [[text, round(score, 4)] for text, score in look['n_best']]
    if 'look' in look:
      answer['look'] = _shown(look['look'])
  return others


def _shown(look: dict) -> dict:
  image = look.get('image')
  return look | ({'image': image | {'picture': picture_of(image['picture'])}} if image else {})
