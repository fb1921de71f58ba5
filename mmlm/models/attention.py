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
  """[B, T, H, E], [B, G, S, E], [B, G, S, E] -> [B, T, H, E]; mask [B, S] or [B, T, S], True where a key may be seen.

  Keys and values come with their heads first, so that a cache is read as it lies. On a GPU half precision goes through cuDNN's
  fused kernel where its shape allows it, the rest through `jax.nn`; on a CPU two batched products over [B G] are faster.
  """
  if mask is not None and mask.ndim == 2:
    mask = mask[:, None]  # [B, 1, S]
  if jax.default_backend() == 'cpu':
    return _batched_products(query, key, value, mask, causal)
  fused = jax.default_backend() == 'gpu' and query.dtype.itemsize == 2 and query.shape[-1] in (32, 64, 96, 128)
  return jax.nn.dot_product_attention(
    query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask=None if mask is None else mask[:, None], is_causal=causal,
    implementation='cudnn' if fused else None,
  )  # fmt: skip


def _batched_products(query, key, value, mask, causal):
  batch, queries, heads, size = query.shape
  groups, keys = key.shape[1:3]
  query = (query * size**-0.5).transpose(0, 2, 1, 3).reshape(batch, groups, -1, size)  # [B, G, (H/G) T, E]
  scores = jnp.einsum('bgte,bgse->bgts', query, key, preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, heads, queries, keys)
  if causal:
    seen = jnp.tril(jnp.ones((1, queries, keys), bool))
    mask = seen if mask is None else seen & mask
  if mask is not None:
    scores = jnp.where(mask[:, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype).reshape(batch, groups, -1, keys)
  out = jnp.einsum('bgts,bgse->bgte', weights, value)
  return out.reshape(batch, heads, queries, size).swapaxes(1, 2)


class MultiHeadAttention(nn.Module):
  """Self-attention, or attention to a memory. `kv_heads` below `heads` groups them (Ainslie et al. 2023).

  With a `DecodeStep` the query is one token a row; keys and values of the past stand in the collection 'cache' [R, G, length, E],
  those of the memory in the collection 'memory' [B, G, S, E], computed when that collection is mutable. Rows that share an
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
    heads_first = lambda name, y: dense(groups, name)(y).swapaxes(1, 2)  # [B, S, D] -> [B, G, S, E]
    if memory is not None:
      project = lambda: (heads_first('key', memory), heads_first('value', memory))
      key, value = project() if step is None else self.variable('memory', 'key_value', project).value
      folded = query.reshape(key.shape[0], -1, *query.shape[2:])  # [R, 1, H, E] -> [B, K, H, E]
      out = dot_product_attention(folded, key, value, mask).reshape(query.shape)
    else:
      key, value = heads_first('key', x), heads_first('value', x)
      if self.rotary:
        positions = jnp.arange(x.shape[1]) if step is None else step.index[None]
        query, key = rotate(query, positions), rotate(key.swapaxes(1, 2), positions).swapaxes(1, 2)
      if step is not None:
        key, value, mask = self._past(key, value, step)
      out = dot_product_attention(query, key, value, mask, causal and step is None)
    return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name='out')(out)

  def _past(self, key, value, step):
    """Writes this step's [R, G, 1, E] -> keys and values of all positions, and which of them are past."""
    rows, groups, _, size = key.shape
    past = [self.variable('cache', f'past_{n}', jnp.zeros, (rows, groups, step.length, size), key.dtype) for n in ('key', 'value')]
    for stored, new in zip(past, (key, value)):
      stored.value = jax.lax.dynamic_update_slice(stored.value, new, (0, 0, step.index, 0))
    return *(stored.value for stored in past), jnp.broadcast_to(jnp.arange(step.length) <= step.index, (rows, step.length))
