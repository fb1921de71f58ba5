"""Sounds on the page: their spectrogram, the sound to play, and the words that are aligned with it.

Axes: S frames of features, 100 a second; C values of a frame.
"""

import base64
import io
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

from mmlm.data.transforms.audio import decode_audio, log_mel_spectrogram
from mmlm.utils.errors import UserError

FRAMES_A_SECOND = 100
LARGEST_PLAYED = 2 << 20  # bytes of a sound that the page plays: it holds all of them
MIME_TYPES = {
  'WAV': 'audio/wav',
  'WAVEX': 'audio/wav',
  'FLAC': 'audio/flac',
  'OGG': 'audio/ogg',
  'MP3': 'audio/mpeg',
  'MPEG': 'audio/mpeg',
}
COLUMNS = 1600  # of a picture, at most
SECOND_WIDTH = 130  # pixels at least; a long sound is scrolled
NARROWEST = 280  # pixels, a card on a phone
LETTER_WIDTH = 7.5  # pixels of a letter under a picture, not less than the font needs
TICK_DISTANCE = 70  # pixels between two times, at least
TICK_WIDTH = 44  # pixels of the text of a time
TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)  # seconds
LONGEST_STEP = 1200
# Colours of the spectrogram from dark to light.
STOPS = np.array(
  [
    (10, 10, 32),
    (70, 24, 110),
    (165, 44, 96),
    (236, 105, 55),
    (252, 190, 70),
    (252, 252, 190),
  ]
)
DARKEST, LIGHTEST = 0.3, 0.998  # quantiles of the values that the colours span

Word = tuple[str, int, int]  # text, first frame, last frame


class Label(NamedTuple):
  """A word or a time under a picture."""

  text: str
  left: float  # %
  length: float  # %
  width: int  # pixels of the text
  lane: int  # the line that it is in


class SoundView(NamedTuple):
  """What the page shows of a sound; empty fields are not shown."""

  note: str = ''  # what is missing
  kind: str = ''  # of the picture
  picture: str = ''  # a data URI
  width: int = 0  # of the picture, in pixels at least
  words: tuple[Label, ...] = ()
  times: tuple[Label, ...] = ()
  source: str = ''  # a data URI, to play

  @property
  def lanes(self) -> int:
    """The number of lines of words."""
    lanes = {word.lane for word in self.words}
    return 1 + max(lanes, default=-1)


def view_of_sound(example: dict | None, prediction: dict) -> SoundView:
  """Returns the view of the sound of an example, with the words that its prediction aligns.

  Nothing is shown without an example.
  """
  if example is None:
    return SoundView()
  sound = example.get('audio')
  if sound is None or (isinstance(sound, bytes) and not sound):
    return SoundView('no sound')
  note = 'features without a sound'
  source = ''
  try:
    values, kind = _features(sound)
    if isinstance(sound, bytes):
      note, source = _playable(sound)
  except UserError as error:
    return SoundView(str(error))
  frames = len(values)
  seconds = frames / FRAMES_A_SECOND
  width = max(NARROWEST, round(seconds * SECOND_WIDTH))
  words = words_of(prediction.get('alignment', []))
  labels = place_words(words, frames, width)
  return SoundView(
    note=note,
    kind=kind,
    picture=_spectrogram(values),
    width=width,
    words=tuple(labels),
    times=tuple(_times(seconds, width)),
    source=source,
  )


def _features(sound: Any) -> tuple[np.ndarray, str]:
  """Returns features [S, C] from 0 to 1, and their name.

  Raises:
    UserError: there are none.
  """
  if isinstance(sound, bytes):
    values = log_mel_spectrogram(decode_audio(sound))
    kind = 'log-mel spectrogram'
  else:
    values = _standardised(sound)
    kind = 'features of the data set'
  low, high = np.quantile(values, (DARKEST, LIGHTEST))
  span = max(high - low, 1e-9)
  shares = (values - low) / span
  return np.clip(shares, 0, 1), kind


def _standardised(features: Any) -> np.ndarray:
  """Returns features with mean 0 and deviation 1, as the first of cepstra would hide the rest.

  Raises:
    UserError: there are none.
  """
  frames = np.atleast_2d(features).astype(np.float64)
  values = np.nan_to_num(frames)
  if values.ndim > 2 or not values.size:
    raise UserError(f'no frames of features: their shape is {np.shape(features)}')
  centred = values - values.mean(0)
  deviations = np.maximum(values.std(0), 1e-9)
  return centred / deviations


def _palette() -> bytes:
  """Returns 256 colours."""
  count = len(STOPS)
  positions = np.linspace(0, count - 1, 256)
  channels = []
  for channel in STOPS.T:
    values = np.interp(positions, range(count), channel)
    channels.append(values)
  colours = np.stack(channels, 1).round()
  return colours.astype(np.uint8).tobytes()


def _spectrogram(values: np.ndarray) -> str:
  """Draws features [S, C] from 0 to 1 as a PNG in a data URI; time runs to the right."""
  frames = len(values)
  count = min(frames, COLUMNS)
  edges = np.linspace(0, frames, count, endpoint=False)
  columns = np.maximum.reduceat(values, edges.astype(int))  # short sounds stay visible
  upwards = columns.T[::-1]
  pixels = (upwards * 255).round()
  image = Image.fromarray(pixels.astype(np.uint8))
  image.putpalette(_palette())
  with io.BytesIO() as file:
    image.save(file, 'PNG', optimize=True)
    return data_uri('image/png', file.getvalue())


def _playable(sound: bytes) -> tuple[str, str]:
  """Returns why a sound cannot be played, or '', and its data URI."""
  file_format = soundfile.info(io.BytesIO(sound)).format
  size = len(sound)
  if size > LARGEST_PLAYED:
    return f'the sound has {size / 2**20:.1f} MiB and is left out of the page', ''
  if file_format not in MIME_TYPES:
    return f'browsers do not play {file_format}', ''
  return '', data_uri(MIME_TYPES[file_format], sound)


def data_uri(mime_type: str, content: bytes) -> str:
  """Returns content as a URI that a page can hold."""
  encoded = base64.b64encode(content).decode()
  return f'data:{mime_type};base64,{encoded}'


def words_of(pieces: list) -> list[Word]:
  """Joins the pieces [text, first frame, last frame] of tokens to words, which spaces separate.

  A text without spaces gives its pieces.
  """
  words: list[Word] = []
  unspaced: list[Word] = []
  begins_word = True
  for text, first, last in pieces:
    if not text:
      continue
    stripped = text.strip()
    begins_word = begins_word or text[0].isspace()
    if stripped:
      unspaced.append((stripped, first, last))
    if stripped and begins_word:
      words.append((stripped, first, last))
    elif stripped:
      begun, start, _ = words[-1]
      words[-1] = (begun + stripped, start, last)
    begins_word = text[-1].isspace()
  if len(words) > 1:
    return words
  return unspaced


def place_words(words: list[Word], frames: int, width: int) -> list[Label]:
  """Places words in lines under a picture of so many frames and pixels.

  A word that would cover another is placed in the next line, at any width of the page.
  """
  labels = []
  free_from: list[float] = []  # of each line, in pixels of the narrowest page
  for text, first, last in words:
    text_width = round(LETTER_WIDTH * len(text)) + 8
    size = min(width, text_width)
    left = min(first / frames * width, width - size)
    lane = _first_free(free_from, left)
    if lane == len(free_from):
      free_from.append(0)
    free_from[lane] = left + size
    start = min(first, frames)
    end = min(last + 1, frames)
    label = Label(
      text=text,
      left=round(100 * (start / frames), 2),
      length=round(100 * ((end - start) / frames), 2),
      width=size,
      lane=lane,
    )
    labels.append(label)
  return labels


def _first_free(free_from: list[float], left: float) -> int:
  """Returns the number of the first line that is free from `left` on, of a new one if none is."""
  for number, end in enumerate(free_from):
    if end <= left:
      return number
  return len(free_from)


def _times(seconds: float, width: int) -> list[Label]:
  """Places round times, as many as have room on the narrowest page."""
  step = LONGEST_STEP
  for candidate in TICK_STEPS:
    if candidate * width >= TICK_DISTANCE * seconds:
      step = candidate
      break
  last = int(seconds * (1 - TICK_WIDTH / width) / step)
  labels = []
  for number in range(last + 1):
    label = Label(
      text=f'{number * step:g} s',
      left=round(100 * number * step / seconds, 2),
      length=0,
      width=TICK_WIDTH,
      lane=0,
    )
    labels.append(label)
  return labels
