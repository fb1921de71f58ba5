"""Transformer blocks (Vaswani et al. 2017), pre- or post-norm (Xiong et al. 2020), and stacks.

Llama's parts are options: SwiGLU is `gated` with the activation 'silu', grouped-query attention is
`kv_heads`, RoPE is `rotary`. All norms are LayerNorm; RMSNorm would be a field of TransformerBlock.

Axes: B batch, T time, S memory, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax import Array

from mmlm.models.attention import DecodeStep, MultiHeadAttention, Prompt
from mmlm.models.layers import ACTIVATIONS, Dropout
from mmlm.parallel import shard_activations
from mmlm.utils.options import FRACTION, option

Layer = Callable[[Array], Array]


class FeedForward(nn.Module):
  """[B, T, D] -> [B, T, D] through `width` hidden values.

  `gated` multiplies them by a second projection (Shazeer 2020).
  """

  width: int
  activation: str = 'gelu'
  gated: bool = False
  dropout: float = 0.0  # of the hidden values
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    activation = ACTIVATIONS[self.activation]
    hidden = activation(nn.Dense(self.width, dtype=self.dtype, name='up')(x))
    if self.gated:
      hidden = hidden * nn.Dense(self.width, dtype=self.dtype, name='gate')(x)
    hidden = Dropout(self.dropout)(hidden, train)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='down')(hidden)


class TransformerBlock(nn.Module):
  """Self-attention, attention to a memory if there is one, and feed-forward.

  Each has a residual connection and a norm.
  """

  heads: int
  kv_heads: int = 0
  ffn_dim: int = 0  # 0 = four times the width
  activation: str = 'gelu'
  gated: bool = False
  pre_norm: bool = True
  causal: bool = False
  rotary: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0  # of attention weights
  hidden_dropout: bool = True  # also inside the feed-forward
  epsilon: float = 1e-6  # of the norms
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | None = None,
    memory: Array | None = None,
    memory_mask: Array | None = None,
    step: DecodeStep | Prompt | None = None,
    train: bool = False,
  ) -> Array:
    def self_attention(y: Array) -> Array:
      attention = self._attention('self_attention', self.rotary)
      return attention(y, mask=mask, causal=self.causal, step=step, train=train)

    def cross_attention(y: Array) -> Array:
      attention = self._attention('cross_attention', rotary=False)
      return attention(y, memory=memory, mask=memory_mask, step=step, train=train)

    def feed_forward(y: Array) -> Array:
      width = self.ffn_dim or 4 * x.shape[-1]
      dropout = self.dropout if self.hidden_dropout else 0.0
      layer = FeedForward(width, self.activation, self.gated, dropout, self.dtype, name='ffn')
      return layer(y, train)

    x = self._residual(x, self_attention, 'self_norm', train)
    if memory is not None:
      x = self._residual(x, cross_attention, 'cross_norm', train)
    return self._residual(x, feed_forward, 'ffn_norm', train)

  def _attention(self, name: str, rotary: bool) -> MultiHeadAttention:
    return MultiHeadAttention(
      self.heads, self.kv_heads, rotary, self.attention_dropout, self.dtype, name=name
    )

  def _residual(
    self,
    x: Array,
    layer: Layer,
    norm_name: str,
    train: bool,
  ) -> Array:
    norm = nn.LayerNorm(self.epsilon, dtype=self.dtype, name=norm_name)
    dropout = Dropout(self.dropout)
    if self.pre_norm:
      x = x + dropout(layer(norm(x)), train)
    else:
      x = norm(x + dropout(layer(x), train))
    return shard_activations(x)


class Transformer(nn.Module):
  """A stack of blocks and, if they are pre-norm, a final norm.

  `scan` traces one block, with parameters stacked on axis 0 (shorter compilation); `remat`
  recomputes activations in the backward pass (less memory). `remat` does not change the names of
  parameters; `scan` does ('blocks' instead of 'block_0', ...).
  """

  layers: int
  block: dict  # the fields of TransformerBlock
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | None = None,
    memory: Array | None = None,
    memory_mask: Array | None = None,
    step: DecodeStep | Prompt | None = None,
    train: bool = False,
  ) -> Array:
    block_class = TransformerBlock
    if self.remat and step is None:
      block_class = nn.remat(TransformerBlock, static_argnums=(6,))
    inputs = (mask, memory, memory_mask, step, train)
    if self.scan:
      x = self._scanned(block_class, x, inputs)
    else:
      for layer in range(self.layers):
        x = block_class(**self.block, name=f'block_{layer}')(x, *inputs)
    if self.block.get('pre_norm', True):
      epsilon = self.block.get('epsilon', 1e-6)
      dtype = self.block.get('dtype', 'float32')
      x = nn.LayerNorm(epsilon, dtype=dtype, name='norm')(x)
    return x

  def _scanned(
    self,
    block_class: type[TransformerBlock],
    x: Array,
    inputs: tuple,
  ) -> Array:
    def apply(
      block: TransformerBlock,
      x: Array,
      _: None,
    ) -> tuple[Array, None]:
      return block(x, *inputs), None

    scan = nn.scan(
      apply,
      # Axis 1: examples stay on axis 0 of all caches, as without scan.
      variable_axes={'params': 0, 'cache': 1, 'memory': 1, 'intermediates': 1},
      split_rngs={'params': True, 'dropout': True},
      length=self.layers,
    )
    x, _ = scan(block_class(**self.block, name='blocks'), x, None)
    return x


class WithTransformer(nn.Module):
  """The options of every part with a Transformer; `stack` passes them on to it."""

  dim: int
  layers: int = 3
  heads: int = 4
  positions: str = option('learned', "'learned', 'sinusoidal', 'rotary' or 'none'")
  dropout: float = 0.0
  dtype: str = 'float32'

  def stack(self, name: str | None = None, **block: Any) -> Transformer:
    """Builds the Transformer of this part's options.

    Args:
      block: fields of `TransformerBlock` that are not options of the part.
    """
    block_options = self._options_for(TransformerBlock) | block
    return Transformer(block=block_options, **self._options_for(Transformer), name=name)

  @nn.nowrap
  def _options_for(self, cls: type) -> dict[str, Any]:
    """Returns the values of the options that have the name of a field of `cls`."""
    own_fields = {field.name for field in dataclasses.fields(self)} - {'parent', 'name'}
    values = {}
    for field in dataclasses.fields(cls):
      if field.name in own_fields:
        values[field.name] = getattr(self, field.name)
    return values


class WithDeepTransformer(WithTransformer):
  """Adds the options of parts whose Transformer may be large."""

  ffn_dim: int = option(0, '0 = four times the width')
  attention_dropout: float = option(0.0, 'of attention weights', limits=FRACTION, traced=True)
  hidden_dropout: bool = option(True, 'also inside the feed-forward')
  scan: bool = option(False, 'trace one layer only: compiles faster, stacks the parameters')
  remat: bool = option(False, 'recompute activations in the backward pass')
