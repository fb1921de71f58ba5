"""Conformer (Gulati et al. 2020): an encoder of audio features.

Axes: B batch, S frames, C features of a frame, T positions after subsampling, D width, K kernel.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.encoders.subsampling import subsampled
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import FeedForward
from mmlm.utils.errors import UserError
from mmlm.utils.options import FRACTION, option


@jax.custom_vjp
def depthwise_in_time(x: Array, kernel: Array) -> Array:
  """Convolves each channel by itself in time, with zero padding: [B, T, D], [K, D] -> [B, T, D].

  K is odd. Computed as a sum of K shifted products: XLA's grouped convolution is many times slower
  on a CPU (see convnet.Depthwise). The gradient is written out, because that of slices adds up K
  padded arrays.
  """
  shifted = _shifted(x, len(kernel))
  total: Any = sum(weights * frames for weights, frames in zip(kernel, shifted, strict=True))
  return total


def _shifted(x: Array, size: int) -> list[Array]:
  padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
  return [padded[:, i : i + x.shape[1]] for i in range(size)]


def _depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return depthwise_in_time(x, kernel), (x, kernel)


def _depthwise_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  kernel_gradients = []
  for frames in _shifted(x, len(kernel)):
    gradient = jnp.einsum('btd,btd->d', frames, cotangent, preferred_element_type=jnp.float32)
    kernel_gradients.append(gradient)
  x_gradient = depthwise_in_time(cotangent, kernel[::-1])
  return x_gradient, jnp.stack(kernel_gradients).astype(kernel.dtype)


depthwise_in_time.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseInTime(nn.Module):
  """`depthwise_in_time` with a learned kernel and a bias: [B, T, D] -> [B, T, D]."""

  kernel: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    kernel_init = nn.initializers.lecun_normal(in_axis=0, out_axis=())
    kernel = self.param('kernel', kernel_init, (self.kernel, channels))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    return depthwise_in_time(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class ConvolutionModule(nn.Module):
  """GLU, depthwise convolution, norm, SiLU, projection (Gulati et al. 2020, 2.2).

  [B, T, D] -> [B, T, D]. The norm is a LayerNorm where the paper has BatchNorm: no state is
  mutable, training and evaluation compute the same, and neither padding, nor other examples of a
  batch, nor the number of devices change an example.
  """

  kernel: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    width = x.shape[-1]
    x = nn.glu(nn.Dense(2 * width, dtype=self.dtype, name='expand')(x))
    x = jnp.where(mask[..., None], x, 0)
    x = DepthwiseInTime(self.kernel, self.dtype, name='depthwise')(x)
    x = nn.silu(nn.LayerNorm(dtype=self.dtype, name='norm')(x))
    return nn.Dense(width, dtype=self.dtype, name='project')(x)


class ConformerBlock(nn.Module):
  """Half feed-forward, self-attention, convolution, half feed-forward, norm (ibid., eq. 1).

  [B, T, D] -> [B, T, D]; the attention has rotary positions.
  """

  heads: int
  kernel: int
  ffn_dim: int = 0
  attention_dropout: float = 0.0
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array,
    train: bool = False,
  ) -> Array:
    def normed(name: str, x: Array) -> Array:
      return nn.LayerNorm(dtype=self.dtype, name=f'{name}_norm')(x)

    def dropped(x: Array) -> Array:
      return Dropout(self.dropout)(x, train)

    def feed_forward(name: str, x: Array) -> Array:
      width = self.ffn_dim or 4 * x.shape[-1]
      layer = FeedForward(width, 'silu', False, self.dropout, self.dtype, name=name)
      return layer(normed(name, x), train)

    x = x + dropped(feed_forward('first', x)) / 2
    attention = MultiHeadAttention(
      self.heads, rotary=True, dropout=self.attention_dropout, dtype=self.dtype, name='attention'
    )
    x = x + dropped(attention(normed('attention', x), mask=mask, train=train))
    convolution = ConvolutionModule(self.kernel, self.dtype, name='convolution')
    x = x + dropped(convolution(normed('convolution', x), mask))
    x = x + dropped(feed_forward('second', x)) / 2
    return normed('last', x)


class Conformer(Encoder):
  """Features [B, S, C] with their mask -> [B, T, D] (Gulati et al. 2020); T = S / subsampling."""

  reads_features: ClassVar[bool] = True

  dim: int
  width: int = option(0, 'features of a frame, C')
  subsampling: int = 4
  channels: int = 32
  planes: int = option(1, 'parts of a frame, e.g. 3: values, deltas and their deltas')
  layers: int = 6
  heads: int = 4
  kernel: int = option(15, 'positions that a convolution reads, an odd number')
  ffn_dim: int = option(0, '0 = four times the width')
  attention_dropout: float = option(0.0, 'of attention weights', limits=FRACTION, traced=True)
  remat: bool = option(False, 'recompute activations in the backward pass')
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    features: Array,
    mask: Array,
    train: bool = False,
  ) -> Sequence:
    self._check()
    x, mask = subsampled(self, features, mask, train)
    block_class = ConformerBlock
    if self.remat:
      block_class = nn.remat(ConformerBlock, static_argnums=(3,))
    for layer in range(self.layers):
      block = block_class(
        self.heads,
        self.kernel,
        self.ffn_dim,
        self.attention_dropout,
        self.dropout,
        self.dtype,
        name=f'block_{layer}',
      )
      x = block(x, mask, train)
    return Sequence(jnp.where(mask[..., None], x, 0), mask)

  def _check(self) -> None:
    if self.kernel % 2 == 0 or self.kernel < 1:
      raise UserError(
        f'model.encoders: kernel={self.kernel} of a conformer must be odd, so that its middle is '
        'the position that it computes.'
      )
    if self.dim % (2 * self.heads):
      raise UserError(
        f'model.dim={self.dim}: a conformer of {self.heads} heads with rotary positions needs a '
        f'multiple of {2 * self.heads}.'
      )
