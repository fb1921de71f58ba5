"""Decoding with a cache: a model's `step` method as the step function of decoding/search.py.

Axes: B examples, K beams an example, R = B K, L positions of the cache.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmlm.models.attention import DecodeStep
from mmlm.models.sequence import Sequence

StepFunction = Callable[[Array, dict], tuple[Array, dict]]


def beam_numbers(examples: int, beams: int) -> Array:
  """Returns the number of each beam among those of its example, [R]."""
  return jnp.arange(examples * beams, dtype=jnp.int32) % beams


def new_cache(
  layers: dict | None,
  examples: int,
  beams: int,
  length: int,
  start=0,
) -> dict:
  """Returns the cache that `cached_step` reads.

  Args:
    layers: the collection 'cache' of the model, whose first `start` positions beam 0 has written.
    length: positions of the cache.
  """
  numbers = beam_numbers(examples, beams)[:, None]
  writers = jnp.where(jnp.arange(length) < start, 0, numbers)  # [R, L]
  return {'index': jnp.asarray(start, jnp.int32), 'writers': writers, 'layers': layers}


def decode_step(cache: dict, examples: int) -> DecodeStep:
  """Returns the position of the next token."""
  writers = cache['writers']
  return DecodeStep(cache['index'], writers.reshape(examples, -1, writers.shape[-1]))


def cached_step(
  model: nn.Module,
  variables: dict,
  memory: Sequence | None,
  examples: int,
  beams: int,
) -> StepFunction:
  """Returns (tokens [R], cache) -> (logits [R, V], cache).

  Args:
    variables: of the model, with the projected memory.
  """
  numbers = beam_numbers(examples, beams)

  def step(tokens: Array, cache: dict) -> tuple[Array, dict]:
    writers = cache['writers'].at[:, cache['index']].set(numbers)
    position = decode_step(cache | {'writers': writers}, examples)
    logits, updated = model.apply(
      variables | {'cache': cache['layers']},
      tokens,
      memory,
      position,
      method='step',
      mutable=['cache'],
    )
    new = {'index': cache['index'] + 1, 'writers': writers, 'layers': updated['cache']}
    return logits, new

  return step
