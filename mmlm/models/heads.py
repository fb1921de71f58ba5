"""Heads: what a model says about its memory. `HEADS` maps the names of configs to classes.

Axes: B batch, R decoding rows, T time, D width, V vocabulary.
"""

from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import Positions, TokenEmbedding
from mmlm.models.layers import Dropout
from mmlm.models.recurrent import RecurrentDecoder
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer


class TransformerDecoder(WithDeepTransformer, kw_only=True):
  """Autoregressive Transformer over text, with cross-attention to a memory or none (Vaswani et al. 2017)."""

  vocab_size: int
  max_length: int
  kv_heads: int = 0
  activation: str = 'gelu'
  gated: bool = False
  pre_norm: bool = True
  tied: bool = True
  embeddings: TokenEmbedding | None = None  # those of another part, or its own

  def setup(self):
    self.tokens = self.embeddings or TokenEmbedding(self.vocab_size, self.dim, self.dtype)
    self.position = Positions(self.positions, self.max_length)
    self.embedding_dropout = Dropout(self.dropout)
    self.transformer = self.stack(causal=True, rotary=self.positions == 'rotary')
    self.output = self.tokens if self.tied else TokenEmbedding(self.vocab_size, self.dim, self.dtype)

  def __call__(self, tokens, memory: Sequence | None, train=False):
    """Inputs [B, T] (the target shifted right) -> logits [B, T, V]."""
    return self.output.logits(self.hidden(tokens, memory, train))

  def hidden(self, tokens, memory: Sequence | None, train=False, step: DecodeStep | None = None):
    """Inputs [B, T] -> [B, T, D], what the output layer sees. Padding stands at the end, where no query of ours looks."""
    x = self.position(self.tokens(tokens), step.index if step else 0)
    x = self.embedding_dropout(x, train)
    values, mask = memory if memory is not None else (None, None)
    return self.transformer(x, None, values, mask, step, train)

  def step(self, tokens, memory: Sequence | None, step: DecodeStep):
    """The tokens [R] at position `step.index` -> logits [R, V]; the past stands in the collection 'cache'."""
    return self.output.logits(self.hidden(tokens[:, None], memory, step=step)[:, 0])


HEADS = {'transformer_decoder': TransformerDecoder, 'recurrent_decoder': RecurrentDecoder}
