"""Transformer blocks, pre- or post-norm, and stacks of them (Vaswani et al. 2017; Xiong et al. 2020 for the norms).

Axes: B batch, T time, S memory, D width.
"""

import dataclasses

import flax.linen as nn

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.layers import ACTIVATIONS, Dropout
from mmlm.parallel import spread_rows
from mmlm.utils.options import FRACTION, option


class FeedForward(nn.Module):
  """[B, T, D] -> [B, T, D] through `width` values; `gated` multiplies by a second projection (Shazeer 2020)."""

  width: int
  activation: str = 'gelu'
  gated: bool = False
  dropout: float = 0.0  # of the hidden values
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, train):
    hidden = ACTIVATIONS[self.activation](nn.Dense(self.width, dtype=self.dtype, name='up')(x))
    if self.gated:
      hidden = hidden * nn.Dense(self.width, dtype=self.dtype, name='gate')(x)
    hidden = Dropout(self.dropout)(hidden, train)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='down')(hidden)


class TransformerBlock(nn.Module):
  """Self-attention, attention to a memory (when there is one), feed-forward; each with a residual and a norm."""

  heads: int
  kv_heads: int = 0
  ffn_dim: int = 0  # 0 = four times the width
  activation: str = 'gelu'
  gated: bool = False
  pre_norm: bool = True
  causal: bool = False
  rotary: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0  # of the weights of attention
  hidden_dropout: bool = True  # also inside the feed-forward
  epsilon: float = 1e-6  # of the norms
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask=None, memory=None, memory_mask=None, step=None, train=False):
    def attention(name, rotary):
      return MultiHeadAttention(
        self.heads, self.kv_heads, rotary, self.attention_dropout, self.dtype, name=name
      )

    def self_attention(y):
      return attention('self_attention', self.rotary)(
        y, mask=mask, causal=self.causal, step=step, train=train
      )

    def cross_attention(y):
      return attention('cross_attention', False)(
        y, memory=memory, mask=memory_mask, step=step, train=train
      )

    width = self.ffn_dim or 4 * x.shape[-1]
    if self.hidden_dropout:
      dropout = self.dropout
    else:
      dropout = 0.0

    def feed_forward(y):
      return FeedForward(width, self.activation, self.gated, dropout, self.dtype, name='ffn')(
        y, train
      )

    x = self._residual(x, self_attention, 'self_norm', train)
    if memory is not None:
      x = self._residual(x, cross_attention, 'cross_norm', train)
    return self._residual(x, feed_forward, 'ffn_norm', train)

  def _residual(self, x, layer, name, train):
    norm = nn.LayerNorm(self.epsilon, dtype=self.dtype, name=name)
    drop = Dropout(self.dropout)
    if self.pre_norm:
      x = x + drop(layer(norm(x)), train)
    else:
      x = norm(x + drop(layer(x), train))
    return spread_rows(x)


class Transformer(nn.Module):
  """A stack of blocks and, when they are pre-norm, a final norm.

  `scan` keeps one traced block with parameters stacked on axis 0 (shorter compilation); `remat` recomputes activations in the
  backward pass (less memory). `remat` does not change parameter names; `scan` does ('blocks' instead of 'block_0', ...).
  """

  layers: int
  block: dict  # the fields of TransformerBlock
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, x, mask=None, memory=None, memory_mask=None, step=None, train=False):
    if self.remat and step is None:
      block_class = nn.remat(TransformerBlock, static_argnums=(6,))
    else:
      block_class = TransformerBlock
    inputs = (mask, memory, memory_mask, step, train)
    if self.scan:
      run = nn.scan(
        lambda block, carry, _: (block(carry, *inputs), None),
        # Axis 1: examples stay on axis 0 of all caches, as without scan.
        variable_axes={'params': 0, 'cache': 1, 'memory': 1, 'intermediates': 1},
        split_rngs={'params': True, 'dropout': True},
        length=self.layers,
      )
      x, _ = run(block_class(**self.block, name='blocks'), x, None)
    else:
      for layer in range(self.layers):
        x = block_class(**self.block, name=f'block_{layer}')(x, *inputs)
    if self.block.get('pre_norm', True):
      x = nn.LayerNorm(
        self.block.get('epsilon', 1e-6), dtype=self.block.get('dtype', 'float32'), name='norm'
      )(x)
    return x


class WithTransformer(nn.Module):
  """The fields of every part with a Transformer; `stack` hands them on, with those that the part adds."""

  dim: int
  layers: int = 3
  heads: int = 4
  positions: str = 'learned'
  dropout: float = 0.0
  dtype: str = 'float32'

  def stack(self, name=None, **block) -> Transformer:
    """The Transformer of the options of this part; `block`: fields of TransformerBlock that are not among them."""

    def names(cls):
      result = []
      for field in dataclasses.fields(cls):
        if field.name not in ('parent', 'name'):
          result.append(field.name)
      return result

    def own(cls):
      return {name: getattr(self, name) for name in names(cls) if hasattr(self, name)}

    return Transformer(block=own(TransformerBlock) | block, **own(Transformer), name=name)


class WithDeepTransformer(WithTransformer):
  """With the fields of parts whose Transformer may be large."""

  ffn_dim: int = 0  # 0 = four times the width
  attention_dropout: float = option(
    0.0, 'of the weights of attention', limits=FRACTION, traced=True
  )
  hidden_dropout: bool = True  # also inside the feed-forward
  scan: bool = False
  remat: bool = False
