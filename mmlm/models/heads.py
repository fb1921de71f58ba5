"""Heads: what a model says about its memory. `HEADS` maps the names of configs to classes.

Axes: B batch, R decoding rows, T time, S memory, D width, V vocabulary, C classes.
"""

import flax.linen as nn
import jax.numpy as jnp

from mmlm.models.attention import DecodeStep, Prompt
from mmlm.models.embeddings import Positions, TokenEmbedding
from mmlm.models.layers import Dropout
from mmlm.models.lstm import LstmLanguageModel
from mmlm.models.recurrent import RecurrentDecoder
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.options import option
from mmlm.utils.traced import is_traced


class TransformerDecoder(WithDeepTransformer, kw_only=True):
  """Autoregressive Transformer over text, with cross-attention to a memory or none (Vaswani et al. 2017)."""

  vocab_size: int
  max_length: int
  kv_heads: int = 0
  activation: str = 'gelu'
  gated: bool = False
  pre_norm: bool = True
  tied: bool = True
  scaled: bool = True  # the rows of its own table are multiplied by D^1/2
  epsilon: float = 1e-6
  output_bias: bool = False
  pretrained: str = ''  # a GPT-2 to start from (pretrained/gpt2.py), whose sizes these must be
  embeddings: TokenEmbedding | None = None  # those of another part, or its own

  def setup(self):
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

  def __call__(self, tokens, memory: Sequence | None, train=False):
    """Inputs [B, T] (the target shifted right) -> logits [B, T, V]."""
    return self.output.logits(self.hidden(tokens, memory, train))

  def hidden(
    self,
    tokens,
    memory: Sequence | None,
    train=False,
    step: DecodeStep | Prompt | None = None,
    segments=None,
    positions=None,
  ):
    """Inputs [B, T] -> [B, T, D], what the output layer sees. Padding stands at the end, where no query of ours looks.

    A token sees those of its own segment alone, and stands at its position in it, where `segments` and `positions` [B, T] are given.
    """
    if isinstance(step, DecodeStep):
      start = step.index
    else:
      start = 0
    if positions is not None:
      start = positions - jnp.arange(tokens.shape[1])
    x = self.embedding_dropout(self.position(self.tokens(tokens), start), train)
    # [B, T, T]
    if segments is None:
      seen = None
    else:
      seen = segments[:, :, None] == segments[:, None]
    values, mask = memory if memory is not None else (None, None)
    return self.transformer(x, seen, values, mask, step, train)

  def step(self, tokens, memory: Sequence | None, step: DecodeStep):
    """The tokens [R] at position `step.index` -> logits [R, V]; the past stands in the collection 'cache'."""
    return self.output.logits(self.hidden(tokens[:, None], memory, step=step)[:, 0])

  def read(self, tokens, memory: Sequence | None, prompt: Prompt):
    """The first tokens [B, T] of each example -> logits [B, V] behind the first of them; the caches stand in 'cache' and 'memory'."""
    return self.output.logits(self.hidden(tokens, memory, step=prompt)[:, 0])


POOLS = ('mean', 'max', 'first', 'each')


class _Pooled(nn.Module):
  """What the memory says, in one vector or at each of its places; `hidden` values with tanh may stand before the answer.

  pool: 'mean' or 'max' of what is there, the 'first' place (BERT), or 'each' place by itself.
  pooler: a BERT whose pooler the hidden values start from ('' = random).
  answer_dropout: of what the answer is computed from; below 0 it is the dropout of the model.
  """

  dim: int
  pool: str = 'mean'
  hidden: int = 0
  pooler: str = ''
  answer_dropout: float = option(-1.0, traced=True)
  dropout: float = 0.0
  dtype: str = 'float32'

  def pooled(self, memory: Sequence, train):
    """[B, S, D] -> [B, 1, D], or [B, S, D] with 'each'."""
    values = memory.values
    kept = memory.mask[..., None]
    match one_of('model.head.pool', self.pool, POOLS):
      case 'mean':
        values = jnp.where(kept, values, 0).sum(1, keepdims=True) / jnp.maximum(
          kept.sum(1, keepdims=True), 1
        )
      case 'max':
        values = jnp.where(
          kept.any(1, keepdims=True), jnp.where(kept, values, -jnp.inf).max(1, keepdims=True), 0
        )
      case 'first':
        values = values[:, :1]
    own = is_traced(self.answer_dropout) or self.answer_dropout >= 0
    if not is_traced(self.answer_dropout) and not self.answer_dropout < 1:
      raise UserError(f'model.head.answer_dropout={self.answer_dropout}: expected less than 1.')
    drop = Dropout(self.answer_dropout if own else self.dropout)
    values = drop(values.astype(self.dtype), train)
    if self.hidden:
      values = drop(jnp.tanh(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(values)), train)
    return values


class Classifier(_Pooled, kw_only=True):
  """Logits of the classes, which a config names: [B, T, C], T 1 or the places of the memory."""

  classes: tuple = ('negative', 'positive')

  @nn.compact
  def __call__(self, inputs, memory: Sequence, train=False):
    """`inputs` are those of a decoder: there are none."""
    x = nn.Dense(len(self.classes), dtype=self.dtype, name='classes')(self.pooled(memory, train))
    return x.astype(jnp.float32)


class Regressor(_Pooled, kw_only=True):
  """One number [B, T]; labels lie from `low` to `high`. loss: 'l1' or 'l2'."""

  low: float = -3.0
  high: float = 3.0
  loss: str = 'l1'

  @nn.compact
  def __call__(self, inputs, memory: Sequence, train=False):
    return nn.Dense(
      1,
      dtype=self.dtype,
      name='value',
    )(self.pooled(memory, train))[..., 0].astype(jnp.float32)


class Ctc(nn.Module):
  """Logits of the vocabulary at each place of the memory [B, S, V], for CTC (Graves et al. 2006): one of them, the blank, writes nothing."""

  dim: int
  vocab_size: int
  dropout: float = 0.0
  dtype: str = 'float32'
  ctc_weight = 1.0  # no field: there is no other branch
  ctc_labels = 'target'

  @nn.compact
  def frames(self, memory: Sequence, train=False):
    values = Dropout(self.dropout)(memory.values.astype(self.dtype), train)
    return nn.Dense(self.vocab_size, dtype=self.dtype, name='labels')(values).astype(jnp.float32)

  def __call__(self, inputs, memory: Sequence, train=False):
    """`inputs` are those of a decoder: there are none."""
    return self.frames(memory, train)


class _WithCtc(nn.Module):
  """A decoder and, on the same memory, a CTC branch (Watanabe et al. 2017, II-C)."""

  ctc_weight: float = option(
    0.3, 'of the CTC branch in the loss; the decoder has the rest', traced=True
  )
  ctc_labels: str = 'target'  # what CTC learns: the 'target', or the 'transcript' where the target is its translation

  def setup(self):
    super().setup()
    if not is_traced(self.ctc_weight) and not 0 < self.ctc_weight < 1:
      raise UserError(
        f'model.head.ctc_weight={self.ctc_weight}: expected more than 0 and less than 1; for one branch alone choose another head.'
      )
    one_of('model.head.ctc_labels', self.ctc_labels, ('target', 'transcript'))
    self.ctc = Ctc(self.dim, self.vocab_size, self.dropout, self.dtype)

  def __call__(self, tokens, memory: Sequence, train=False):
    """Inputs [B, T] (the target shifted right) -> logits [B, T, V] of the decoder."""
    if self.is_initializing():
      self.frames(memory)
    return super().__call__(tokens, memory, train)

  def frames(self, memory: Sequence, train=False):
    """Logits [B, S, V] of the CTC branch."""
    return self.ctc.frames(memory, train)


class JointTransformer(_WithCtc, TransformerDecoder, kw_only=True):
  """A Transformer decoder and CTC."""


class JointRecurrent(_WithCtc, RecurrentDecoder, kw_only=True):
  """An LSTM or GRU decoder and CTC."""


class MaskedTokens(nn.Module):
  """What BERT's output for masked tokens sees at each place of the memory: a layer, an activation, a norm (Devlin et al. 2019, A.2).

  The output itself is the encoder's table of tokens, with a bias [V]: the task multiplies them.
  """

  dim: int
  vocab_size: int
  epsilon: float = 1e-12
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, inputs, memory: Sequence, train=False):
    """Memory [B, S, D] -> [B, S, D + 1]: the last column is that of the bias [V, 1], which is given as well."""
    x = nn.gelu(
      nn.Dense(self.dim, dtype=self.dtype, name='layer')(memory.values), approximate=False
    )
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(x)
    bias = self.param('bias', nn.initializers.zeros, (self.vocab_size,))
    return jnp.concatenate(
      [x, jnp.ones_like(x[..., :1])],
      -1,
    ), bias[:, None]


HEADS = {
  'transformer_decoder': TransformerDecoder,
  'recurrent_decoder': RecurrentDecoder,
  'classifier': Classifier,
  'regressor': Regressor,
  'ctc': Ctc,
  'joint': JointTransformer,
  'joint_recurrent': JointRecurrent,
  'lstm': LstmLanguageModel,
  'masked_tokens': MaskedTokens,
}
