"""EfficientNet-Lite0 as an encoder of pictures.

Axes: B pictures, H height, W width (pixels, or cells after a stride), C channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Tan & Le 2019, Table 1 (B0), less the stem and the head. A stage is (repeats, kernel, stride, expansion, width): so
# many blocks, of which the first has the stride.
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

  [B, H, W, C] -> [B, H/s, W/s, C]. It is a sum of k * k shifted products: with XLA's grouped convolution the
  whole network is several times slower on a CPU. Cells are first split into their s * s phases, because a
  strided slice has a slow gradient.
  """

  kernel: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    k, s, (batch, height, width, channels) = self.kernel, self.stride, x.shape
    kernel = self.param('kernel', nn.initializers.he_normal(in_axis=(0, 1)), (k, k, 1, channels))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    rows = -(-height // s)
    cols = -(-width // s)
    tall = rows + (k - 1) // s
    wide = cols + (k - 1) // s
    top = max((rows - 1) * s + k - height, 0) // 2
    left = max((cols - 1) * s + k - width, 0) // 2
    x = jnp.pad(
      x,
      (
        (0, 0),
        (top, tall * s - height - top),
        (left, wide * s - width - left),
        (0, 0),
      ),
    )
    x = x.reshape(batch, tall, s, wide, s, channels)
    kernel = kernel.astype(self.dtype)
    y = bias.astype(self.dtype)
    for i in range(k):
      for j in range(k):
        y += kernel[i, j, 0] * x[:, i // s : i // s + rows, i % s, j // s : j // s + cols, j % s]
    return y


class Block(nn.Module):
  """MBConv without squeeze-and-excitation: expand, depthwise, project; plus the input where shapes allow."""

  kernel: int
  stride: int
  expansion: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x
    channels = x.shape[-1]
    if self.expansion > 1:
      y = nn.relu6(nn.Dense(channels * self.expansion, dtype=self.dtype, name='expand')(y))
    y = nn.relu6(Depthwise(self.kernel, self.stride, self.dtype, name='depthwise')(y))
    y = nn.Dense(self.width, dtype=self.dtype, name='project')(y)
    return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """Pictures to a grid of features (Tan & Le 2019; Lite: ReLU6, no squeeze-and-excitation).

  `images` [B, H, W, 3], already normalised (mmlm/pretrained/efficientnet.py says how) -> [B, H/32, W/32,
  1280]: the head convolution after its ReLU6, before pooling. Sizes round up. 1x1 convolutions are dense
  layers on C.

  Batch normalisation does not exist here: it is folded into the convolutions when weights are loaded, so each
  is a kernel and a bias, nothing is mutable, training and evaluation compute the same, and fine-tuning moves
  the folded weights.

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
  def __call__(self, images: jax.Array) -> jax.Array:
    x = nn.relu6(
      nn.Conv(self.stem, (3, 3), strides=2, padding='SAME', dtype=self.dtype, name='stem_conv')(
        images
      )
    )
    blocks = []
    for repeats, kernel, stride, expansion, width in self.stages:
      for i in range(repeats):
        blocks.append((kernel, stride if i == 0 else 1, expansion, width))
    for number, block in enumerate(blocks):
      x = Block(*block, self.dtype, name=f'block{number:02d}')(x)
    return nn.relu6(nn.Dense(self.head, dtype=self.dtype, name='head_conv')(x))
