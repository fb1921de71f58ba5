"""The embedding layer: tokens (tied or not), positions (learned, sinusoidal, rotary), picture patches.

Axes: B batch, T time, S sequence, D width, H heads, E width of a head, V vocabulary.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmlm.utils.errors import UserError

POSITIONS = ('learned', 'sinusoidal', 'rotary', 'none')


def sinusoidal_table(length: int, dim: int) -> np.ndarray:
  """Sinusoids [length, dim]: sines in the first half, cosines in the second (Vaswani et al. 2017, 3.5)."""
  angles = np.arange(length)[:, None] / 10000 ** (np.arange(dim // 2) / (dim // 2))
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def rotate(x, positions):
  """Rotary embedding (Su et al. 2021, eq. 34) of x [B, T, H, E] at `positions` [T]; E is even."""
  half = x.shape[-1] // 2
  angles = positions[:, None] / 10000 ** (jnp.arange(half) / half)  # [T, E/2]
  sin = jnp.sin(angles)[:, None].astype(x.dtype)
  cos = jnp.cos(angles)[:, None].astype(x.dtype)
  a = x[..., :half]
  b = x[..., half:]
  return jnp.concatenate(
    [a * cos - b * sin, b * cos + a * sin],
    axis=-1,
  )


class Positions(nn.Module):
  """Adds positions to x [B, T, D]. 'rotary' and 'none' add nothing: rotary acts inside attention."""

  kind: str
  max_length: int

  @nn.compact
  def __call__(self, x, start=0):
    if self.kind not in POSITIONS:
      raise UserError(f'positions={self.kind!r}: choose one of {POSITIONS}.')
    if self.kind in ('rotary', 'none'):
      return x
    shape = (self.max_length, x.shape[-1])

    def learned():
      return self.param('positions', nn.initializers.normal(0.02), shape)

    if self.kind == 'learned':
      table = learned()
    else:
      table = jnp.asarray(sinusoidal_table(*shape))
    rows = jnp.take(table, start + jnp.arange(x.shape[1]), axis=0, mode='clip')
    return x + rows.astype(x.dtype)


class TokenEmbedding(nn.Module):
  """Tokens [B, T] -> [B, T, D]; `logits` uses the same table when the output is tied (Press & Wolf 2017).

  The table has standard deviation D^-1/2 and the input is scaled by D^1/2 (Vaswani et al. 2017, 3.4), so that both ends see
  values of unit size; not `scaled`, the input is the table's row as it is (Whisper's). `biased`: logits have a bias.
  """

  vocab_size: int
  dim: int
  dtype: str = 'float32'
  scaled: bool = True
  biased: bool = False

  def setup(self):
    self.table = self.param(
      'table', nn.initializers.normal(self.dim**-0.5), (self.vocab_size, self.dim)
    )
    if self.biased:
      self.offset = self.param('bias', nn.initializers.zeros, (self.vocab_size,))

  def __call__(self, tokens):
    rows = jnp.take(self.table, tokens, axis=0).astype(self.dtype)
    if self.scaled:
      return rows * self.dim**0.5
    return rows

  def logits(self, x):
    logits = x @ self.table.T.astype(x.dtype)
    if self.biased:
      return logits + self.offset.astype(x.dtype)
    return logits

  def layer(self, x):
    """x [..., D] and the layer [V, D] whose product with it is the logits; a bias is one more column of both."""
    if not self.biased:
      return x, self.table
    return jnp.concatenate(
      [x, jnp.ones_like(x[..., :1])],
      -1,
    ), jnp.concatenate([self.table, self.offset[:, None]], 1)


class PatchEmbedding(nn.Module):
  """Pictures [B, H, W, C] -> patches [B, (H/p)(W/p), D] (Dosovitskiy et al. 2021, eq. 1)."""

  patch: int
  dim: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images):
    p, (batch, height, width, channels) = self.patch, images.shape
    rows = height // p
    columns = width // p
    # A reshape and one matrix product: faster than a strided convolution on every backend.
    x = images[:, : rows * p, : columns * p].reshape(
      batch,
      rows,
      p,
      columns,
      p,
      channels,
    )
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(
      batch,
      rows * columns,
      p * p * channels,
    )
    return nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)


class WordVectors(nn.Module):
  """Tokens [B, T] -> [B, T, D] through vectors of `width` that come from a file (pretrained/formats/vector_files.py), projected where D differs."""

  vocab_size: int
  width: int
  dim: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name='vectors')(tokens)
    if self.width == self.dim:
      return x
    return nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)


def token_embedding(part: nn.Module):
  """The embedding layer of a part that reads tokens: of word vectors, shared with another part, or its own."""
  if part.vectors:
    return WordVectors(
      part.vocab_size, part.vector_dim or part.dim, part.dim, part.dtype, name='tokens', parent=part
    )
  return part.embeddings or TokenEmbedding(
    part.vocab_size, part.dim, part.dtype, name='tokens', parent=part
  )
