"""Encoders of features that were computed elsewhere.

Axes: B batch, S frames, C features of a frame, D width of the model.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.models.embeddings import Positions
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.layers import Dropout, Normalization
from mmlm.models.recurrent import BidirectionalRnn
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.options import option


class FeatureEncoder(WithDeepTransformer, Encoder, kw_only=True):
  """Features [B, S, C] with their mask -> [B, S, D] by a projection and Transformer blocks."""

  reads_features: ClassVar[bool] = True

  width: int = option(0, 'features of a frame, C')
  normalize: bool = option(
    False, 'to mean 0 and deviation 1 over the training examples, so that scales do not matter'
  )
  layers: int = option(0, 'Transformer blocks after the projection')
  max_positions: int = 512
  positions: str = 'none'

  @nn.compact
  def __call__(
    self,
    features: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    x = features.astype(self.dtype)
    if self.normalize:
      x = Normalization(name='normalization')(x)
    x = nn.LayerNorm(dtype=self.dtype, name='feature_norm')(x)
    x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    x = Dropout(self.dropout)(x, train)
    x = Positions(self.positions, self.max_positions, name='positions')(x)
    if self.layers:
      x = self.stack('transformer')(x, mask, train=train)
    return Sequence(jnp.where(mask[..., None], x, 0), mask)


class FeatureRecurrent(BidirectionalRnn, Encoder, kw_only=True):
  """Features [B, S, C] with their mask -> [B, S, D] by an LSTM or GRU in both directions.

  Frames that an example lacks are zeros. Without `normalize` features of large numbers saturate
  the gates. `noise` (Bishop 1995) helps where features fit the training examples too closely; the
  sum is scaled to deviation 1.
  """

  reads_features: ClassVar[bool] = True

  width: int = option(0, 'features of a frame, C')
  normalize: bool = option(False, 'to mean 0 and deviation 1 over the training examples')
  noise: float = option(0.0, 'deviation of the noise added in training')

  @nn.compact
  def __call__(
    self,
    features: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    x = features.astype(self.dtype)
    if self.normalize:
      x = Normalization(name='normalization')(x)
    if self.noise:
      noise = 0
      if train:
        noise = jax.random.normal(self.make_rng('dropout'), x.shape, x.dtype)
      x = (x + self.noise * noise) / (1 + self.noise**2) ** 0.5
    x = jnp.where(mask[..., None], x, 0)
    x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    return self.run(x, mask, train)
