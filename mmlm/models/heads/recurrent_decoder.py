"""A recurrent decoder with attention.

Axes: B batch, R decoding beams (K of each example), T time, S memory, D width, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.models.attention import MASKED, DecodeStep
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.heads.head import Decoder
from mmlm.models.layers import Dropout
from mmlm.models.recurrent import make_cell
from mmlm.models.sequence import Sequence
from mmlm.utils.options import option

Carry = tuple[tuple, Array]  # states of the layers, output of the step before [R, D]
Attended = tuple[Array, Array, Array]  # keys [B, S, D], values [B, S, D], mask [B, S]


class _Step(nn.Module):
  """One token: recurrent cells, attention to the memory, output (Luong et al. 2015)."""

  dim: int
  layers: int
  cell: str
  dropout: float
  dtype: str

  @nn.compact
  def __call__(
    self,
    carry: Carry,
    x: Array,
    attended: Attended | None,
    train: bool,
  ) -> tuple[Carry, Array]:
    """Returns the next carry and the output [R, D] for the embedded tokens [R, D]."""
    states, last_output = carry
    x = jnp.concatenate([x, last_output], -1)  # input feeding (ibid., 3.3)
    new_states = []
    for layer, state in enumerate(states):
      x = Dropout(self.dropout)(x, train)
      cell = make_cell(self.cell, self.dim, dtype=self.dtype, name=f'cell_{layer}')
      state, x = cell(state, x)
      new_states.append(state)
    if attended is not None:
      x = jnp.concatenate([x, self._context(x, *attended)], -1)
    x = jnp.tanh(nn.Dense(self.dim, dtype=self.dtype, name='out')(x))
    return (tuple(new_states), x), x

  def _context(
    self,
    x: Array,
    keys: Array,
    values: Array,
    mask: Array,
  ) -> Array:
    """Returns the attention [R, D] of hidden states [R, D] to the memory."""
    query = x.reshape(len(keys), -1, self.dim)  # [R, D] -> [B, K, D]
    logits = jnp.einsum('bkd,bsd->bks', query, keys, preferred_element_type=jnp.float32)
    logits = logits * self.dim**-0.5
    logits = jnp.where(mask[:, None], logits, MASKED)
    weights = jax.nn.softmax(logits, -1)
    weights = weights.astype(x.dtype)
    self.sow('intermediates', 'weights', weights)
    context = jnp.einsum('bks,bsd->bkd', weights, values)
    return context.reshape(x.shape)


class RecurrentDecoder(Decoder):
  """Autoregressive LSTM or GRU over text, with attention to a memory or without one."""

  dim: int
  vocab_size: int
  layers: int = 1
  cell: str = 'lstm'
  tied: bool = option(True, 'the output layer is the embedding table')
  dropout: float = 0.0
  dtype: str = 'float32'
  embeddings: TokenEmbedding | None = None  # shared with another part; None = of this decoder

  def setup(self) -> None:
    self.tokens = self.embeddings or TokenEmbedding(self.vocab_size, self.dim, self.dtype)
    scan = nn.scan(
      _Step,
      variable_broadcast='params',
      variable_axes={'intermediates': 2},
      split_rngs={'params': False, 'dropout': True},
      in_axes=(1, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
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

  def hidden(
    self,
    tokens: Array,
    memory: Sequence | None,
    train: bool = False,
  ) -> Array:
    """Returns the hidden states [B, T, D] that the output layer reads, for inputs [B, T]."""
    carry = self._initial_carry(len(tokens), memory)
    embedded = self.tokens(tokens)
    _, outputs = self.steps(carry, embedded, self._attended(memory), train)
    return self.output_dropout(outputs, train)

  def step(
    self,
    tokens: Array,
    memory: Sequence | None,
    step: DecodeStep,
  ) -> Array:
    """Returns logits [R, V] for the tokens [R] at position `step.index`; uses the 'cache'."""
    if self.is_mutable_collection('memory'):  # once, before the loop
      self.put_variable('memory', 'attended', self._attended(memory))
      self.put_variable('memory', 'first', self._initial_carry(len(tokens), memory))
    first = self.get_variable('memory', 'first')
    last = self.get_variable('cache', 'state', first)
    carry = jax.tree.map(lambda new, old: jnp.where(step.index == 0, new, old), first, last)
    embedded = self.tokens(tokens[:, None])
    attended = self.get_variable('memory', 'attended')
    carry, outputs = self.steps(carry, embedded, attended, False)
    self.put_variable('cache', 'state', carry)
    return self.output.logits(outputs)[:, 0]

  def _attended(self, memory: Sequence | None) -> Attended | None:
    if memory is None:
      return None
    return self.key(memory.values), memory.values, memory.mask

  def _initial_carry(self, beams: int, memory: Sequence | None) -> Carry:
    """Returns states whose output is a projection of the memory's mean, and a zero output."""
    zeros = jnp.zeros((beams, self.dim), self.dtype)
    hidden = zeros
    if memory is not None:
      weights = memory.mask[..., None].astype(zeros.dtype)
      total = (memory.values * weights).sum(1)
      mean = total / jnp.maximum(weights.sum(1), 1)  # [B, D]
      projected = jnp.tanh(self.start(mean))
      hidden = jnp.repeat(projected, beams // len(mean), axis=0)
    state: Any = hidden
    if self.cell == 'lstm':
      state = (zeros, hidden)
    return (state,) * self.layers, zeros
