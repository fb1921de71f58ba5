"""The Transformer decoder.

Axes: B batch, R decoding beams, T time, S memory, D width, V vocabulary.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from mmlm.models.attention import DecodeStep, Prompt
from mmlm.models.embeddings import Positions, TokenEmbedding
from mmlm.models.heads.head import Decoder
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.errors import UserError
from mmlm.utils.options import option


class TransformerDecoder(WithDeepTransformer, Decoder, kw_only=True):
  """Autoregressive Transformer over text (Vaswani et al. 2017), with a memory or without one."""

  family: ClassVar[str] = 'gpt2'

  vocab_size: int
  max_length: int
  kv_heads: int = option(0, 'heads of keys and values; 0 = as many as of queries')
  activation: str = 'gelu'
  gated: bool = False
  pre_norm: bool = True
  tied: bool = option(True, 'the output layer is the embedding table')
  scaled: bool = option(True, 'embeddings are multiplied by D^1/2')
  epsilon: float = 1e-6
  output_bias: bool = False
  pretrained: str = option('', "a GPT-2 to start from, whose sizes must match; '' = random")
  embeddings: TokenEmbedding | None = None  # shared with another part; None = of this decoder

  def setup(self) -> None:
    if self.output_bias and (self.embeddings or not self.tied):
      raise UserError(
        'model.head.output_bias goes with model.head.tied and without model.shared_embeddings.'
      )
    self.tokens = self.embeddings or TokenEmbedding(
      self.vocab_size, self.dim, self.dtype, self.scaled, self.output_bias
    )
    self.position = Positions(self.positions, self.max_length)
    self.embedding_dropout = Dropout(self.dropout)
    self.transformer = self.stack(causal=True, rotary=self.positions == 'rotary')
    if self.tied:
      self.output = self.tokens
    else:
      self.output = TokenEmbedding(self.vocab_size, self.dim, self.dtype)

  def hidden(
    self,
    tokens: Array,
    memory: Sequence | None,
    train: bool = False,
    step: DecodeStep | Prompt | None = None,
    segments: Array | None = None,
    positions: Array | None = None,
  ) -> Array:
    """Returns the hidden states [B, T, D] that the output layer reads, for inputs [B, T].

    Padding is at the end, where no query of a real token attends.

    Args:
      segments: [B, T], the document of each token of packed sequences: a token attends to its own.
      positions: [B, T], of each token in its document.
    """
    start = 0
    if isinstance(step, DecodeStep):
      start = step.index
    if positions is not None:
      start = positions - jnp.arange(tokens.shape[1])
    x = self.embedding_dropout(self.position(self.tokens(tokens), start), train)
    mask = None
    if segments is not None:
      mask = segments[:, :, None] == segments[:, None]  # [B, T, T]
    values, memory_mask = (None, None) if memory is None else memory
    return self.transformer(x, mask, values, memory_mask, step, train)

  def step(
    self,
    tokens: Array,
    memory: Sequence | None,
    step: DecodeStep,
  ) -> Array:
    """Returns logits [R, V] for the tokens [R] at position `step.index`; uses the 'cache'."""
    hidden = self.hidden(tokens[:, None], memory, step=step)
    return self.output.logits(hidden[:, 0])

  def read(
    self,
    tokens: Array,
    memory: Sequence | None,
    prompt: Prompt,
  ) -> Array:
    """Reads the first tokens [B, T] of each example at once.

    Returns logits [B, V] after the first of them; fills the collections 'cache' and 'memory'.
    """
    hidden = self.hidden(tokens, memory, step=prompt)
    return self.output.logits(hidden[:, 0])
