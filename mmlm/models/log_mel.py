"""Whisper's log-mel spectrogram inside a step: the numbers of data/transforms/audio.py, for a batch on a device.

Axes: B batch, N samples at 16 kHz, S frames of 10 ms, M mel bands.
"""

import jax.numpy as jnp
import numpy as np

WINDOW = 400
HOP = 160


def log_mel(samples, lengths, filters):
  """Log-mel frames of padded sounds (Radford et al. 2022, 2.2); what stands behind the end of a sound changes nothing.

  Args:
    samples: [B, N] float32, -1 to 1.
    lengths: [B] samples of each.
    filters: [M, 201] weights of the frequencies in each band.

  Returns:
    values [B, S, M] with S = max(1, N // 160), and their mask [B, S]: max(1, length // 160) frames each.
  """
  total = samples.shape[1]
  steps = max(1, total // HOP)
  places = (
    jnp.arange((steps - 1) * HOP + WINDOW) - WINDOW // 2
  )  # [P] of each padded sample in its sound
  last = lengths[:, None] - 1
  inside = jnp.where(
    places > last, 2 * last - places, jnp.abs(places)
  )  # mirrored at both ends [B, P]
  mirrored = (
    lengths[:, None] > WINDOW // 2
  )  # a shorter sound has not enough to mirror and stands in silence
  real = jnp.where(mirrored, inside >= 0, (places >= 0) & (places <= last))
  padded = jnp.where(real, jnp.take_along_axis(samples, jnp.clip(inside, 0, total - 1), 1), 0)
  frames = padded[:, jnp.arange(steps)[:, None] * HOP + jnp.arange(WINDOW)]  # [B, S, 400]
  spectrum = jnp.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1].astype(np.float32))
  power = spectrum.real**2 + spectrum.imag**2  # [B, S, 201]
  found = jnp.log10(
    jnp.maximum(jnp.einsum('bsf,mf->bsm', power, filters, precision='highest'), 1e-10)
  )
  mask = jnp.arange(steps) < jnp.maximum(1, lengths // HOP)[:, None]
  loudest = jnp.max(
    jnp.where(mask[..., None], found, -jnp.inf),
    (1, 2),
    keepdims=True,
  )
  return jnp.where(
    mask[..., None],
    (jnp.maximum(found, loudest - 8) + 4) / 4,
    0,
  ), mask
