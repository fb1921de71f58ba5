"""Fusions that keep sequences: concatenation, attention across modalities, shared latents.

Axes: B batch, S sequence, D width, L latents.
"""

from collections.abc import Iterable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.fusion.fusion import (
  Fusion,
  MainFusion,
  concatenated,
  latent_vectors,
  main_modality,
  presence,
)
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import FeedForward, TransformerBlock
from mmlm.utils.options import option


class SequenceFusion(Fusion):
  """A fusion whose memory begins with all modalities, in the order of their names."""

  dim: int

  @staticmethod
  def keeps_positions(modalities: Iterable[str], main: str) -> list[str]:
    """Returns all modalities."""
    return sorted(modalities)


class Concatenation(SequenceFusion):
  """All sequences, each with a learned vector added that marks its modality."""

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    parts = []
    for name in sorted(sequences):
      values, mask = sequences[name]
      if len(sequences) > 1:
        bias = self.param(f'{name}_bias', nn.initializers.normal(0.02), (self.dim,))
        values = values + bias.astype(values.dtype)
      parts.append(Sequence(values, mask))
    return concatenated(parts)


class CrossAttention(SequenceFusion):
  """Blocks for each pair of modalities, in which one attends to the other.

  MulT (Tsai et al. 2019, eq. 3 to 6).
  """

  layers: int = 2
  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    enriched = []
    for name in sorted(sequences):
      values, mask = sequences[name]
      streams = []
      if len(sequences) == 1:
        streams = [values]
      for other in sorted(sequences.keys() - {name}):
        x = values
        for layer in range(self.layers):
          block = self._block(f'{other}_to_{name}_{layer}')
          x = block(x, sequences[other], train)
        streams.append(x)
      merge = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_merge')
      norm = nn.LayerNorm(dtype=self.dtype, name=f'{name}_norm')
      x = merge(jnp.concatenate(streams, -1))
      enriched.append(Sequence(norm(x), mask))
    return concatenated(enriched)

  def _block(self, name: str) -> '_CrossBlock':
    return _CrossBlock(self.heads, self.dropout, self.dtype, name=name)


class _CrossBlock(nn.Module):
  """Attention to another modality, if it is present, then feed-forward (MulT, eq. 4)."""

  heads: int
  dropout: float
  dtype: str

  @nn.compact
  def __call__(
    self,
    x: Array,
    other: Sequence,
    train: bool,
  ) -> Array:
    def normed(name: str, x: Array) -> Array:
      return nn.LayerNorm(dtype=self.dtype, name=name)(x)

    attention = MultiHeadAttention(self.heads, dtype=self.dtype, name='attention')
    query = normed('query_norm', x)
    attended = attention(query, normed('memory_norm', other.values), other.mask)
    x = x + Dropout(self.dropout)(attended, train) * presence(other.mask, x)
    feed_forward = FeedForward(4 * x.shape[-1], dropout=self.dropout, dtype=self.dtype, name='ffn')
    hidden = feed_forward(normed('ffn_norm', x), train)
    return x + Dropout(self.dropout)(hidden, train)


class Bottleneck(SequenceFusion):
  """Blocks for each modality, which exchange information through L shared latents only.

  MBT (Nagrani et al. 2021, eq. 8 and 9).
  """

  layers: int = 2
  latents: int = option(4, 'number of shared latents, L')
  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    names = sorted(sequences)
    batch_size = len(sequences[names[0]].mask)
    latents = latent_vectors(self, 'latents', batch_size)
    latents_mask = jnp.ones(latents.shape[:2], bool)
    for layer in range(self.layers):
      total = 0
      count = 0
      for name in names:
        values, mask = sequences[name]
        joint = jnp.concatenate([latents, values], 1)
        joint_mask = jnp.concatenate([latents_mask, mask], 1)
        block = self._block(f'{name}_{layer}')
        outputs = block(joint, joint_mask, train=train)
        sequences = sequences | {name: Sequence(outputs[:, self.latents :], mask)}
        total = total + outputs[:, : self.latents] * presence(mask, outputs)
        count = count + presence(mask, outputs)
      latents = total / jnp.maximum(count, 1)
    parts = [sequences[name] for name in names]
    memory = concatenated([*parts, Sequence(latents, latents_mask)])
    return Sequence(nn.LayerNorm(dtype=self.dtype, name='norm')(memory.values), memory.mask)

  def _block(self, name: str) -> TransformerBlock:
    return TransformerBlock(self.heads, dropout=self.dropout, dtype=self.dtype, name=name)


class Resampler(MainFusion):
  """The main modality, then each other one resampled to L latents that attend to it.

  Perceiver resampler (Alayrac et al. 2022, 3.1). A single modality is itself resampled.
  """

  layers: int = 2
  latents: int = option(8, 'positions that each other modality becomes, L')
  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @staticmethod
  def keeps_positions(modalities: Iterable[str], main: str) -> list[str]:
    """Returns the main modality, if there are others."""
    names = list(modalities)
    if len(names) > 1:
      return [main_modality(names, main)]
    return []

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    main, others = self.split(sequences)
    parts = []
    if others:
      parts = [main]
    for name, sequence in (others or sequences).items():
      parts.append(self._resampled(name, sequence, train))
    return concatenated(parts)

  def _resampled(
    self,
    name: str,
    sequence: Sequence,
    train: bool,
  ) -> Sequence:
    values, mask = sequence
    x = latent_vectors(self, f'{name}_latents', len(mask))
    for layer in range(self.layers):
      block = TransformerBlock(
        self.heads, dropout=self.dropout, dtype=self.dtype, name=f'{name}_{layer}'
      )
      x = block(x, memory=values, memory_mask=mask, train=train)
    x = nn.LayerNorm(dtype=self.dtype, name=f'{name}_norm')(x)
    present = mask.any(1)[:, None]
    return Sequence(x, jnp.broadcast_to(present, x.shape[:2]))
