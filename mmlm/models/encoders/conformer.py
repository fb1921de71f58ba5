"""Encoders of sounds: Conformer, Transformer and recurrent network over subsampled rows of features.

Axes: B batch, S rows of features, C values of a row, T rows after subsampling, D width, K kernel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.models.attention import MultiHeadAttention
from mmlm.models.embeddings import Positions
from mmlm.models.encoders.subsampling import Subsampling
from mmlm.models.layers import Dropout
from mmlm.models.recurrent import Bidirectional
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import FeedForward, WithDeepTransformer
from mmlm.utils.errors import UserError
from mmlm.utils.options import FRACTION, option


@jax.custom_vjp
def shifted_products(x, kernel):
  """[B, T, D], [K, D] -> [B, T, D]: each channel convolved by itself in time, zeros beyond the borders; K is odd.

  It is a sum of K shifted products: XLA's grouped convolution is many times slower on a CPU (see convnet.Depthwise). The gradient is written
  out, because the one of slices adds up K padded arrays.
  """
  return sum(
    weights * rows
    for weights, rows in zip(
      kernel,
      _shifted(x, len(kernel)),
      strict=True,
    )
  )


def _shifted(x, size: int) -> list:
  padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
  return [padded[:, i : i + x.shape[1]] for i in range(size)]


def _shifted_products_backward(saved, upstream):
  x, kernel = saved
  of_kernel = []
  for rows in _shifted(x, len(kernel)):
    of_kernel.append(jnp.einsum('btd,btd->d', rows, upstream, preferred_element_type=jnp.float32))
  return shifted_products(upstream, kernel[::-1]), jnp.stack(of_kernel).astype(kernel.dtype)


shifted_products.defvjp(
  lambda x, kernel: (shifted_products(x, kernel), (x, kernel)), _shifted_products_backward
)


class DepthwiseInTime(nn.Module):
  """`shifted_products` with a kernel that is learned, and a bias: [B, T, D] -> [B, T, D]."""

  kernel: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(in_axis=0, out_axis=()), (self.kernel, x.shape[-1])
    )
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    return shifted_products(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class ConvolutionModule(nn.Module):
  """[B, T, D] -> [B, T, D]: GLU, depthwise convolution, norm, SiLU, projection (Gulati et al. 2020, 2.2), what is masked is not seen.

  The norm is a LayerNorm where the paper has BatchNorm: nothing is mutable then, training and evaluation compute the same, padding and
  what else stands in a batch never change an example, and neither does the number of devices.
  """

  kernel: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask):
    width = x.shape[-1]
    x = nn.glu(nn.Dense(2 * width, dtype=self.dtype, name='expand')(x))
    x = DepthwiseInTime(
      self.kernel,
      self.dtype,
      name='depthwise',
    )(jnp.where(mask[..., None], x, 0))
    x = nn.silu(nn.LayerNorm(dtype=self.dtype, name='norm')(x))
    return nn.Dense(width, dtype=self.dtype, name='project')(x)


class ConformerBlock(nn.Module):
  """Half a feed-forward, self-attention with rotary positions, convolution, half a feed-forward, norm (Gulati et al. 2020, eq. 1)."""

  heads: int
  kernel: int
  ffn_dim: int = 0  # 0 = four times the width
  attention_dropout: float = 0.0  # of the weights of attention
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask, train=False):
    def norm(name):
      return nn.LayerNorm(dtype=self.dtype, name=f'{name}_norm')

    def drop(y):
      return Dropout(self.dropout)(y, train)

    width = self.ffn_dim or 4 * x.shape[-1]

    def feed_forward(name, y):
      return FeedForward(width, 'silu', False, self.dropout, self.dtype, name=name)(
        norm(name)(y), train
      )

    x = x + drop(feed_forward('first', x)) / 2
    attention = MultiHeadAttention(
      self.heads, rotary=True, dropout=self.attention_dropout, dtype=self.dtype, name='attention'
    )
    x = x + drop(attention(norm('attention')(x), mask=mask, train=train))
    x = x + drop(
      ConvolutionModule(self.kernel, self.dtype, name='convolution')(norm('convolution')(x), mask)
    )
    x = x + drop(feed_forward('second', x)) / 2
    return norm('last')(x)


class Conformer(nn.Module):
  """Features [B, S, C] with their mask -> [B, T, D] (Gulati et al. 2020); C is `width`, T = S / subsampling.

  kernel: rows that a convolution sees, an odd number. planes: see Subsampling. remat: activations are computed again in the
  backward pass.
  """

  dim: int
  width: int = 0
  subsampling: int = 4
  channels: int = 32
  planes: int = 1
  layers: int = 6
  heads: int = 4
  kernel: int = 15
  ffn_dim: int = 0  # 0 = four times the width
  attention_dropout: float = option(
    0.0, 'of the weights of attention', limits=FRACTION, traced=True
  )
  remat: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask, train=False):
    if self.kernel % 2 == 0 or self.kernel < 1:
      raise UserError(
        f'model.encoders: kernel={self.kernel} of a conformer must be odd: its middle is the row that it is for.'
      )
    if self.dim % (2 * self.heads):
      raise UserError(
        f'model.dim={self.dim}: a conformer of {self.heads} heads with rotary positions needs a multiple of {2 * self.heads}.'
      )
    x, mask = subsampled(self, x, mask, train)
    if self.remat:
      block = nn.remat(ConformerBlock, static_argnums=(3,))
    else:
      block = ConformerBlock
    for layer in range(self.layers):
      x = block(
        self.heads,
        self.kernel,
        self.ffn_dim,
        self.attention_dropout,
        self.dropout,
        self.dtype,
        name=f'block_{layer}',
      )(x, mask, train)
    return Sequence(jnp.where(mask[..., None], x, 0), mask)


class AudioTransformer(WithDeepTransformer, kw_only=True):
  """Features [B, S, C] with their mask -> [B, T, D] by a Transformer; C is `width`, T = S / subsampling."""

  width: int = 0
  subsampling: int = 4
  channels: int = 32
  planes: int = 1
  layers: int = 6
  positions: str = 'sinusoidal'
  max_positions: int = 1024  # after subsampling

  @nn.compact
  def __call__(self, x, mask, train=False):
    x, mask = subsampled(self, x, mask, train)
    x = Positions(self.positions, self.max_positions, name='positions')(x)
    x = self.stack('transformer', rotary=self.positions == 'rotary')(x, mask, train=train)
    return Sequence(jnp.where(mask[..., None], x, 0), mask)


class AudioRecurrent(Bidirectional, kw_only=True):
  """Features [B, S, C] with their mask -> [B, T, D] by LSTM or GRU in both directions; C is `width`, T = S / subsampling."""

  width: int = 0
  subsampling: int = 4
  channels: int = 32
  planes: int = 1
  layers: int = 3
  cell: str = 'lstm'

  @nn.compact
  def __call__(self, x, mask, train=False):
    return self.run(*subsampled(self, x, mask, train), train)


def subsampled(part: nn.Module, x, mask, train):
  """What the layers of an encoder of sounds read, by its fields: [B, T, D] and the mask."""
  layer = Subsampling(
    part.dim,
    part.subsampling,
    part.channels,
    part.planes,
    part.dropout,
    part.dtype,
    name='subsampling',
    parent=part,
  )
  return layer(x, mask, train)
