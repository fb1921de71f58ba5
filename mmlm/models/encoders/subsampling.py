"""Rows of features, fewer and wider: strided convolutions over time and frequency before an encoder of sounds.

Axes: B batch, S rows of features over time, F values of a row (frequencies), P planes, C channels, D width.
"""

import flax.linen as nn
import jax.numpy as jnp

from mmlm.models.layers import Dropout
from mmlm.utils.errors import UserError

FACTORS = (1, 2, 4, 8)


def rows_after(rows, factor: int):
  """How many of `rows` are left: a last one that is not whole counts."""
  return -(-rows // factor)


class Subsampling(nn.Module):
  """[B, S, F] with its mask -> [B, S / factor, D] and its mask, both rounded up (Dong et al. 2018, 3.1).

  Each halving is a 3x3 convolution of stride 2 whose place t sees the rows 2t - 1, 2t and 2t + 1; rows that are masked are 0 before
  each of them, as what stands beyond the borders is, so that padding changes nothing. `planes`: a row is so many
  rows one after another (values, their differences, the differences of those), which the first convolution sees as channels.
  """

  dim: int
  factor: int = 4
  channels: int = 32
  planes: int = 1
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask, train=False):
    if self.factor not in FACTORS:
      raise UserError(f'model.encoders: subsampling={self.factor}, choose one of {FACTORS}.')
    if self.planes < 1 or x.shape[-1] % self.planes:
      raise UserError(
        f'model.encoders: width={x.shape[-1]} does not divide into planes={self.planes}.'
      )
    x = (
      x.reshape(*x.shape[:2], self.planes, -1)
      .swapaxes(
        -1,
        -2,
      )
      .astype(self.dtype)
    )  # [B, S, F, P]
    for number in range(FACTORS.index(self.factor)):
      x = jnp.where(mask[..., None, None], x, 0)
      x = nn.relu(
        nn.Conv(
          self.channels,
          (3, 3),
          2,
          (
            (1, 1),
            (1, 1),
          ),
          dtype=self.dtype,
          name=f'convolution_{number}',
        )(x)
      )
      mask = mask[:, ::2]
    x = jnp.where(
      mask[..., None],
      x.reshape(*x.shape[:2], -1),
      0,
    )  # [B, S, F C]
    return Dropout(self.dropout)(
      nn.Dense(self.dim, dtype=self.dtype, name='projection')(x), train
    ), mask
