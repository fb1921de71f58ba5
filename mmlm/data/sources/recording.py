"""Recordings of any length, read forward in parts; memory stays bounded."""

import pathlib
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from mmlm.data.transforms.audio import RATE
from mmlm.utils.errors import UserError

BLOCK_SECONDS = 10  # read at once


class Recording:
  """A sound file as float32 samples at 16 kHz, the mean of its channels; read forward only.

  Raises:
    UserError: here or in `read`: a missing file, not a sound, or a sound that breaks off.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = str(path)
    try:
      self._file = soundfile.SoundFile(self.path)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
      reason = getattr(error, 'error_string', error)
      raise UserError(f'{self.path}: the sound cannot be decoded ({reason}).') from None
    self.duration = self._file.frames / self._file.samplerate  # as the header declares
    self._resampler = None
    if self._file.samplerate != RATE:
      self._resampler = soxr.ResampleStream(self._file.samplerate, RATE, 1)
    self._start = 0
    self._samples = np.zeros(0, np.float32)
    self._ended = False
    if not len(self.read(0, 1)):
      raise UserError(f'{self.path}: the sound has no samples.')

  def read(
    self,
    start: int,
    count: int,
  ) -> np.ndarray:
    """Returns the samples [start, start + count), fewer at the end of the file.

    Args:
      start: at least that of the call before.
    """
    self._samples = self._samples[max(0, start - self._start) :]
    self._start = max(self._start, start)
    while len(self._samples) < count and not self._ended:
      self._samples = np.concatenate([self._samples, self._read_block()])
    return self._samples[:count]

  def _read_block(self) -> np.ndarray:
    count = BLOCK_SECONDS * self._file.samplerate
    try:
      samples = self._file.read(count, dtype='float32', always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
      reason = getattr(error, 'error_string', error)
      raise UserError(f'{self.path}: the sound breaks off ({reason}).') from None
    if len(samples) < count:
      self._ended = True
      self._file.close()
    if not np.isfinite(samples).all():
      raise UserError(f'{self.path}: the sound has samples that are not finite.')
    mono = samples.mean(1)
    if self._resampler is None:
      return mono
    return self._resampler.resample_chunk(mono, last=self._ended)

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def stretches(
  recording: Recording, longest: int, search: int
) -> Iterator[tuple[int, np.ndarray, bool]]:
  """Yields (first sample, samples, whether it is the last) of consecutive parts of a recording.

  Args:
    longest: samples of a part; a longer recording is cut at the quietest position.
    search: samples at the end of a part in which that position is searched.
  """
  start = 0
  while len(samples := recording.read(start, longest + 1)):
    is_last = len(samples) <= longest
    end = len(samples)
    if not is_last:
      end = quietest(samples[:longest], longest - search)
    yield start, samples[:end].copy(), is_last
    start += end


def quietest(
  samples: np.ndarray,
  first: int,
  width: int = RATE // 5,
) -> int:
  """Returns the middle of the `width` samples after `first` that have the least energy."""
  hop = width // 10
  tail = samples[first:]
  hops = tail[: len(tail) // hop * hop].reshape(-1, hop)
  energy = np.square(hops).sum(1)
  sums = np.convolve(energy, np.ones(10), 'valid')
  return first + int(sums.argmin()) * hop + width // 2
