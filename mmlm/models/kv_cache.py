"""Decoding with a cache: a model's `step` method as the step function of decoding/search.py.

Axes: B examples, K rows an example, R = B K, L positions of the cache.
"""

import jax.numpy as jnp

from mmlm.models.attention import DecodeStep


def own_rows(examples: int, rows: int):
  """[R]: the number of each row among those of its example."""
  return jnp.arange(examples * rows, dtype=jnp.int32) % rows


def cache_of(layers, examples: int, rows: int, length: int, start=0) -> dict:
  """The cache that `cached_step` reads: `layers` is the collection 'cache' of the model, whose first `start` positions were written by row 0."""
  own = jnp.where(jnp.arange(length) < start, 0, own_rows(examples, rows)[:, None])  # [R, L]
  return {'index': jnp.asarray(start, jnp.int32), 'writers': own, 'layers': layers}


def at(cache: dict, examples: int) -> DecodeStep:
  """Where the next token stands."""
  return DecodeStep(
    cache['index'], cache['writers'].reshape(examples, -1, cache['writers'].shape[-1])
  )


def cached_step(model, variables: dict, memory, examples: int, rows: int):
  """(tokens [R], cache) -> (logits [R, V], cache) of a model whose `variables` hold the projected memory."""
  own = own_rows(examples, rows)

  def step(tokens, cache):
    cache = {**cache, 'writers': cache['writers'].at[:, cache['index']].set(own)}
    now = {**variables, 'cache': cache['layers']}
    logits, new = model.apply(
      now, tokens, memory, at(cache, examples), method='step', mutable=['cache']
    )
    return logits, {
      'index': cache['index'] + 1,
      'writers': cache['writers'],
      'layers': new['cache'],
    }

  return step
