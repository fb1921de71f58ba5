"""Transformer blocks, pre- or post-norm, and stacks of them (Vaswani et al. 2017; Xiong et al. 2020 for the norms).

Axes: B batch, T time, S memory, D width.
"""

import flax.linen as nn

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.layers import ACTIVATIONS, Dropout


class FeedForward(nn.Module):
  """[B, T, D] -> [B, T, D] through `width` values; `gated` multiplies by a second projection (Shazeer 2020)."""

  width: int
  activation: str = 'gelu'
  gated: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, train):
    act = ACTIVATIONS[self.activation]
    hidden = act(nn.Dense(self.width, dtype=self.dtype, name='up')(x))
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
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask=None, memory=None, memory_mask=None, step=None, train=False):
    attention = lambda name, rotary: MultiHeadAttention(self.heads, self.kv_heads, rotary, self.dtype, name=name)

    def self_attention(y):
      return attention('self_attention', self.rotary)(y, mask=mask, causal=self.causal, step=step)

    def cross_attention(y):
      return attention('cross_attention', False)(y, memory=memory, mask=memory_mask, step=step)

    def feed_forward(y):
      width = self.ffn_dim or 4 * x.shape[-1]
      return FeedForward(width, self.activation, self.gated, self.dropout, self.dtype, name='ffn')(y, train)

    x = self._residual(x, self_attention, 'self_norm', train)
    if memory is not None:
      x = self._residual(x, cross_attention, 'cross_norm', train)
    return self._residual(x, feed_forward, 'ffn_norm', train)

  def _residual(self, x, layer, name, train):
    norm = nn.LayerNorm(dtype=self.dtype, name=name)
    drop = Dropout(self.dropout)
    return x + drop(layer(norm(x)), train) if self.pre_norm else norm(x + drop(layer(x), train))


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
    block_class = nn.remat(TransformerBlock, static_argnums=(6,)) if self.remat and step is None else TransformerBlock
    if self.scan:
      x = self._scanned(block_class, x, (mask, memory, memory_mask, step), train)
    else:
      for layer in range(self.layers):
        x = block_class(**self.block, name=f'block_{layer}')(x, mask, memory, memory_mask, step, train)
    if self.block.get('pre_norm', True):
      x = nn.LayerNorm(dtype=self.block.get('dtype', 'float32'), name='norm')(x)
    return x

  def _scanned(self, block_class, x, inputs, train):
    run = nn.scan(
      lambda block, carry, _: (block(carry, *inputs, train), None),
      # Axis 1: the leaves of the caches keep their rows on axis 0, where the search reorders them.
      variable_axes={'params': 0, 'cache': 1, 'memory': 1},
      split_rngs={'params': True, 'dropout': True},
      length=self.layers,
    )
    return run(block_class(**self.block, name='blocks'), x, None)[0]

