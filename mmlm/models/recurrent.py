"""Recurrent networks: a bidirectional encoder, and a decoder with attention; scans over time.

Axes: B batch, R decoding rows (B times beams, K an example), T time, S memory, D width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import TokenEmbedding, token_embedding
from mmlm.models.layers import Dropout, Normalization
from mmlm.models.sequence import Sequence
from mmlm.utils.choices import one_of

CELLS = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell}


def _cell(kind: str, width: int, **options):
  return CELLS[one_of('cell', kind, CELLS)](width, **options)


class Bidirectional(nn.Module):
  """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) in both directions."""

  dim: int
  layers: int = 1
  cell: str = 'gru'
  dropout: float = 0.0
  dtype: str = 'float32'

  def run(self, x, mask, train) -> Sequence:
    """[B, S, .] with its mask, padding at the end -> [B, S, D]."""
    # Up to the last place that is there: what is missing before it is part of the sequence.
    lengths = jnp.max(
      jnp.where(mask, jnp.arange(1, mask.shape[1] + 1), 0),
      1,
    )
    for layer in range(self.layers):
      x = Dropout(self.dropout)(x, train)

      def run(direction, backwards, x, layer=layer):
        return nn.RNN(
          _cell(self.cell, self.dim, dtype=self.dtype, name=f'{direction}_{layer}'),
          reverse=backwards,
          keep_order=True,
        )(x, seq_lengths=lengths)

      both = jnp.concatenate([run('forward', False, x), run('backward', True, x)], -1)
      x = nn.Dense(self.dim, dtype=self.dtype, name=f'merge_{layer}')(both)
    return Sequence(nn.LayerNorm(dtype=self.dtype, name='norm')(x), mask)


class RecurrentEncoder(Bidirectional, kw_only=True):
  """Tokens [B, S] with their mask -> [B, S, D]; word `vectors` from a file may stand in the place of learned ones."""

  vocab_size: int
  vectors: str = ''
  vector_dim: int = 0
  embeddings: TokenEmbedding | None = None  # those of another part, or its own

  @nn.compact
  def __call__(self, x, mask, train=False):
    return self.run(token_embedding(self)(x), mask, train)


class FeatureRecurrent(Bidirectional, kw_only=True):
  """Features [B, S, C] with their mask -> [B, S, D]; C is `width`. Where an example lacks some, zeros stand.

  `normalize`: features are given a mean of 0 and a deviation of 1 over the training examples first. Without it a feature of large numbers
  saturates the gates.
  `noise` is added in training (Bishop 1995), in standard deviations of what is normalised, and the sum scaled to a deviation of 1: for
  features that tell more of the examples they were learned on than they will tell of others.
  """

  width: int = 0
  normalize: bool = False
  noise: float = 0.0

  @nn.compact
  def __call__(self, x, mask, train=False):
    x = x.astype(self.dtype)
    if self.normalize:
      x = Normalization(name='normalization')(x)
    if self.noise:
      if train:
        drawn = jax.random.normal(self.make_rng('dropout'), x.shape, x.dtype)
      else:
        drawn = 0
      x = (x + self.noise * drawn) / (1 + self.noise**2) ** 0.5
    x = jnp.where(mask[..., None], x, 0)
    return self.run(nn.Dense(self.dim, dtype=self.dtype, name='projection')(x), mask, train)


class _Step(nn.Module):
  """One token of the decoder: recurrent cells, attention to the memory, and what predicts the next token (Luong et al. 2015)."""

  dim: int
  layers: int
  cell: str
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, carry, x, memory, train):
    """(states, found [R, D]), embedded tokens [R, D] -> the same a token later, and [R, D]."""
    states, found = carry
    # input feeding (ibid., 3.3)
    x = jnp.concatenate([x, found], -1)
    new = []
    for layer, state in enumerate(states):
      x = Dropout(self.dropout)(x, train)
      state, x = _cell(self.cell, self.dim, dtype=self.dtype, name=f'cell_{layer}')(
        state,
        x,
      )
      new.append(state)
    if memory is not None:
      keys, values, mask = memory  # [B, S, D], [B, S, D], [B, S]
      folded = x.reshape(len(keys), -1, self.dim)  # [R, D] -> [B, K, D]
      scores = (
        jnp.einsum('bkd,bsd->bks', folded, keys, preferred_element_type=jnp.float32)
        * self.dim**-0.5
      )
      weights = jax.nn.softmax(
        jnp.where(mask[:, None], scores, -1e30),
        -1,
      ).astype(x.dtype)
      self.sow('intermediates', 'weights', weights)
      context = jnp.einsum('bks,bsd->bkd', weights, values).reshape(x.shape)
      x = jnp.concatenate([x, context], -1)
    x = jnp.tanh(nn.Dense(self.dim, dtype=self.dtype, name='out')(x))
    return (tuple(new), x), x


class RecurrentDecoder(nn.Module):
  """Autoregressive LSTM or GRU over text, with attention to a memory or none."""

  dim: int
  vocab_size: int
  layers: int = 1
  cell: str = 'lstm'
  tied: bool = True
  dropout: float = 0.0
  dtype: str = 'float32'
  embeddings: TokenEmbedding | None = None  # those of another part, or its own

  def setup(self):
    self.tokens = self.embeddings or TokenEmbedding(self.vocab_size, self.dim, self.dtype)
    scan = nn.scan(
      _Step,
      variable_broadcast='params',
      variable_axes={'intermediates': 2},
      split_rngs={'params': False, 'dropout': True},
      in_axes=(1, nn.broadcast, nn.broadcast),
      out_axes=1,
    )
    self.steps = scan(self.dim, self.layers, self.cell, self.dropout, self.dtype)
    self.key = nn.Dense(self.dim, use_bias=False, dtype=self.dtype)
    self.start = nn.Dense(self.dim, dtype=self.dtype)
    self.output_dropout = Dropout(self.dropout)
    if self.tied:
      self.output = self.tokens
    else:
      self.output = TokenEmbedding(self.vocab_size, self.dim, self.dtype)

  def __call__(self, tokens, memory: Sequence | None, train=False):
    """Inputs [B, T] (the target shifted right) -> logits [B, T, V]."""
    return self.output.logits(self.hidden(tokens, memory, train))

  def hidden(self, tokens, memory: Sequence | None, train=False):
    """Inputs [B, T] -> [B, T, D], what the output layer sees."""
    found = self.steps(
      self._initial(len(tokens), memory), self.tokens(tokens), self._attended(memory), train
    )[1]
    return self.output_dropout(found, train)

  def step(self, tokens, memory: Sequence | None, step: DecodeStep):
    """The tokens [R] at position `step.index` -> logits [R, V]; the state stands in the collection 'cache', rows first."""
    if self.is_mutable_collection('memory'):  # once, before the loop
      self.put_variable('memory', 'attended', self._attended(memory))
      self.put_variable('memory', 'first', self._initial(len(tokens), memory))
    first = self.get_variable('memory', 'first')
    last = self.get_variable('cache', 'state', first)
    carry = jax.tree.map(lambda new, old: jnp.where(step.index == 0, new, old), first, last)
    carry, found = self.steps(
      carry, self.tokens(tokens[:, None]), self.get_variable('memory', 'attended'), False
    )
    self.put_variable('cache', 'state', carry)
    return self.output.logits(found)[:, 0]

  def _attended(self, memory):
    """Keys [B, S, D], values [B, S, D] and mask [B, S] of the memory."""
    if memory is None:
      return None
    return (self.key(memory.values), *memory)

  def _initial(self, rows, memory):
    """States whose output starts as a projection of the memory's mean, and nothing found yet."""
    zero = jnp.zeros((rows, self.dim), self.dtype)
    if memory is None:
      hidden = zero
    else:
      kept = memory.mask[..., None].astype(zero.dtype)
      mean = (memory.values * kept).sum(1) / jnp.maximum(kept.sum(1), 1)  # [B, D]
      hidden = jnp.repeat(jnp.tanh(self.start(mean)), rows // len(mean), axis=0)
    if self.cell == 'lstm':
      state = (zero, hidden)
    else:
      state = hidden
    return (state,) * self.layers, zero
