"""Whisper's log-mel spectrogram inside a compiled step.

The values are those of data/transforms/audio.py, for a batch on a device.

Axes: B batch, N samples at 16 kHz, P padded samples, S frames of 10 ms, M mel bands.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

WINDOW = 400
HOP = 160
DYNAMIC_RANGE = 8  # in powers of 10


def log_mel(
  samples: Array,
  lengths: Array,
  filters: Array,
) -> tuple[Array, Array]:
  """Returns the log-mel frames of padded recordings (Radford et al. 2022, 2.2), and their mask.

  Padding changes nothing.

  Args:
    samples: [B, N] float32, -1 to 1.
    lengths: [B], samples of each.
    filters: [M, 201], weights of the frequencies in each band.

  Returns:
    Frames [B, S, M] with S = max(1, N // 160), and mask [B, S]: max(1, length // 160) frames each.
  """
  steps = max(1, samples.shape[1] // HOP)
  padded = _padded(samples, lengths, (steps - 1) * HOP + WINDOW)
  starts = jnp.arange(steps)[:, None] * HOP
  indices = starts + jnp.arange(WINDOW)
  windows = padded[:, indices]  # [B, S, 400]
  spectrum = jnp.fft.rfft(windows * _hann_window())
  power = spectrum.real**2 + spectrum.imag**2  # [B, S, 201]
  mel = jnp.einsum('bsf,mf->bsm', power, filters, precision='highest')
  log_values = jnp.log10(jnp.maximum(mel, 1e-10))
  counts = jnp.maximum(1, lengths // HOP)
  mask = jnp.arange(steps) < counts[:, None]
  frames_mask = mask[..., None]
  loudest = jnp.max(
    jnp.where(frames_mask, log_values, -jnp.inf),
    axis=(1, 2),
    keepdims=True,
  )
  clipped = jnp.maximum(log_values, loudest - DYNAMIC_RANGE)
  frames = (clipped + 4) / 4
  return jnp.where(frames_mask, frames, 0), mask


def _hann_window() -> np.ndarray:
  periodic = np.hanning(WINDOW + 1)[:-1]
  return periodic.astype(np.float32)


def _padded(
  samples: Array,
  lengths: Array,
  size: int,
) -> Array:
  """Returns [B, P], mirrored at both ends of each recording.

  A recording shorter than half a window has too little to mirror: it is padded with silence.
  """
  lengths = lengths[:, None]
  last = lengths - 1
  positions = jnp.arange(size) - WINDOW // 2  # [P], in the recording
  mirrored = jnp.where(
    positions > last,
    2 * last - positions,
    jnp.abs(positions),
  )  # [B, P]
  is_long = lengths > WINDOW // 2
  is_inside = (positions >= 0) & (positions <= last)
  is_sample = jnp.where(is_long, mirrored >= 0, is_inside)
  indices = jnp.clip(mirrored, 0, samples.shape[1] - 1)
  values = jnp.take_along_axis(samples, indices, 1)
  return jnp.where(is_sample, values, 0)
