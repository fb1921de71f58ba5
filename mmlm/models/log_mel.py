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


def log_mel(samples: Array, lengths: Array, filters: Array) -> tuple[Array, Array]:
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
  windows = padded[:, jnp.arange(steps)[:, None] * HOP + jnp.arange(WINDOW)]  # [B, S, 400]
  spectrum = jnp.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1].astype(np.float32))
  power = spectrum.real**2 + spectrum.imag**2  # [B, S, 201]
  mel = jnp.einsum('bsf,mf->bsm', power, filters, precision='highest')
  log_values = jnp.log10(jnp.maximum(mel, 1e-10))
  mask = jnp.arange(steps) < jnp.maximum(1, lengths // HOP)[:, None]
  unmasked = jnp.where(mask[..., None], log_values, -jnp.inf)
  loudest = jnp.max(unmasked, (1, 2), keepdims=True)
  frames = (jnp.maximum(log_values, loudest - DYNAMIC_RANGE) + 4) / 4
  return jnp.where(mask[..., None], frames, 0), mask


def _padded(samples: Array, lengths: Array, size: int) -> Array:
  """Returns [B, P], mirrored at both ends of each recording.

  A recording shorter than half a window has too little to mirror: it is padded with silence.
  """
  positions = jnp.arange(size) - WINDOW // 2  # [P], in the recording
  last = lengths[:, None] - 1
  mirrored = jnp.where(positions > last, 2 * last - positions, jnp.abs(positions))  # [B, P]
  is_long = lengths[:, None] > WINDOW // 2
  is_sample = jnp.where(is_long, mirrored >= 0, (positions >= 0) & (positions <= last))
  indices = jnp.clip(mirrored, 0, samples.shape[1] - 1)
  return jnp.where(is_sample, jnp.take_along_axis(samples, indices, 1), 0)
