"""Recordings of any length, read a stretch at a time: what was left behind is forgotten."""

import numpy as np
import soundfile
import soxr

from mmlm.data.transforms.audio import RATE
from mmlm.utils.errors import UserError

BLOCK = 10  # seconds read at once


class Recording:
  """A sound file as float32 samples at 16 kHz, the mean of its channels; reading goes forward only.

  Raises UserError, from here or from `read`, naming the file when it is none, is no sound, or breaks off.
  """

  def __init__(self, path):
    self.path = str(path)
    try:
      self._file = soundfile.SoundFile(self.path)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
      raise UserError(
        f'{self.path}: the sound cannot be decoded ({getattr(error, "error_string", error)}).'
      ) from None
    self.duration = self._file.frames / self._file.samplerate  # as its head says
    if self._file.samplerate != RATE:
      self._resampler = soxr.ResampleStream(self._file.samplerate, RATE, 1)
    else:
      self._resampler = None
    self._start = 0
    self._samples = np.zeros(0, np.float32)
    self._ended = False
    if not len(self.read(0, 1)):
      raise UserError(f'{self.path}: the sound has no samples.')

  def read(self, start: int, count: int) -> np.ndarray:
    """Samples [start, start + count), fewer at the end of the file; `start` is never smaller than it was before."""
    self._samples = self._samples[max(0, start - self._start) :]
    self._start = max(self._start, start)
    while len(self._samples) < count and not self._ended:
      self._samples = np.concatenate([self._samples, self._block()])
    return self._samples[:count]

  def _block(self) -> np.ndarray:
    wanted = BLOCK * self._file.samplerate
    try:
      samples = self._file.read(wanted, dtype='float32', always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
      raise UserError(
        f'{self.path}: the sound breaks off ({getattr(error, "error_string", error)}).'
      ) from None
    if len(samples) < wanted:
      self._ended = True
      self._file.close()
    if not np.isfinite(samples).all():
      raise UserError(f'{self.path}: the sound has samples that are not finite.')
    samples = samples.mean(1)
    if self._resampler is None:
      return samples
    return self._resampler.resample_chunk(samples, last=self._ended)

  def close(self):
    self._file.close()


def stretches(recording: Recording, longest: int, search: int):
  """Yields (first sample, samples, is it the last?) of the whole recording; one of `longest` is cut at the quietest place of its end `search`."""
  start = 0
  while len(samples := recording.read(start, longest + 1)):
    last = len(samples) <= longest
    if last:
      end = len(samples)
    else:
      end = quietest(samples[:longest], longest - search)
    yield start, samples[:end].copy(), last
    start += end


def quietest(samples: np.ndarray, first: int, width: int = RATE // 5) -> int:
  """The middle of the `width` samples behind `first` that have the least energy."""
  hop = width // 10
  tail = samples[first:]
  energy = np.square(
    tail[: len(tail) // hop * hop].reshape(
      -1,
      hop,
    )
  ).sum(1)
  sums = np.convolve(energy, np.ones(10), 'valid')
  return first + int(sums.argmin()) * hop + width // 2
