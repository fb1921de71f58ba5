"""Fusions whose memory is one vector.

Axes: B batch, D width, R rank.
"""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.models.fusion.fusion import Fusion, mean_of, presence, vector_memory
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.utils.options import option


class VectorFusion(Fusion):
  """A fusion whose memory has no positions of the modalities."""

  dim: int

  @staticmethod
  def keeps_positions(modalities: Iterable[str], main: str) -> list[str]:
    """Returns none."""
    return []


class Late(VectorFusion):
  """A projection of the concatenated projections of each modality's mean (late fusion)."""

  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    vectors = []
    for name in sorted(sequences):
      sequence = sequences[name]
      projection = nn.Dense(self.dim, dtype=self.dtype, name=f'{name}_projection')
      x = nn.relu(projection(mean_of(sequence)))
      x = x * presence(sequence.mask, x)[:, 0]
      vectors.append(Dropout(self.dropout)(x, train))
    joint = nn.Dense(self.dim, dtype=self.dtype, name='joint')
    return vector_memory(joint(jnp.concatenate(vectors, -1)), sequences)


class Tensor(VectorFusion):
  """The outer product of [1; z] of all modalities (TFN, Zadeh et al. 2017, eq. 3).

  Every product of their values has a weight: (rank + 1)^modalities in all.
  """

  rank: int = option(8, 'width of z, to which the means are projected')
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    product: Any = None
    for name in sorted(sequences):
      sequence = sequences[name]
      projection = nn.Dense(self.rank, dtype=self.dtype, name=f'{name}_projection')
      z = _with_one(projection(mean_of(sequence)), sequence.mask)
      if product is None:
        product = z
      else:
        outer = product[:, :, None] * z[:, None]
        product = outer.reshape(len(z), -1)
    x = Dropout(self.dropout)(product, train)
    joint = nn.Dense(self.dim, dtype=self.dtype, name='joint')
    return vector_memory(joint(x), sequences)


class LowRank(VectorFusion):
  """The tensor fusion with weights of low rank (LMF, Liu et al. 2018, eq. 6 and 7).

  A sum of products of one factor for each modality. Unlike there the weights of the 1 in [1; z]
  start as 1: a missing modality leaves the product as it is.
  """

  rank: int = option(4, 'number of products, R')
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    product: Any = 1.0
    for name in sorted(sequences):
      sequence = sequences[name]
      mean = Dropout(self.dropout)(mean_of(sequence), train)
      z = _with_one(mean, sequence.mask)
      factors = nn.DenseGeneral(
        (self.rank, self.dim),
        use_bias=False,
        kernel_init=_ones_first_init,
        dtype=self.dtype,
        name=f'{name}_factors',
      )
      product = product * factors(z)  # [B, R, D]
    weights = self.param('weights', nn.initializers.normal(self.rank**-0.5), (self.rank,))
    bias = self.param('bias', nn.initializers.zeros, (self.dim,))
    summed = jnp.einsum('brd,r->bd', product, weights.astype(product.dtype))
    return vector_memory(summed + bias.astype(product.dtype), sequences)


def _ones_first_init(
  key: Array,
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike,
) -> Array:
  """Returns weights [1 + R, .]: ones for the constant, the others as usual."""
  return nn.initializers.lecun_normal()(key, shape, dtype).at[0].set(1)


def _with_one(z: Array, mask: Array) -> Array:
  """Returns [1; z], [B, 1 + R]; z is 0 for a missing modality."""
  z = z * mask.any(1)[:, None].astype(z.dtype)
  return jnp.concatenate([jnp.ones_like(z[:, :1]), z], -1)
