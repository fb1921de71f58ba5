"""Recurrent cells by name, and networks of them in both directions.

Axes: B batch, S sequence, D width.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.utils.choices import one_of

# LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et al. 2014).
CELLS = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell}


def make_cell(kind: str, width: int, **options: Any) -> nn.RNNCellBase:
  """Builds the recurrent cell that an option `cell` names."""
  return CELLS[one_of('cell', kind, CELLS)](width, **options)


class BidirectionalRnn(nn.Module):
  """Layers of LSTM or GRU in both directions, each merged to [B, S, D]."""

  dim: int
  layers: int = 1
  cell: str = 'gru'
  dropout: float = 0.0
  dtype: str = 'float32'

  def run(
    self,
    x: Array,
    mask: Array,
    train: bool,
  ) -> Sequence:
    """Returns hidden states [B, S, D] for inputs [B, S, .] with their mask, padding at the end."""
    # Up to the last position present: what is missing before it is part of the sequence.
    ends = jnp.arange(1, mask.shape[1] + 1)
    present_ends = jnp.where(mask, ends, 0)
    lengths = jnp.max(present_ends, 1)
    for layer in range(self.layers):
      x = Dropout(self.dropout)(x, train)
      forward = self._direction(f'forward_{layer}', x, lengths, reverse=False)
      backward = self._direction(f'backward_{layer}', x, lengths, reverse=True)
      merge = nn.Dense(self.dim, dtype=self.dtype, name=f'merge_{layer}')
      x = merge(jnp.concatenate([forward, backward], -1))
    norm = nn.LayerNorm(dtype=self.dtype, name='norm')
    return Sequence(norm(x), mask)

  def _direction(
    self,
    name: str,
    x: Array,
    lengths: Array,
    reverse: bool,
  ) -> Array:
    cell = make_cell(self.cell, self.dim, dtype=self.dtype, name=name)
    network = nn.RNN(cell, reverse=reverse, keep_order=True)
    hidden_states: Any = network(x, seq_lengths=lengths)
    return hidden_states
