"""Attention: softmax(QK^T / sqrt(E)) V (Vaswani et al. 2017, eq. 1), with grouped heads and caches.

Axes: B batch, R decoding rows (B times beams), T queries, S keys, H heads, G groups of keys and values, E width of a head.
"""

import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.models.embeddings import rotate
from mmlm.models.layers import Dropout
from mmlm.parallel import batch_shards
from mmlm.utils.traced import is_off

LONG = 1 << 20  # queries times keys from which a CPU computes one head after another


class DecodeStep(NamedTuple):
  """One step of decoding: every row stands at position `index` (a scalar array) of a cache of L positions.

  `writers` [B, K, L] says which of the K rows of its example wrote the keys and values that a row has at each position. Beams
  that change places change these numbers only: the cache itself is never reordered.
  """

  index: jax.Array
  writers: jax.Array

  def seen(self):
    """[B, K, L K]: the places of a cache that a row may see."""
    batch, rows, length = self.writers.shape
    past = (jnp.arange(length) <= self.index)[:, None]
    return ((self.writers[..., None] == jnp.arange(rows)) & past).reshape(
      batch, rows, length * rows
    )


class Prompt(NamedTuple):
  """The first T tokens of each example, read at once into a cache of `length` positions for `rows` rows an example.

  The first row of each example writes them; what stands behind the end of a shorter prompt is written again by the steps.
  """

  rows: int
  length: int


def dot_product_attention(query, key, value, mask=None, causal=False, drop=None):
  """[B, T, H, E], [B, G, E, S], [B, G, S, E] -> [B, T, H, E]; mask [B, S] or [B, T, S], True where a key may be seen.

  Keys and values come as the two products of the equation read them, so that a cache is read as it lies. On a GPU half precision
  goes through cuDNN's fused kernel where its shape allows it, the rest through `jax.nn`; on a CPU two batched products over
  [B G] are faster. `drop` is applied to the weights [B, H, T, S], which must be written out for it.
  """
  if mask is not None and mask.ndim == 2:
    mask = mask[:, None]  # [B, 1, S]
  if drop is not None or jax.default_backend() == 'cpu':
    if causal:
      seen = jnp.tril(jnp.ones((1, query.shape[1], key.shape[-1]), bool))
      mask = seen if mask is None else seen & mask
    # On a mesh examples and heads lie on several devices: none may wait for the others.
    at_once = drop is not None or query.shape[1] * key.shape[-1] < LONG or batch_shards() > 1
    if at_once:
      return _batched_products(query, key, value, mask, drop)
    return _head_by_head(query, key, value, mask)
  fused = _fused(query, key)
  if mask is not None:
    mask = mask[:, None]
    if fused:  # cuDNN wants a row for each query, and one that sees nothing would give nan: it may see all, as without cuDNN
      mask = jnp.broadcast_to(
        mask
        | ~mask.any(
          -1,
          keepdims=True,
        ),
        (*mask.shape[:2], query.shape[1], key.shape[-1]),
      )
  return jax.nn.dot_product_attention(
    query,
    key.transpose(0, 3, 1, 2),
    value.swapaxes(1, 2),
    mask=mask,
    is_causal=causal,
    implementation='cudnn' if fused else None,
  )


def _fused(query, key) -> bool:
  """Whether cuDNN's kernel and its gradient take these: half precision on Ampere or later, both lengths even."""
  half = query.dtype.itemsize == 2 and query.shape[-1] in (32, 64, 96, 128)
  if jax.default_backend() != 'gpu' or not half or query.shape[1] % 2 or key.shape[-1] % 2:
    return False
  capability = re.fullmatch(
    r'(\d+)\.\d+', str(getattr(jax.devices()[0], 'compute_capability', ''))
  )  # AMD's are no such number
  return bool(capability) and int(capability[1]) >= 8  # noqa: PLR2004


def attention_weights(query, key, mask=None):
  """[B, T, H, E], [B, G, E, S] -> what each query takes of each key [B, H, T, S], sums of 1; mask [B, 1 or T, S]."""
  batch, queries, heads, size = query.shape
  groups = key.shape[1]
  keys = key.shape[-1]
  query = (
    (query * size**-0.5).transpose(0, 2, 1, 3).reshape(batch, groups, -1, size)
  )  # [B, G, (H/G) T, E]
  scores = jnp.einsum('bgte,bges->bgts', query, key, preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, heads, queries, keys)
  if mask is not None:
    scores = jnp.where(mask[:, None], scores, -1e30)
  return jax.nn.softmax(scores, axis=-1)


def _batched_products(query, key, value, mask, drop=None):
  batch, queries, heads, size = query.shape
  groups, keys = value.shape[1:3]
  weights = attention_weights(query, key, mask).astype(value.dtype)
  weights = (weights if drop is None else drop(weights)).reshape(batch, groups, -1, keys)
  out = jnp.einsum('bgts,bgse->bgte', weights, value)
  return out.reshape(batch, heads, queries, size).swapaxes(1, 2)


def _head_by_head(query, key, value, mask):
  """The same for long sequences: the scores of one head at a time stay in the cache of the processor."""
  batch, queries, heads, size = query.shape

  def by_head(x):
    return jnp.repeat(x, heads // x.shape[1], 1).reshape(
      batch * heads,
      *x.shape[2:],
    )

  queries_of = (query * size**-0.5).swapaxes(1, 2)  # [B, H, T, E]

  def one(head):
    number, query, key, value = head
    scores = jnp.matmul(query, key, preferred_element_type=jnp.float32)  # [T, S]
    if mask is not None:
      scores = jnp.where(
        jnp.broadcast_to(mask, (batch, *mask.shape[1:]))[number // heads], scores, -1e30
      )
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return (weights.astype(value.dtype) @ value) / weights.sum(-1, keepdims=True).astype(
      value.dtype
    )

  out = jax.lax.map(
    one,
    (jnp.arange(batch * heads), *map(by_head, (queries_of, key, value))),
  )
  return out.reshape(batch, heads, queries, size).swapaxes(1, 2)


class MultiHeadAttention(nn.Module):
  """Self-attention, or attention to a memory. `kv_heads` below `heads` groups them (Ainslie et al. 2023).

  With a `DecodeStep` the query is one token a row, with a `Prompt` the first tokens of an example; keys [B, G, E, L K] and values
  [B, G, L K, E] of the past stand in the collection 'cache', those of the memory (S for L K) in the collection 'memory', computed when that
  collection is mutable. Rows that share an example (beams) read the same memory and the same past: neither is ever copied.

  Where the collection 'intermediates' is mutable, the weights of attention to a memory [B, H, T, S] stand in it. `dropout` is that of
  the weights in training (Vaswani et al.'s code has it, their paper does not name it).
  """

  heads: int
  kv_heads: int = 0
  rotary: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x,
    memory=None,
    mask=None,
    causal=False,
    step: DecodeStep | Prompt | None = None,
    train=False,
  ):
    width = x.shape[-1]
    size = width // self.heads
    groups = self.kv_heads or self.heads

    def dense(heads, name):
      return nn.DenseGeneral((heads, size), dtype=self.dtype, name=name)

    query = dense(self.heads, 'query')(x)  # [B, T, H, E]
    # [B, S, D] -> [B, S, G, E]
    keys = dense(groups, 'key')
    values = dense(groups, 'value')
    if memory is not None:

      def project():
        return (keys(memory).transpose(0, 2, 3, 1), values(memory).swapaxes(1, 2))

      key, value = (
        project() if step is None else self.variable('memory', 'key_value', project).value
      )
    else:
      key = keys(x)
      value = values(x)
      if self.rotary:
        if isinstance(step, DecodeStep):
          positions = step.index[None]
        else:
          positions = jnp.arange(x.shape[1])
        query = rotate(query, positions)
        key = rotate(key, positions)
      if isinstance(step, DecodeStep):
        key, value = (
          y.reshape(*step.writers.shape[:2], groups, size) for y in (key, value)
        )  # [B, K, G, E]
      key = key.transpose(0, 2, 3, 1)
      value = value.swapaxes(1, 2)
      if isinstance(step, DecodeStep):
        key = self._past('key', key, -1, step)
        value = self._past('value', value, -2, step)
        mask = step.seen()
        causal = False
      elif step is not None:
        self._start('key', key, -1, step)
        self._start('value', value, -2, step)
    folded = query.reshape(
      key.shape[0], -1, *query.shape[2:]
    )  # decoding: [R, 1, H, E] -> [B, K, H, E]
    if memory is not None and self.is_mutable_collection('intermediates'):
      self.sow(
        'intermediates',
        'weights',
        attention_weights(folded, key, None if mask is None else mask[:, None]),
      )
    if train and not is_off(self.dropout):

      def drop(weights):
        return Dropout(self.dropout)(weights, train)
    else:
      drop = None
    out = dot_product_attention(folded, key, value, mask, causal, drop).reshape(query.shape)
    return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name='out')(out)

  def _past(self, name, new, axis, step):
    """Writes what the K rows of this step have on `axis` -> what all L K places of the cache have."""
    past = self.variable(
      'cache', f'past_{name}', lambda: jnp.repeat(jnp.zeros_like(new), step.writers.shape[-1], axis)
    )
    past.value = jax.lax.dynamic_update_slice_in_dim(
      past.value, new, step.index * new.shape[axis], axis
    )
    return past.value

  def _start(self, name, new, axis, step: Prompt):
    """A cache that holds what the first row of each example has at its first places on `axis`."""
    empty = jnp.repeat(
      jnp.zeros_like(jax.lax.slice_in_dim(new, 0, 1, axis=axis)), step.length * step.rows, axis
    )
    first = [slice(None)] * new.ndim
    first[axis] = slice(0, new.shape[axis] * step.rows, step.rows)
    self.variable('cache', f'past_{name}', lambda: empty.at[tuple(first)].set(new))
