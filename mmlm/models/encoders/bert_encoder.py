"""BERT (Devlin et al. 2019): a post-norm Transformer encoder over WordPiece, whose weights come from a file (pretrained/bert.py).

Axes: B batch, S sequence, D width of the model, W width of BERT.
"""

import flax.linen as nn

from mmlm.models.embeddings import Positions
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer


class BertEncoder(WithDeepTransformer, kw_only=True):
  """Tokens [B, S] that start with [CLS] and end with [SEP], with their mask -> [B, S, D].

  One segment: its vector is part of the positions. `pretrained` names the weights to start from ('' = random); sizes must be theirs.
  """

  vocab_size: int
  pretrained: str = ''
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
  def __call__(self, x, mask, train=False):
    x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name='tokens')(x)
    x = Positions('learned', self.max_positions, name='positions')(x)
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(x)
    x = Dropout(self.dropout)(x, train)
    x = self.stack('transformer')(x, mask, train=train)  # [B, S, W]
    if self.width != self.dim:
      x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    return Sequence(x, mask)
