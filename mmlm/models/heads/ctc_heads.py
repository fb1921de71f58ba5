"""CTC (Graves et al. 2006), alone or as a branch beside a decoder (Watanabe et al. 2017, II-C).

Axes: B batch, T time, S memory, D width, V vocabulary.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.heads.head import Head
from mmlm.models.heads.recurrent_decoder import RecurrentDecoder
from mmlm.models.heads.transformer_decoder import TransformerDecoder
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.options import option
from mmlm.utils.traced import is_traced


class Ctc(Head):
  """Logits [B, S, V] of the vocabulary at each position of the memory; one token is the blank."""

  produces: ClassVar[str] = 'aligned text'
  ctc_weight = 1.0
  ctc_labels = 'target'

  dim: int
  vocab_size: int
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def ctc_logits(self, memory: Sequence, train: bool = False) -> Array:
    """Returns the logits [B, S, V]."""
    values = Dropout(self.dropout)(memory.values.astype(self.dtype), train)
    logits = nn.Dense(self.vocab_size, dtype=self.dtype, name='labels')(values)
    return logits.astype(jnp.float32)

  def __call__(
    self,
    inputs: Array | None,
    memory: Sequence,
    train: bool = False,
  ) -> Array:
    """Returns the logits [B, S, V]; `inputs`, those of a decoder, are not used."""
    return self.ctc_logits(memory, train)


class WithCtcBranch(nn.Module):
  """A decoder with a CTC branch on the same memory."""

  ctc_weight: float = option(
    0.3, 'of the CTC branch in the loss; the decoder has the rest', traced=True
  )
  ctc_labels: str = option(
    'target', "what CTC learns: the 'target', or the 'transcript' that it is the translation of"
  )

  def setup(self) -> None:
    super().setup()
    if not is_traced(self.ctc_weight) and not 0 < self.ctc_weight < 1:
      raise UserError(
        f'model.head.ctc_weight={self.ctc_weight}: expected more than 0 and less than 1; for one '
        'branch alone choose another head.'
      )
    one_of('model.head.ctc_labels', self.ctc_labels, ('target', 'transcript'))
    self.ctc = Ctc(self.dim, self.vocab_size, self.dropout, self.dtype)

  def __call__(
    self,
    tokens: Array,
    memory: Sequence,
    train: bool = False,
  ) -> Array:
    """Returns the decoder's logits [B, T, V] for inputs [B, T], the target shifted right."""
    if self.is_initializing():
      self.ctc_logits(memory)
    return super().__call__(tokens, memory, train)

  def ctc_logits(self, memory: Sequence, train: bool = False) -> Array:
    """Returns the logits [B, S, V] of the CTC branch."""
    return self.ctc.ctc_logits(memory, train)


class JointTransformer(WithCtcBranch, TransformerDecoder, kw_only=True):
  """A Transformer decoder and CTC."""

  produces: ClassVar[str] = 'aligned text'


class JointRecurrent(WithCtcBranch, RecurrentDecoder, kw_only=True):
  """An LSTM or GRU decoder and CTC."""

  produces: ClassVar[str] = 'aligned text'
