"""Files -> transcripts: tracks of several files, or several of one, are answered together, window by window."""

import collections
from collections.abc import Callable, Iterator

from mmlm.data.sources.recording import Recording, stretches
from mmlm.data.transforms.audio import RATE
from mmlm.transcription.audio_windows import Track
from mmlm.transcription.transcription_options import Segment, Transcript
from mmlm.transcription.whisper_model import Whisper

SEARCH = 5 * RATE  # the last samples of a window, in which the quietest place is looked for


class Transcriber:
  """Transcribes files in their order; what compiles is for one number of windows."""

  def __init__(self, whisper: Whisper):
    self.whisper = whisper
    self.options = whisper.options
    self.size = 0
    self.languages = {}  # {number of the file: its language}

  def __call__(
    self, paths: list, tell: Callable = lambda file, segments, seconds: None
  ) -> Iterator[Transcript]:
    """Yields the transcript of each file. `tell` hears (number of the file, new segments, seconds done) as they come, in order.

    Raises:
      UserError: a file is no sound; what was yielded before stands.
    """
    waiting = self._tracks(paths)
    tracks = collections.deque()
    found = []
    for track in self._filled(waiting, tracks):
      segments = track.fetch()
      tell(track.file, segments, track.seconds)
      found += segments
      if track.done and track.last:
        text = ''.join(segment.text for segment in found).strip()
        yield Transcript(
          text,
          self.languages.pop(track.file, self.whisper.language),
          track.seconds,
          tuple(map(_stripped, found)),
        )
        found = []

  def _filled(self, waiting: Iterator[Track], tracks: collections.deque) -> Iterator[Track]:
    """Yields the first track that is not done after each round of windows, and each when it is done."""
    while True:
      busy = [track for track in tracks if not track.done]
      while len(busy) < self.options.batch_size and (track := next(waiting, None)):
        tracks.append(track)
        busy.append(track)
      if not tracks:
        return
      self._round(busy)
      while tracks:
        yield tracks[0]
        if not tracks[0].done:
          break
        tracks.popleft()

  def _tracks(self, paths: list) -> Iterator[Track]:
    for number, path in enumerate(paths):
      recording = Recording(path)
      if not self.options.batched:
        yield Track(number, recording.read)
        continue
      for start, samples, last in stretches(recording, self.whisper.samples, SEARCH):
        yield Track(
          number, lambda first, count, samples=samples: samples[first : first + count], start, last
        )

  def _round(self, tracks: list[Track]):
    """One window of each track."""
    pairs = [
      (track, samples)
      for track in tracks
      if (samples := track.window(self.whisper.samples)) is not None
    ]
    if not pairs:
      return
    self.size = max(
      self.size, 1 << (len(pairs) - 1).bit_length()
    )  # never smaller than before: what is compiled serves again
    whisper = self.whisper
    heard = whisper.hear([whisper.features(samples) for _, samples in pairs])
    for (track, _), one in zip(pairs, heard):
      self.languages.setdefault(track.file, whisper.language or one.language)
    if self.options.prompt:
      first = whisper.tokenizer.encode(f' {self.options.prompt.strip()}')
    else:
      first = []
    prompts = [
      whisper.prompt(self.languages[track.file], [*first, *track.said]) for track, _ in pairs
    ]
    for (track, samples), answer in zip(pairs, whisper.answer(heard, prompts, self.size)):
      track.take(answer, len(samples), whisper.tokenizer, self.options)


def _stripped(segment: Segment) -> Segment:
  return Segment(**{**vars(segment), 'text': segment.text.strip()})
