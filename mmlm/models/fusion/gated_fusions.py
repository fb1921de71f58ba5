"""Fusions that add the other modalities to the main one through gates.

An example that lacks the main modality has an empty memory.

Axes: B batch, S sequence, D width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.fusion.fusion import MainFusion, concatenated, mean_of, presence
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.utils.options import option


class Gated(MainFusion):
  """main + gate * mean of each other modality (Wu et al. 2021, eq. 5 and 6)."""

  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    (values, mask), others = self.split(sequences)
    for name, other in others.items():
      projection = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_projection')
      mean = mean_of(other)[:, None]  # [B, 1, D]
      mean = Dropout(self.dropout)(projection(mean), train)
      gate = _gate(self, name, values, mean)
      update = gate * mean * presence(other.mask, values)
      values = values + update
    return concatenated([Sequence(values, mask)])


class Selective(MainFusion):
  """(1 - gate) * main + gate * attention of main to each other modality.

  Li et al. 2022, eq. 3 to 5.
  """

  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    (values, mask), others = self.split(sequences)
    for name, other in others.items():
      attention = MultiHeadAttention(self.heads, dtype=self.dtype, name=f'{name}_attention')
      attended = attention(values, other.values, other.mask)  # [B, S, D]
      attended = Dropout(self.dropout)(attended, train)
      gate = _gate(self, name, values, attended)
      update = gate * (attended - values) * presence(other.mask, values)
      values = values + update
    return concatenated([Sequence(values, mask)])


def _gate(
  module: MainFusion,
  name: str,
  main: Array,
  other: Array,
) -> Array:
  """Returns sigmoid(W main + U other), [B, S, D]."""

  def projected(part: str, x: Array) -> Array:
    layer = nn.Dense(module.dim, dtype=module.dtype, name=f'{name}_gate_{part}', parent=module)
    return layer(x)

  return nn.sigmoid(projected('main', main) + projected('other', other))


class AdaptationGate(MainFusion):
  """main + a gated displacement by the other modalities (MAG, Rahman et al. 2020, eq. 1 to 4).

  The others are pooled, so that no alignment with the positions of main is needed.
  """

  scale: float = option(1.0, 'the longest displacement, in lengths of main')
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    (values, mask), others = self.split(sequences)
    displacement = jnp.zeros_like(values)
    for name, other in others.items():
      gate_layer = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_gate')
      layer = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_displacement')
      mean = mean_of(other)[:, None]
      mean = jnp.broadcast_to(mean, values.shape)
      both = jnp.concatenate([values, mean], -1)
      gate = nn.relu(gate_layer(both))
      moved = layer(mean)
      displacement += gate * moved * presence(other.mask, values)
    limit = self.scale * _length(values) / _length(displacement)
    displacement *= jnp.minimum(limit, 1)
    x = nn.LayerNorm(dtype=self.dtype, name='norm')(values + displacement)
    x = Dropout(self.dropout)(x, train)
    return concatenated([Sequence(x, mask)])


def _length(x: Array) -> Array:
  """Returns the norm of each vector, never 0: [..., D] -> [..., 1]."""
  squared = (x**2).sum(-1, keepdims=True)
  return jnp.sqrt(squared + 1e-12)
