"""Encoders of text: Transformer, recurrent network, and convolutions over words.

Axes: B batch, S tokens, D width of the model.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.models.embeddings import Positions, TokenEmbedding, token_embedding
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.layers import Dropout
from mmlm.models.recurrent import BidirectionalRnn
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.errors import UserError
from mmlm.utils.options import option


class TextEncoder(WithDeepTransformer, Encoder, kw_only=True):
  """Tokens [B, S] with their mask -> [B, S, D] by a Transformer."""

  reads_features: ClassVar[bool] = False

  vocab_size: int
  max_length: int
  layers: int = 4
  activation: str = 'gelu'
  pre_norm: bool = True
  positions: str = 'sinusoidal'
  vectors: str = option('', 'file of word vectors that embeddings start from')
  vector_dim: int = option(0, 'of these word vectors; 0 = the width of the model')
  embeddings: TokenEmbedding | None = None  # shared with another part; None = of this encoder

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    x = token_embedding(self)(tokens)
    x = Positions(self.positions, self.max_length, name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    transformer = self.stack('transformer', rotary=self.positions == 'rotary')
    return Sequence(transformer(x, mask, train=train), mask)


class RecurrentEncoder(BidirectionalRnn, Encoder, kw_only=True):
  """Tokens [B, S] with their mask -> [B, S, D] by an LSTM or GRU in both directions."""

  reads_features: ClassVar[bool] = False

  vocab_size: int
  vectors: str = option('', 'file of word vectors that embeddings start from')
  vector_dim: int = option(0, 'of these word vectors; 0 = the width of the model')
  embeddings: TokenEmbedding | None = None  # shared with another part; None = of this encoder

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    return self.run(token_embedding(self)(tokens), mask, train)


class TextCnn(Encoder):
  """Convolutions over words and their maxima over time: tokens [B, S] -> [B, 1, D] (Kim 2014).

  Each width of `windows` has the same share of the D values.
  """

  reads_features: ClassVar[bool] = False

  dim: int
  vocab_size: int
  windows: tuple = (3, 4, 5)
  vectors: str = option('', 'file of word vectors that embeddings start from')
  vector_dim: int = option(0, 'of these word vectors; 0 = the width of the model')
  dtype: str = 'float32'
  embeddings: TokenEmbedding | None = None

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    if self.dim % len(self.windows):
      raise UserError(
        f'model.dim={self.dim} does not divide by the {len(self.windows)} windows {self.windows} '
        'of text_cnn.'
      )
    # Not projected: this is where static vectors differ from learned ones.
    embedding_table = nn.Embed(
      self.vocab_size,
      self.vector_dim or self.dim,
      dtype=self.dtype,
      name='tokens',
      embedding_init=_uniform_init,
    )
    x = jnp.where(mask[..., None], embedding_table(tokens), 0)
    channels = self.dim // len(self.windows)
    maxima = []
    for window in self.windows:
      convolution = nn.Conv(channels, (window,), dtype=self.dtype, name=f'window_{window}')
      features = nn.relu(convolution(x))  # [B, S, C], never below 0
      maxima.append(jnp.where(mask[..., None], features, 0).max(1, keepdims=True))
    return Sequence(jnp.concatenate(maxima, -1), mask.any(1, keepdims=True))


def _uniform_init(
  key: Array,
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
  """Draws embeddings from [-0.25, 0.25), as Kim's code does."""
  return jax.random.uniform(key, shape, dtype, -0.25, 0.25)
