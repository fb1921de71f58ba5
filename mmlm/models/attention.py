"""Attention: softmax(QK^T / sqrt(E)) V (Vaswani et al. 2017, eq. 1), with grouped heads and caches.

Axes: B batch, R decoding beams (K of each example), T queries, S keys, H heads, G heads of keys and
values, E width of a head, L positions of a cache, D width.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.models.embeddings import rotate
from mmlm.models.layers import Dropout
from mmlm.parallel import batch_shards
from mmlm.utils.traced import is_off

LONG = 1 << 20  # queries times keys from which a CPU computes one head after another
MASKED = -1e30  # logit of a masked key
CUDNN_HEAD_DIMS = (32, 64, 96, 128)
AMPERE = 8  # CUDA's compute capability

DropWeights = Callable[[Array], Array]


class DecodeStep(NamedTuple):
  """One step of decoding: every beam is at position `index` (a scalar array) of a cache.

  `writers` [B, K, L] says which of the K beams of its example wrote the keys and values that a beam
  attends to at each position. When beams are reordered these numbers change; the cache never does.
  """

  index: Array
  writers: Array

  def mask(self) -> Array:
    """Returns the positions of a cache that each beam may attend to, [B, K, L K]."""
    batch_size, beams, length = self.writers.shape
    past = (jnp.arange(length) <= self.index)[:, None]
    mask = (self.writers[..., None] == jnp.arange(beams)) & past
    return mask.reshape(batch_size, beams, length * beams)


class Prompt(NamedTuple):
  """The first T tokens of each example, read at once into a cache for `beams` beams an example.

  The first beam of each example writes them. What follows a shorter prompt is overwritten by the
  decoding steps.
  """

  beams: int
  length: int  # positions of the cache


def dot_product_attention(
  query: Array,
  key: Array,
  value: Array,
  mask: Array | None = None,
  causal: bool = False,
  drop: DropWeights | None = None,
) -> Array:
  """Returns the attention [B, T, H, E] of each query.

  On a GPU half precision goes through cuDNN's fused kernel where its shape allows it, the rest
  through `jax.nn`; on a CPU two batched products over [B G] are faster.

  Args:
    query: [B, T, H, E].
    key: [B, G, E, S], and value [B, G, S, E]: as the products read them, without copying a cache.
    mask: [B, S] or [B, T, S], True where a key may be attended to.
    drop: applied to the weights [B, H, T, S], which are then written to memory.
  """
  if mask is not None and mask.ndim == 2:
    mask = mask[:, None]  # [B, 1, S]
  if drop is None and jax.default_backend() != 'cpu':
    return _library_attention(query, key, value, mask, causal)
  queries, keys = query.shape[1], key.shape[-1]
  if causal:
    causal_mask = jnp.tril(jnp.ones((1, queries, keys), bool))
    mask = causal_mask if mask is None else causal_mask & mask
  # On a mesh examples and heads are on several devices: none may wait for the others.
  at_once = drop is not None or queries * keys < LONG or batch_shards() > 1
  if at_once:
    return _batched_products(query, key, value, mask, drop)
  return _head_by_head(query, key, value, mask)


def _library_attention(
  query: Array,
  key: Array,
  value: Array,
  mask: Array | None,
  causal: bool,
) -> Array:
  """Computes attention by cuDNN's kernel or by `jax.nn`."""
  fused = _fused(query, key)
  if mask is not None:
    mask = mask[:, None]
    if fused:
      # cuDNN reads a mask for each query. One that attends to nothing would give nan: it may attend
      # to everything, as without cuDNN.
      shape = (*mask.shape[:2], query.shape[1], key.shape[-1])
      empty = ~mask.any(-1, keepdims=True)
      mask = jnp.broadcast_to(mask | empty, shape)
  return jax.nn.dot_product_attention(
    query,
    key.transpose(0, 3, 1, 2),
    value.swapaxes(1, 2),
    mask=mask,
    is_causal=causal,
    implementation='cudnn' if fused else None,
  )


def _fused(query: Array, key: Array) -> bool:
  """Whether cuDNN's kernel and its gradient support these shapes on this GPU.

  They need half precision, Ampere or later, and even lengths.
  """
  half_precision = query.dtype.itemsize == 2
  if jax.default_backend() != 'gpu' or not half_precision:
    return False
  odd_length = query.shape[1] % 2 or key.shape[-1] % 2
  if odd_length or query.shape[-1] not in CUDNN_HEAD_DIMS:
    return False
  capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
  cuda = re.fullmatch(r'(\d+)\.\d+', capability)  # AMD's has another form
  return bool(cuda) and int(cuda[1]) >= AMPERE


def attention_weights(
  query: Array,
  key: Array,
  mask: Array | None = None,
) -> Array:
  """Returns the weight of each key for each query, [B, H, T, S]; they sum to 1 over S.

  Args:
    query: [B, T, H, E].
    key: [B, G, E, S].
    mask: [B, 1 or T, S].
  """
  batch_size, queries, num_heads, head_dim = query.shape
  groups, keys = key.shape[1], key.shape[-1]
  scaled = (query * head_dim**-0.5).transpose(0, 2, 1, 3)
  grouped = scaled.reshape(batch_size, groups, -1, head_dim)  # [B, G, (H/G) T, E]
  logits = jnp.einsum('bgte,bges->bgts', grouped, key, preferred_element_type=jnp.float32)
  logits = logits.reshape(batch_size, num_heads, queries, keys)
  if mask is not None:
    logits = jnp.where(mask[:, None], logits, MASKED)
  return jax.nn.softmax(logits, axis=-1)


def _batched_products(
  query: Array,
  key: Array,
  value: Array,
  mask: Array | None,
  drop: DropWeights | None = None,
) -> Array:
  batch_size, queries, num_heads, head_dim = query.shape
  groups, keys = value.shape[1:3]
  weights = attention_weights(query, key, mask).astype(value.dtype)
  if drop is not None:
    weights = drop(weights)
  weights = weights.reshape(batch_size, groups, -1, keys)
  attended = jnp.einsum('bgts,bgse->bgte', weights, value)
  return attended.reshape(batch_size, num_heads, queries, head_dim).swapaxes(1, 2)


def _head_by_head(
  query: Array,
  key: Array,
  value: Array,
  mask: Array | None,
) -> Array:
  """Computes long sequences one head at a time, whose logits stay in the processor's cache."""
  batch_size, queries, num_heads, head_dim = query.shape

  def by_head(x: Array) -> Array:
    repeated = jnp.repeat(x, num_heads // x.shape[1], 1)
    return repeated.reshape(batch_size * num_heads, *x.shape[2:])

  scaled = (query * head_dim**-0.5).swapaxes(1, 2)  # [B, H, T, E]

  def attend(head: tuple) -> Array:
    number, query, key, value = head
    logits = jnp.matmul(query, key, preferred_element_type=jnp.float32)  # [T, S]
    if mask is not None:
      masks = jnp.broadcast_to(mask, (batch_size, *mask.shape[1:]))
      logits = jnp.where(masks[number // num_heads], logits, MASKED)
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    attended = weights.astype(value.dtype) @ value
    total = weights.sum(-1, keepdims=True)
    return attended / total.astype(value.dtype)

  numbers = jnp.arange(batch_size * num_heads)
  heads = (numbers, by_head(scaled), by_head(key), by_head(value))
  attended = jax.lax.map(attend, heads)
  return attended.reshape(batch_size, num_heads, queries, head_dim).swapaxes(1, 2)


class MultiHeadAttention(nn.Module):
  """Self-attention, or attention to a memory.

  `kv_heads` below `heads` groups them (Ainslie et al. 2023).

  With a `DecodeStep` the query is one token of each beam, with a `Prompt` the first tokens of each
  example. The keys [B, G, E, L K] and values [B, G, L K, E] of the past are in the collection
  'cache'; those of the memory (S for L K) are in the collection 'memory', computed when it is
  mutable. Beams of one example read the same memory and the same cache: neither is copied.

  Where the collection 'intermediates' is mutable, the weights of attention to a memory [B, H, T, S]
  are stored in it. `dropout` is of the weights, as in the code of Vaswani et al.
  """

  heads: int
  kv_heads: int = 0
  rotary: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x: Array,
    memory: Array | None = None,
    mask: Array | None = None,
    causal: bool = False,
    step: DecodeStep | Prompt | None = None,
    train: bool = False,
  ) -> Array:
    query = self._projection(self.heads, x, 'query')(x)  # [B, T, H, E]
    kv_heads = self.kv_heads or self.heads
    key_projection = self._projection(kv_heads, x, 'key')
    value_projection = self._projection(kv_heads, x, 'value')
    if memory is None:
      key, value = key_projection(x), value_projection(x)
      query, key, value = self._self_attended(query, key, value, step)
      if isinstance(step, DecodeStep):
        mask = step.mask()
        causal = False
    else:

      def project() -> tuple[Array, Array]:
        key = key_projection(memory).transpose(0, 2, 3, 1)
        return key, value_projection(memory).swapaxes(1, 2)

      if step is None:
        key, value = project()
      else:
        key, value = self.variable('memory', 'key_value', project).value
    # Decoding: [R, 1, H, E] -> [B, K, H, E]
    folded = query.reshape(key.shape[0], -1, *query.shape[2:])
    if memory is not None and self.is_mutable_collection('intermediates'):
      weights_mask = None if mask is None else mask[:, None]
      self.sow('intermediates', 'weights', attention_weights(folded, key, weights_mask))
    drop = self._dropout() if train and not is_off(self.dropout) else None
    attended = dot_product_attention(folded, key, value, mask, causal, drop)
    output = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), dtype=self.dtype, name='out')
    return output(attended.reshape(query.shape))

  def _projection(
    self,
    heads: int,
    x: Array,
    name: str,
  ) -> nn.DenseGeneral:
    """Builds a layer [B, S, D] -> [B, S, heads, E]."""
    head_dim = x.shape[-1] // self.heads
    return nn.DenseGeneral((heads, head_dim), dtype=self.dtype, name=name)

  def _dropout(self) -> DropWeights:
    def drop(weights: Array) -> Array:
      return Dropout(self.dropout)(weights, train=True)

    return drop

  def _self_attended(
    self,
    query: Array,
    key: Array,
    value: Array,
    step: DecodeStep | Prompt | None,
  ) -> tuple[Array, Array, Array]:
    """Rotates queries and keys, and reads and writes the cache.

    Returns the query, and the key and value as `dot_product_attention` takes them.
    """
    decoding = isinstance(step, DecodeStep)
    if self.rotary:
      positions = step.index[None] if decoding else jnp.arange(query.shape[1])
      query = rotate(query, positions)
      key = rotate(key, positions)
    if decoding:  # [R, 1, G, E] -> [B, K, G, E]
      batch_size, beams, _ = step.writers.shape
      shape = (batch_size, beams, *key.shape[2:])
      key = key.reshape(shape)
      value = value.reshape(shape)
    key = key.transpose(0, 2, 3, 1)
    value = value.swapaxes(1, 2)
    if decoding:
      key = self._append('key', key, -1, step)
      value = self._append('value', value, -2, step)
    elif step is not None:
      self._begin_cache('key', key, -1, step)
      self._begin_cache('value', value, -2, step)
    return query, key, value

  def _append(
    self,
    name: str,
    new: Array,
    axis: int,
    step: DecodeStep,
  ) -> Array:
    """Writes the K beams of this step on `axis` of a cache; returns all of its L K positions."""
    length = step.writers.shape[-1]

    def init() -> Array:
      return jnp.repeat(jnp.zeros_like(new), length, axis)

    past = self.variable('cache', f'past_{name}', init)
    start = step.index * new.shape[axis]
    past.value = jax.lax.dynamic_update_slice_in_dim(past.value, new, start, axis)
    return past.value

  def _begin_cache(
    self,
    name: str,
    new: Array,
    axis: int,
    step: Prompt,
  ) -> None:
    """Creates a cache that holds a prompt, of the first beam of each example, on `axis`."""
    one = jax.lax.slice_in_dim(new, 0, 1, axis=axis)
    empty = jnp.repeat(jnp.zeros_like(one), step.length * step.beams, axis)
    first_beams = [slice(None)] * new.ndim
    first_beams[axis] = slice(0, new.shape[axis] * step.beams, step.beams)
    self.variable('cache', f'past_{name}', lambda: empty.at[tuple(first_beams)].set(new))
