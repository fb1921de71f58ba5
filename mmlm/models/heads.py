"""Heads: what a model says about its memory. `HEADS` maps the names of configs to classes.

Axes: B batch, R decoding rows, T time, D width, V vocabulary.
"""

import flax.linen as nn

from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import Positions, TokenEmbedding
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import Transformer


class TransformerDecoder(nn.Module):
  """Autoregressive Transformer over text, with cross-attention to a memory or none (Vaswani et al. 2017)."""

  dim: int
  vocab_size: int
  max_length: int
  layers: int = 3
  heads: int = 4
  kv_heads: int = 0
  ffn_dim: int = 0
  activation: str = 'gelu'
  gated: bool = False
  pre_norm: bool = True
  positions: str = 'learned'
  tied: bool = True
  scan: bool = False
  remat: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'

  def setup(self):
    self.tokens = TokenEmbedding(self.vocab_size, self.dim, self.dtype)
    self.position = Positions(self.positions, self.max_length)
    self.embedding_dropout = Dropout(self.dropout)
    block = dict(
      heads=self.heads, kv_heads=self.kv_heads, ffn_dim=self.ffn_dim, activation=self.activation, gated=self.gated,
      pre_norm=self.pre_norm, causal=True, rotary=self.positions == 'rotary', dropout=self.dropout, dtype=self.dtype,
    )  # fmt: skip
    self.transformer = Transformer(self.layers, block, self.scan, self.remat)
    if not self.tied:
      self.output = nn.Dense(self.vocab_size, use_bias=False, dtype=self.dtype)

  def __call__(self, tokens, memory: Sequence | None, train=False):
    """Inputs [B, T] (the target shifted right) -> logits [B, T, V]. Padding stands at the end, where no query of ours looks."""
    return self._run(tokens, memory, None, train)

  def step(self, tokens, memory: Sequence | None, step: DecodeStep):
    """The tokens [R] at position `step.index` -> logits [R, V]; the past stands in the collection 'cache'."""
    return self._run(tokens[:, None], memory, step, False)[:, 0]

  def _run(self, tokens, memory, step, train):
    x = self.position(self.tokens(tokens), step.index if step else 0)
    x = self.embedding_dropout(x, train)
    values, mask = memory if memory is not None else (None, None)
    x = self.transformer(x, None, values, mask, step, train)
    return self.tokens.logits(x) if self.tied else self.output(x)


HEADS = {'transformer_decoder': TransformerDecoder}
