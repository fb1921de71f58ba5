"""Embeddings: tokens (tied or not), positions (learned, sinusoidal, rotary), picture patches.

Axes: B batch, T time, S sequence, D width, H heads, E width of a head, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmlm.utils.errors import UserError

POSITIONS = ('learned', 'sinusoidal', 'rotary', 'none')


def sinusoidal_table(length: int, dim: int) -> np.ndarray:
  """Returns sinusoids [length, dim]: sines, then cosines (Vaswani et al. 2017, 3.5)."""
  exponents = np.arange(dim // 2) / (dim // 2)
  positions = np.arange(length)[:, None]
  angles = positions / 10000**exponents
  table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  return table.astype(np.float32)


def rotate(x: Array, positions: Array) -> Array:
  """Applies rotary embeddings (Su et al. 2021, eq. 34) to queries or keys.

  Args:
    x: [B, T, H, E], E even.
    positions: [T].
  """
  half = x.shape[-1] // 2
  exponents = jnp.arange(half) / half
  angles = positions[:, None] / 10000**exponents  # [T, E/2]
  sin = jnp.sin(angles)[:, None].astype(x.dtype)
  cos = jnp.cos(angles)[:, None].astype(x.dtype)
  x1 = x[..., :half]
  x2 = x[..., half:]
  rotated = [
    x1 * cos - x2 * sin,
    x2 * cos + x1 * sin,
  ]
  return jnp.concatenate(rotated, axis=-1)


class Positions(nn.Module):
  """Adds positions to x [B, T, D].

  'rotary', which acts inside attention, and 'none' add nothing.
  """

  kind: str
  max_length: int

  @nn.compact
  def __call__(self, x: Array, start: int | Array = 0) -> Array:
    if self.kind not in POSITIONS:
      raise UserError(f'positions={self.kind!r}: choose one of {POSITIONS}.')
    if self.kind in ('rotary', 'none'):
      return x
    shape = (self.max_length, x.shape[-1])
    if self.kind == 'learned':
      table = self.param('positions', nn.initializers.normal(0.02), shape)
    else:
      table = jnp.asarray(sinusoidal_table(*shape))
    positions = start + jnp.arange(x.shape[1])
    embedded = jnp.take(table, positions, axis=0, mode='clip')
    return x + embedded.astype(x.dtype)


class TokenEmbedding(nn.Module):
  """Tokens [B, T] -> [B, T, D]; `logits` uses the same table if tied (Press & Wolf 2017).

  The table has standard deviation D^-1/2 and embeddings are scaled by D^1/2 (Vaswani et al. 2017,
  3.4), so that both ends have values of unit size. Not `scaled`, embeddings are those of the table,
  as in Whisper. `biased`: logits have a bias.
  """

  vocab_size: int
  dim: int
  dtype: str = 'float32'
  scaled: bool = True
  biased: bool = False

  def setup(self) -> None:
    init = nn.initializers.normal(self.dim**-0.5)
    self.table = self.param('table', init, (self.vocab_size, self.dim))
    if self.biased:
      self.bias = self.param('bias', nn.initializers.zeros, (self.vocab_size,))

  def __call__(self, tokens: Array) -> Array:
    embedded = jnp.take(self.table, tokens, axis=0).astype(self.dtype)
    if self.scaled:
      return embedded * self.dim**0.5
    return embedded

  def logits(self, x: Array) -> Array:
    """Returns logits [..., V] for hidden states [..., D]."""
    logits = x @ self.table.T.astype(x.dtype)
    if self.biased:
      return logits + self.bias.astype(x.dtype)
    return logits

  def layer(self, x: Array) -> tuple[Array, Array]:
    """Returns hidden states [..., D] and the layer [V, D] whose product is the logits.

    A bias is one more column of both.
    """
    if not self.biased:
      return x, self.table
    ones = jnp.ones_like(x[..., :1])
    with_bias = jnp.concatenate([self.table, self.bias[:, None]], 1)
    return jnp.concatenate([x, ones], -1), with_bias


class PatchEmbedding(nn.Module):
  """Pictures [B, H, W, C] -> patches [B, (H/p)(W/p), D] (Dosovitskiy et al. 2021, eq. 1)."""

  patch: int
  dim: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images: Array) -> Array:
    p = self.patch
    batch_size, height, width, channels = images.shape
    rows = height // p
    columns = width // p
    # A reshape and one matrix product: faster than a strided convolution on every backend.
    cropped = images[:, : rows * p, : columns * p]
    x = cropped.reshape(batch_size, rows, p, columns, p, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch_size, rows * columns, p * p * channels)
    return nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)


class WordVectors(nn.Module):
  """Tokens [B, T] -> [B, T, D] through vectors from a file, projected if their width is not D."""

  vocab_size: int
  width: int
  dim: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name='vectors')(tokens)
    if self.width == self.dim:
      return x
    return nn.Dense(self.dim, dtype=self.dtype, name='projection')(x)


def token_embedding(part: Any) -> nn.Module:
  """Builds the embedding layer of a part that reads tokens.

  Args:
    part: a module with the fields `vectors`, `vector_dim`, `embeddings`, `vocab_size`, `dim` and
      `dtype`: it embeds by word vectors, by a table shared with another part, or by its own.
  """
  if part.vectors:
    width = part.vector_dim or part.dim
    return WordVectors(part.vocab_size, width, part.dim, part.dtype, name='tokens', parent=part)
  if part.embeddings:
    return part.embeddings
  return TokenEmbedding(part.vocab_size, part.dim, part.dtype, name='tokens', parent=part)
