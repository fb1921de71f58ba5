"""Whisper's encoder (Radford et al. 2022, 2.2). Its decoder is `TransformerDecoder`.

Its pretrained weights are read by mmlm/pretrained/whisper.py.

Axes: B batch, S frames (100 a second), M mel bands, D width of the model, W width of Whisper.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmlm.models.encoders.encoder import Encoder
from mmlm.models.layers import ACTIVATIONS, Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.errors import UserError
from mmlm.utils.options import option


def sinusoids(length: int, dim: int) -> np.ndarray:
  """Returns Whisper's position embeddings [length, dim]: sines, then cosines.

  Wavelengths go from 2 pi to 10000 times that; unlike Vaswani et al.'s they reach the last one.
  """
  half = dim // 2
  exponents = np.arange(half) / max(1, half - 1)
  positions = np.arange(length)[:, None]
  angles = positions / 10000**exponents
  table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  return table.astype(np.float32)


class Convolution(nn.Module):
  """A convolution over three frames and GELU, as one matrix product: fast on every backend.

  [B, S, C] -> [B, S / stride, D].
  """

  dim: int
  stride: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    length = x.shape[1]
    padded = jnp.pad(x, [(0, 0), (1, 1), (0, 0)])
    shifted = [padded[:, i : i + length : self.stride] for i in range(3)]
    neighbours = jnp.concatenate(shifted, -1)  # [B, S / stride, 3 C]
    x = nn.Dense(self.dim, dtype=self.dtype, name='kernels')(neighbours)
    return ACTIVATIONS['gelu_exact'](x)


class WhisperEncoder(WithDeepTransformer, Encoder, kw_only=True):
  """Log-mel frames [B, S, M] with or without a mask -> [B, S / 2, D].

  The pretrained weights were learned on 30 seconds padded with silence; with a mask padding is
  ignored.
  """

  reads_features: ClassVar[bool] = True
  family: ClassVar[str] = 'whisper'

  width: int = option(80, 'mel bands')
  pretrained: str = option('', "weights to start from, whose sizes must match; '' = random")
  hidden: int = option(512, 'width of Whisper, W')
  layers: int = 6
  heads: int = 8
  max_positions: int = 3000
  activation: str = 'gelu_exact'
  pre_norm: bool = True
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self,
    frames: Array,
    mask: Array | None = None,
    train: bool = False,
  ) -> Sequence:
    if frames.shape[1] > self.max_positions:
      raise UserError(
        f'{frames.shape[1]} frames of sound: a whisper encoder reads {self.max_positions} '
        '(max_positions) at most. Set data.max_length.'
      )
    x = self._convolved(frames.astype(self.dtype), mask)  # [B, S / 2, W]
    x = x + self._positions(x.shape[1]).astype(x.dtype)
    x = Dropout(self.dropout)(x, train)
    if mask is not None:
      mask = mask[:, ::2]
    x = self.stack('transformer')(x, mask, train=train)
    if self.hidden != self.dim:
      x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    return Sequence(x, mask)  # pyright: ignore[reportArgumentType] None = no padding

  def _convolved(self, x: Array, mask: Array | None) -> Array:
    for number, stride in ((1, 1), (2, 2)):
      if mask is not None:  # masked frames are zero, as padding is
        x = jnp.where(mask[..., None], x, 0)
      x = Convolution(self.hidden, stride, self.dtype, name=f'convolution_{number}')(x)
    return x

  def _positions(self, length: int) -> Array:
    def init(key: Array) -> Array:
      return jnp.asarray(sinusoids(self.max_positions // 2, self.hidden))

    return self.param('positions', init)[:length]
