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
    return 1 + max((word.lane for word in self.words), default=-1)


def view_of_sound(example: dict | None, prediction: dict) -> SoundView:
  """Returns the view of the sound of an example, with the words that its prediction aligns.

  Nothing is shown without an example.
  """
  if example is None:
    return SoundView()
  sound = example.get('audio')
  if sound is None or (isinstance(sound, bytes) and not sound):
    return SoundView('no sound')
  try:
    values, kind = _features(sound)
    note, source = 'features without a sound', ''
    if isinstance(sound, bytes):
      note, source = _playable(sound)
  except UserError as error:
    return SoundView(str(error))
  seconds = len(values) / FRAMES_A_SECOND
  width = max(NARROWEST, round(seconds * SECOND_WIDTH))
  words = words_of(prediction.get('alignment', []))
  labels = tuple(place_words(words, len(values), width))
  times = tuple(_times(seconds, width))
  return SoundView(note, kind, _spectrogram(values), width, labels, times, source)


def _features(sound: Any) -> tuple[np.ndarray, str]:
  """Returns features [S, C] from 0 to 1, and their name.

  Raises:
    UserError: there are none.
  """
  if isinstance(sound, bytes):
    values = log_mel_spectrogram(decode_audio(sound))
    kind = 'log-mel spectrogram'
  else:
    values = np.nan_to_num(np.atleast_2d(sound).astype(np.float64))
    kind = 'features of the data set'
    if values.ndim > 2 or not values.size:
      raise UserError(f'no frames of features: their shape is {np.shape(sound)}')
    # Without it the first cepstral coefficient would hide the rest.
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)
  low, high = np.quantile(values, (DARKEST, LIGHTEST))
  return np.clip((values - low) / max(high - low, 1e-9), 0, 1), kind


def _palette() -> bytes:
  """Returns 256 colours."""
  positions = np.linspace(0, len(STOPS) - 1, 256)
  channels = [np.interp(positions, range(len(STOPS)), channel) for channel in STOPS.T]
  return np.stack(channels, 1).round().astype(np.uint8).tobytes()


def _spectrogram(values: np.ndarray) -> str:
  """Draws features [S, C] from 0 to 1 as a PNG in a data URI; time runs to the right."""
  count = min(len(values), COLUMNS)
  edges = np.linspace(0, len(values), count, endpoint=False).astype(int)
  columns = np.maximum.reduceat(values, edges)  # short sounds stay visible
  image = Image.fromarray((columns.T[::-1] * 255).round().astype(np.uint8))
  image.putpalette(_palette())
  with io.BytesIO() as file:
    image.save(file, 'PNG', optimize=True)
    return data_uri('image/png', file.getvalue())


def _playable(sound: bytes) -> tuple[str, str]:
  """Returns why a sound cannot be played, or '', and its data URI."""
  file_format = soundfile.info(io.BytesIO(sound)).format
  if len(sound) > LARGEST_PLAYED:
    return f'the sound has {len(sound) / 2**20:.1f} MiB and is left out of the page', ''
  if file_format not in MIME_TYPES:
    return f'browsers do not play {file_format}', ''
  return '', data_uri(MIME_TYPES[file_format], sound)


def data_uri(mime_type: str, content: bytes) -> str:
  """Returns content as a URI that a page can hold."""
  return f'data:{mime_type};base64,{base64.b64encode(content).decode()}'


def words_of(pieces: list) -> list[Word]:
  """Joins the pieces [text, first frame, last frame] of tokens to words, which spaces separate.

  A text without spaces gives its pieces.
  """
  words: list[Word] = []
  begins_word = True
  for text, first, last in pieces:
    stripped = text.strip()
    if stripped and (begins_word or text[0].isspace()):
      words.append((stripped, first, last))
    elif stripped:
      begun, start, _ = words[-1]
      words[-1] = (begun + stripped, start, last)
    if text:
      begins_word = text[-1].isspace()
  if len(words) > 1:
    return words
  return [(text.strip(), first, last) for text, first, last in pieces if text.strip()]


def place_words(words: list[Word], frames: int, width: int) -> list[Label]:
  """Places words in lines under a picture of so many frames and pixels.

  A word that would cover another is placed in the next line, at any width of the page.
  """
  labels = []
  free_from: list[float] = []  # of each line, in pixels of the narrowest page
  for text, first, last in words:
    size = min(width, round(LETTER_WIDTH * len(text)) + 8)
    left = min(first / frames * width, width - size)
    lane = len(free_from)
    for number, end in enumerate(free_from):
      if end <= left:
        lane = number
        break
    free_from[lane:] = [left + size, *free_from[lane + 1 :]]
    start = min(first / frames, 1)
    length = (min(last + 1, frames) - min(first, frames)) / frames
    labels.append(Label(text, round(100 * start, 2), round(100 * length, 2), size, lane))
  return labels


def _times(seconds: float, width: int) -> list[Label]:
  """Places round times, as many as have room on the narrowest page."""
  step = LONGEST_STEP
  for candidate in TICK_STEPS:
    if candidate * width >= TICK_DISTANCE * seconds:
      step = candidate
      break
  last = int(seconds * (1 - TICK_WIDTH / width) / step)
  labels = []
  for i in range(last + 1):
    left = round(100 * i * step / seconds, 2)
    labels.append(Label(f'{i * step:g} s', left, 0, TICK_WIDTH, 0))
  return labels
