"""Subsampling of audio features: strided convolutions over time and frequency before an encoder.

Axes: B batch, S frames, F frequencies, P planes, C channels, D width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.layers import Dropout
from mmlm.utils.errors import UserError

FACTORS = (1, 2, 4, 8)


def subsampled_length(length, factor: int):
  """Returns the positions that `length` frames become, rounded up; for numbers and arrays."""
  return -(-length // factor)


class Subsampling(nn.Module):
  """[B, S, F] with its mask -> [B, S / factor, D] and its mask, rounded up (Dong et al. 2018, 3.1).

  Each halving is a 3x3 convolution of stride 2, whose position t reads frames 2t - 1, 2t and
  2t + 1. Masked frames are 0 before each of them, as padding is, so that padding changes nothing.
  `planes`: a frame is a concatenation of so many (values, their deltas, the deltas of those), which
  the first convolution reads as channels.
  """

  dim: int
  factor: int = 4
  channels: int = 32
  planes: int = 1
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    frames: Array,
    mask: Array,
    train: bool = False,
  ) -> tuple[Array, Array]:
    self._check(frames.shape[-1])
    planes = frames.reshape(*frames.shape[:2], self.planes, -1)
    x = planes.swapaxes(-1, -2).astype(self.dtype)  # [B, S, F, P]
    for number in range(FACTORS.index(self.factor)):
      x = jnp.where(mask[..., None, None], x, 0)
      x = nn.relu(self._convolution(f'convolution_{number}')(x))
      mask = mask[:, ::2]
    flat = x.reshape(*x.shape[:2], -1)
    x = jnp.where(mask[..., None], flat, 0)  # [B, S, F C]
    x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    return Dropout(self.dropout)(x, train), mask

  def _convolution(self, name: str) -> nn.Conv:
    padding = ((1, 1), (1, 1))
    return nn.Conv(self.channels, (3, 3), 2, padding, dtype=self.dtype, name=name)

  def _check(self, width: int) -> None:
    if self.factor not in FACTORS:
      raise UserError(f'model.encoders: subsampling={self.factor}, choose one of {FACTORS}.')
    if self.planes < 1 or width % self.planes:
      raise UserError(f'model.encoders: width={width} does not divide into planes={self.planes}.')


def subsampled(
  encoder: nn.Module,
  frames: Array,
  mask: Array,
  train: bool,
) -> tuple[Array, Array]:
  """Applies a `Subsampling` layer with the options of an audio encoder: [B, S, F] -> [B, T, D]."""
  layer = Subsampling(
    encoder.dim,
    encoder.subsampling,
    encoder.channels,
    encoder.planes,
    encoder.dropout,
    encoder.dtype,
    name='subsampling',
    parent=encoder,
  )
  return layer(frames, mask, train)
