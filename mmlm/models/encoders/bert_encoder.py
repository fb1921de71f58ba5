"""BERT (Devlin et al. 2019): a post-norm Transformer encoder over WordPiece.

Its pretrained weights are read by mmlm/pretrained/bert.py.

Axes: B batch, S tokens, D width of the model, W width of BERT.
"""

from typing import ClassVar

import flax.linen as nn
from jax import Array

from mmlm.models.embeddings import Positions
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.options import option


class BertEncoder(WithDeepTransformer, Encoder, kw_only=True):
  """Tokens [B, S] from [CLS] to [SEP] with their mask -> [B, S, D].

  There is one segment; its embedding is part of the positions.
  """

  reads_features: ClassVar[bool] = False
  family: ClassVar[str] = 'bert'

  vocab_size: int
  pretrained: str = option('', "weights to start from, whose sizes must match; '' = random")
  width: int = 384
  layers: int = 6
  heads: int = 12
  ffn_dim: int = 1536
  max_positions: int = 512
  activation: str = 'gelu_exact'
  pre_norm: bool = False
  hidden_dropout: bool = False
  epsilon: float = 1e-12

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name='tokens')(tokens)
    x = Positions('learned', self.max_positions, name='positions')(x)
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(x)
    x = Dropout(self.dropout)(x, train)
    x = self.stack('transformer')(x, mask, train=train)  # [B, S, W]
    if self.width != self.dim:
      x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    return Sequence(x, mask)
