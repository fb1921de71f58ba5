"""Small sounds."""

import io

import numpy as np
import soundfile

from mmlm.data.transforms.audio import RATE


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
  """Returns a sine of amplitude 0.5."""
  samples = np.arange(int(seconds * rate))
  return np.sin(2 * np.pi * hertz * samples / rate).astype(np.float32) / 2


def noise(seconds: float = 1.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
  """Returns Gaussian noise of deviation 0.1."""
  samples = np.random.default_rng(seed).normal(size=int(seconds * rate))
  return (samples / 10).astype(np.float32)


def encoded(
  samples: np.ndarray, rate: int = RATE, form: str = 'WAV', kind: str | None = None
) -> bytes:
  """Returns the bytes of a sound file."""
  file = io.BytesIO()
  soundfile.write(file, samples, rate, format=form, subtype=kind)
  return file.getvalue()
