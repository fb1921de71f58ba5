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
from mmlm.models.transformer import FeedForward, TransformerBlock


def main_of(modalities, name: str) -> str:
  """The modality to enrich: `name`, or where it is '' the usual one."""
  return name or ('text' if 'text' in modalities else min(modalities))


def _main(sequences: dict[str, Sequence], name: str) -> tuple[Sequence, dict[str, Sequence]]:
  """The sequence to enrich, and the others by name, in order."""
  name = main_of(sequences, name)
  return sequences[name], {other: sequences[other] for other in sorted(sequences) if other != name}


def _joined(sequences) -> Sequence:
  """One after another; what is masked is 0."""
  values, masks = zip(*sequences)
  mask = jnp.concatenate(masks, 1)
  return Sequence(jnp.where(mask[..., None], jnp.concatenate(values, 1), 0), mask)


def _present(mask, values):
  """[B, S] -> [B, 1, 1]: 1 for an example that has anything of this modality."""
  return mask.any(1)[:, None, None].astype(values.dtype)


def _mean(sequence: Sequence):
  """[B, S, D] -> [B, D]: the mean of what is there; 0 where nothing is."""
  kept = sequence.mask[..., None].astype(sequence.values.dtype)
  return (sequence.values * kept).sum(1) / jnp.maximum(kept.sum(1), 1)


def _vector(values, sequences: dict[str, Sequence]) -> Sequence:
  """One vector [B, D] as a sequence of one position, there for an example that has any modality."""
  there = jnp.stack([mask.any(1) for _, mask in sequences.values()]).any(0)
  return Sequence(
    jnp.where(there[:, None], values, 0)[:, None],
    there[:, None],
  )


def _latents(module, name: str, examples: int):
  """Learned vectors of a module, the same for every example: [B, L, D]."""
  latents = module.param(name, nn.initializers.normal(0.02), (module.latents, module.dim)).astype(
    module.dtype
  )
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
        values = values + self.param(
          f'{name}_bias', nn.initializers.normal(0.02), (self.dim,)
        ).astype(values.dtype)
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
      mean = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_projection')(
        _mean(other)[:, None]
      )  # [B, 1, D]
      mean = Dropout(self.dropout)(mean, train)
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
      values = values + _gate(self, name, values, found) * (found - values) * _present(
        other.mask, values
      )
    return _joined([Sequence(values, mask)])


def _gate(module, name, values, other):
  """sigmoid(W values + U other), [B, S, D]."""

  def dense(part):
    return nn.Dense(module.dim, dtype=module.dtype, name=f'{name}_gate_{part}', parent=module)

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
      told = 0
      there = 0
      for name in names:
        values, mask = sequences[name]
        both = Sequence(jnp.concatenate([shared, values], 1), jnp.concatenate([seen, mask], 1))
        block = TransformerBlock(
          self.heads, dropout=self.dropout, dtype=self.dtype, name=f'{name}_{layer}'
        )
        out = block(both.values, both.mask, train=train)
        sequences = sequences | {name: Sequence(out[:, self.latents :], mask)}
        told = told + out[:, : self.latents] * _present(mask, out)
        there = there + _present(mask, out)
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
        block = TransformerBlock(
          self.heads, dropout=self.dropout, dtype=self.dtype, name=f'{name}_{layer}'
        )
        x = block(x, memory=values, memory_mask=mask, train=train)
      x = nn.LayerNorm(dtype=self.dtype, name=f'{name}_norm')(x)
      kept.append(
        Sequence(
          x,
          jnp.broadcast_to(mask.any(1)[:, None], x.shape[:2]),
        )
      )
    return _joined(kept)


class Late(nn.Module):
  """Each modality's mean by itself to a vector, and these side by side to one (late concatenation)."""

  dim: int
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    vectors = []
    for name in sorted(sequences):
      x = nn.relu(
        nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_projection')(_mean(sequences[name]))
      )
      vectors.append(
        Dropout(self.dropout)(
          x * _present(sequences[name].mask, x)[:, 0],
          train,
        )
      )
    return _vector(
      nn.Dense(self.dim, dtype=self.dtype, name='joint')(jnp.concatenate(vectors, -1)), sequences
    )


class CrossAttention(nn.Module):
  """Every modality is enriched by blocks that attend to each other one (MulT, Tsai et al. 2019, eq. 3 to 6); all that come out
  stand one after another.
  """

  dim: int
  layers: int = 2
  heads: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    enriched = []
    for name in sorted(sequences):
      values, mask = sequences[name]
      found = [values] if len(sequences) == 1 else []
      for other in sorted(sequences.keys() - {name}):
        x = values
        for layer in range(self.layers):
          block = _CrossBlock(
            self.heads, self.dropout, self.dtype, name=f'{other}_to_{name}_{layer}'
          )
          x = block(x, sequences[other], train)
        found.append(x)
      x = nn.Dense(
        self.dim,
        dtype=self.dtype,
        name=f'{name}_merge',
      )(jnp.concatenate(found, -1))
      enriched.append(Sequence(nn.LayerNorm(dtype=self.dtype, name=f'{name}_norm')(x), mask))
    return _joined(enriched)


class _CrossBlock(nn.Module):
  """Attention to another modality, then feed-forward (MulT, eq. 4); without the other one, nothing is attended to."""

  heads: int
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, x, other: Sequence, train):
    def norm(name):
      return nn.LayerNorm(dtype=self.dtype, name=name)

    attention = MultiHeadAttention(self.heads, dtype=self.dtype, name='attention')
    found = attention(norm('query_norm')(x), norm('memory_norm')(other.values), other.mask)
    x = x + Dropout(self.dropout)(found, train) * _present(other.mask, x)
    feed_forward = FeedForward(4 * x.shape[-1], dropout=self.dropout, dtype=self.dtype, name='ffn')
    return x + Dropout(self.dropout)(feed_forward(norm('ffn_norm')(x), train), train)


class Tensor(nn.Module):
  """The outer product of [1; z] of all modalities, so that every product of their values has a weight (TFN, Zadeh et al. 2017, eq. 3).

  `rank`: width of each z, to which the means are projected; the product has (rank + 1)^modalities values.
  """

  dim: int
  rank: int = 8
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    product = None
    for name in sorted(sequences):
      z = _with_one(
        nn.Dense(self.rank, dtype=self.dtype, name=f'{name}_projection')(_mean(sequences[name])),
        sequences[name].mask,
      )
      if product is None:
        product = z
      else:
        product = (product[:, :, None] * z[:, None]).reshape(
          len(z),
          -1,
        )
    x = Dropout(self.dropout)(product, train)
    return _vector(nn.Dense(self.dim, dtype=self.dtype, name='joint')(x), sequences)


class LowRank(nn.Module):
  """The tensor fusion with weights of low rank: products of one factor a modality, summed (LMF, Liu et al. 2018, eq. 6 and 7).

  Unlike there the weights of the 1 in [1; z] start as 1: a modality that is not there leaves the product as it is.
  """

  dim: int
  rank: int = 4
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    product = 1.0
    for name in sorted(sequences):
      z = _with_one(Dropout(self.dropout)(_mean(sequences[name]), train), sequences[name].mask)
      factors = nn.DenseGeneral(
        (self.rank, self.dim),
        use_bias=False,
        kernel_init=_one_first,
        dtype=self.dtype,
        name=f'{name}_factors',
      )
      product = product * factors(z)
    weights = self.param('weights', nn.initializers.normal(self.rank**-0.5), (self.rank,)).astype(
      product.dtype
    )
    bias = self.param('bias', nn.initializers.zeros, (self.dim,)).astype(product.dtype)
    return _vector(jnp.einsum('brd,r->bd', product, weights) + bias, sequences)


def _one_first(key, shape, dtype):
  """[1 + R, .]: 1 for the constant, the rest as usual."""
  return nn.initializers.lecun_normal()(key, shape, dtype).at[0].set(1)


def _with_one(z, mask):
  """[1; z] [B, 1 + R]; of a modality that is not there only the 1 is left."""
  z = z * mask.any(1)[:, None].astype(z.dtype)
  return jnp.concatenate([jnp.ones_like(z[:, :1]), z], -1)


class AdaptationGate(nn.Module):
  """main + a displacement by the other modalities, gated and no longer than `scale` times main (MAG, Rahman et al. 2020, eq. 1 to 4).

  The others come as their means: no alignment with the positions of main is needed.
  """

  dim: int
  main: str = ''
  scale: float = 1.0
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train=False) -> Sequence:
    (values, mask), others = _main(sequences, self.main)
    displacement = jnp.zeros_like(values)
    for name, other in others.items():
      mean = jnp.broadcast_to(_mean(other)[:, None], values.shape)
      gate = nn.relu(
        nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_gate')(
          jnp.concatenate([values, mean], -1)
        )
      )
      moved = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_displacement')(mean)
      displacement += gate * moved * _present(other.mask, values)

    def length(x):
      return jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-12)

    displacement *= jnp.minimum(self.scale * length(values) / length(displacement), 1)
    x = nn.LayerNorm(dtype=self.dtype, name='norm')(values + displacement)
    return _joined([Sequence(Dropout(self.dropout)(x, train), mask)])


FUSIONS = {
  'concatenation': Concatenation,
  'late': Late,
  'gated': Gated,
  'selective': Selective,
  'cross_attention': CrossAttention,
  'bottleneck': Bottleneck,
  'tensor': Tensor,
  'low_rank': LowRank,
  'adaptation_gate': AdaptationGate,
  'resampler': Resampler,
}
