"""What the page of a run shows of sounds: a picture of each, the sound to play, where its words lie, and which of them are wrong.

S: rows of features, 100 a second; C: values of a row.
"""

import base64
import io
import itertools
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

from mmlm.data.transforms.audio import decode_audio, log_mel_spectrogram
from mmlm.evaluation.metrics.speech_metrics import KINDS, alignment
from mmlm.utils.errors import UserError

PLAYED = 2 << 20  # bytes of a sound that stand in the page at most: it holds all of them
TYPES = {
  'WAV': 'audio/wav',
  'WAVEX': 'audio/wav',
  'FLAC': 'audio/flac',
  'OGG': 'audio/ogg',
  'MP3': 'audio/mpeg',
  'MPEG': 'audio/mpeg',
}
COLUMNS = 1600  # of a picture, at most
SECOND = 130  # pixels at least; a long sound is scrolled
NARROWEST = 280  # pixels, a card on a phone
LETTER = 7.5  # pixels of a letter under a picture, not less than the font needs
_STOPS = np.array(
  [
    (10, 10, 32),
    (70, 24, 110),
    (165, 44, 96),
    (236, 105, 55),
    (252, 190, 70),
    (252, 252, 190),
  ]
)  # dark to light
PALETTE = (
  np.stack(
    [np.interp(np.linspace(0, 5, 256), range(6), channel) for channel in _STOPS.T],
    1,
  )
  .round()
  .astype(np.uint8)
)


class Label(NamedTuple):
  """A word or a time under a picture: where it begins, how long it lasts [%], how wide its text is [px], and in which line it stands."""

  text: str
  left: float
  length: float
  width: int
  lane: int


# Sounds


class Shown(NamedTuple):
  """What the page shows of a sound; what is empty is not shown."""

  note: str = ''  # what is missing
  kind: str = ''  # of the picture
  picture: str = ''  # a data URI
  width: int = 0  # of the picture, in pixels at least
  words: tuple[Label, ...] = ()
  times: tuple[Label, ...] = ()
  source: str = ''  # a data URI, to play

  @property
  def lanes(self) -> int:
    return 1 + max((word.lane for word in self.words), default=-1)


def sound_of(example: dict | None, row: dict) -> Shown:
  """What the page shows of the sound of an example, where its `row` of predictions has found its words; nothing without an example."""
  given = (example or {}).get('audio')
  if given is None or (isinstance(given, bytes) and not given):
    if example is None:
      return Shown()
    return Shown('no sound')
  try:
    values, kind = _features(given)
    note, source = _played(given) if isinstance(given, bytes) else ('features without a sound', '')
  except UserError as error:
    return Shown(str(error))
  seconds = len(values) / 100
  width = max(NARROWEST, round(seconds * SECOND))
  words = placed(words_of(row.get('alignment', [])), len(values), width)
  return Shown(
    note, kind, _picture(values), width, tuple(words), tuple(_times(seconds, width)), source
  )


def _features(given) -> tuple[np.ndarray, str]:
  """[S, C] of 0 to 1 and what they are; UserError where there are none."""
  if isinstance(given, bytes):
    values = log_mel_spectrogram(decode_audio(given))
    kind = 'log-mel spectrogram'
  else:
    values = np.nan_to_num(np.atleast_2d(given).astype(np.float64))
    kind = 'given features'
    if values.ndim > 2 or not values.size:
      raise UserError(f'no rows of features: their shape is {np.shape(given)}')
    values = (values - values.mean(0)) / np.maximum(
      values.std(0), 1e-9
    )  # the first of cepstra would hide the others
  low, high = np.quantile(values, (0.3, 0.998))  # the darkest are of no interest
  return np.clip((values - low) / max(high - low, 1e-9), 0, 1), kind


def _picture(values) -> str:
  """[S, C] of 0 to 1 -> a PNG as a data URI: time to the right, the first column lowest."""
  edges = np.linspace(0, len(values), min(len(values), COLUMNS), endpoint=False).astype(int)
  columns = np.maximum.reduceat(values, edges)  # what is loud for a moment stays
  image = Image.fromarray((columns.T[::-1] * 255).round().astype(np.uint8))
  image.putpalette(PALETTE.tobytes())
  with io.BytesIO() as file:
    image.save(file, 'PNG', optimize=True)
    return _uri('image/png', file.getvalue())


def _played(data: bytes) -> tuple[str, str]:
  """Why there is nothing to play, or '', and the bytes of a file as a data URI."""
  form = soundfile.info(io.BytesIO(data)).format
  if len(data) > PLAYED:
    return f'the sound has {len(data) / 2**20:.1f} MiB and is left out of the page', ''
  if form in TYPES:
    return ('', _uri(TYPES[form], data))
  return (f'browsers do not play {form}', '')


def _uri(kind: str, data: bytes) -> str:
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def words_of(pieces: list) -> list[tuple[str, int, int]]:
  """[text, first row, last row] of pieces -> the same of words, which spaces part; the pieces themselves where these make one word."""
  words = []
  begins = True
  for text, first, last in pieces:
    if text.strip() and (begins or text[0].isspace()):
      words.append((text.strip(), first, last))
    elif text.strip():
      words[-1] = (
        words[-1][0] + text.strip(),
        words[-1][1],
        last,
      )
    begins = text[-1].isspace() if text else begins
  if len(words) > 1:
    return words
  return [(text.strip(), first, last) for text, first, last in pieces if text.strip()]


def placed(words: list, rows: int, width: int) -> list[Label]:
  """Words in lines under a picture of `rows`: where one would stand on another it takes the next line, however wide the page is."""
  # where each line is free again, in pixels of the narrowest form
  labels = []
  ends = []
  for text, first, last in words:
    size = min(width, round(LETTER * len(text)) + 8)
    left = min(first / rows * width, width - size)
    lane = next((i for i, end in enumerate(ends) if end <= left), len(ends))
    ends[lane:] = [left + size, *ends[lane + 1 :]]
    labels.append(
      Label(
        text,
        round(100 * min(first / rows, 1), 2),
        round(100 * (min(last + 1, rows) - min(first, rows)) / rows, 2),
        size,
        lane,
      )
    )
  return labels


def _times(seconds: float, width: int) -> list[Label]:
  """Round times at most every 70 pixels of the narrowest form, so far as their text has room."""
  apart = next(
    (
      step
      for step in (
        0.1,
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        30,
        60,
        300,
      )
      if step * width >= 70 * seconds
    ),
    1200,
  )
  room = seconds * (1 - 44 / width)
  result = []
  for i in range(int(room / apart) + 1):
    result.append(
      Label(
        f'{i * apart:g} s',
        round(100 * i * apart / seconds, 2),
        0,
        44,
        0,
      )
    )
  return result


# Errors


def nearest(row: dict) -> list[tuple[str, list, list]]:
  """`speech_metrics.alignment` of a hypothesis with the reference from which the fewest words differ, of equals the longest."""
  found = [alignment(reference, row['hypothesis']) for reference in row['references']]

  def size(parts, same):
    return sum(
      max(
        len(true),
        len(said),
      )
      for kind, true, said in parts
      if (kind == 'equal') == same
    )

  def length(parts):
    return sum(len(true) for _, true, _ in parts)

  return min(found, key=lambda parts: (size(parts, False), -length(parts)))


def difference(row: dict) -> list[tuple[str, str, str]]:
  """[('equal', 'substitute', 'delete' or 'insert', text of the reference, text of the hypothesis)]; what is not equal word by word."""
  found = []
  for kind, true, said in nearest(row):
    if kind == 'equal':
      pairs = [(' '.join(true), ' '.join(said))]
    else:
      pairs = itertools.zip_longest(true, said, fillvalue='')
    found += [(kind, *pair) for pair in pairs]
  return found


# Scores


def counts(scores: list) -> list[tuple[str, list]]:
  """[(what is counted, a text of each score file, '' where it has none)]: errors of words and of characters, and times."""

  def told(found):
    return ', '.join(f'{found[kind]:,} {kind}' for kind in KINDS)

  rows = []
  for unit in ('words', 'characters'):
    rows.append((unit, [told(s[unit]) if unit in s else '' for s in scores]))
  for key, name in (
    ('audio_seconds', 'sound, s'),
    ('decoding_seconds', 'decoding, s'),
    ('real_time_factor', 'real-time factor'),
  ):
    if key == 'real_time_factor':
      form = '{:.4f}'
    else:
      form = '{:,.1f}'
    rows.append((name, [form.format(s[key]) if key in s else '' for s in scores]))
  return [(name, cells) for name, cells in rows if any(cells)]
