"""Heads for labels: they pool the memory and predict a class or a number.

Axes: B batch, S memory, D width, T labels of an example (1, or its parts), C classes.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.heads.head import Head
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.options import option
from mmlm.utils.traced import is_traced

POOLS = ('mean', 'max', 'first', 'each')


class PooledHead(Head):
  """Pools the memory, with a tanh layer if `hidden` is set."""

  dim: int
  pool: str = option(
    'mean', "of the memory: 'mean', 'max', the 'first' position (BERT), or 'each' by itself"
  )
  hidden: int = option(0, 'width of a tanh layer after pooling; 0 = none')
  pooler: str = option('', "a BERT whose pooler the tanh layer starts from; '' = random")
  answer_dropout: float = option(
    -1.0, "of what the output layers read; below 0 = the model's dropout", traced=True
  )
  dropout: float = 0.0
  dtype: str = 'float32'

  def pooled(self, memory: Sequence, train: bool) -> Array:
    """Returns [B, 1, D] for the memory [B, S, D], or [B, S, D] with pool='each'."""
    dropout = Dropout(self._rate())
    x = self._pool(memory).astype(self.dtype)
    x = dropout(x, train)
    if self.hidden:
      x = jnp.tanh(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(x))
      x = dropout(x, train)
    return x

  def _pool(self, memory: Sequence) -> Array:
    values = memory.values
    mask = memory.mask[..., None]
    match one_of('model.head.pool', self.pool, POOLS):
      case 'mean':
        total = jnp.where(mask, values, 0).sum(1, keepdims=True)
        return total / jnp.maximum(mask.sum(1, keepdims=True), 1)
      case 'max':
        present = mask.any(1, keepdims=True)
        return jnp.where(present, jnp.where(mask, values, -jnp.inf).max(1, keepdims=True), 0)
      case 'first':
        return values[:, :1]
    return values

  def _rate(self) -> float | Array:
    if is_traced(self.answer_dropout):
      return self.answer_dropout
    if not self.answer_dropout < 1:
      raise UserError(f'model.head.answer_dropout={self.answer_dropout}: expected less than 1.')
    if self.answer_dropout >= 0:
      return self.answer_dropout
    return self.dropout


class Classifier(PooledHead, kw_only=True):
  """Logits [B, T, C] of the classes, which a config names; T is 1, or the memory's length."""

  produces: ClassVar[str] = 'classes'

  classes: tuple = ('negative', 'positive')

  @nn.compact
  def __call__(
    self,
    inputs: None,
    memory: Sequence,
    train: bool = False,
  ) -> Array:
    x = self.pooled(memory, train)
    logits = nn.Dense(len(self.classes), dtype=self.dtype, name='classes')(x)
    return logits.astype(jnp.float32)


class Regressor(PooledHead, kw_only=True):
  """One number [B, T]; labels are between `low` and `high`."""

  produces: ClassVar[str] = 'value'

  low: float = -3.0
  high: float = 3.0
  loss: str = option('l1', "'l1' or 'l2'")

  @nn.compact
  def __call__(
    self,
    inputs: None,
    memory: Sequence,
    train: bool = False,
  ) -> Array:
    x = self.pooled(memory, train)
    values = nn.Dense(1, dtype=self.dtype, name='value')(x)
    return values[..., 0].astype(jnp.float32)
