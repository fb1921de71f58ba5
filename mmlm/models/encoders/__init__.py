"""One encoder a modality: (values, mask, train) -> Sequence. `ENCODERS` maps the names of configs to classes.

Axes: B batch, H height, W width, C channels, S sequence, D width of the model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.models.embeddings import PatchEmbedding, Positions, TokenEmbedding, token_embedding
from mmlm.models.encoders.bert_encoder import BertEncoder
from mmlm.models.encoders.conformer import AudioRecurrent, AudioTransformer, Conformer
from mmlm.models.encoders.convnet import EfficientNetLite0
from mmlm.models.encoders.whisper_encoder import WhisperEncoder
from mmlm.models.layers import Dropout, Normalization
from mmlm.models.recurrent import FeatureRecurrent, RecurrentEncoder
from mmlm.models.sequence import Sequence
from mmlm.models.transformer import WithDeepTransformer, WithTransformer
from mmlm.utils.errors import UserError
from mmlm.utils.options import FRACTION, option


def _whole_mask(mask, x):
  """[B] (is the modality there at all) or None -> [B, S]."""
  if mask is None:
    present = jnp.ones(x.shape[0], bool)
  else:
    present = mask
  return jnp.broadcast_to(present[:, None], x.shape[:2])


class VisionTransformer(WithDeepTransformer):
  """ViT (Dosovitskiy et al. 2021) without a class token: pictures [B, H, W, C] in float -> [B, S, D].

  `stem` convolutions of stride 2 before the patches (Xiao et al. 2021) see edges sooner; the patch is then cut from what they give.
  """

  layers: int = 6
  patch: int = 16
  stem: tuple = ()  # channels of 3x3 convolutions of stride 2, e.g. (32, 64)

  @nn.compact
  def __call__(self, x, mask=None, train=False):
    x = x.astype(self.dtype)
    for i, channels in enumerate(self.stem):
      x = nn.Conv(
        channels,
        (3, 3),
        strides=2,
        dtype=self.dtype,
        name=f'stem_{i}',
      )(x)
      x = nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f'stem_norm_{i}')(x))
    x = PatchEmbedding(self.patch, self.dim, self.dtype, name='patches')(x)  # [B, S, D]
    x = Positions(self.positions, x.shape[1], name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    mask = _whole_mask(mask, x)
    return Sequence(self.stack('transformer')(x, mask, train=train), mask)


class EfficientNetGrid(WithTransformer):
  """The grid of an EfficientNet-Lite0 with ImageNet weights, projected to [B, S, D]; `layers` blocks may follow.

  Frozen, the network is no part of this module: its input is the grid [B, S, C], computed before the train step and kept on disk
  when `cache` is set. Not frozen, its input is pictures [B, H, W, 3] and the network trains with the rest.
  """

  layers: int = 0
  frozen: bool = True
  cache: bool = True
  grid_dropout: float = option(
    0.0, 'of whole values of the grid, before the projection', limits=FRACTION, traced=True
  )

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
      x = self.stack('transformer')(x, mask, train=train)
    else:
      x = nn.LayerNorm(dtype=self.dtype, name='norm')(x)
    return Sequence(x, mask)


class TextEncoder(WithDeepTransformer, kw_only=True):
  """Tokens [B, S] with their mask -> [B, S, D]; word `vectors` from a file may stand in the place of learned ones."""

  vocab_size: int
  max_length: int
  layers: int = 4
  activation: str = 'gelu'
  pre_norm: bool = True
  positions: str = 'sinusoidal'
  vectors: str = ''
  vector_dim: int = 0
  embeddings: TokenEmbedding | None = None  # those of another part, or its own

  @nn.compact
  def __call__(self, x, mask, train=False):
    x = token_embedding(self)(x)
    x = Positions(self.positions, self.max_length, name='positions')(x)
    x = Dropout(self.dropout)(x, train)
    return Sequence(
      self.stack('transformer', rotary=self.positions == 'rotary')(x, mask, train=train), mask
    )


class TextCnn(nn.Module):
  """Convolutions over words and their largest values: tokens [B, S] -> [B, 1, D] (Kim 2014); D values, as many of each of `windows`."""

  dim: int
  vocab_size: int
  windows: tuple = (3, 4, 5)
  vectors: str = ''
  vector_dim: int = 0
  dtype: str = 'float32'
  embeddings: TokenEmbedding | None = None

  @nn.compact
  def __call__(self, x, mask, train=False):
    if self.dim % len(self.windows):
      raise UserError(
        f'model.dim={self.dim} does not divide by the {len(self.windows)} windows {self.windows} of text_cnn.'
      )
    # Words as they are, not projected: this is where static vectors differ from learned ones.
    table = nn.Embed(
      self.vocab_size,
      self.vector_dim or self.dim,
      dtype=self.dtype,
      name='tokens',
      embedding_init=_KIM,
    )
    x = jnp.where(mask[..., None], table(x), 0)
    found = []
    for window in self.windows:
      y = nn.relu(
        nn.Conv(
          self.dim // len(self.windows), (window,), dtype=self.dtype, name=f'window_{window}'
        )(x)
      )
      found.append(
        jnp.where(mask[..., None], y, 0).max(1, keepdims=True)
      )  # what relu gives is never below 0
    return Sequence(jnp.concatenate(found, -1), mask.any(1, keepdims=True))


def _KIM(key, shape, dtype=jnp.float32):
  return jax.random.uniform(key, shape, dtype, -0.25, 0.25)


class FeatureEncoder(WithDeepTransformer, kw_only=True):
  """Features [B, S, C] with their mask -> [B, S, D]; C is `width`. `layers` Transformer blocks may follow.

  `normalize`: features are given a mean of 0 and a deviation of 1 over the training examples first, so that those of large numbers do not
  hide the others.
  """

  width: int = 0
  normalize: bool = False
  layers: int = 0
  max_positions: int = 512
  positions: str = 'none'

  @nn.compact
  def __call__(self, x, mask, train=False):
    x = x.astype(self.dtype)
    if self.normalize:
      x = Normalization(name='normalization')(x)
    x = nn.LayerNorm(dtype=self.dtype, name='feature_norm')(x)
    x = Dropout(self.dropout)(nn.Dense(self.dim, dtype=self.dtype, name='projection')(x), train)
    x = Positions(self.positions, self.max_positions, name='positions')(x)
    if self.layers:
      x = self.stack('transformer')(x, mask, train=train)
    return Sequence(jnp.where(mask[..., None], x, 0), mask)


ENCODERS = {
  'bert': BertEncoder,
  'text_cnn': TextCnn,
  'features': FeatureEncoder,
  'feature_recurrent': FeatureRecurrent,
  'vit': VisionTransformer,
  'efficientnet_lite0': EfficientNetGrid,
  'text_transformer': TextEncoder,
  'text_recurrent': RecurrentEncoder,
  'audio_transformer': AudioTransformer,
  'conformer': Conformer,
  'audio_recurrent': AudioRecurrent,
  'whisper': WhisperEncoder,
}
# They read rows of `width` features: of sounds, or computed elsewhere.
FEATURE_ENCODERS = (
  'features',
  'feature_recurrent',
  'audio_transformer',
  'conformer',
  'audio_recurrent',
  'whisper',
)
