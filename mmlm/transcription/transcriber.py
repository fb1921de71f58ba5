"""Files -> transcripts: windows of several files, or of several parts of one, decoded together."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from mmlm.data.sources.recording import Recording, stretches
from mmlm.data.transforms.audio import RATE
from mmlm.transcription.audio_windows import Track
from mmlm.transcription.transcript import Segment, Transcript
from mmlm.transcription.whisper_model import Whisper

# The last samples of a window, among which a file is cut at the quietest place (--batched).
CUT_SEARCH = 5 * RATE

# (number of the file, its new segments, seconds of it that are transcribed)
Listener = Callable[[int, list[Segment], float], None]


def ignore_progress(file: int, segments: list[Segment], seconds: float) -> None:
  """Does nothing: the listener of a transcription that shows no progress."""


class Transcriber:
  """Transcribes files in their order, with one compiled program for all batches."""

  def __init__(self, whisper: Whisper):
    self.whisper = whisper
    self.options = whisper.options
    self._batch_size = 0
    self._languages: dict[int, str] = {}  # {number of the file: its language}

  def __call__(
    self,
    paths: list[str],
    listener: Listener = ignore_progress,
  ) -> Iterator[Transcript]:
    """Yields the transcript of each file; `listener` gets the segments while they are made.

    Raises:
      UserError: a file is no sound; transcripts that were yielded before remain valid.
    """
    segments = []
    for track in self._transcribe_tracks(self._tracks(paths)):
      new_segments = track.take_segments()
      listener(track.file, new_segments, track.seconds)
      segments += new_segments
      if track.done and track.last:
        language = self._languages.pop(track.file, self.whisper.language)
        yield _transcript(segments, language, track.seconds)
        segments = []

  def _transcribe_tracks(self, waiting: Iterator[Track]) -> Iterator[Track]:
    """Yields the first unfinished track after each batch of windows, and each track at its end."""
    tracks: collections.deque[Track] = collections.deque()
    while True:
      active = [track for track in tracks if not track.done]
      free = self.options.batch_size - len(active)
      new_tracks = list(itertools.islice(waiting, free))
      tracks.extend(new_tracks)
      active += new_tracks
      if not tracks:
        return
      self._decode_windows(active)
      while tracks:
        yield tracks[0]
        if not tracks[0].done:
          break
        tracks.popleft()

  def _tracks(self, paths: list[str]) -> Iterator[Track]:
    """Yields a track for each file, or with --batched several, cut at quiet places."""
    for number, path in enumerate(paths):
      recording = Recording(path)
      if not self.options.batched:
        yield Track(number, recording.read)
        continue
      parts = stretches(recording, self.whisper.samples, CUT_SEARCH)
      for start, samples, last in parts:
        read = _reader(samples)
        yield Track(number, read, start, last)

  def _decode_windows(self, tracks: list[Track]) -> None:
    """Decodes the next window of each track, and adds its segments to the track."""
    active = []
    windows = []
    for track in tracks:
      samples = track.next_window(self.whisper.samples)
      if samples is not None:
        active.append(track)
        windows.append(samples)
    if not windows:
      return
    self._grow_batch(len(windows))
    whisper = self.whisper
    features = [whisper.features(samples) for samples in windows]
    encoded = whisper.encode(features)
    prompts = []
    for track, window in zip(active, encoded):
      detected = whisper.language or window.language
      language = self._languages.setdefault(track.file, detected)
      prompt = whisper.prompt(language, track.prompt_tokens)
      prompts.append(prompt)
    results = whisper.decode(encoded, prompts, self._batch_size)
    for track, samples, result in zip(active, windows, results):
      track.add(result, len(samples), whisper.tokenizer, self.options)

  def _grow_batch(self, windows: int) -> None:
    """Makes the batch hold so many windows.

    It is a power of 2 and never shrinks, so that the compiled program is used again.
    """
    next_power = 1 << (windows - 1).bit_length()
    self._batch_size = max(self._batch_size, next_power)


def _reader(samples: np.ndarray) -> Callable[[int, int], np.ndarray]:
  """Returns a function that reads from an array as `Recording.read` does from a file."""

  def read(first: int, count: int) -> np.ndarray:
    return samples[first : first + count]

  return read


def _transcript(segments: list[Segment], language: str, seconds: float) -> Transcript:
  """Returns the transcript of a file; spaces around the texts of segments are removed."""
  text = ''.join(segment.text for segment in segments).strip()
  stripped = []
  for segment in segments:
    stripped.append(dataclasses.replace(segment, text=segment.text.strip()))
  return Transcript(text, language, seconds, tuple(stripped))
