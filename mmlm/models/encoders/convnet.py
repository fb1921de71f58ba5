"""EfficientNet-Lite0 as an encoder of pictures.

Axes: B pictures, H height, W width (pixels, or cells after a stride), C channels.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

# Tan & Le 2019, Table 1 (B0), without the stem and the head: (repeats, kernel, stride, expansion,
# width) of each stage, whose first block has the stride.
LITE0 = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


class Depthwise(nn.Module):
  """A convolution of each channel by itself, padded as TensorFlow's 'SAME', and a bias.

  [B, H, W, C] -> [B, H/s, W/s, C]. It is a sum of k * k shifted products: with XLA's grouped
  convolution the whole network is several times slower on a CPU. Cells are first split into their
  s * s phases, because a strided slice has a slow gradient.
  """

  kernel: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    k = self.kernel
    s = self.stride
    batch_size, height, width, channels = x.shape
    init = nn.initializers.he_normal(in_axis=(0, 1))
    kernel = self.param('kernel', init, (k, k, 1, channels))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    rows, top, bottom = self._padding(height)
    columns, left, right = self._padding(width)
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    phases = x.reshape(batch_size, x.shape[1] // s, s, x.shape[2] // s, s, channels)
    kernel = kernel.astype(self.dtype)
    y = bias.astype(self.dtype)
    for i in range(k):
      for j in range(k):
        vertical = slice(i // s, i // s + rows)
        horizontal = slice(j // s, j // s + columns)
        y += kernel[i, j, 0] * phases[:, vertical, i % s, horizontal, j % s]
    return y

  def _padding(self, size: int) -> tuple[int, int, int]:
    """Returns the size of the output, and the padding before and behind the input."""
    outputs = -(-size // self.stride)
    padded = (outputs + (self.kernel - 1) // self.stride) * self.stride
    before = max((outputs - 1) * self.stride + self.kernel - size, 0) // 2
    return outputs, before, padded - size - before


class Block(nn.Module):
  """MBConv without squeeze-and-excitation: expand, depthwise, project.

  The input is added where shapes allow.
  """

  kernel: int
  stride: int
  expansion: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = x
    channels = x.shape[-1]
    if self.expansion > 1:
      y = nn.relu6(nn.Dense(channels * self.expansion, dtype=self.dtype, name='expand')(y))
    y = nn.relu6(Depthwise(self.kernel, self.stride, self.dtype, name='depthwise')(y))
    y = nn.Dense(self.width, dtype=self.dtype, name='project')(y)
    return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """Pictures to a grid of features (Tan & Le 2019; Lite: ReLU6, no squeeze-and-excitation).

  Batch normalisation is folded into the convolutions when weights are loaded: each is a kernel and
  a bias, nothing is mutable, training and evaluation compute the same, and fine-tuning moves the
  folded weights. 1x1 convolutions are dense layers on C.

  Attributes:
    stages: the table of blocks, as LITE0.
    stem: channels of the first convolution.
    head: channels of the last, and of the output.
    dtype: of the computation; parameters are float32.
  """

  stages: tuple[tuple[int, ...], ...] = LITE0
  stem: int = 32
  head: int = 1280
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """Returns the grid [B, H/32, W/32, 1280], sizes rounded up: the head before pooling.

    Args:
      images: [B, H, W, 3], normalised as in mmlm/pretrained/efficientnet.py.
    """
    stem = nn.Conv(self.stem, (3, 3), strides=2, padding='SAME', dtype=self.dtype, name='stem_conv')
    x = nn.relu6(stem(images))
    number = 0
    for repeats, kernel, stride, expansion, width in self.stages:
      for i in range(repeats):
        block_stride = stride if i == 0 else 1
        name = f'block{number:02d}'
        x = Block(kernel, block_stride, expansion, width, self.dtype, name=name)(x)
        number += 1
    return nn.relu6(nn.Dense(self.head, dtype=self.dtype, name='head_conv')(x))
