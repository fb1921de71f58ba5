"""Attention: softmax(QK^T / sqrt(E)) V (Vaswani et al. 2017, eq. 1), with grouped heads and caches.

Axes: B batch, R decoding rows (B times beams), T queries, S keys, H heads, G groups of keys and values, E width of a head.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.models.embeddings import rotate


class DecodeStep(NamedTuple):
  """One step of decoding: every row stands at position `index` (a scalar array) of a cache of `length` positions."""

  index: jax.Array
  length: int


def dot_product_attention(query, key, value, mask=None, causal=False):
  """[B, T, H, E], [B, S, G, E], [B, S, G, E] -> [B, T, H, E]; mask [B, S] or [B, T, S], True where a key may be seen.

  On a GPU half precision goes through cuDNN's fused kernel where its shape allows it, the rest through `jax.nn`. On a CPU two
  batched products over [B G] are faster than the einsums of `jax.nn`.
  """
  if mask is not None and mask.ndim == 2:
    mask = mask[:, None]  # [B, 1, S]
  if jax.default_backend() == 'cpu':
    return _batched_products(query, key, value, mask, causal)
  fused = jax.default_backend() == 'gpu' and query.dtype.itemsize == 2 and query.shape[-1] in (32, 64, 96, 128)
  mask = None if mask is None else mask[:, None]
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask, is_causal=causal, implementation='cudnn' if fused else None
  )


def _batched_products(query, key, value, mask, causal):
  batch, queries, heads, size = query.shape
  keys, groups = key.shape[1:3]
  members = heads // groups
  query = query.reshape(batch, queries, groups, members, size).transpose(0, 2, 3, 1, 4)  # [B, G, M, T, E]
  query = (query * size**-0.5).reshape(batch * groups, members * queries, size)
  key, value = (x.transpose(0, 2, 1, 3).reshape(batch * groups, keys, size) for x in (key, value))
  scores = jnp.matmul(query, key.swapaxes(1, 2), preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, groups * members, queries, keys)
  if causal:
    seen = jnp.tril(jnp.ones((1, queries, keys), bool))
    mask = seen if mask is None else seen & mask
  if mask is not None:
    scores = jnp.where(mask[:, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  out = jnp.matmul(weights.reshape(batch * groups, members * queries, keys), value)
  out = out.reshape(batch, groups, members, queries, size).transpose(0, 3, 1, 2, 4)
  return out.reshape(batch, queries, heads, size)


class MultiHeadAttention(nn.Module):
  """Self-attention, or attention to a memory. `kv_heads` below `heads` groups them (Ainslie et al. 2023).

  With a `DecodeStep` the query is one token a row; keys and values of the past stand in the collection 'cache' [R, length, G, E],
  those of the memory in the collection 'memory' [B, S, G, E], computed when that collection is mutable. Rows that share an
  example (beams) read the same memory: it is never copied.
  """

  heads: int
  kv_heads: int = 0
  rotary: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, memory=None, mask=None, causal=False, step: DecodeStep | None = None):
    width = x.shape[-1]
    size = width // self.heads
    groups = self.kv_heads or self.heads
    dense = lambda heads, name: nn.DenseGeneral((heads, size), dtype=self.dtype, name=name)
    query = dense(self.heads, 'query')(x)  # [B, T, H, E]
    if memory is None and step is None:
      key, value = dense(groups, 'key')(x), dense(groups, 'value')(x)
      if self.rotary:
        positions = jnp.arange(x.shape[1])
        query, key = rotate(query, positions), rotate(key, positions)
      out = dot_product_attention(query, key, value, mask, causal)
    elif memory is None:
      out = self._attend_cache(query, dense(groups, 'key')(x), dense(groups, 'value')(x), step)
    else:
      key, value = self._memory(memory, dense, groups, step)
      rows = query.shape
      folded = query.reshape(key.shape[0], -1, *rows[2:])  # [R, 1, H, E] -> [B, K, H, E]
      out = dot_product_attention(folded, key, value, mask).reshape(rows)
    return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name='out')(out)

  def _attend_cache(self, query, key, value, step):
    if self.rotary:
      position = step.index[None]
      query, key = rotate(query, position), rotate(key, position)
    shape = (key.shape[0], step.length, *key.shape[2:])
    past_key = self.variable('cache', 'past_key', jnp.zeros, shape, key.dtype)
    past_value = self.variable('cache', 'past_value', jnp.zeros, shape, value.dtype)
    start = (0, step.index, 0, 0)
    past_key.value = jax.lax.dynamic_update_slice(past_key.value, key, start)
    past_value.value = jax.lax.dynamic_update_slice(past_value.value, value, start)
    seen = jnp.broadcast_to(jnp.arange(step.length) <= step.index, (key.shape[0], step.length))
    return dot_product_attention(query, past_key.value, past_value.value, seen)

  def _memory(self, memory, dense, groups, step):
    project = lambda: (dense(groups, 'key')(memory), dense(groups, 'value')(memory))
    if step is None:
      return project()
    stored = self.variable('memory', 'key_value', project)
    return stored.value
