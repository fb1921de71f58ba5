"""Fusions: {modality: Sequence} -> Sequence. `FUSIONS` maps the names of configs to classes.

Any subset of modalities may be present: what an example lacks is all mask.
Axes: B batch, S sequence, D width.
"""

import flax.linen as nn
import jax.numpy as jnp

from mmlm.models.sequence import Sequence


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
      parts.append(Sequence(jnp.where(mask[..., None], values, 0), mask))
    return Sequence(jnp.concatenate([p.values for p in parts], 1), jnp.concatenate([p.mask for p in parts], 1))


FUSIONS = {'concatenation': Concatenation}
