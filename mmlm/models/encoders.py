"""One encoder a modality: (values, mask, train) -> Sequence. `ENCODERS` maps the names of configs to classes.

Axes: B batch, H height, W width, C channels, S sequence, D width of the model.
"""

import flax.linen as nn
import jax.numpy as jnp

from mmlm.models.convnet import EfficientNetLite0
from mmlm.models.embeddings import PatchEmbedding, Positions, TokenEmbedding
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import Transformer


def _whole_mask(mask, x):
  """[B] (is the modality there at all) or None -> [B, S]."""
  present = jnp.ones(x.shape[0], bool) if mask is None else mask
  return jnp.broadcast_to(present[:, None], x.shape[:2])


class VisionTransformer(nn.Module):
  """ViT (Dosovitskiy et al. 2021) without a class token: pictures [B, H, W, C] in float -> [B, S, D].

  `stem` convolutions of stride 2 before the patches (Xiao et al. 2021) see edges sooner; the patch is then cut from what they give.
  """

  dim: int
  layers: int = 6
  heads: int = 4
  patch: int = 16
  stem: tuple = ()  # channels of 3x3 convolutions of stride 2, e.g. (32, 64)
  ffn_dim: int = 0
  positions: str = 'learned'
  scan: bool = False
  remat: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask=None, train=False):
    x = x.astype(self.dtype)
    for i, channels in enumerate(self.stem):
      x = nn.Conv(channels, (3, 3), strides=2, dtype=self.dtype, name=f'stem_{i}')(x)
      x = nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f'stem_norm_{i}')(x))
    x = PatchEmbedding(self.patch, self.dim, self.dtype, name='patches')(x)  # [B, S, D]
    x = Positions(self.positions, x.shape[1], name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    mask = _whole_mask(mask, x)
    block = dict(heads=self.heads, ffn_dim=self.ffn_dim, dropout=self.dropout, dtype=self.dtype)
    x = Transformer(self.layers, block, self.scan, self.remat, name='transformer')(x, mask, train=train)
    return Sequence(x, mask)


class EfficientNetGrid(nn.Module):
  """The grid of an EfficientNet-Lite0 with ImageNet weights, projected to [B, S, D]; `layers` blocks may follow.

  Frozen, the network is no part of this module: its input is the grid [B, S, C], computed before the train step and kept on disk
  when `cache` is set. Not frozen, its input is pictures [B, H, W, 3] and the network trains with the rest.
  """

  dim: int
  frozen: bool = True
  cache: bool = True
  layers: int = 0
  heads: int = 4
  grid_dropout: float = 0.0  # of whole values of the grid, before the projection
  positions: str = 'learned'
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask=None, train=False):
    if x.ndim == 4:
      grid = EfficientNetLite0(dtype=self.dtype, name='backbone')(x)
      x = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    x = Dropout(self.grid_dropout)(x.astype(self.dtype), train)
    x = nn.LayerNorm(dtype=self.dtype, name='grid_norm')(x)
    x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    x = Positions(self.positions, x.shape[1], name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    mask = _whole_mask(mask, x)
    if self.layers:
      block = dict(heads=self.heads, dropout=self.dropout, dtype=self.dtype)
      x = Transformer(self.layers, block, name='transformer')(x, mask, train=train)
    else:
      x = nn.LayerNorm(dtype=self.dtype, name='norm')(x)
    return Sequence(x, mask)


class TextEncoder(nn.Module):
  """Tokens [B, S] with their mask -> [B, S, D]."""

  dim: int
  vocab_size: int
  max_length: int
  layers: int = 4
  heads: int = 4
  ffn_dim: int = 0
  activation: str = 'gelu'
  pre_norm: bool = True
  positions: str = 'sinusoidal'
  scan: bool = False
  remat: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, mask, train=False):
    x = TokenEmbedding(self.vocab_size, self.dim, self.dtype, name='tokens')(x)
    x = Positions(self.positions, self.max_length, name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    block = dict(
      heads=self.heads, ffn_dim=self.ffn_dim, activation=self.activation, pre_norm=self.pre_norm,
      rotary=self.positions == 'rotary', dropout=self.dropout, dtype=self.dtype,
    )  # fmt: skip
    x = Transformer(self.layers, block, self.scan, self.remat, name='transformer')(x, mask, train=train)
    return Sequence(x, mask)


ENCODERS = {'vit': VisionTransformer, 'efficientnet_lite0': EfficientNetGrid, 'text_transformer': TextEncoder}
