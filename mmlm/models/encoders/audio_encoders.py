"""Encoders of audio features: Transformer and recurrent network after subsampling.

Axes: B batch, S frames, C features of a frame, T positions after subsampling, D width.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.embeddings import Positions
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.encoders.subsampling import subsampled
from mmlm.models.recurrent import BidirectionalRnn
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.options import option


class AudioTransformer(WithDeepTransformer, Encoder, kw_only=True):
  """Features [B, S, C] with their mask -> [B, T, D] by a Transformer; T = S / subsampling."""

  reads_features: ClassVar[bool] = True

  width: int = option(0, 'features of a frame, C')
  subsampling: int = 4
  channels: int = 32
  planes: int = option(1, 'parts of a frame, e.g. 3: values, deltas and their deltas')
  layers: int = 6
  positions: str = 'sinusoidal'
  max_positions: int = option(1024, 'after subsampling')

  @nn.compact
  def __call__(
    self,
    features: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    x, mask = subsampled(self, features, mask, train)
    x = Positions(self.positions, self.max_positions, name='positions')(x)
    transformer = self.stack('transformer', rotary=self.positions == 'rotary')
    x = transformer(x, mask, train=train)
    return Sequence(jnp.where(mask[..., None], x, 0), mask)


class AudioRecurrent(BidirectionalRnn, Encoder, kw_only=True):
  """Features [B, S, C] with their mask -> [B, T, D] by an LSTM or GRU in both directions."""

  reads_features: ClassVar[bool] = True

  width: int = option(0, 'features of a frame, C')
  subsampling: int = 4
  channels: int = 32
  planes: int = option(1, 'parts of a frame, e.g. 3: values, deltas and their deltas')
  layers: int = 3
  cell: str = 'lstm'

  @nn.compact
  def __call__(
    self,
    features: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    x, mask = subsampled(self, features, mask, train)
    return self.run(x, mask, train)
