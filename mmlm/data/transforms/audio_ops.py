"""Transforms of sounds and of features computed from them, named in configs (see ops.py).

A new one is a function (sound or features, rng, options...) -> sound or features and one line in
`AUDIO_TRANSFORMS`; one that changes the duration of a sound also states its range of tempos.

N: samples; S: feature frames, 100 a second; C: values of a frame. A sound is the bytes of a file
  or,
once decoded, a `Sound`; features are an array [S, C] or a vector [C]. Transforms of sounds pass
features unchanged, so that a data set may hold both. An example without sound passes unchanged.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import soxr
from scipy import ndimage

from mmlm.data.transforms.audio import RATE, Sound, decode_audio, kaldi_fbank, log_mel_spectrogram
from mmlm.data.transforms.transform import ConfiguredTransform, Example, Transform
from mmlm.utils.errors import UserError

Rng = np.random.Generator
# Regression weights of a slope over five frames (Furui 1986, as Kaldi and HTK compute it).
SLOPE = np.arange(-2, 3) / 10

# Of sounds


def decode_sound(
  sound: Sound,
  rng: Rng,
  rate: int = RATE,
) -> Sound:
  """Resamples to `rate` samples a second; needed where this is not 16,000."""
  if sound.rate == rate:
    return sound
  return Sound(soxr.resample(sound.samples, sound.rate, rate), rate)


def speed(
  sound: Sound,
  rng: Rng,
  factors: tuple = (0.9, 1.0, 1.1),
) -> Sound:
  """Plays faster by a factor, drawn uniformly; changes tempo and pitch (Ko et al. 2015)."""
  factor = _checked('speed', factors)[rng.integers(len(factors))]
  if factor == 1:
    return sound
  return Sound(soxr.resample(sound.samples, sound.rate * factor, sound.rate), sound.rate)


def log_mel(
  sound: Sound,
  rng: Rng,
  bands: int = 80,
) -> np.ndarray:
  """Computes Whisper's log-mel spectrogram [S, bands]."""
  if sound.rate != RATE:
    raise UserError(
      f'log_mel reads {RATE} samples a second, not {sound.rate}: '
      f'use decode_sound({RATE}), or fbank.'
    )
  if bands < 1:
    raise UserError(f'log_mel({bands}): expected one band or more.')
  return log_mel_spectrogram(sound.samples, bands)


def fbank(
  sound: Sound,
  rng: Rng,
  bands: int = 80,
) -> np.ndarray:
  """Computes Kaldi's log filterbank energies [S, bands]."""
  return kaldi_fbank(sound.samples, sound.rate, bands)


@dataclasses.dataclass(frozen=True)
class SoundTransform(Transform):
  """Replaces a sound by `change(sound, rng, options...)`; files are decoded first, at 16 kHz."""

  field: ClassVar[str] = 'audio'

  def __call__(self, example: Example, rng: Rng, **options: Any) -> Example:
    audio = example.get('audio')
    if audio is None or isinstance(audio, np.ndarray):
      return example
    if not isinstance(audio, Sound):
      rate = options.get('rate', RATE)
      audio = Sound(decode_audio(audio, rate), rate)
    return {**example, 'audio': self.change(audio, rng, **options)}


# Of features


def standardize(
  features: np.ndarray,
  rng: Rng,
  variance: bool = True,
) -> np.ndarray:
  """Subtracts each coefficient's mean over the sound; a constant coefficient becomes 0.

  Args:
    variance: divide by the standard deviation too.
  """
  exact = features.astype(np.float64)
  centred = exact - exact.mean(0)
  deviation = centred.std(0) if variance else np.ones(exact.shape[1])
  # Rounding leaves a little noise in a constant coefficient, which the division would amplify.
  constant = np.ptp(features, 0) <= 1e-6 * np.abs(features).max(0)
  scaled = centred / np.where(constant, 1, deviation)
  return np.where(constant, 0, scaled).astype(np.float32)


def deltas(
  features: np.ndarray,
  rng: Rng,
  order: int = 2,
) -> np.ndarray:
  """Appends slopes over time up to `order`: [S, C] -> [S, C (order + 1)]; the ends are repeated."""
  columns = [features]
  weights = np.ones(1)
  for _ in range(order):
    weights = np.convolve(weights, SLOPE)
    columns.append(ndimage.correlate1d(features, weights, 0, mode='nearest', output=np.float32))
  return np.concatenate(columns, 1)


def _interpolated(features: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """Returns the linear interpolation of [S, C] at positions [T] in 0 to S - 1."""
  low = np.minimum(positions.astype(int), max(0, len(features) - 2))
  high = np.minimum(low + 1, len(features) - 1)
  share = (positions - low)[:, None]
  return (features[low] * (1 - share) + features[high] * share).astype(np.float32)


def stretch(
  features: np.ndarray, rng: Rng, slowest: float | int = 0.9, fastest: float | int = 1.1
) -> np.ndarray:
  """Plays faster by a uniform factor, with the same pitch: `speed` for data sets of features."""
  factor = rng.uniform(*_checked('stretch', (slowest, fastest)))
  frames = max(1, round(len(features) / factor))
  return _interpolated(features, np.linspace(0, len(features) - 1, frames))


def spec_augment(
  features: np.ndarray,
  rng: Rng,
  warp: int = 5,
  frequency_masks: int = 2,
  frequency_width: int = 27,
  time_masks: int = 2,
  time_width: int = 40,
  time_share: float | int = 0.2,
) -> np.ndarray:
  """Warps time and masks frequencies and times by the mean (SpecAugment, Park et al. 2019).

  Args:
    warp: most frames by which a random frame is moved.
    frequency_masks: masks over frequencies, each of up to `frequency_width` values.
    time_masks: masks over time, each of up to `time_width` frames and `time_share` of all.
  """
  frames, width = features.shape
  if warp and frames > 2 * warp + 2:
    centre = rng.integers(warp + 1, frames - warp - 1)
    moved = centre + rng.integers(-warp, warp + 1)
    positions = np.interp(
      np.arange(frames),
      (0, moved, frames - 1),
      (0, centre, frames - 1),
    )
    features = _interpolated(features, positions)
  masked = features.copy()
  mean = features.mean()
  widest = min(frequency_width, width)
  longest_mask = min(time_width, int(time_share * frames))
  for axis, count, most in ((1, frequency_masks, widest), (0, time_masks, longest_mask)):
    for _ in range(count):
      size = rng.integers(most + 1)
      start = rng.integers(masked.shape[axis] - size + 1)
      masked.swapaxes(0, axis)[start : start + size] = mean
  return masked


@dataclasses.dataclass(frozen=True)
class FeatureTransform(Transform):
  """Replaces features [S, C] by `change(features, rng, options...)`."""

  field: ClassVar[str] = 'audio'

  def __call__(self, example: Example, rng: Rng, **options: Any) -> Example:
    features = example.get('audio')
    if features is None:
      return example
    name = self.change.__name__
    if not isinstance(features, np.ndarray):
      raise UserError(f'{name} reads features and found a sound: put log_mel or fbank before it.')
    if features.ndim != 2:
      raise UserError(f'{name} reads rows of features [S, C], not the shape {features.shape}.')
    return {**example, 'audio': self.change(features, rng, **options)}


# Durations


def longest(transforms: Iterable[ConfiguredTransform]) -> float:
  """Returns the largest factor by which transforms may lengthen a sound; 1 where none does."""
  return math.prod(1 / min(1, transform.tempo_range[0]) for transform in transforms)


def shortest(transforms: Iterable[ConfiguredTransform]) -> float:
  """Returns the smallest factor by which transforms may shorten a sound; 1 where none does."""
  return math.prod(1 / max(1, transform.tempo_range[1]) for transform in transforms)


def speed_range(factors: tuple = (0.9, 1.0, 1.1)) -> tuple[float, float]:
  """Returns the slowest and the fastest tempo of `speed`."""
  return min(_checked('speed', factors)), max(factors)


def stretch_range(slowest: float = 0.9, fastest: float = 1.1) -> tuple[float, float]:
  """Returns the slowest and the fastest tempo of `stretch`."""
  factors = _checked('stretch', (slowest, fastest))
  return min(factors), max(factors)


def _checked(name: str, factors: tuple) -> tuple:
  valid = [isinstance(factor, int | float) and 0.1 <= factor <= 10 for factor in factors]
  if not factors or not all(valid):
    raise UserError(f'{name}: the factors {factors} must be numbers from 0.1 to 10.')
  return factors


AUDIO_TRANSFORMS: dict[str, Transform] = {
  'decode_sound': SoundTransform(decode_sound),
  'speed': SoundTransform(speed, speed_range),
  'log_mel': SoundTransform(log_mel),
  'fbank': SoundTransform(fbank),
  'standardize': FeatureTransform(standardize),
  'deltas': FeatureTransform(deltas),
  'stretch': FeatureTransform(stretch, stretch_range),
  'spec_augment': FeatureTransform(spec_augment),
}
