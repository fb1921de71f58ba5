"""BERT's head for masked tokens.

Axes: B batch, S memory, D width, V vocabulary.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.heads.head import Head
from mmlm.models.sequence import Sequence


class MaskedTokens(Head):
  """A layer, an activation and a norm at each position of the memory (Devlin et al. 2019, A.2).

  The output layer is the encoder's embedding table, with a bias [V]: the task multiplies them.
  """

  produces: ClassVar[str] = 'masked tokens'

  dim: int
  vocab_size: int
  epsilon: float = 1e-12
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    inputs: None,
    memory: Sequence,
    train: bool = False,
  ) -> tuple[Array, Array]:
    """Returns hidden states [B, S, D + 1], the last column for the bias, and the bias [V, 1]."""
    x = nn.Dense(self.dim, dtype=self.dtype, name='layer')(memory.values)
    x = nn.gelu(x, approximate=False)
    x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name='norm')(x)
    bias = self.param('bias', nn.initializers.zeros, (self.vocab_size,))
    ones = jnp.ones_like(x[..., :1])
    return jnp.concatenate([x, ones], -1), bias[:, None]
