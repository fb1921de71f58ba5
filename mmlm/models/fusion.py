"""Fusions: {modality: Sequence} -> Sequence. `FUSIONS` maps the names of configs to classes.

Any subset of modalities may be present: what an example lacks is all mask, and adds nothing. Some fusions enrich one modality, the
`main` one, by the others: 'text' where there is text, or else the first by name. Under 'gated' and 'selective' an example that
lacks the main one has an empty memory.
Axes: B batch, S sequence, D width, L latents.
"""

import flax.linen as nn
import jax.numpy as jnp

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import TransformerBlock


def _main(sequences: dict[str, Sequence], name: str) -> tuple[Sequence, dict[str, Sequence]]:
  """The sequence to enrich, and the others by name, in order."""
  name = name or ('text' if 'text' in sequences else min(sequences))
  return sequences[name], {other: sequences[other] for other in sorted(sequences) if other != name}


def _joined(sequences) -> Sequence:
  """One after another; what is masked is 0."""
  values, masks = zip(*sequences)
  mask = jnp.concatenate(masks, 1)
  return Sequence(jnp.where(mask[..., None], jnp.concatenate(values, 1), 0), mask)


def _present(mask, values):
  """[B, S] -> [B, 1, 1]: 1 for an example that has anything of this modality."""
  return mask.any(1)[:, None, None].astype(values.dtype)


def _latents(module, name: str, examples: int):
  """Learned vectors of a module, the same for every example: [B, L, D]."""
  latents = module.param(name, nn.initializers.normal(0.02), (module.latents, module.dim)).astype(module.dtype)
  return jnp.broadcast_to(latents, (examples, *latents.shape))


class Concatenation(nn.Module):
  """All sequences one after another, in the order of their names; a learned vector tells the modalities apart."""

  dim: int

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    parts = []
    for name in sorted(sequences):
      values, mask = sequences[name]
      if len(sequences) > 1:
        values = values + self.param(f'{name}_bias', nn.initializers.normal(0.02), (self.dim,)).astype(values.dtype)
      parts.append(Sequence(values, mask))
    return _joined(parts)


class Gated(nn.Module):
  """main + gate * mean of each other modality; the gate sees both (Wu et al. 2021, eq. 5 and 6)."""

  dim: int
  main: str = ''
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    (values, mask), others = _main(sequences, self.main)
    for name, other in others.items():
      kept = other.mask[..., None].astype(values.dtype)
      mean = (other.values * kept).sum(1, keepdims=True) / jnp.maximum(kept.sum(1, keepdims=True), 1)  # [B, 1, D]
      mean = Dropout(self.dropout)(nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_projection')(mean), train)
      values = values + _gate(self, name, values, mean) * mean * _present(other.mask, values)
    return _joined([Sequence(values, mask)])


class Selective(nn.Module):
  """(1 - gate) * main + gate * main's attention to each other modality (Li et al. 2022, eq. 3 to 5)."""

  dim: int
  main: str = ''
  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    (values, mask), others = _main(sequences, self.main)
    for name, other in others.items():
      attention = MultiHeadAttention(self.heads, dtype=self.dtype, name=f'{name}_attention')
      found = Dropout(self.dropout)(attention(values, other.values, other.mask), train)  # [B, S, D]
      values = values + _gate(self, name, values, found) * (found - values) * _present(other.mask, values)
    return _joined([Sequence(values, mask)])


def _gate(module, name, values, other):
  """sigmoid(W values + U other), [B, S, D]."""
  dense = lambda part: nn.Dense(module.dim, dtype=module.dtype, name=f'{name}_gate_{part}', parent=module)
  return nn.sigmoid(dense('main')(values) + dense('other')(other))


class Bottleneck(nn.Module):
  """Each modality has blocks of its own and meets the others in L shared vectors only (MBT, Nagrani et al. 2021, eq. 8 and 9)."""

  dim: int
  layers: int = 2
  latents: int = 4
  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    names = sorted(sequences)
    shared = _latents(self, 'latents', len(sequences[names[0]].mask))
    seen = jnp.ones(shared.shape[:2], bool)
    for layer in range(self.layers):
      told, there = 0, 0
      for name in names:
        values, mask = sequences[name]
        both = Sequence(jnp.concatenate([shared, values], 1), jnp.concatenate([seen, mask], 1))
        block = TransformerBlock(self.heads, dropout=self.dropout, dtype=self.dtype, name=f'{name}_{layer}')
        out = block(both.values, both.mask, train=train)
        sequences = sequences | {name: Sequence(out[:, self.latents :], mask)}
        told, there = told + out[:, : self.latents] * _present(mask, out), there + _present(mask, out)
      shared = told / jnp.maximum(there, 1)
    out = _joined([*(sequences[name] for name in names), Sequence(shared, seen)])
    return Sequence(nn.LayerNorm(dtype=self.dtype, name='norm')(out.values), out.mask)


class Resampler(nn.Module):
  """L learned queries attend to each modality but the main one; main and what they found, one after another (Perceiver resampler,
  Alayrac et al. 2022, 3.1). With one modality alone it is that one which is resampled.
  """

  dim: int
  main: str = ''
  layers: int = 2
  latents: int = 8
  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    main, others = _main(sequences, self.main)
    kept = [main] if others else []
    for name, (values, mask) in (others or sequences).items():
      x = _latents(self, f'{name}_latents', len(mask))
      for layer in range(self.layers):
        block = TransformerBlock(self.heads, dropout=self.dropout, dtype=self.dtype, name=f'{name}_{layer}')
        x = block(x, memory=values, memory_mask=mask, train=train)
      x = nn.LayerNorm(dtype=self.dtype, name=f'{name}_norm')(x)
      kept.append(Sequence(x, jnp.broadcast_to(mask.any(1)[:, None], x.shape[:2])))
    return _joined(kept)


FUSIONS = {
  'concatenation': Concatenation, 'gated': Gated, 'selective': Selective, 'bottleneck': Bottleneck, 'resampler': Resampler,
}  # fmt: skip
