"""From the tokens of windows to the segments of a file.

A window begins where the last complete segment before it ended. Seconds count from the start of
the file; samples are counted at 16 kHz.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmlm.data.tokenizers.whisper_tokenizer import TIME_PRECISION, WhisperTokenizer
from mmlm.data.transforms.audio import RATE
from mmlm.transcription.transcript import DecodingResult, Segment
from mmlm.transcription.transcription_options import TranscriptionOptions

# A window in which no sample is louder is not decoded (three steps of 16 bits).
SILENCE = 1e-4
# A rest of a file that is shorter, in samples, is not a window of its own.
SHORTEST_REST = RATE // 10
# The text of a window that was sampled at a higher temperature is no prompt for the next one.
MAX_PROMPT_TEMPERATURE = 0.5


class Span(NamedTuple):
  """A segment of a window: times in seconds from the start of the window, and its tokens."""

  start: float
  end: float
  tokens: tuple[int, ...]


def split_segments(
  tokens: tuple[int, ...], first_time: int, duration: float
) -> tuple[list[Span], float]:
  """Splits the tokens of a window at its times (Radford et al. 2022, 4.5).

  Two times in a row end a segment and begin the next one. The tokens after the last pair are
  decoded again in the next window, unless they are a complete segment: then there is no speech
  after it.

  Args:
    first_time: the id of the time 0; higher ids are later times.
    duration: of the window, in seconds.

  Returns:
    The segments, and the seconds of the window that are finished.
  """

  def seconds(token: int) -> float:
    return min((token - first_time) * TIME_PRECISION, duration)

  is_time = [token >= first_time for token in tokens]
  cuts = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
  if not cuts:
    return [_single_span(tokens, first_time, duration)], duration
  ends_complete = is_time[-2:] == [False, True]
  if ends_complete:
    cuts.append(len(tokens))
  spans = []
  for start, end in zip([0, *cuts], cuts):
    spans.append(Span(seconds(tokens[start]), seconds(tokens[end - 1]), tokens[start:end]))
  finished = spans[-1].end
  if ends_complete or finished == 0:  # a time of 0 would repeat the same window for ever
    finished = duration
  return spans, finished


def _single_span(tokens: tuple[int, ...], first_time: int, duration: float) -> Span:
  """Returns the one segment of a window; without an end time it lasts to the end of the window."""
  times = []
  for token in tokens:
    if token >= first_time:
      times.append(min((token - first_time) * TIME_PRECISION, duration))
  start = 0.0
  if tokens and tokens[0] >= first_time:
    start = times[0]
  end = duration
  if times and times[-1] > start:
    end = times[-1]
  return Span(start, end, tokens)


class Track:
  """A file, or a part of it, that is being transcribed.

  Args:
    file: the number of the file.
    read: (first sample, count) -> samples from the start of the track, fewer at its end.
    start: the sample of the file at which the track begins.
    last: whether no other track of the file follows.
  """

  def __init__(
    self,
    file: int,
    read: Callable[[int, int], np.ndarray],
    start: int = 0,
    last: bool = True,
  ):
    self.file = file
    self.read = read
    self.start = start
    self.last = last
    self.position = 0  # the sample at which the next window begins
    self.done = False
    self.prompt_tokens: list[int] = []  # the text so far, for the prompts of further windows
    self._segments: list[Segment] = []

  @property
  def seconds(self) -> float:
    """Returns the time of the file up to which this track is transcribed."""
    return (self.start + self.position) / RATE

  def next_window(self, size: int) -> np.ndarray | None:
    """Returns the samples of the next window that is not silent; None when the track is done."""
    while not self.done:
      samples = self.read(self.position, size)
      if not len(samples) or (self.position and len(samples) < SHORTEST_REST):
        self.position += len(samples)
        self.done = True
      elif np.abs(samples).max() > SILENCE:
        return samples
      else:
        self.position += len(samples)
    return None

  def add(
    self,
    result: DecodingResult,
    samples: int,
    tokenizer: WhisperTokenizer,
    options: TranscriptionOptions,
  ) -> None:
    """Adds the segments of a window of so many samples, and moves to the next window."""
    if is_no_speech(result, options):
      self.position += samples
      return
    duration = samples / RATE
    if options.without_timestamps:
      spans = [Span(0.0, duration, result.tokens)]
      finished = duration
    else:
      spans, finished = split_segments(result.tokens, tokenizer.timestamp_begin, duration)
    for span in spans:
      self._add_segment(span, result, tokenizer)
    if not options.condition_on_previous_text or result.temperature > MAX_PROMPT_TEMPERATURE:
      self.prompt_tokens = []
    if finished >= duration:
      self.position += samples
    else:
      self.position += round(finished / TIME_PRECISION) * round(TIME_PRECISION * RATE)

  def _add_segment(self, span: Span, result: DecodingResult, tokenizer: WhisperTokenizer) -> None:
    text = tokenizer.decode(span.tokens)
    if not text.strip() or span.end <= span.start:
      return
    offset = self.seconds
    segment = Segment(
      start=round(offset + span.start, 2),
      end=round(offset + span.end, 2),
      text=text,
      avg_logprob=result.avg_logprob,
      no_speech_prob=result.no_speech_prob,
      temperature=result.temperature,
      compression_ratio=result.compression_ratio,
    )
    self._segments.append(segment)
    self.prompt_tokens += span.tokens

  def take_segments(self) -> list[Segment]:
    """Returns the segments that were added since the last call."""
    segments = self._segments
    self._segments = []
    return segments


def is_no_speech(result: DecodingResult, options: TranscriptionOptions) -> bool:
  """Returns whether the text of a window is invented: the model is sure that nobody speaks, or
  believes it and its text is unlikely."""
  threshold = options.certain_no_speech_threshold
  if result.avg_logprob < options.logprob_threshold:
    threshold = options.no_speech_threshold
  return result.no_speech_prob > threshold
