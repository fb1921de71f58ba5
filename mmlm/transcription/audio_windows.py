"""From what was written for windows to segments of a file: windows follow each other where the last whole segment ended.

Seconds are those of the file, samples are counted at 16 kHz.
"""

from collections.abc import Callable

import numpy as np

from mmlm.data.tokenizers.whisper_tokenizer import TICK
from mmlm.data.transforms.audio import RATE
from mmlm.transcription.transcription_options import Answer, Options, Segment

SILENCE = 1e-4  # no sample is louder: nothing is said (three steps of 16 bits)
SHORTEST = (
  RATE // 10
)  # what remains behind the last segment is not a window of its own when it is shorter


def spans(tokens: tuple, first_time: int, duration: float) -> tuple[list[tuple], float]:
  """Tokens of a window of `duration` seconds -> [(start, end, tokens)] in its own seconds, and how far it is done with.

  Two times side by side end one segment and begin the next. What stands behind the last pair is heard again in the next window, unless
  it is a whole segment: then nothing is said behind it (Radford et al. 2022, 4.5).
  """

  def seconds(token):
    return min((token - first_time) * TICK, duration)

  is_time = [token >= first_time for token in tokens]
  cuts = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
  whole = is_time[-2:] == [False, True]
  if not cuts:
    times = [seconds(token) for token, time in zip(tokens, is_time) if time]
    start = times[0] if is_time[:1] == [True] else 0.0
    if times and times[-1] > start:
      end = times[-1]
    else:
      end = duration
    return [(start, end, tokens)], duration
  cuts += [len(tokens)] * whole
  found = []
  for a, b in zip([0, *cuts], cuts):
    found.append(
      (
        seconds(tokens[a]),
        seconds(tokens[b - 1]),
        tokens[a:b],
      )
    )
  return found, duration if whole or not found[-1][1] else found[-1][1]


class Track:
  """A file, or a stretch of it, on its way: where the next window begins, and the segments that were found and not yet fetched.

  Args:
    file: the number of the file.
    read: (first sample, number) -> samples from the start of the track, fewer at its end.
    start: the sample of the file with which the track begins.
    last: no other track of the file follows.
  """

  def __init__(self, file: int, read: Callable, start: int = 0, last: bool = True):
    self.file = file
    self.read = read
    self.start = start
    self.last = last
    self.position = 0
    self.done = False
    self.segments = []
    self.said = []  # tokens, for the prompts of further windows

  @property
  def seconds(self) -> float:
    """Up to where the file is done with, as far as this track goes."""
    return (self.start + self.position) / RATE

  def window(self, size: int) -> np.ndarray | None:
    """The samples of the next window in which there is sound; None when the track is done."""
    while not self.done:
      samples = self.read(self.position, size)
      if not len(samples) or (self.position and len(samples) < SHORTEST):
        self.position += len(samples)
        self.done = True
      elif np.abs(samples).max() > SILENCE:
        return samples
      else:
        self.position += len(samples)
    return None

  def take(self, answer: Answer, samples: int, tokenizer, options: Options):
    """Keeps the segments of the answer for a window of so many samples, and moves to the next one."""
    offset = self.seconds
    duration = samples / RATE
    if is_no_speech(answer, options):
      self.position += samples
      return
    whole = [(0.0, duration, answer.tokens)], duration
    found, used = spans(answer.tokens, tokenizer.first_time, duration) if options.times else whole
    for start, end, tokens in found:
      text = tokenizer.decode(tokens)
      if text.strip() and end > start:
        scores = (
          answer.avg_logprob,
          answer.no_speech_prob,
          answer.temperature,
          answer.compression_ratio,
        )
        self.segments.append(
          Segment(round(offset + start, 2), round(offset + end, 2), text, *scores)
        )
        self.said += tokens
    # What was drawn at a high temperature is no guide.
    if options.previous and answer.temperature <= 0.5:
      self.said = self.said
    else:
      self.said = []
    self.position += samples if used >= duration else round(used / TICK) * round(TICK * RATE)

  def fetch(self) -> list[Segment]:
    """The segments found since the last call."""
    found = self.segments
    self.segments = []
    return found


def is_no_speech(answer: Answer, options: Options) -> bool:
  """Whether what was written is invented: the model says that nobody speaks, surely, or with a bad answer."""
  unsure = answer.avg_logprob < options.min_log_prob
  return answer.no_speech_prob > (options.max_no_speech if unsure else options.sure_no_speech)
