"""Encoders of pictures: ViT, and the feature grid of an EfficientNet-Lite0.

Axes: B batch, H height, W width, C channels, S sequence, D width of the model.
"""

from typing import ClassVar

import flax.linen as nn
from jax import Array

from mmlm.models.embeddings import PatchEmbedding, Positions
from mmlm.models.encoders.convnet import EfficientNetLite0
from mmlm.models.encoders.encoder import Encoder, presence_mask
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer, WithTransformer
from mmlm.utils.options import FRACTION, option


class VisionTransformer(WithDeepTransformer, Encoder):
  """ViT (Dosovitskiy et al. 2021) without a class token: pictures [B, H, W, C] -> [B, S, D].

  `stem`: convolutions of stride 2 before the patches (Xiao et al. 2021); patches are then cut from
  their output.
  """

  reads_features: ClassVar[bool] = False

  layers: int = 6
  patch: int = 16
  stem: tuple = option((), 'channels of 3x3 convolutions of stride 2, e.g. (32, 64)')

  @nn.compact
  def __call__(
    self,
    images: Array,
    mask: Array | None = None,
    train: bool = False,
  ) -> Sequence:
    x = images.astype(self.dtype)
    for i, channels in enumerate(self.stem):
      convolution = nn.Conv(channels, (3, 3), strides=2, dtype=self.dtype, name=f'stem_{i}')
      norm = nn.LayerNorm(dtype=self.dtype, name=f'stem_norm_{i}')
      x = nn.gelu(norm(convolution(x)))
    x = PatchEmbedding(self.patch, self.dim, self.dtype, name='patches')(x)  # [B, S, D]
    x = Positions(self.positions, x.shape[1], name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    mask = presence_mask(mask, x)
    x = self.stack('transformer')(x, mask, train=train)
    return Sequence(x, mask)


class EfficientNetGrid(WithTransformer, Encoder):
  """The grid of an EfficientNet-Lite0 with ImageNet weights, projected to [B, S, D].

  Frozen, the network is no part of this module: its input is the grid [B, S, C], which is computed
  before the train step. Not frozen, its input is pictures [B, H, W, 3] and the network is trained.
  """

  reads_features: ClassVar[bool] = False
  family: ClassVar[str] = 'efficientnet_lite0'
  backbone: ClassVar[type[nn.Module] | None] = EfficientNetLite0

  layers: int = option(0, 'Transformer blocks after the projection')
  frozen: bool = True
  cache: bool = option(True, 'grids of a frozen network are computed once and kept on disk')
  grid_dropout: float = option(
    0.0, 'of values of the grid, before the projection', limits=FRACTION, traced=True
  )

  @nn.compact
  def __call__(
    self,
    images: Array,
    mask: Array | None = None,
    train: bool = False,
  ) -> Sequence:
    x = images
    if x.ndim == 4:
      grid = EfficientNetLite0(dtype=self.dtype, name='backbone')(x)
      x = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    x = Dropout(self.grid_dropout)(x.astype(self.dtype), train)
    x = nn.LayerNorm(dtype=self.dtype, name='grid_norm')(x)
    x = nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)
    x = Positions(self.positions, x.shape[1], name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    mask = presence_mask(mask, x)
    if self.layers:
      x = self.stack('transformer')(x, mask, train=train)
    else:
      x = nn.LayerNorm(dtype=self.dtype, name='norm')(x)
    return Sequence(x, mask)
