"""Sound ops: `op(example, rng, options...) -> example`, named in configs (see ops.py).

N: samples; S: rows of features, 100 a second; C: values of a row. A sound is the bytes of a file or, once decoded, a `Sound`; features are
an array [S, C] or a vector [C]. Ops that read a sound let features pass, so that given and computed ones can stand in one set. An example
without sound passes without it.

An op that changes how long its sound is has a function `tempo` of its options: the slowest and the fastest that it may be played.
"""

import functools
import math

import numpy as np
import soxr
from scipy import ndimage

from mmlm.data.transforms.audio import RATE, Sound, decode_audio, kaldi_fbank, log_mel_spectrogram
from mmlm.utils.errors import UserError

# Of sounds


def _sound_op(change):
  """The op that replaces a sound by `change(sound, rng, options...)`; the bytes of a file are decoded first, at 16 kHz."""

  @functools.wraps(change)
  def op(example, rng, **options):
    found = example.get('audio')
    if found is None or isinstance(found, np.ndarray):
      return example
    if isinstance(found, Sound):
      sound = found
    else:
      sound = Sound(decode_audio(found, options.get('rate', RATE)), options.get('rate', RATE))
    return {**example, 'audio': change(sound, rng, **options)}

  return op


def decode_sound(sound, rng, rate: int = RATE):
  """Samples at `rate` a second; needed where this is not 16,000."""
  if sound.rate == rate:
    return sound
  return Sound(soxr.resample(sound.samples, sound.rate, rate), rate)


def speed(sound, rng, factors: tuple = (0.9, 1.0, 1.1)):
  """Played faster by one of the factors, drawn uniformly: tempo and pitch change (Ko et al. 2015)."""
  factor = _checked('speed', factors)[rng.integers(len(factors))]
  if factor == 1:
    return sound
  return Sound(soxr.resample(sound.samples, sound.rate * factor, sound.rate), sound.rate)


def log_mel(sound, rng, bands: int = 80):
  """Whisper's log-mel spectrogram [S, bands]."""
  if sound.rate != RATE:
    raise UserError(
      f'log_mel reads {RATE} samples a second, not {sound.rate}: use decode_sound({RATE}), or fbank.'
    )
  if bands < 1:
    raise UserError(f'log_mel({bands}): expected one band or more.')
  return log_mel_spectrogram(sound.samples, bands)


def fbank(sound, rng, bands: int = 80):
  """Kaldi's log filterbank energies [S, bands]."""
  return kaldi_fbank(sound.samples, sound.rate, bands)


# Of features


def _rows_op(change):
  """The op that replaces features [S, C] by `change(features, rng, options...)`."""

  @functools.wraps(change)
  def op(example, rng, **options):
    found = example.get('audio')
    if found is None:
      return example
    if not isinstance(found, np.ndarray):
      raise UserError(
        f'{change.__name__} reads features and found a sound: put log_mel or fbank before it.'
      )
    if found.ndim != 2:
      raise UserError(
        f'{change.__name__} reads rows of features [S, C], not the shape {found.shape}.'
      )
    return {**example, 'audio': change(found, rng, **options)}

  return op


def standardize(features, rng, variance: bool = True):
  """Each coefficient less its mean over the sound and, with `variance`, over its standard deviation. What is constant becomes 0."""
  exact = features.astype(np.float64)
  centred = exact - exact.mean(0)
  if variance:
    deviation = centred.std(0)
  else:
    deviation = np.ones(exact.shape[1])
  # Rounding leaves a little where nothing changes; divided by itself it would be noise.
  constant = np.ptp(features, 0) <= 1e-6 * np.abs(features).max(0)
  return np.where(constant, 0, centred / np.where(constant, 1, deviation)).astype(np.float32)


SLOPE = (
  np.arange(-2, 3) / 10
)  # of the line through five rows (Furui 1986, as Kaldi and HTK have it)


def deltas(features, rng, order: int = 2):
  """[S, C] -> [S, C (order + 1)]: the features, and their slopes over time up to `order`; the ends are repeated beyond them."""
  columns = [features]
  weights = np.ones(1)
  for _ in range(order):
    weights = np.convolve(weights, SLOPE)
    columns.append(ndimage.correlate1d(features, weights, 0, mode='nearest', output=np.float32))
  return np.concatenate(columns, 1)


def _at(features, places):
  """Rows between rows: the linear interpolation of [S, C] at places [T] of 0 to S - 1."""
  low = np.minimum(places.astype(int), max(0, len(features) - 2))
  high = np.minimum(low + 1, len(features) - 1)
  share = (places - low)[:, None]
  return (features[low] * (1 - share) + features[high] * share).astype(np.float32)


def stretch(features, rng, slowest: float | int = 0.9, fastest: float | int = 1.1):
  """Played faster by a uniform factor, the pitch kept: what `speed` is for sounds where only features are given."""
  rows = max(
    1,
    round(len(features) / rng.uniform(*_checked('stretch', (slowest, fastest)))),
  )
  return _at(features, np.linspace(0, len(features) - 1, rows))


def spec_augment(
  features,
  rng,
  warp: int = 5,
  frequency_masks: int = 2,
  frequency_width: int = 27,
  time_masks: int = 2,
  time_width: int = 40,
  time_share: float | int = 0.2,
):
  """SpecAugment (Park et al. 2019): time warped by up to `warp` rows about a random one, then masks over frequencies of up to
  `frequency_width` values and over times of up to `time_width` rows, but no more than `time_share` of all. What is masked gets the mean.
  """
  rows, width = features.shape
  if rows > 2 * warp + 2 and warp:
    centre = rng.integers(warp + 1, rows - warp - 1)
    features = _at(
      features,
      np.interp(
        np.arange(rows),
        (0, centre + rng.integers(-warp, warp + 1), rows - 1),
        (0, centre, rows - 1),
      ),
    )
  out = features.copy()
  mean = features.mean()
  for axis, count, most in (
    (1, frequency_masks, min(frequency_width, width)),
    (0, time_masks, min(time_width, int(time_share * rows))),
  ):
    for _ in range(count):
      size = rng.integers(most + 1)
      start = rng.integers(out.shape[axis] - size + 1)
      out.swapaxes(0, axis)[start : start + size] = mean
  return out


# Lengths


def longest(ops) -> float:
  """By what factor ops as `parse_ops` gives them may lengthen a sound; 1 where none does."""
  return math.prod(1 / min(1, slowest) for slowest, _ in _tempos(ops))


def shortest(ops) -> float:
  """By what factor they may shorten it."""
  return math.prod(1 / max(1, fastest) for _, fastest in _tempos(ops))


def _tempos(ops) -> list[tuple]:
  return [op.func.tempo(**op.keywords) for op in ops if hasattr(op.func, 'tempo')]


def _span(name: str, factors) -> tuple:
  return min(_checked(name, factors)), max(factors)


def _checked(name: str, factors: tuple) -> tuple:
  if not factors or not all(
    isinstance(factor, int | float) and 0.1 <= factor <= 10 for factor in factors
  ):
    raise UserError(f'{name}: the factors {factors} must be numbers from 0.1 to 10.')
  return factors


OPS = {change.__name__: _sound_op(change) for change in (decode_sound, speed, log_mel, fbank)}
OPS |= {
  change.__name__: _rows_op(change) for change in (standardize, deltas, stretch, spec_augment)
}
OPS['speed'].tempo = lambda factors=(0.9, 1.0, 1.1): _span('speed', factors)
OPS['stretch'].tempo = lambda slowest=0.9, fastest=1.1: _span('stretch', (slowest, fastest))
