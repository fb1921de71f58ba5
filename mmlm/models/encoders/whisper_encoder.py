"""Whisper's encoder (Radford et al. 2022, 2.2), whose weights come from a file (pretrained/whisper.py). Its decoder is `TransformerDecoder`.

Axes: B batch, S frames (100 a second), M mel bands, D width of the model, W width of Whisper.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmlm.models.layers import ACTIVATIONS, Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer
from mmlm.utils.errors import UserError


def sinusoids(length: int, dim: int) -> np.ndarray:
  """[length, dim]: sines, then cosines, of wavelengths from 2 pi to 10000 times that; the last one is reached, which Vaswani's never is."""
  angles = np.arange(length)[:, None] / 10000 ** (
    np.arange(dim // 2)
    / max(
      1,
      dim // 2 - 1,
    )
  )
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Convolution(nn.Module):
  """[B, S, C] -> [B, S / stride, D] over three neighbours and GELU: one matrix product, which every backend does well."""

  dim: int
  stride: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    padded = jnp.pad(x, [(0, 0), (1, 1), (0, 0)])
    neighbours = jnp.concatenate(
      [padded[:, i : i + x.shape[1] : self.stride] for i in range(3)], -1
    )  # [B, S / stride, 3 C]
    return ACTIVATIONS['gelu_exact'](
      nn.Dense(self.dim, dtype=self.dtype, name='kernels')(neighbours)
    )


class WhisperEncoder(WithDeepTransformer, kw_only=True):
  """Log-mel frames [B, S, M] with their mask, or none -> [B, S / 2, D].

  `width` counts the mel bands, `hidden` is W. `pretrained` names the weights to start from ('' = random); sizes must be theirs. Those
  weights were learned on 30 seconds filled up with silence; with a mask what fills a batch is not seen.
  """

  width: int = 80
  pretrained: str = ''
  hidden: int = 512
  layers: int = 6
  heads: int = 8
  max_positions: int = 3000
  activation: str = 'gelu_exact'
  pre_norm: bool = True
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x, mask=None, train=False):
    if x.shape[1] > self.max_positions:
      raise UserError(
        f'{x.shape[1]} frames of sound: a whisper encoder reads {self.max_positions} (max_positions) at most. Set data.max_length.'
      )
    x = self._convolved(x.astype(self.dtype), mask)  # [B, S / 2, W]
    table = self.param(
      'positions', lambda key: jnp.asarray(sinusoids(self.max_positions // 2, self.hidden))
    )
    x = Dropout(self.dropout)(
      x + table[: x.shape[1]].astype(x.dtype),
      train,
    )
    mask = None if mask is None else mask[:, ::2]
    x = self.stack('transformer')(x, mask, train=train)
    if self.hidden != self.dim:
      x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    return Sequence(x, mask)

  def _convolved(self, x, mask):
    for number, stride in ((1, 1), (2, 2)):
      if mask is not None:  # the frames behind the end are zero, as what lies outside is
        x = jnp.where(mask[..., None], x, 0)
      x = Convolution(self.hidden, stride, self.dtype, name=f'convolution_{number}')(x)
    return x
