"""Sound ops: `op(example, rng, options...) -> example`, named in configs (see ops.py).

N: samples; S: frames, 100 a second; M: mel bands. Before any op a sound is the bytes of a file or features [S, C], which pass as they
are. An example without sound passes without it.
"""

import functools
import io

import numpy as np
import scipy.fft
import soundfile
import soxr

from mmlm.errors import UserError

RATE = 16000
WINDOW, HOP = 400, 160


def decode_audio(data: bytes, rate: int = RATE) -> np.ndarray:
  """The bytes of a WAV, FLAC, Ogg, Opus or MP3 file -> [N] float32 of -1 to 1 at `rate`, the mean of its channels.

  Raises UserError with the reason when it is no sound, or an empty one.
  """
  try:
    samples, own_rate = soundfile.read(io.BytesIO(data), dtype='float32', always_2d=True)
  except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
    raise UserError(f"the sound can't be decoded ({error})") from None
  if not len(samples):
    raise UserError('the sound has no samples')
  if not np.isfinite(samples).all():
    raise UserError('the sound has samples that are not finite')
  samples = samples.mean(1)
  return samples if own_rate == rate else soxr.resample(samples, own_rate, rate)


@functools.cache
def mel_filters(bands: int, rate: int = RATE, size: int = WINDOW) -> np.ndarray:
  """[M, size / 2 + 1] triangles of equal area on Slaney's mel scale (linear to 1 kHz, then logarithmic), as Whisper's."""
  to_hertz = lambda mel: np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
  top = 15 + np.log(rate / 2 / 1000) * 27 / np.log(6.4)
  edges = to_hertz(np.linspace(0, top, bands + 2))
  slopes = np.subtract.outer(edges, np.fft.rfftfreq(size, 1 / rate))
  width = np.diff(edges)[:, None]
  triangles = np.maximum(0, np.minimum(-slopes[:-2] / width[:-1], slopes[2:] / width[1:]))
  return (triangles * 2 / (edges[2:] - edges[:-2])[:, None]).astype(np.float32)


def log_mel_spectrogram(samples: np.ndarray, bands: int = 80) -> np.ndarray:
  """[N] at 16 kHz -> [S, M] float32, S = N // 160, as Whisper computes it (Radford et al. 2022, 2.2): frames of 25 ms each 10 ms."""
  padded = np.pad(samples, WINDOW // 2, 'reflect' if len(samples) > WINDOW // 2 else 'constant')
  frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: max(1, len(samples) // HOP)]
  power = np.abs(scipy.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1].astype(np.float32))) ** 2
  found = np.log10(np.maximum(power @ mel_filters(bands).T, 1e-10))
  return ((np.maximum(found, found.max() - 8) + 4) / 4).astype(np.float32)


def log_mel(example, rng, bands: int = 80):
  """Whisper's log-mel spectrogram of a sound file; features pass as they are."""
  if not isinstance(example.get('audio'), bytes):
    return example
  return {**example, 'audio': log_mel_spectrogram(decode_audio(example['audio']), bands)}


OPS = {'log_mel': log_mel}
