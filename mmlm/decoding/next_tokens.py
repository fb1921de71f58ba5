"""Choice of the next tokens of each beam from its logits: allowed tokens, the best of them, draws.

Axes: R beams, V vocabulary, C candidates of a beam.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from mmlm.decoding.search_options import SearchOptions


def is_any(tokens: Array, ids: Sequence[int]) -> Array:
  """Returns bools of the shape of `tokens`: where one of `ids` stands."""
  return functools.reduce(operator.or_, [tokens == i for i in ids])


def best_candidates(
  logits: Array,
  k: int,
  lengths: Array,
  options: SearchOptions,
) -> tuple[Array, Array]:
  """Returns the k best allowed logits of each beam, best first, and their tokens: both [R, C].

  With k = 0 they are all logits, unsorted.
  """
  forbidden = {options.pad_id, options.bos_id} - set(options.eos_ids)
  vocabulary = logits.shape[1]
  if k == 0 or k >= vocabulary:
    values = logits
    ids = jnp.broadcast_to(jnp.arange(vocabulary), logits.shape)
  else:
    # Fetching the tokens that may be forbidden, too, is cheaper than masking the vocabulary.
    spare = len(forbidden) + len(options.eos_ids)
    values, ids = top_k(logits, min(k + spare, vocabulary))
  too_short = lengths[:, None] + 1 < options.min_length
  banned = is_any(ids, options.eos_ids) & too_short
  for token in forbidden:
    banned |= ids == token
  values = jnp.where(banned, -jnp.inf, values)
  if k == 0:
    return values, ids
  values, order = lax.top_k(values, min(k, vocabulary))
  return values, jnp.take_along_axis(ids, order, 1)


def top_k(
  x: Array,
  k: int,
  block: int = 32,
) -> tuple[Array, Array]:
  """Returns `lax.top_k` of [R, V]; ties go to the lower index too.

  On the CPU the maxima of blocks are ranked first. Then only the k best blocks, and the tail that
  fills no block, are searched: twice as fast.
  """
  size, vocabulary = x.shape
  in_blocks = vocabulary - vocabulary % block
  if jax.default_backend() != 'cpu' or in_blocks < 2 * k * block:
    return lax.top_k(x, k)
  maxima = (
    x[:, :in_blocks]
    .reshape(
      size,
      -1,
      block,
    )
    .max(-1)
  )  # [R, V // block]
  best_blocks = lax.top_k(maxima, k)[1]  # [R, k]
  # In order of index, or equal values would be ranked by the maximum of their block.
  indices = jnp.sort(best_blocks)[..., None] * block + jnp.arange(block)  # [R, k, block]
  indices = indices.reshape(size, -1)
  tail = jnp.broadcast_to(jnp.arange(in_blocks, vocabulary), (size, vocabulary - in_blocks))
  indices = jnp.concatenate([indices, tail], 1)
  searched = jnp.take_along_axis(x, indices, 1, mode='promise_in_bounds')
  values, ranks = lax.top_k(searched, k)
  return values, jnp.take_along_axis(indices, ranks, 1)


def nucleus(logits: Array, top_p: float) -> Array:
  """Returns [R, C] with -inf outside the smallest set of likely entries that has the mass top_p.

  Equal entries are in it together. The border is found by bisection: sorting takes 20 times as long
  on the CPU.
  """
  top = logits.max(-1, keepdims=True)
  mass = jax.nn.softmax(logits, -1)

  def halve(_: Array, bounds: tuple) -> tuple:
    # The mass of entries at or above `low` reaches top_p, of those at or above `high` it does not.
    low, high = bounds
    middle = (low + high) / 2
    reaches = (
      jnp.where(logits >= middle, mass, 0).sum(
        -1,
        keepdims=True,
      )
      >= top_p
    )
    return jnp.where(reaches, middle, low), jnp.where(reaches, high, middle)

  low, _ = lax.fori_loop(0, 40, halve, (top - 100, top + 1))
  return jnp.where(logits >= low, logits, -jnp.inf)


def draw(
  logits: Array,
  lengths: Array,
  options: SearchOptions,
  keys: Array | None = None,
  temperature: Any = None,
) -> tuple[Array, Array]:
  """Returns the most likely token of each beam, or one drawn, and its logit: both [R].

  Args:
    logits: [R, V] float32.
    lengths: [R], how many tokens each beam has generated: each length draws anew.
    keys: [R], to draw with; None takes the most likely token.
    temperature: one for all, or [R, 1].
  """
  number = 1 if keys is None else options.top_k
  values, ids = best_candidates(logits, number, lengths, options)  # [R, C]
  if keys is None:
    choice = jnp.zeros((len(logits), 1), jnp.int32)
  else:
    scaled = values / temperature
    if options.top_p < 1:
      scaled = nucleus(scaled, options.top_p)
    step_keys = jax.vmap(jax.random.fold_in)(keys, lengths)
    choice = jax.vmap(jax.random.categorical)(step_keys, scaled)[:, None]
  tokens = jnp.take_along_axis(ids, choice, 1)[:, 0]
  return tokens, jnp.take_along_axis(values, choice, 1)[:, 0]


def keys_of_beams(
  rng: Array | None,
  batch: int,
  beams: int,
) -> Array:
  """Returns a key for each beam [R]."""
  if rng is None:
    rng = jax.random.key(0)
  fold_in_each = jax.vmap(jax.random.fold_in, (None, 0))  # one key, many numbers
  if rng.ndim:
    keys = rng
  else:
    keys = fold_in_each(rng, jnp.arange(batch))
  return jax.vmap(fold_in_each, (0, None))(
    keys,
    jnp.arange(beams),
  ).reshape(-1)
